package querier

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Every message of a limit names its key, its value and the tenant.
func requireLimit(t *testing.T, message, limit, value string) {
	t.Helper()
	require.Contains(t, message, "limit "+limit+" of "+value+" ")
	require.Contains(t, message, `tenant "alice"`)
}

func TestAQueryThatNeedsTooManySamplesIsRefused(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	r.limits.MaxQuerySamples = 10
	query := url.Values{"query": {"count_over_time(x[30m])"}, "time": {"3000"}}.Encode()
	got := r.get(alice, "/api/v1/query?"+query)
	require.Equal(t, 422, got.Code)
	require.Equal(t, "execution", got.ErrorType)
	requireLimit(t, got.Error, "max_query_samples", "10")

	r.limits.MaxQuerySamples = 100 // a change is in force at once
	require.Equal(t, 200, r.get(alice, "/api/v1/query?"+query).Code)
	r.limits.MaxQuerySamples = 0
	require.Equal(t, 200, r.get(alice, "/api/v1/query?"+query).Code)
}

func TestLimitsOfEnginesAreThoseOfTheTenant(t *testing.T) {
	limits := map[tenant.ID]tenant.Limits{alice: {MaxQuerySamples: 1}, bob: {}}
	engines := newEngines(func(id tenant.ID) tenant.Limits { return limits[id] }, nil)
	for id, fails := range map[tenant.ID]bool{alice: true, bob: false} {
		query, err := engines.NewRangeQuery(as(id), &storage.MockQueryable{MockQuerier: storage.NoopQuerier()}, nil, "vector(1)", time.Unix(0, 0), time.Unix(600, 0), time.Minute)
		require.NoError(t, err)
		result := query.Exec(as(id))
		var tooMany promql.ErrTooManySamples
		if fails {
			require.ErrorAs(t, result.Err, &tooMany)
			requireLimit(t, result.Err.Error(), "max_query_samples", "1")
		} else {
			require.NoError(t, result.Err)
		}
		query.Close()
	}
}

func TestEnginesOfPastLimitsAreLetGo(t *testing.T) {
	engines := newEngines(nil, nil)
	for n := range 10 * maxEngines {
		first := engines.of(queryLimits{samples: n, duration: 1})
		require.Same(t, first, engines.of(queryLimits{samples: n, duration: 1}))
	}
	require.LessOrEqual(t, len(engines.mu.byLimits), maxEngines)
}

// slowIngester takes a minute to open a querier.
type slowIngester struct{ *edge }

// Oldest does not say what it holds, so that it is asked for all.
func (slowIngester) Oldest(tenant.ID) ([]ulid.ULID, []int64, int64) { return nil, nil, math.MinInt64 }

func (s slowIngester) Querier(id tenant.ID, mint, maxt int64) (storage.Querier, error) {
	<-time.After(time.Minute) // in a synctest bubble
	return s.edge.Querier(id, mint, maxt)
}

func TestAQueryThatTakesTooLongIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		r.refresh()
		r.limits.MaxQueryDuration = model.Duration(90 * time.Second)
		r.edge = Direct(slowIngester{r.ingester})
		require.Equal(t, 200, r.get(alice, "/api/v1/query?query=x").Code)

		r.limits.MaxQueryDuration = model.Duration(30 * time.Second)
		for _, path := range []string{
			"/api/v1/query?query=x", "/api/v1/query_range?query=x&start=0&end=60&step=1", "/api/v1/series?match[]=x",
			"/api/v1/labels", "/api/v1/label/job/values", "/federate?match[]=x",
		} {
			got := r.get(alice, path)
			require.Equal(t, 503, got.Code, "%s: %s", path, got.Body)
			requireLimit(t, strings.ReplaceAll(got.Body, `\"`, `"`), "max_query_duration", "30s")
		}
		// The client's own timeout is not the tenant's limit.
		got := r.get(alice, "/api/v1/query?query=x&timeout=1s")
		require.Equal(t, 503, got.Code)
		require.Equal(t, "timeout", got.ErrorType)
		require.NotContains(t, got.Error, "max_query_duration")

		r.limits.MaxQueryDuration = 0
		require.Equal(t, 200, r.get(alice, "/api/v1/query?query=x").Code)
		require.Equal(t, 200, r.get(alice, "/api/v1/labels").Code)
	})
}

func TestQueriesOfATenantWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		r.refresh()
		r.limits.MaxConcurrentQueries = 2
		leaveFirst, err := r.gate.enter(t.Context(), alice, func() int { return r.limits.MaxConcurrentQueries })
		require.NoError(t, err)
		leaveSecond, err := r.gate.enter(t.Context(), alice, func() int { return r.limits.MaxConcurrentQueries })
		require.NoError(t, err)

		require.Equal(t, 200, r.get(bob, "/api/v1/query?query=1").Code, "another tenant does not wait")
		require.Equal(t, 200, r.get(alice, "/api/v1/rules").Code, "what reads nothing does not wait")

		start := time.Now()
		got := r.get(alice, "/api/v1/query?query=1")
		require.Equal(t, maxQueueWait, time.Since(start))
		require.Equal(t, 503, got.Code)
		require.Equal(t, "unavailable", got.ErrorType)
		require.NotEmpty(t, got.Header.Get("Retry-After"))
		requireLimit(t, got.Error, "max_concurrent_queries", "2")

		waits := make(chan response)
		go func() { waits <- r.get(alice, "/api/v1/query?query=1") }()
		synctest.Wait()
		leaveFirst()
		require.Equal(t, 200, (<-waits).Code)

		leaveSecond()
		require.Empty(t, r.gate.mu.lanes, "nobody runs, so nothing is kept")
		require.InDelta(t, 0, testutil.ToFloat64(r.metrics.inFlight), 0)
	})
}

func TestTheQueueOfATenantHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		r.refresh()
		r.limits.MaxConcurrentQueries = 1
		leave, err := r.gate.enter(t.Context(), alice, func() int { return 1 })
		require.NoError(t, err)
		answers := make(chan response, maxQueue)
		for range maxQueue {
			go func() { answers <- r.get(alice, "/api/v1/query?query=1") }()
		}
		synctest.Wait()

		start := time.Now()
		got := r.get(alice, "/api/v1/query?query=1")
		require.Zero(t, time.Since(start), "there is nothing to wait for")
		require.Equal(t, 503, got.Code)
		require.NotEmpty(t, got.Header.Get("Retry-After"))
		requireLimit(t, got.Error, "max_concurrent_queries", "1")
		require.Equal(t, 200, r.get(bob, "/api/v1/query?query=1").Code, "another tenant has a queue of its own")

		leave()
		for range maxQueue {
			require.Equal(t, 200, (<-answers).Code)
		}
	})
}

func TestTheFirstToWaitIsTheFirstToRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		limit := 1
		leave, err := g.enter(t.Context(), alice, func() int { return limit })
		require.NoError(t, err)
		order := make(chan int, 3)
		ctx, cancel := context.WithCancel(t.Context())
		enter := func(ctx context.Context, i int) {
			leave, err := g.enter(ctx, alice, func() int { return limit })
			if err != nil {
				order <- -i
				return
			}
			order <- i
			leave()
		}
		go enter(t.Context(), 1)
		synctest.Wait()
		go enter(ctx, 2)
		synctest.Wait()
		go enter(t.Context(), 3)
		synctest.Wait()
		cancel()
		require.Equal(t, -2, <-order, "whoever goes away leaves the queue")
		leave()
		require.Equal(t, 1, <-order)
		require.Equal(t, 3, <-order)
		synctest.Wait()
		require.Empty(t, g.mu.lanes)
	})
}

func TestARaisedLimitLetsAllInAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		limit := 1
		leave, err := g.enter(t.Context(), alice, func() int { return limit })
		require.NoError(t, err)
		entered := make(chan func(), 3)
		for range 3 {
			go func() {
				leave, err := g.enter(t.Context(), alice, func() int { return limit })
				if err == nil {
					entered <- leave
				}
			}()
		}
		synctest.Wait()
		limit = 0
		leave()
		for range 3 {
			(<-entered)()
		}
		require.Empty(t, g.mu.lanes)
	})
}

func TestAClientThatGoesAwayIsNotAnError(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, path := range []string{"/api/v1/query?query=x", "/api/v1/series?match[]=x", "/api/v1/labels", "/federate?match[]=x"} {
		got := r.do(alice, httptest.NewRequestWithContext(ctx, http.MethodGet, path, http.NoBody))
		require.Equal(t, statusClientClosed, got.Code, "%s: %s", path, got.Body)
	}
	require.InDelta(t, 0, testutil.ToFloat64(r.metrics.openFailures), 0)
}
