package querier

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// spread is a cluster with the world of alice, of which any replica has missed any
// samples, each on a quorum all the same; bob's world is in one plain TSDB.
func spread(t *testing.T, ingesters int, seed uint64) *clusterRig {
	c := newClusterRig(t, 3, ingesters)
	rng := rand.New(rand.NewPCG(seed, seed))
	outage := 0
	w := c.writer(t, alice, rng, func() bool {
		if outage--; outage > 0 {
			return true
		}
		if rng.IntN(400) == 0 {
			outage = rng.IntN(200) // more than one in a row
		}
		return rng.IntN(20) == 0
	})
	plain := c.ingester.open(bob).AppenderV2(t.Context())
	world(worldStart, worldEnd, func(ls labels.Labels, st, at int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) {
		w.add(ls, st, at, v, h, fh)
		_, err := plain.Append(0, ls, st, at, v, h, fh, storage.AOptions{})
		require.NoError(t, err)
	})
	w.commit()
	require.NoError(t, plain.Commit())
	c.refresh()
	return c
}

func TestTwoOfThreeReplicasAnswerLikeOneTSDBWithAllSamples(t *testing.T) {
	for seed, ingesters := range []int{3, 5, 3} {
		if raceDetector && seed > 1 {
			continue
		}
		c := spread(t, ingesters, uint64(seed))
		plain, err := c.ingester.get(bob).Querier(worldStart, worldEnd)
		require.NoError(t, err)
		defer plain.Close()
		all := labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")
		for _, within := range []timeRange{{worldStart, worldEnd}, {worldStart + 90*minute + 1, worldStart + 4*hour - 7}, {worldEnd, worldEnd + hour}} {
			hints := &storage.SelectHints{Start: within.mint, End: within.maxt}
			want := samplesOf(t, plain.Select(t.Context(), true, hints, all))
			for range 4 { // other zones are spared
				merged, err := c.Queryable().Querier(within.mint, within.maxt)
				require.NoError(t, err)
				require.Equal(t, want, samplesOf(t, merged.Select(as(alice), true, hints, all)))
				require.NoError(t, merged.Close())
				asChunks, err := c.Queryable().ChunkQuerier(within.mint, within.maxt)
				require.NoError(t, err)
				require.Equal(t, want, samplesOf(t, storage.NewSeriesSetFromChunkSeriesSet(asChunks.Select(as(alice), true, nil, all))))
				require.NoError(t, asChunks.Close())
			}
		}
		require.Positive(t, testutil.ToFloat64(c.recent.metrics.spared))
	}
}

func TestPromQLOverReplicasAnswersLikeOneTSDB(t *testing.T) {
	c := spread(t, 3, 17)
	at := func(offset int64) string { return fmt.Sprint((worldStart + offset) / 1000) }
	var paths []string
	for _, query := range []string{
		`requests_total`, `rate(requests_total[5m])`, `sum by (zone) (increase(requests_total[1h]))`, `temperature`,
		`histogram_quantile(0.9, rate(latency[10m]))`, `latency`, `avg(latency_float)`, `resets(latency[2h])`, `resets(latency_custom[3h])`,
		`max_over_time(rate(requests_total[5m])[2h:10m])`, `changes(temperature{pod="pod-3"}[4h])`, `late`, `nonexistent`,
		`histogram_count(latency_custom)`, `increase(latency[7m]) or rate(latency_custom[3m])`, `requests_total / on(pod) temperature`,
	} {
		for _, offset := range []int64{0, 119 * minute, 4*hour + 1, 6 * hour} {
			paths = append(paths, "/api/v1/query?"+url.Values{"query": {query}, "time": {at(offset)}}.Encode())
		}
		paths = append(paths, "/api/v1/query_range?"+url.Values{"query": {query}, "start": {at(0)}, "end": {at(7 * hour)}, "step": {"97s"}}.Encode())
	}
	paths = append(paths, "/api/v1/labels?", "/api/v1/labels?limit=2", "/api/v1/label/__name__/values?limit=3",
		"/api/v1/label/pod/values?match[]=temperature", "/api/v1/labels?match[]=early&match[]=late",
		`/api/v1/series?match[]=early`, `/api/v1/series?match[]=early&match[]=nonexistent`)
	c.edge = c.recent
	direct := Direct(c.ingester)
	for _, path := range paths {
		got := c.get(alice, path)
		c.edge = direct
		want := c.get(bob, path)
		c.edge = c.recent
		require.Equal(t, want.Code, got.Code, path)
		require.JSONEq(t, want.Body, got.Body, path)
	}
	require.Len(t, c.get(alice, `/api/v1/series?match[]={__name__!=""}&limit=4`).Warnings, 1)
}

