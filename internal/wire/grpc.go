package wire

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// The reasons in an ErrorInfo tell apart what shares a code with other faults.
const (
	errorDomain         = "hundredfold"
	reasonNoTenant      = "NO_TENANT"
	reasonInvalidTenant = "INVALID_TENANT"
)

// GRPCError returns err as what a gRPC handler returns, so that FromGRPC makes the same
// of it on the other side: the class and the text survive, and how long to wait. nil
// stays nil. An error that is a status already, and nothing else, keeps its code.
func GRPCError(err error) error {
	if err == nil {
		return nil
	}
	of := classOf(err)
	if of == internal {
		if s, message, ok := statusOf(err); ok {
			p := s.Proto()
			p.Message = text(message)
			return status.FromProto(p).Err()
		}
	}
	_, code := of.answers()
	s := status.New(code, text(err.Error()))
	if detail := detailOf(of, err); detail != nil {
		if detailed, fault := s.WithDetails(detail); fault == nil { // it only fails for codes.OK
			s = detailed
		}
	}
	return s.Err()
}

// detailOf returns what a code alone does not say, or nil.
func detailOf(of class, err error) protoadapt.MessageV1 {
	switch of {
	case noTenant:
		return &errdetails.ErrorInfo{Domain: errorDomain, Reason: reasonNoTenant}
	case invalidTenant:
		return &errdetails.ErrorInfo{Domain: errorDomain, Reason: reasonInvalidTenant}
	default:
		if delay, ok := RetryAfter(err); ok {
			return &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}
		}
		return nil
	}
}

// FromGRPC returns what a gRPC call failed with as an error of the domain, with the
// peer's text and nothing of gRPC's around it. An error that is no status, such as
// io.EOF at the end of a stream, stays what it is.
//
// A peer that cannot be reached is Unavailable. The errors of a call that was canceled or
// took too long are context.Canceled and context.DeadlineExceeded also when the peer gave up
// and not the caller, whose own context tells.
func FromGRPC(err error) error {
	s, message, ok := statusOf(err)
	if !ok {
		return err
	}
	remote := &remoteError{message: message}
	switch s.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return Unavailable(remote, retryDelay(s))
	case codes.InvalidArgument:
		if reason(s) == reasonInvalidTenant {
			remote.cause = tenant.ErrInvalidID
			return remote
		}
		return Invalid(remote)
	case codes.Unauthenticated:
		if reason(s) == reasonNoTenant {
			remote.cause = tenant.ErrNoTenant
		}
	case codes.Canceled:
		remote.cause = context.Canceled
	case codes.DeadlineExceeded:
		remote.cause = context.DeadlineExceeded
	default:
		// It is the peer's own fault, or one between releases: an internal error.
	}
	return remote
}

// remoteError is an error that a peer answered with.
type remoteError struct {
	message string
	cause   error // nil, or what it is in the domain
}

func (e *remoteError) Error() string { return e.message }

func (e *remoteError) Unwrap() error { return e.cause }

// statusOf returns the status in the chain of err, and the text of err without what
// gRPC writes before that of the status.
func statusOf(err error) (s *status.Status, message string, ok bool) {
	var holder interface {
		error
		GRPCStatus() *status.Status
	}
	if !errors.As(err, &holder) {
		return nil, "", false
	}
	s = holder.GRPCStatus()
	if s.Code() == codes.OK {
		return nil, "", false
	}
	return s, strings.Replace(err.Error(), holder.Error(), s.Message(), 1), true
}

func retryDelay(s *status.Status) time.Duration {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return max(info.GetRetryDelay().AsDuration(), 0)
		}
	}
	return 0
}

func reason(s *status.Status) string {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			return info.GetReason()
		}
	}
	return ""
}
