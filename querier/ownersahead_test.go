package querier

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

func TestOwnersFetchWhatPiecesWillNeed(t *testing.T) {
	r := newRig(t, rigOption{})
	const day = 24 * hour
	for i := range int64(12) {
		r.upload(alice, i*day, (i+1)*day, blocktest.Floats("a", i*day, (i+1)*day, hour), blocktest.Floats("b", i*day, (i+1)*day, hour))
	}
	r.refresh()
	s := r.lend()
	account := newAccount(alice, tenant.Limits{})
	ctx := withAccount(as(alice), account)
	query, err := r.engines.NewRangeQuery(ctx, r.Queryable(), nil, "sum(a) + sum(sum_over_time(b[6h]))", time.UnixMilli(6*hour), time.UnixMilli(12*day-1), 6*time.Hour)
	require.NoError(t, err)
	defer query.Close()
	split := query.(*splitQuery)
	run := &splitRun{query: split, origin: split.origin(ctx), pieces: timesplit.Cut(split.steps, split.step, split.width)}
	require.NotNil(t, run.origin.pin)

	owners := ownersAhead{run: run}
	owners.consider(ctx)
	owners.work.Wait()
	require.Zero(t, account.fetched.Load(), "nothing is known to be missing")
	require.NoError(t, account.Fetch(1))
	owners.consider(ctx)
	owners.work.Wait()
	require.Greater(t, account.fetched.Load(), int64(1))
	require.Zero(t, account.held.Load(), "it is held by the owners, on their disks")
	require.Equal(t, 6, int(testutil.ToFloat64(r.owners.metrics.requests.WithLabelValues("ok"))), "one of each owner and selector")

	for _, q := range s.sharers {
		q.bucket.FailFrom(1)
	}
	r.bucket.FailFrom(1)
	result := query.Exec(ctx)
	require.NoError(t, result.Err)
	matrix, err := result.Matrix()
	require.NoError(t, err)
	require.Len(t, matrix, 1)
	require.Zero(t, r.fallbacks(fallbackFailed))
}