// samples counts alice's samples of a metric, over everything.
func (c *clusterRig) samples(metric string) (int, error) {
	c.t.Helper()
	return count(c.t, as(alice), c.Queryable(), metric, 0, 100*hour)
}

func TestTheFirstQueryAsksAllAndLaterOnesSpareAZone(t *testing.T) {
	c := newClusterRig(t, 3, 6)
	c.refresh()
	c.write(t, alice, "x", 20, 0, hour)
	n, err := c.samples("x")
	require.NoError(t, err)
	require.Equal(t, 20*60, n)
	for _, r := range c.replicas {
		require.Equal(t, 1, r.timesAsked(), r.rec.ID)
	}
	for range 10 {
		n, err = c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 20*60, n)
	}
	asked := 0
	for _, r := range c.replicas {
		asked += r.timesAsked()
	}
	require.Equal(t, 6+10*4, asked)
	require.InDelta(t, 10*2, testutil.ToFloat64(c.recent.metrics.spared), 0)
	require.Positive(t, testutil.ToFloat64(c.recent.metrics.duplicates))
	require.InDelta(t, 11, testutil.ToFloat64(c.recent.metrics.reads.WithLabelValues("complete")), 0)
}

var errBroken = errors.New("the disk is on fire")

func TestAnIngesterThatFailsIsReplaced(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	for range 3 {
		c.replicas[1].answers(func(context.Context) error { return wire.Unavailable(errBroken, 0) })
		n, err := c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 300, n)
	}
	require.Positive(t, testutil.ToFloat64(c.recent.metrics.requests.WithLabelValues("error")))
}

func TestTooFewReplicasFailTheQueryAndAreNamed(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	c.replicas[1].answers(func(context.Context) error { return errBroken })
	c.replicas[2].server.Stop()
	c.update(t, dead("i2"))
	got := c.get(alice, "/api/v1/query?query=x&time=600")
	require.Equal(t, 503, got.Code)
	require.Equal(t, "unavailable", got.ErrorType)
	require.Contains(t, got.Error, "recent samples would be incomplete")
	require.Contains(t, got.Error, "ingester i1: the disk is on fire; ingester i2: ")
	require.InDelta(t, 1, testutil.ToFloat64(c.recent.metrics.reads.WithLabelValues("incomplete")), 0)
	for _, path := range []string{"/api/v1/query?query=x&time=600", "/api/v1/query_range?query=x&start=0&end=600&step=60", "/api/v1/labels", "/api/v1/label/pod/values", "/api/v1/series?match[]=x", "/api/v1/metadata", "/api/v1/status/tsdb", "/api/v1/query_exemplars?query=x&start=0&end=60", "/federate?match[]=x"} {
		got := c.get(alice, path)
		require.Equal(t, 503, got.Code, "%s: %s", path, got.Body)
		require.Equal(t, "5", got.Header.Get("Retry-After"), path)
		require.Contains(t, got.Body, "disk is on fire", path)
		if path != "/federate?match[]=x" {
			require.Equal(t, "unavailable", got.ErrorType, path)
		}
	}

	c.replicas[1].answers(nil)
	require.Equal(t, 200, c.get(alice, "/api/v1/query?query=x&time=600").Code)
}

