package querier

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// drain moves all that a replica has to the bucket and makes it leave.
func (c *clusterRig) drain(t *testing.T, r *replica) {
	t.Helper()
	for _, dir := range r.cut(alice, t.TempDir(), hour) {
		c.uploadDir(alice, dir)
	}
	r.forget(alice)
	c.transition(t, r, cluster.Draining, cluster.Left)
	r.server.Stop()
}

func TestWhoHasLeftIsReadFromTheBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterRig(t, 3, 5)
		stop := c.running()
		defer stop()
		synctest.Wait()
		c.write(t, alice, "x", 20, 0, hour)
		n, err := c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 1200, n)
		// Two that have sets in common: without the bucket those would be incomplete.
		c.drain(t, c.replicas[3])
		c.drain(t, c.replicas[4])
		<-time.After(time.Second)
		n, err = c.samples("x")
		require.NoError(t, err, "the query has the bucket listed")
		require.Equal(t, 1200, n)
		for range 5 {
			n, err = c.samples("x")
			require.NoError(t, err)
			require.Equal(t, 1200, n)
		}
	})
}

func TestABucketThatCannotBeListedDoesNotStandInForWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterRig(t, 3, 3)
		stop := c.running()
		defer stop()
		synctest.Wait()
		c.write(t, alice, "x", 5, 0, hour)
		_, err := c.samples("x")
		require.NoError(t, err)
		c.drain(t, c.replicas[1])
		c.drain(t, c.replicas[2])
		<-time.After(time.Second)
		c.bucket.FailFrom(1)
		_, err = c.samples("x")
		require.ErrorContains(t, err, "ingester i1: it has left, and the bucket could not be listed since; ingester i2: ")
		c.bucket.Heal()
		n, err := c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 300, n)
	})
}

func TestWhoWasGivenUpIsMissing(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	_, err := c.samples("x")
	require.NoError(t, err)
	c.update(t, func(*cluster.View) {}, c.replicas[2].rec.Forgotten())
	c.refresh()
	n, err := c.samples("x")
	require.NoError(t, err, "the others are enough")
	require.Equal(t, 300, n)
	c.replicas[1].answers(func(context.Context) error { return errBroken })
	_, err = c.samples("x")
	require.ErrorContains(t, err, "ingester i2: it was given up while it had samples that may not be in the bucket")
}

// recently is a cluster whose samples are of the last hour, which replica i0 has cut
// and uploaded.
func recently(t *testing.T) (c *clusterRig, block ulid.ULID, mint int64) {
	c = newClusterRig(t, 3, 3)
	mint = time.Now().Add(-time.Hour).UnixMilli() / minute * minute
	c.write(t, alice, "x", 5, mint, mint+30*minute)
	r := c.replicas[0]
	db := r.get(alice)
	dirs := r.cutRange(db, t.TempDir(), mint, mint+30*minute)
	require.Len(t, dirs, 1)
	block = c.uploadDir(alice, dirs[0])
	r.set(func(r *replica) { r.mu.blocks = []ulid.ULID{block} })
	c.refresh()
	return c, block, mint
}

// readsBucket reports whether a query that finds all samples reads the bucket for it.
func (c *clusterRig) readsBucket(t *testing.T, mint int64) bool {
	t.Helper()
	opened := false
	c.bucket.FailFrom(1)
	n, err := count(t, as(alice), c.Queryable(), "x", mint, mint+hour)
	c.bucket.Heal()
	if err != nil {
		require.ErrorContains(t, err, "which the query needs, cannot be read")
		opened = true
	} else {
		require.Equal(t, 150, n)
	}
	return opened
}

func TestABlockThatAnIngesterCutIsNotReadWhileIngestersHoldItsSamples(t *testing.T) {
	c, _, mint := recently(t)
	for range 10 { // also when i0 is spared
		require.False(t, c.readsBucket(t, mint))
	}
	// A responder has dropped samples of that time.
	for _, r := range c.replicas {
		r.set(func(r *replica) { r.mu.heldFrom = mint + 1; r.mu.blocks = nil })
	}
	require.True(t, c.readsBucket(t, mint))
}

