package wire

import (
	"context"
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// UnavailableError says that a request cannot be served now and that the same
// request will succeed later. It becomes 503 with Retry-After.
type UnavailableError struct {
	// Cause says what is missing, for the client and the log.
	Cause error
	// RetryAfter is how long the client should wait; 0 leaves that to the client.
	RetryAfter time.Duration
}

// Error implements error.
func (e *UnavailableError) Error() string { return e.Cause.Error() }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Cause }

// Unavailable returns an UnavailableError for cause.
func Unavailable(cause error, retryAfter time.Duration) error {
	return &UnavailableError{Cause: cause, RetryAfter: retryAfter}
}

// InvalidError says that a request can never succeed as it is. It becomes 400.
type InvalidError struct{ Cause error }

// Error implements error.
func (e *InvalidError) Error() string { return e.Cause.Error() }

// Unwrap returns the cause.
func (e *InvalidError) Unwrap() error { return e.Cause }

// Invalid returns an InvalidError for cause.
func Invalid(cause error) error { return &InvalidError{Cause: cause} }

// class is what an error means for whoever asked.
type class int

const (
	internal      class = iota // the fault is here; trying again may help
	unavailable                // the same request will succeed later
	invalid                    // the same request can never succeed
	limited                    // dropped, because the tenant is over a limit
	noTenant                   // the request names no tenant
	invalidTenant              // the request names something that cannot be a tenant
	canceled                   // whoever asked does not wait any more
	timedOut                   // it took too long
)

// answers is the table: what an error of each class becomes.
func (c class) answers() (status int, code codes.Code) {
	switch c {
	case unavailable:
		return http.StatusServiceUnavailable, codes.Unavailable
	case invalid:
		return http.StatusBadRequest, codes.InvalidArgument
	case limited:
		return http.StatusTooManyRequests, codes.ResourceExhausted
	case noTenant:
		return http.StatusUnauthorized, codes.Unauthenticated
	case invalidTenant:
		return http.StatusBadRequest, codes.InvalidArgument
	case canceled:
		return http.StatusServiceUnavailable, codes.Canceled
	case timedOut:
		return http.StatusServiceUnavailable, codes.DeadlineExceeded
	default:
		return http.StatusInternalServerError, codes.Internal
	}
}

// classOf returns the class of err, which is not nil. An error that the table does not
// know is an internal one.
func classOf(err error) class {
	var (
		unavailableErr *UnavailableError
		invalidErr     *InvalidError
		rejected       *write.RejectedError
	)
	switch {
	case errors.As(err, &unavailableErr):
		return unavailable
	case errors.As(err, &rejected):
		return classOfRejected(rejected)
	case errors.As(err, &invalidErr):
		return invalid
	case errors.Is(err, tenant.ErrNoTenant):
		return noTenant
	case errors.Is(err, tenant.ErrInvalidID):
		return invalidTenant
	case errors.Is(err, context.Canceled):
		return canceled
	case errors.Is(err, context.DeadlineExceeded):
		return timedOut
	default:
		return internal
	}
}

func classOfRejected(e *write.RejectedError) class {
	result := write.Result{Rejected: e.Rejected}
	switch of, _ := result.Class(); of {
	case write.ClassUnavailable:
		return unavailable
	case write.ClassLimited:
		return limited
	default:
		return invalid
	}
}

// HTTPStatus returns the status that answers err; nil is 200. An error that the
// table does not know is an internal one: 500, which senders try again.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	status, _ := classOf(err).answers()
	return status
}

// RetryAfter returns how long a client should wait before it tries again, and
// whether there is anything to say about that.
func RetryAfter(err error) (time.Duration, bool) {
	var unavailable *UnavailableError
	if errors.As(err, &unavailable) && unavailable.RetryAfter > 0 {
		return unavailable.RetryAfter, true
	}
	return 0, false
}
