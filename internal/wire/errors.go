// Package wire holds the one table that turns errors of the domain into answers:
// which HTTP status they become and whether a client should try again.
package wire

import (
	"context"
	"errors"
	"net/http"
	"time"

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

// HTTPStatus returns the status that answers err; nil is 200. An error that the
// table does not know is an internal one: 500, which senders try again.
func HTTPStatus(err error) int {
	var (
		unavailable *UnavailableError
		invalid     *InvalidError
		rejected    *write.RejectedError
	)
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &unavailable):
		return http.StatusServiceUnavailable
	case errors.As(err, &rejected):
		return classStatus(rejected)
	case errors.As(err, &invalid):
		return http.StatusBadRequest
	case errors.Is(err, tenant.ErrNoTenant):
		return http.StatusUnauthorized
	case errors.Is(err, tenant.ErrInvalidID):
		return http.StatusBadRequest
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

func classStatus(e *write.RejectedError) int {
	result := write.Result{Rejected: e.Rejected}
	switch class, _ := result.Class(); class {
	case write.ClassUnavailable:
		return http.StatusServiceUnavailable
	case write.ClassLimited:
		return http.StatusTooManyRequests
	default:
		return http.StatusBadRequest
	}
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