func TestABlockOfUnknownOriginIsRead(t *testing.T) {
	c, _, mint := recently(t)
	c.replicas[0].set(func(r *replica) { r.mu.blocks = nil })
	require.True(t, c.readsBucket(t, mint), "somebody may have imported it")
}

func TestABlockIsReadWhenWhoHadItHasLeft(t *testing.T) {
	c, _, mint := recently(t)
	require.False(t, c.readsBucket(t, mint))
	c.transition(t, c.replicas[0], cluster.Draining, cluster.Left)
	c.refresh()
	c.replicas[1].answers(func(context.Context) error { return errBroken })
	c.transition(t, c.replicas[1], cluster.Draining, cluster.Left)
	c.recent.observe()
	c.refresh()
	require.True(t, c.readsBucket(t, mint), "the one that is left may lack what the two others had")
}

func TestABlockIsCoveredOnlyAsAWhole(t *testing.T) {
	id := func(n uint64) (u ulid.ULID) {
		require.NoError(t, u.SetTime(n))
		return u
	}
	meta := func(mint int64, sources ...uint64) *tsdb.BlockMeta {
		m := &tsdb.BlockMeta{ULID: id(99), MinTime: mint}
		for _, s := range sources {
			m.Compaction.Sources = append(m.Compaction.Sources, id(s))
		}
		return m
	}
	c := covered{blocks: []ulid.ULID{id(1), id(2)}, from: 100, cut: func(b ulid.ULID) bool { return b.Time() < 5 }}
	require.True(t, c.has(meta(0, 1, 2)), "its sources are in the answers")
	require.False(t, c.has(meta(0, 1, 3)))
	require.True(t, c.has(meta(100, 1, 3)), "its samples came by way of ingesters and are held")
	require.False(t, c.has(meta(99, 1, 3)))
	require.False(t, c.has(meta(100, 1, 7)))
	require.False(t, c.has(meta(100)), "it is its own source")
	c.cut = nil
	require.False(t, c.has(meta(100, 1, 3)))
}

func TestAnOldViewOfTheBucketDoesNotStandInForWhatIngestersDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterRig(t, 3, 3)
		c.refresh()
		now := time.Now().UnixMilli()
		c.write(t, alice, "x", 5, now-hour, now)
		for _, r := range c.replicas {
			r.set(func(r *replica) { r.mu.heldFrom = now - hour })
		}
		<-time.After(maxViewAge + time.Second)
		n, err := count(t, as(alice), c.Queryable(), "x", now-hour, now)
		require.NoError(t, err, "they hold all of that")
		require.Equal(t, 300, n)
		_, err = count(t, as(alice), c.Queryable(), "x", now-hour-1, now)
		require.ErrorContains(t, err, "were last listed 30m1s ago")
		require.Equal(t, 503, wire.HTTPStatus(err))
		c.refresh()
		_, err = count(t, as(alice), c.Queryable(), "x", now-hour-1, now)
		require.NoError(t, err)
	})
}

func TestWhoUploadsLearnsWhatIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		stop := r.running()
		defer stop()
		synctest.Wait()
		server := &blocksServer{q: r.Querier}
		block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		<-time.After(time.Second) // the upload is later than the last listing
		other := ulid.MustNew(1, noEntropy{})
		ask := func(blocks ...ulid.ULID) []ulid.ULID {
			t.Helper()
			answer, err := server.Uploaded(t.Context(), &queryv1.UploadedRequest{Tenant: "alice", Blocks: wire.ULIDsToProto(blocks)})
			require.NoError(t, err)
			visible, err := wire.ULIDsFromProto(answer.GetVisible())
			require.NoError(t, err)
			return visible
		}
		require.Equal(t, []ulid.ULID{block}, ask(block, other))
		<-time.After(time.Second)
		before := r.bucket.Calls()
		require.Equal(t, []ulid.ULID{block}, ask(block))
		require.Equal(t, before, r.bucket.Calls(), "it is known already")

		r.bucket.FailFrom(1)
		begun := time.Now()
		require.Empty(t, ask(other))
		require.Zero(t, time.Since(begun), "it is not worth waiting for")
		_, err := server.Uploaded(t.Context(), &queryv1.UploadedRequest{Tenant: "../x"})
		require.Error(t, err)
		_, err = server.Uploaded(t.Context(), &queryv1.UploadedRequest{Tenant: "x", Blocks: [][]byte{{1}}})
		require.Error(t, err)
		r.bucket.Heal()
	})
}

