package querier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// statusClientClosed is what Prometheus answers to a client that has gone away.
const statusClientClosed = 499

// limitError says that a query was stopped by a limit of its tenant. The text names
// the limit's key, its value and the tenant.
type limitError struct {
	text   string
	status int
	cause  error // what the engine or the context said; nil if the limit spoke first
}

func (e *limitError) Error() string { return e.text }
func (e *limitError) Unwrap() error { return e.cause }

func tooManySamples(id tenant.ID, limit int, cause error) error {
	return &limitError{
		text:   fmt.Sprintf("the query needs more samples in memory than the limit max_query_samples of %d allows tenant %q: ask for fewer series or a shorter range, or raise the limit", limit, id),
		status: http.StatusUnprocessableEntity,
		cause:  cause,
	}
}

func tooSlow(id tenant.ID, limit time.Duration, cause error) error {
	return &limitError{
		text:   fmt.Sprintf("the query ran for longer than the limit max_query_duration of %s allows tenant %q: ask for fewer series or a shorter range, or raise the limit", model.Duration(limit), id),
		status: http.StatusServiceUnavailable,
		cause:  cause,
	}
}

func tooManyQueries(id tenant.ID, limit int, waited time.Duration) error {
	return unavailable(&limitError{
		text:   fmt.Sprintf("tenant %q runs as many queries as its limit max_concurrent_queries of %d allows, and none ended within %s: try again later, or raise the limit", id, limit, waited),
		status: http.StatusServiceUnavailable,
	})
}

func tooManyWaiting(id tenant.ID, limit int) error {
	return unavailable(&limitError{
		text:   fmt.Sprintf("tenant %q runs as many queries as its limit max_concurrent_queries of %d allows, and %d more wait: try again later, send fewer at once, or raise the limit", id, limit, maxQueue),
		status: http.StatusServiceUnavailable,
	})
}

// causeOf puts the limit that ended ctx, if one did, in the place of the mere
// deadline that the layers below report.
func causeOf(ctx context.Context, err error) error {
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var limit *limitError
	if cause := context.Cause(ctx); errors.As(cause, &limit) {
		return limit
	}
	return err
}

// retryKey is of a context's *atomic.Int64: after how many seconds a request may succeed.
type retryKey struct{}

// laterError is an error that goes away. It is a tsdb.ErrNotReady to Prometheus's API,
// which then says "unavailable".
type laterError struct{ error }

func (e laterError) Unwrap() error { return e.error }

func (laterError) Is(target error) bool { return target == tsdb.ErrNotReady }

// reported returns err as a query that ctx belongs to reports it. If it is one that goes
// away, the answer is to say when: Prometheus's API has no way to pass that on.
func reported(ctx context.Context, err error) error {
	err = causeOf(ctx, err)
	var later *wire.UnavailableError
	if !errors.As(err, &later) {
		return err
	}
	if after, ok := ctx.Value(retryKey{}).(*atomic.Int64); ok {
		after.Store(int64(math.Ceil(later.RetryAfter.Seconds())))
	}
	return laterError{err}
}

// statusOf returns the HTTP status for err; known is false if the error says nothing
// about that, as those of PromQL itself.
func statusOf(err error) (status int, known bool) {
	var (
		storageErr promql.ErrStorage // hides its error from errors.Is
		limit      *limitError
		block      *blockError
		later      *wire.UnavailableError
		canceled   promql.ErrQueryCanceled
		timeout    promql.ErrQueryTimeout
	)
	if errors.As(err, &storageErr) {
		err = storageErr.Err
	}
	switch {
	case errors.As(err, &limit):
		return limit.status, true
	case errors.Is(err, tenant.ErrNoTenant), errors.Is(err, tenant.ErrInvalidID):
		return wire.HTTPStatus(err), true
	case errors.As(err, &canceled), errors.Is(err, context.Canceled):
		return statusClientClosed, true
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNotLoaded), errors.As(err, &later):
		return http.StatusServiceUnavailable, true
	case errors.As(err, &block):
		return http.StatusInternalServerError, true
	}
	return 0, false
}
