package querier

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

const (
	// The defaults of Prometheus: how far back a sample still counts, and the step of
	// a subquery that names none.
	lookbackDelta = 5 * time.Minute
	subqueryStep  = time.Minute

	// noDeadline stands for "no limit" where the engine wants a duration.
	noDeadline = 10 * 365 * 24 * time.Hour

	// maxEngines bounds the cache of engines. Few limits are in force at a time; those
	// of the past go when it is full.
	maxEngines = 64
)

// Engine returns the PromQL engine. It takes the tenant, and so the limits of a
// query, from the context of NewInstantQuery and NewRangeQuery; the same context, or
// one made of it, goes to Exec.
func (q *Querier) Engine() promql.QueryEngine { return q.engines }

// engines is a promql.QueryEngine that gives each tenant its own limits, which a
// promql.Engine has for all queries: so there is one for each pair of limits. It is
// safe for concurrent use.
type engines struct {
	limits tenant.LimitsFunc
	logger *slog.Logger
	// slots has a place for each piece of a query that is evaluated at the same time, of all
	// queries: more would not be faster, and take the memory of each.
	slots chan struct{}
	width func(step, window time.Duration) int64 // of pieces; timesplit.Width

	mu struct {
		sync.Mutex
		byLimits map[queryLimits]*promql.Engine
	}
}

// queryLimits are the limits of one query; neither is 0.
type queryLimits struct {
	samples  int
	duration time.Duration
}

func newEngines(limits tenant.LimitsFunc, logger *slog.Logger) *engines {
	e := &engines{limits: limits, logger: logger, slots: make(chan struct{}, runtime.GOMAXPROCS(0)), width: timesplit.Width}
	e.mu.byLimits = map[queryLimits]*promql.Engine{}
	return e
}

func queryLimitsOf(l tenant.Limits) queryLimits {
	q := queryLimits{samples: l.MaxQuerySamples, duration: time.Duration(l.MaxQueryDuration)}
	if q.samples <= 0 {
		q.samples = math.MaxInt
	}
	if q.duration <= 0 {
		q.duration = noDeadline
	}
	return q
}

func (e *engines) of(l queryLimits) *promql.Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	if engine, ok := e.mu.byLimits[l]; ok {
		return engine
	}
	if len(e.mu.byLimits) >= maxEngines {
		clear(e.mu.byLimits) // an engine holds nothing that must be closed
	}
	engine := promql.NewEngine(promql.EngineOpts{
		Logger:                   e.logger,
		MaxSamples:               l.samples,
		Timeout:                  l.duration,
		LookbackDelta:            lookbackDelta,
		NoStepSubqueryIntervalFn: func(int64) int64 { return subqueryStep.Milliseconds() },
		EnableAtModifier:         true,
		EnableNegativeOffset:     true,
		EnablePerStepStats:       true,
		Parser:                   newParser(),
	})
	e.mu.byLimits[l] = engine
	return engine
}

// NewInstantQuery implements promql.QueryEngine.
func (e *engines) NewInstantQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, qs string, ts time.Time) (promql.Query, error) {
	id, limits, err := e.limitsOf(ctx)
	if err != nil {
		return nil, err
	}
	query, err := e.of(limits).NewInstantQuery(ctx, charged{q}, opts, qs, ts)
	if err != nil {
		return nil, err
	}
	return &limitedQuery{Query: query, tenant: id, limits: limits, account: e.account(id)}, nil
}

// NewRangeQuery implements promql.QueryEngine.
func (e *engines) NewRangeQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, qs string, start, end time.Time, interval time.Duration) (promql.Query, error) {
	id, limits, err := e.limitsOf(ctx)
	if err != nil {
		return nil, err
	}
	query, err := e.of(limits).NewRangeQuery(ctx, charged{q}, opts, qs, start, end, interval)
	if err != nil {
		return nil, err
	}
	return e.split(&limitedQuery{Query: query, tenant: id, limits: limits, account: e.account(id)}, q, opts), nil
}

func (e *engines) limitsOf(ctx context.Context) (tenant.ID, queryLimits, error) {
	id, err := tenant.FromContext(ctx)
	if err != nil {
		return "", queryLimits{}, err
	}
	return id, queryLimitsOf(e.limits(id)), nil
}

func (e *engines) account(id tenant.ID) *account { return newAccount(id, e.limits(id)) }

// limitedQuery says which limit ended a query.
type limitedQuery struct {
	promql.Query
	tenant tenant.ID
	limits queryLimits
	// account is charged if there is none in the context of Exec.
	account *account
}

// Exec implements promql.Query.
func (q *limitedQuery) Exec(ctx context.Context) *promql.Result {
	ctx = q.accounted(ctx)
	result := q.Query.Exec(ctx)
	result.Err = q.explain(ctx, result.Err)
	return result
}

func (q *limitedQuery) accounted(ctx context.Context) context.Context {
	if accountOf(ctx) != nil {
		return ctx
	}
	return withAccount(ctx, q.account)
}

func (q *limitedQuery) explain(ctx context.Context, err error) error {
	var (
		samples promql.ErrTooManySamples
		timeout promql.ErrQueryTimeout
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &samples):
		return tooManySamples(q.tenant, q.limits.samples, err)
	case errors.As(err, &timeout) || errors.Is(err, context.DeadlineExceeded):
		if !errors.As(err, &timeout) {
			// The storage noticed the deadline before the engine did.
			err = promql.ErrQueryTimeout("query execution")
		}
		if ctx.Err() == nil { // not the caller's own timeout
			return tooSlow(q.tenant, q.limits.duration, err)
		}
	}
	return err
}