func TestWhoIsNotAliveIsAskedOnlyIfNeeded(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	c.update(t, dead("i0"))
	for range 5 {
		_, err := c.samples("x")
		require.NoError(t, err)
	}
	require.Zero(t, c.replicas[0].timesAsked())
	c.update(t, dead("i0", "i1")) // a mistake: both answer
	n, err := c.samples("x")
	require.NoError(t, err)
	require.Equal(t, 300, n)
}

func TestASlowIngesterIsNotWaitedFor(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	_, err := c.samples("x")
	require.NoError(t, err)
	c.replicas[0].answers(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	for testutil.ToFloat64(c.recent.metrics.hedges) == 0 { // until it is chosen
		begun := time.Now()
		n, err := c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 300, n)
		require.Less(t, time.Since(begun), stalledAfter)
	}
}

// A distributor has heard of a new ingester, and this querier has not.
func TestIngestersThatAnswersNameAreAskedToo(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 20, 0, hour)
	before := c.View()
	for i := range 3 {
		c.join(t, 3+i, cluster.Active)
	}
	c.write(t, alice, "x", 20, hour, 2*hour)
	after := c.View()
	c.mu.view = &cluster.View{Registry: after.Registry, Placement: before.Placement, Peers: after.Peers}
	for range 3 {
		n, err := c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 20*120, n)
	}
	require.True(t, c.recent.memory.knows(after.Placement.Hash()))

	// The old placement is forgotten once nobody names it any more.
	for _, r := range c.replicas {
		r.set(func(r *replica) { r.mu.placements = []wire.PlacementRef{{Hash: after.Placement.Hash()}} })
	}
	c.mu.view = after
	c.recent.memory = newMemory()
	_, err := c.samples("x")
	require.NoError(t, err)
	refs, unheard := c.recent.memory.recall(alice, wire.PlacementRef{Hash: after.Placement.Hash()}, after.Registry.Readable())
	require.Empty(t, unheard)
	require.Equal(t, map[wire.PlacementRef]struct{}{{Hash: after.Placement.Hash()}: {}}, refs)
}

func TestOneThatJoinsIsAskedBeforeItsFirstSample(t *testing.T) {
	c := newClusterRig(t, 3, 5)
	c.refresh()
	c.write(t, alice, "x", 20, 0, hour)
	joining := c.join(t, 5, cluster.Joining)
	_, err := c.samples("x")
	require.NoError(t, err)
	require.Equal(t, 1, joining.timesAsked())
}

func TestAnIngesterWithoutItsDiskDoesNotCountForOlderSamples(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	r := c.replicas[0]
	r.forget(alice)
	r.rec.Generation, r.rec.Epoch = 999, 2
	r.set(func(r *replica) { r.mu.placements = nil })
	c.update(t, func(*cluster.View) {}, r.rec)
	n, err := c.samples("x")
	require.NoError(t, err, "the two others are enough")
	require.Equal(t, 300, n)

	c.update(t, dead("i1"))
	c.replicas[1].answers(func(context.Context) error { return errBroken })
	_, err = c.samples("x")
	require.ErrorContains(t, err, "ingester i0: it has lost the samples that it once had; ingester i1: the disk is on fire")
}

func TestOneOfTwoReplicasAnswersWithAWarning(t *testing.T) {
	c := newClusterRig(t, 2, 2)
	c.refresh()
	c.write(t, alice, "x", 1, 0, hour)
	require.Empty(t, c.get(alice, "/api/v1/query?query=x&time=600").Warnings)
	c.replicas[1].answers(func(context.Context) error { return errBroken })
	got := c.get(alice, "/api/v1/query?query=x&time=600")
	require.Equal(t, 200, got.Code)
	require.Len(t, got.Warnings, 1)
	require.Contains(t, got.Warnings[0], "of two replicas only one answers")
	require.Contains(t, got.Warnings[0], "missing: i1")
	require.InDelta(t, 1, testutil.ToFloat64(c.recent.metrics.reads.WithLabelValues("doubtful")), 0)
}

