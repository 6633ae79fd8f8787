package ingester

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// loseMeta restarts with a block of acme whose meta.json a power failure has emptied, and
// returns what mends it.
func (f *fixture) loseMeta(block ulid.ULID) (mend func()) {
	f.t.Helper()
	require.NoError(f.t, f.close())
	path := filepath.Join(f.dir, "ingester", string(acme), block.String(), "meta.json")
	good, err := os.ReadFile(path)
	require.NoError(f.t, err)
	require.NoError(f.t, os.WriteFile(path, nil, 0o600))
	f.open()
	require.NotContains(f.t, f.LocalBlocks(acme), block)
	return func() { require.NoError(f.t, os.WriteFile(path, good, 0o600)) }
}

// between returns how many samples of series a the ingester answers with of two times.
func (f *fixture) between(from, to time.Duration) (int, error) {
	f.t.Helper()
	q, err := f.Querier(acme, noon.Add(from).UnixMilli(), noon.Add(to).UnixMilli())
	if err != nil {
		return 0, err
	}
	n := len(f.drain(q)["a"])
	require.NoError(f.t, q.Close())
	return n, nil
}

func (f *fixture) leftOut() float64 {
	return testutil.ToFloat64(f.openBlocks.leftOut.WithLabelValues(string(acme)))
}

// sixHours is a tenant with samples of six hours, of which four are in two blocks.
func sixHours(t *testing.T, options ...option) *fixture {
	t.Helper()
	f := newFixture(t, options...)
	f.seeAll = false
	f.advance(7 * time.Hour)
	f.pushHours(acme, 6*time.Hour)
	return f
}

func TestALeftOutBlockFailsQueriesOfItsTimeUntilTheyReadItFromTheBucket(t *testing.T) {
	f := sixHours(t)
	f.round(acme)
	block := f.LocalBlocks(acme)[0]
	require.Len(t, f.uploads, 2)
	f.loseMeta(block)
	require.InDelta(t, 1, f.leftOut(), 0)
	for range 2 {
		_, err := f.between(0, 6*time.Hour)
		require.ErrorContains(t, err, block.String())
		_, err = f.ChunkQuerier(acme, noon.Add(time.Hour).UnixMilli(), math.MaxInt64)
		require.ErrorContains(t, err, block.String())
		n, err := f.between(2*time.Hour, 6*time.Hour)
		require.NoError(t, err)
		require.Equal(t, 25, n)
		require.Less(t, f.Holding(acme).HeldFrom, noon.Add(2*time.Hour).UnixMilli())
		f.round(acme)
	}

	f.visible[block] = true
	f.round(acme)
	n, err := f.between(0, 6*time.Hour)
	require.NoError(t, err)
	require.Equal(t, 25, n)
	require.Equal(t, noon.Add(2*time.Hour).UnixMilli(), f.Holding(acme).HeldFrom)
	require.InDelta(t, 0, f.leftOut(), 0)
	require.NoDirExists(t, filepath.Join(f.dir, "ingester", string(acme), block.String()), "it goes as others do that are in the bucket")
	f.restart()
	require.Equal(t, noon.Add(2*time.Hour).UnixMilli(), f.Holding(acme).HeldFrom)
	require.Len(t, f.uploads, 2)
}

func TestALeftOutBlockOfAMemberIsReadInTheBucketOnceQueriersMustKnowIt(t *testing.T) {
	for name, indexed := range map[string]bool{"with an index": true, "without an index": false} {
		t.Run(name, func(t *testing.T) {
			f := sixHours(t, withCluster(i0, time.Hour), withConfig(func(c *Config) { c.IdleTimeout = 48 * time.Hour }))
			f.round(acme)
			block := f.LocalBlocks(acme)[0]
			if indexed {
				f.index(7)
			}
			f.seeAll = true
			f.loseMeta(block)
			f.round(acme)
			f.advance(59 * time.Minute)
			f.round(acme)
			_, err := f.between(0, 6*time.Hour)
			require.ErrorContains(t, err, block.String(), "a querier may have listed the bucket before the upload")

			if indexed {
				f.advance(lookValid + time.Minute) // since the index was seen last
			} else {
				f.pass(keepUnindexed - 59*time.Minute - 2*time.Minute)
				_, err = f.between(0, 6*time.Hour)
				require.ErrorContains(t, err, block.String())
				f.advance(10 * time.Minute)
			}
			f.round(acme)
			n, err := f.between(0, 6*time.Hour)
			require.NoError(t, err)
			require.Positive(t, n)
			held := f.Holding(acme)
			require.GreaterOrEqual(t, held.HeldFrom, noon.Add(2*time.Hour).UnixMilli())
			if indexed {
				require.EqualValues(t, 7, held.IndexGeneration)
				require.Equal(t, 25, n, "the other block stays for longer")
			}
		})
	}
}