// noEntropy is entropy that is not.
type noEntropy struct{}

func (noEntropy) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestExemplarsAndMetadataAndStatisticsAreMerged(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 10, 0, hour)
	c.write(t, alice, "y", 5, 0, hour)
	app := map[*replica]storage.AppenderV2{}
	e := exemplar.Exemplar{Labels: labels.FromStrings("trace", "1"), Value: 1, Ts: hour, HasTs: true}
	for i, r := range c.replicas {
		app[r] = r.open(alice).AppenderV2(t.Context())
		own := []exemplar.Exemplar{e}
		if i == 1 {
			own = append(own, exemplar.Exemplar{Labels: labels.FromStrings("trace", "2"), Value: 1, Ts: hour + 1, HasTs: true})
		}
		_, err := app[r].Append(0, labels.FromStrings("__name__", "x", "pod", "1"), 0, hour, 1, nil, nil, storage.AOptions{Exemplars: own})
		require.NoError(t, err)
		require.NoError(t, app[r].Commit())
	}
	got := c.get(alice, "/api/v1/query_exemplars?query=x&start=0&end=7200")
	require.Equal(t, 200, got.Code)
	require.JSONEq(t, `[{"seriesLabels":{"__name__":"x","pod":"1"},"exemplars":[{"labels":{"trace":"1"},"value":"1","timestamp":3600},{"labels":{"trace":"2"},"value":"1","timestamp":3600.001}]}]`, string(got.Data))

	older, newer := metadata.Metadata{Type: "gauge", Help: "older"}, metadata.Metadata{Type: "counter", Help: "newer"}
	c.replicas[0].md[alice] = map[string][]metadata.Metadata{"x": {older}}
	c.replicas[1].md[alice] = map[string][]metadata.Metadata{"x": {newer, older}, "y": {older}}
	c.replicas[2].md[alice] = map[string][]metadata.Metadata{"x": {newer, older}}
	known, err := c.recent.metadata(t.Context(), alice, "")
	require.NoError(t, err)
	require.ElementsMatch(t, []metadata.Metadata{newer, older}, known["x"])

	stats, err := c.recent.stats(t.Context(), alice, "__name__", 10)
	require.NoError(t, err)
	require.EqualValues(t, 15, stats.NumSeries)
	require.Equal(t, []index.Stat{{Name: "x", Count: 10}, {Name: "y", Count: 5}}, stats.IndexPostingStats.CardinalityMetricsStats)
	require.EqualValues(t, 0, stats.MinTime)
	c.replicas[2].answers(func(context.Context) error { return errBroken })
	stats, err = c.recent.stats(t.Context(), alice, "__name__", 1)
	require.NoError(t, err)
	require.EqualValues(t, 15, stats.NumSeries, "two copies are not three")
	require.Len(t, stats.IndexPostingStats.CardinalityMetricsStats, 1)
	stats, err = c.recent.stats(t.Context(), bob, "__name__", 1)
	require.NoError(t, err)
	require.Nil(t, stats)
}

func TestMergedMetadataIsNewestFirst(t *testing.T) {
	a, b, c := metadata.Metadata{Help: "a"}, metadata.Metadata{Help: "b"}, metadata.Metadata{Help: "c"}
	require.Equal(t, map[string][]metadata.Metadata{"x": {a, b, c}, "y": {c}}, mergeMetadata([]map[string][]metadata.Metadata{
		{"x": {a, c}}, {"x": {b}, "y": {c}}, {"x": {a, b}}, nil,
	}))
}
