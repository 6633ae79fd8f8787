package querier

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// uploadDays uploads blocks of a day each. Some of the series are there on some days only.
func (r *rig) uploadDays(days int64) {
	const day = 24 * hour
	for i := range days {
		var series []blocktest.Series
		for pod := range int64(9) {
			if pod > 2 && (i/pod)%2 == 1 {
				continue
			}
			one := blocktest.Floats("requests", i*day+pod*hour, (i+1)*day, 10*minute)
			one.Labels = labels.FromStrings(model.MetricNameLabel, "requests", "pod", fmt.Sprint(pod))
			series = append(series, one)
		}
		r.upload(alice, i*day, (i+1)*day, append(series, blocktest.Floats("up", i*day, (i+1)*day, hour))...)
	}
	r.refresh()
}

func (r *rig) okRequests() int {
	return int(testutil.ToFloat64(r.owners.metrics.requests.WithLabelValues("ok")))
}

func TestRangeQueriesThatAskOwnersAheadAnswerTheSame(t *testing.T) {
	r := newRig(t, rigOption{})
	const days = 60
	r.uploadDays(days)
	queries := []string{
		"requests", "sum by (pod) (rate(requests[6h]))", "count(requests)", "absent(requests{pod=\"5\"})",
		"requests / on () group_left up offset 1d", "sum_over_time(up[1d]) + sum(requests{pod=~\"[3-7]\"})", "max_over_time(sum(requests)[1d:1h])",
	}
	ask := func(expr string) response {
		got := r.post(alice, "/api/v1/query_range?nocache=1", url.Values{"query": {expr}, "start": {"3600"}, "end": {fmt.Sprint(days * 24 * 3600)}, "step": {"21600"}})
		require.Equal(t, 200, got.Code, got.Body)
		return got
	}
	alone := make([]response, len(queries))
	for i, expr := range queries {
		alone[i] = ask(expr)
	}
	r.lend()
	for i, expr := range queries {
		require.Equal(t, string(alone[i].Data), string(ask(expr).Data), expr)
	}
	require.Zero(t, r.fallbacks(fallbackFailed))
	require.Zero(t, r.fallbacks(fallbackSize))

	before := r.okRequests()
	ask(queries[0])
	few := r.okRequests() - before
	r.limits.MaxQueryBytes = 300 << 10 // a lot is too large now, and a piece is not
	for i, expr := range queries[:3] {
		before := r.okRequests()
		require.Equal(t, string(alone[i].Data), string(ask(expr).Data), expr)
		require.Greater(t, r.okRequests()-before, few)
	}
}

func TestRangeQueriesMakeFewRequestsToOwners(t *testing.T) {
	r := newRig(t, rigOption{})
	r.uploadDays(60)
	r.lend()
	ask := func() {
		got := r.post(alice, "/api/v1/query_range?nocache=1", url.Values{"query": {"rate(requests[6h])"}, "start": {"0"}, "end": {fmt.Sprint(60 * 24 * 3600)}, "step": {"21600"}})
		require.Equal(t, 200, got.Code, got.Body)
	}
	ask()
	before := r.okRequests()
	ask()
	require.LessOrEqual(t, r.okRequests()-before, 9, "one of each owner and lot, and not of each of 16 pieces")
}

func TestOwnersAreNotAskedAheadForWhatLiesBetweenPieces(t *testing.T) {
	r := newRig(t, rigOption{})
	r.uploadDays(12)
	r.lend()
	ctx := withAccount(as(alice), newAccount(alice, tenant.Limits{}))
	query, err := r.engines.NewRangeQuery(ctx, r.Queryable(), nil, "requests", time.UnixMilli(6*hour), time.UnixMilli(12*24*hour-1), 6*time.Hour)
	require.NoError(t, err)
	defer query.Close()
	split := query.(*splitQuery)
	received := func(pieces []timesplit.Range) float64 {
		before := testutil.ToFloat64(r.owners.metrics.received)
		run := &splitRun{query: split, origin: split.origin(ctx), pieces: pieces}
		l := newLots(ctx, run)
		defer l.close()
		for i := range pieces {
			l.enter(ctx, ctx, i)
		}
		for _, of := range l.all {
			for _, in := range of.inquiries {
				in.running.Wait()
			}
		}
		return testutil.ToFloat64(r.owners.metrics.received) - before
	}
	pieces := timesplit.Cut(split.steps, split.step, split.width)
	require.Len(t, pieces, 3)
	all := received(pieces)
	require.Less(t, received([]timesplit.Range{pieces[0], pieces[2]}), all, "the middle is in the results cache")
}