func TestAShardIsAskedAlone(t *testing.T) {
	c := newClusterRig(t, 3, 9)
	c.refresh()
	c.limits.ShardSize = 3
	c.write(t, alice, "x", 20, 0, hour)
	n, err := c.samples("x")
	require.NoError(t, err)
	require.Equal(t, 20*60, n)
	asked := 0
	for range 5 {
		_, err = c.samples("x")
		require.NoError(t, err)
	}
	for _, r := range c.replicas {
		asked += r.timesAsked()
	}
	require.Equal(t, 9+5*2, asked, "all are asked once, since the shard may have been another before")
}

func TestWhatIngestersSendIsBounded(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	rng := rand.New(rand.NewPCG(1, 1))
	w := c.writer(t, alice, rng, nil)
	for i := range 300 { // random bits take their full size
		for at := range int64(400) {
			w.add(labels.FromStrings("__name__", "noise", "i", fmt.Sprint(i)), 0, at*1000, rng.NormFloat64(), nil, nil)
		}
	}
	w.commit()
	c.limits.MaxQueryBytes = 100_000
	got := c.get(alice, "/api/v1/query?query=sum(noise)&time=300")
	require.Equal(t, 422, got.Code)
	requireLimit(t, got.Error, "max_query_bytes", "100000")
	require.InDelta(t, 1, testutil.ToFloat64(c.recent.metrics.reads.WithLabelValues("refused")), 0)
	c.limits.MaxQueryBytes = 100_000_000
	require.Equal(t, 200, c.get(alice, "/api/v1/query?query=sum(noise)&time=300").Code)
}

func TestWithoutIngestersNothingIsReady(t *testing.T) {
	c := newClusterRig(t, 3, 0)
	c.refresh()
	require.ErrorIs(t, c.Ready(), errNoIngester)
	_, err := c.samples("x")
	require.ErrorIs(t, err, errNoIngester)
	c.join(t, 0, cluster.Active)
	require.NoError(t, c.Ready())
}

func TestMatchersThatAreInvalidAreTheClientsFault(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	for _, r := range c.replicas {
		r.answers(func(context.Context) error { return wire.Invalid(errors.New("no such matcher")) })
	}
	_, err := c.samples("x")
	require.ErrorContains(t, err, "no such matcher")
	require.Equal(t, 400, wire.HTTPStatus(err))
}

func TestARangeWithoutTimeHasNoSamples(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	q, err := c.Queryable().Querier(0, minute)
	require.NoError(t, err)
	defer q.Close()
	set := q.Select(as(alice), true, &storage.SelectHints{Start: 2 * minute, End: 3 * minute}, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "x"))
	require.False(t, set.Next())
	require.NoError(t, set.Err())
	require.Zero(t, c.replicas[0].timesAsked())
}

func TestAClosedQueryAsksNobody(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	entered := make(chan struct{}, 3)
	for _, r := range c.replicas {
		r.answers(func(ctx context.Context) error {
			entered <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
	}
	q, err := c.Queryable().Querier(0, hour)
	require.NoError(t, err)
	set := q.Select(as(alice), true, nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "x"))
	<-entered
	closing := time.Now()
	require.NoError(t, q.Close())
	require.Less(t, time.Since(closing), stalledAfter, "closing waits for ingesters")
	require.False(t, set.Next())
	require.Error(t, set.Err())
	require.False(t, q.Select(as(alice), true, nil).Next())
}

func TestQueriesWithoutATenantAskNobody(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	_, err := count(t, t.Context(), c.Queryable(), "x", 0, 1)
	require.ErrorIs(t, err, tenant.ErrNoTenant)
	require.Zero(t, c.replicas[0].timesAsked())
}