func TestALeftOutBlockThatIsNotInTheBucketIsMissed(t *testing.T) {
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	f := sixHours(t, func(f *fixture) { f.bucket = bucket }, withCluster(i0, time.Hour))
	bucket.FailFrom(1)
	require.Error(t, f.lookup(acme).maintain(t.Context()))
	require.Len(t, f.LocalBlocks(acme), 2)
	block := f.LocalBlocks(acme)[0]
	mend := f.loseMeta(block)
	bucket.Heal()
	f.seeAll = true

	for range 20 { // It is long idle in the end.
		f.advance(time.Hour)
		f.round(acme)
	}
	require.NotNil(t, f.lookup(acme))
	require.DirExists(t, f.file(block.String()), "nobody else has it")
	require.NotEmpty(t, f.Holding(acme).Placements, "it must be known whom to ask for its samples")
	_, err := f.between(0, 6*time.Hour)
	require.ErrorContains(t, err, block.String())
	_, _, err = f.lookup(acme).empty(t.Context())
	require.ErrorContains(t, err, block.String(), "a drain must not leave it behind")
	f.accept(acme, 0, time.Hour, "a")
	_, err = f.ApplyDeletions(t.Context(), acme)
	require.ErrorContains(t, err, block.String(), "what is deleted would come back with it")

	mend()
	require.ErrorContains(t, f.lookup(acme).maintain(t.Context()), block.String(), "the deletion is looked at first")
	f.round(acme)
	require.InDelta(t, 0, f.leftOut(), 0)
	want := []string{}
	for at := time.Hour + 10*time.Minute; at <= 6*time.Hour; at += 10 * time.Minute {
		want = append(want, fmt.Sprintf("%s 1", at))
	}
	f.round(acme)
	require.Equal(t, want, f.inBucket(acme)["a"])
}

func TestALeftOutBlockThatWasUploadedIsNotUploadedAgainWhenItIsMended(t *testing.T) {
	f := sixHours(t)
	f.round(acme)
	block := f.LocalBlocks(acme)[0]
	mend := f.loseMeta(block)
	f.advance(time.Hour)
	f.pushLater(acme)
	f.round(acme)
	require.Len(t, f.uploads, 3)
	require.True(t, f.lookup(acme).shipped.has(block))
	mend()
	f.round(acme)
	require.Contains(t, f.LocalBlocks(acme), block)
	n, err := f.between(0, 8*time.Hour)
	require.NoError(t, err)
	require.Equal(t, 37+6, n)
	f.restart()
	f.round(acme)
	require.Len(t, f.uploads, 3)
}

func TestALeftOutBlockThatIsMovedAwayIsNotMissed(t *testing.T) {
	f := sixHours(t)
	f.round(acme)
	block := f.LocalBlocks(acme)[0]
	f.loseMeta(block)
	require.NoError(t, os.Rename(filepath.Join(f.dir, "ingester", string(acme), block.String()), filepath.Join(t.TempDir(), "aside")))
	f.round(acme)
	require.InDelta(t, 0, f.leftOut(), 0)
	n, err := f.between(0, 6*time.Hour)
	require.NoError(t, err)
	require.Equal(t, 25, n)
	require.Equal(t, noon.Add(2*time.Hour).UnixMilli(), f.Holding(acme).HeldFrom)
}

func TestALateSampleOfALeftOutBlockIsTakenUncompared(t *testing.T) {
	f := sixHours(t, withLimits(func(l *tenant.Limits) { l.OutOfOrderWindow = model.Duration(24 * time.Hour) }))
	f.round(acme)
	mend := f.loseMeta(f.LocalBlocks(acme)[0])
	f.push(acme, sample{"a", time.Hour, 1})
	require.Positive(t, testutil.ToFloat64(f.metrics.uncompared))
	mend()
	f.round(acme)
	require.Len(t, f.stored(acme)["a"], 37)
}

// TestALeftOutBlockIsOfTheTimesThatItsIndexSays has one whose index is damaged too, one that
// was written in the place of another, and one that nothing is left of.
func TestALeftOutBlockIsOfTheTimesThatItsIndexSays(t *testing.T) {
	l := blocksOf(t, 3, 10)
	blocks := l.get()
	require.NoError(t, editMeta(blocks[2], func(m *tsdb.BlockMeta) {
		m.Compaction.Parents = []tsdb.BlockDesc{{ULID: blocks[1].meta.ULID}}
	}))
	for _, b := range blocks[:2] {
		require.NoError(t, os.WriteFile(filepath.Join(b.dir, "meta.json"), []byte("{"), 0o600))
	}
	open := func() *localBlocks {
		again, err := openLocalBlocks(acme, l.dir, l.shipped, l.all, l.log)
		require.NoError(t, err)
		return again
	}
	again := open()
	require.NoDirExists(t, blocks[1].dir, "it was replaced")
	require.Len(t, again.leftOut(), 1)
	found := again.leftOut()[0]
	require.Equal(t, blocks[0].meta.ULID, found.id)
	require.Equal(t, blocks[0].meta.MinTime, found.mint)
	require.LessOrEqual(t, found.maxt, blocks[0].meta.MaxTime)
	require.Greater(t, found.maxt, blocks[0].meta.MaxTime-testMinute)
	require.ErrorContains(t, again.lacking(math.MinInt64, found.mint), found.id.String())
	require.NoError(t, again.lacking(math.MinInt64, found.mint-1))
	require.NoError(t, again.lacking(found.maxt, math.MaxInt64))

	require.NoError(t, os.Truncate(filepath.Join(blocks[0].dir, "index"), 20))
	again = open()
	cut := int64(found.id.Time())
	require.Error(t, again.lacking(math.MinInt64, math.MinInt64))
	require.Error(t, again.lacking(cut, cut))
	require.NoError(t, again.lacking(cut+maxAhead.Milliseconds()+1, math.MaxInt64))
	_, err := again.readAll(&fixture{t: t}, math.MinInt64, math.MaxInt64)
	require.ErrorContains(t, err, found.dir)
	require.Positive(t, testutil.ToFloat64(l.all.failed))
	require.NoError(t, again.close())
}
