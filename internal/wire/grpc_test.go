package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestErrorsAreTheSameOnBothSidesOfACall(t *testing.T) {
	cause := errors.New("two replicas are down")
	for _, c := range []struct {
		err  error
		code codes.Code
		is   error // what the other side finds in the chain, too
	}{
		{Unavailable(cause, 0), codes.Unavailable, nil},
		{Unavailable(cause, 3*time.Second), codes.Unavailable, nil},
		{Invalid(cause), codes.InvalidArgument, nil},
		{tenant.ErrNoTenant, codes.Unauthenticated, tenant.ErrNoTenant},
		{tenant.ErrInvalidID, codes.InvalidArgument, tenant.ErrInvalidID},
		{context.Canceled, codes.Canceled, context.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded, context.DeadlineExceeded},
		{rejected(write.ReasonTooOld), codes.InvalidArgument, nil},
		{rejected(write.ReasonInstanceHeapLimit), codes.Unavailable, nil},
		{cause, codes.Internal, nil},
	} {
		for _, sent := range []error{c.err, fmt.Errorf("select series: %w", c.err)} {
			answer := GRPCError(sent)
			require.Equal(t, c.code, status.Code(answer), "%v", sent)

			got := FromGRPC(answer)
			require.EqualError(t, got, sent.Error())
			require.Equal(t, HTTPStatus(sent), HTTPStatus(got), "%v", sent)
			if c.is != nil {
				require.ErrorIs(t, got, c.is)
			}
			wantDelay, want := RetryAfter(sent)
			delay, ok := RetryAfter(got)
			require.Equal(t, want, ok)
			require.Equal(t, wantDelay, delay)

			require.Equal(t, got, FromGRPC(got), "what was converted stays as it is")
			require.Equal(t, c.code, status.Code(GRPCError(got)), "and can be passed on")
		}
	}
	require.NoError(t, GRPCError(nil))
	require.NoError(t, FromGRPC(nil))
}

func TestALimitOfATenantIsNotTheEndForOtherReplicas(t *testing.T) {
	answer := GRPCError(rejected(write.ReasonTenantSeriesLimit))
	require.Equal(t, codes.ResourceExhausted, status.Code(answer))
	require.Equal(t, http.StatusServiceUnavailable, HTTPStatus(FromGRPC(answer)), "limits of samples are in results, not in errors")
}

func TestFaultsOfGRPCItself(t *testing.T) {
	for code, want := range map[codes.Code]int{
		codes.Unavailable:        http.StatusServiceUnavailable,
		codes.ResourceExhausted:  http.StatusServiceUnavailable,
		codes.Aborted:            http.StatusServiceUnavailable,
		codes.DeadlineExceeded:   http.StatusServiceUnavailable,
		codes.Canceled:           http.StatusServiceUnavailable,
		codes.InvalidArgument:    http.StatusBadRequest,
		codes.Internal:           http.StatusInternalServerError,
		codes.Unknown:            http.StatusInternalServerError,
		codes.Unimplemented:      http.StatusInternalServerError,
		codes.Unauthenticated:    http.StatusInternalServerError, // of the node, not of the client
		codes.PermissionDenied:   http.StatusInternalServerError,
		codes.FailedPrecondition: http.StatusInternalServerError,
		codes.Code(99):           http.StatusInternalServerError,
	} {
		err := FromGRPC(status.Error(code, "connection refused"))
		require.Equal(t, want, HTTPStatus(err), code)
		require.EqualError(t, err, "connection refused")
	}
	wrapped := FromGRPC(fmt.Errorf("push to ingester a: %w", status.Error(codes.Unavailable, "connection refused")))
	require.EqualError(t, wrapped, "push to ingester a: connection refused")
	require.Equal(t, io.EOF, FromGRPC(io.EOF), "the end of a stream is no failure")
	require.Equal(t, context.Canceled, FromGRPC(context.Canceled))
}

func TestAStatusKeepsItsCode(t *testing.T) {
	sent, err := status.New(codes.Unimplemented, "no such method").WithDetails(&errdetails.ErrorInfo{Domain: "other"})
	require.NoError(t, err)
	answer := GRPCError(fmt.Errorf("forward: %w", sent.Err()))
	got, ok := status.FromError(answer)
	require.True(t, ok)
	require.Equal(t, codes.Unimplemented, got.Code())
	require.Equal(t, "forward: no such method", got.Message())
	require.Len(t, got.Details(), 1)
}

func TestTextOfErrorsIsMadeFitForGRPC(t *testing.T) {
	err := FromGRPC(GRPCError(Unavailable(errors.New("label \xff"), time.Second)))
	require.EqualError(t, err, "label \uFFFD")
}

func TestDetailsOfAHostilePeer(t *testing.T) {
	s, err := status.New(codes.Unavailable, "").WithDetails(
		&errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: -1 << 62, Nanos: -5}})
	require.NoError(t, err)
	_, ok := RetryAfter(FromGRPC(s.Err()))
	require.False(t, ok, "a wait is never negative")

	s, err = status.New(codes.Unauthenticated, "").WithDetails(&errdetails.ErrorInfo{Domain: "other", Reason: reasonNoTenant})
	require.NoError(t, err)
	require.NotErrorIs(t, FromGRPC(s.Err()), tenant.ErrNoTenant)
}
