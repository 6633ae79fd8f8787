package querier

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestAViewHasTheBlocksThatMustBeRead(t *testing.T) {
	id := func(n uint64) (u ulid.ULID) {
		require.NoError(t, u.SetTime(n))
		return u
	}
	block := func(mint, maxt int64, sources ...uint64) blockstore.Block {
		meta := tsdb.BlockMeta{MinTime: mint, MaxTime: maxt}
		for _, s := range sources {
			meta.Compaction.Sources = append(meta.Compaction.Sources, id(s))
		}
		return blockstore.Block{Meta: meta}
	}
	marked := func(b blockstore.Block, reason blockstore.DeletionReason) blockstore.Block {
		b.Deletion = &blockstore.DeletionMark{Reason: reason}
		return b
	}
	for _, tc := range []struct {
		name   string
		listed map[uint64]blockstore.Block
		read   []uint64 // in this order
		known  []uint64 // Visible says yes
		not    []uint64 // Visible says no
	}{
		{
			"blocks come in order of time",
			map[uint64]blockstore.Block{2: block(0, 10, 2), 1: block(10, 20, 1), 3: block(10, 20, 3)},
			[]uint64{2, 1, 3},
			[]uint64{1, 2, 3},
			[]uint64{4},
		},
		{
			"the sources of a compacted block are not read",
			map[uint64]blockstore.Block{1: block(0, 10, 1), 2: block(10, 20, 2), 9: block(0, 20, 1, 2)},
			[]uint64{9},
			[]uint64{1, 2, 9},
			nil,
		},
		{
			"a block that no other covers in full is read",
			map[uint64]blockstore.Block{1: block(0, 10, 1), 8: block(0, 20, 2, 3), 9: block(0, 20, 1, 2)},
			[]uint64{8, 9},
			[]uint64{1, 2, 3, 8, 9},
			nil,
		},
		{
			"a deleted source of a block in view is visible",
			map[uint64]blockstore.Block{9: block(0, 20, 1, 2)},
			[]uint64{9},
			[]uint64{1, 2, 9},
			[]uint64{3},
		},
		{
			"a block marked as compacted is read until its descendant is there",
			map[uint64]blockstore.Block{1: marked(block(0, 10, 1), blockstore.DeletionCompacted)},
			[]uint64{1},
			[]uint64{1},
			nil,
		},
		{
			"a block marked by retention is not read, and needs no other copy",
			map[uint64]blockstore.Block{1: marked(block(0, 10, 1), blockstore.DeletionRetention), 2: block(10, 20, 2)},
			[]uint64{2},
			[]uint64{1, 2},
			nil,
		},
		{
			"a block without sources is its own",
			map[uint64]blockstore.Block{1: block(0, 10)},
			[]uint64{1},
			[]uint64{1},
			nil,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			listed := map[ulid.ULID]blockstore.Block{}
			for n, b := range tc.listed {
				b.Meta.ULID = id(n)
				listed[id(n)] = b
			}
			view := newTenantView(listed, time.Now())
			var read []uint64
			for _, block := range view.overlapping(math.MinInt64, math.MaxInt64) {
				read = append(read, block.Meta.ULID.Time())
			}
			require.Equal(t, tc.read, read)
			for _, n := range tc.known {
				require.True(t, view.reads(id(n)), "block %d", n)
			}
			for _, n := range tc.not {
				require.False(t, view.reads(id(n)), "block %d", n)
			}
		})
	}
}

func TestTheEndOfABlockIsExclusive(t *testing.T) {
	view := viewOf([2]int64{0, 10}, [2]int64{10, 20}, [2]int64{20, 30})
	for _, tc := range []struct {
		mint, maxt int64
		first, n   int
	}{
		{0, 9, 0, 1}, {0, 10, 0, 2}, {10, 10, 1, 1}, {9, 20, 0, 3}, {30, 99, 0, 0}, {-5, -1, 0, 0}, {29, 29, 2, 1},
	} {
		got := view.overlapping(tc.mint, tc.maxt)
		require.Len(t, got, tc.n, "%d to %d", tc.mint, tc.maxt)
		if tc.n > 0 {
			require.Equal(t, view.blocks[tc.first].Meta.MinTime, got[0].Meta.MinTime, "%d to %d", tc.mint, tc.maxt)
		}
	}
}

// viewOf returns the view of blocks of these ranges.
func viewOf(ranges ...[2]int64) *tenantView {
	listed := map[ulid.ULID]blockstore.Block{}
	for i, within := range ranges {
		id := ulid.ULID{15: byte(i + 1)}
		listed[id] = blockstore.Block{Meta: tsdb.BlockMeta{ULID: id, MinTime: within[0], MaxTime: within[1]}}
	}
	return newTenantView(listed, time.Now())
}

func TestAVersionFollowsTheBlocksOfItsRangeAlone(t *testing.T) {
	before := viewOf([2]int64{0, 10}, [2]int64{10, 20})
	after := viewOf([2]int64{0, 10}, [2]int64{10, 20}, [2]int64{20, 30})
	require.Equal(t, before.version(0, 19), after.version(0, 19))
	require.NotEqual(t, before.version(0, 20), after.version(0, 20))
	require.NotEqual(t, before.version(0, 9), before.version(0, 10))
	require.Equal(t, (&tenantView{}).version(0, 9), before.version(50, 60), "nothing is the same everywhere")
}

func TestQueriesFailUntilTheBucketWasListed(t *testing.T) {
	r := newRig(t, rigOption{})
	require.ErrorIs(t, r.Ready(), errNotLoaded)
	_, err := count(t, as(alice), r.Queryable(), "x", 0, 1)
	require.ErrorIs(t, err, errNotLoaded)
	got := r.get(alice, "/api/v1/query?query=1")
	require.Equal(t, 503, got.Code)
	require.Equal(t, "unavailable", got.ErrorType)
	require.Contains(t, got.Error, "not loaded yet")
	require.NotEmpty(t, got.Header.Get("Retry-After"))

	r.bucket.FailFrom(1)
	require.Error(t, r.views.refresh(t.Context()))
	require.ErrorIs(t, r.Ready(), errNotLoaded)
	require.ErrorContains(t, r.Ready(), "the bucket does not answer", "who operates it is told why")
	r.bucket.Heal()

	r.refresh()
	require.NoError(t, r.Ready())
	require.Equal(t, 200, r.get(alice, "/api/v1/query?query=1").Code)
}

func TestALastingFaultIsLoggedOncePerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c complaint
		fault := errors.New("down")
		require.True(t, c.isNew(fault))
		require.False(t, c.isNew(fault))
		require.True(t, c.isNew(errors.New("another")))
		require.True(t, c.isNew(fault))
		<-time.After(time.Minute)
		require.True(t, c.isNew(fault))
	})
}

func TestATenantThatCouldNeverBeListedIsNotAnsweredWithoutItsBlocks(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.bucket.FailOnly(4) // deletions, tenants and indexes are listed, the blocks are not
	require.Error(t, r.views.refresh(t.Context()))

	_, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.ErrorIs(t, err, errNotLoaded)
	n, err := count(t, as(bob), r.Queryable(), "x", 0, hour)
	require.NoError(t, err, "this one has no blocks for sure")
	require.Zero(t, n)

	require.NoError(t, r.views.relistTenants(t.Context(), []tenant.ID{alice}))
	n, err = count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	require.Equal(t, 60, n)
}

func TestTheOldViewStaysWhenListingFails(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	for call := int64(1); call <= 3; call++ {
		r.bucket.FailOnly(call)
		require.ErrorIs(t, r.views.refresh(t.Context()), blocktest.ErrBucketDown)
		r.bucket.Heal()
		n, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
		require.NoError(t, err)
		require.Equal(t, 60, n)
		require.InDelta(t, float64(call), testutil.ToFloat64(r.metrics.refreshFailures), 0)
	}
}

func TestABlockThatCannotBeReadFailsTheQueriesThatNeedIt(t *testing.T) {
	t.Run("it is damaged", func(t *testing.T) {
		r := newRig(t, rigOption{inPlace: true})
		block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		r.upload(alice, 2*hour, 3*hour, blocktest.Floats("x", 2*hour, 3*hour, minute))
		r.refresh()
		dir, ok := r.store.LocalDir(alice, block)
		require.True(t, ok)
		require.NoError(t, os.Remove(filepath.Join(dir, "index")))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "index"), []byte("damaged"), 0o644))

		_, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
		require.ErrorContains(t, err, "block "+block.String()+` of tenant "alice", which the query needs, cannot be read`)
		got := r.get(alice, "/api/v1/query?query=x&time=60")
		require.Equal(t, 500, got.Code)
		require.Contains(t, got.Error, block.String())
		n, err := count(t, as(alice), r.Queryable(), "x", 2*hour, 3*hour)
		require.NoError(t, err, "the query does not need that block")
		require.Equal(t, 60, n)
		require.InDelta(t, 2, testutil.ToFloat64(r.metrics.openFailures), 0)
	})
	t.Run("the bucket is down", func(t *testing.T) {
		r := newRig(t, rigOption{})
		r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		r.refresh()
		r.bucket.FailFrom(1)
		got := r.get(alice, "/api/v1/query?query=x&time=60")
		require.Equal(t, 503, got.Code)
		require.Contains(t, got.Error, "does not answer")
		r.bucket.Heal()
		require.Equal(t, 200, r.get(alice, "/api/v1/query?query=x&time=60").Code)
	})
}

// The order that keeps reads complete: the ingester's querier is opened first, so what
// it has dropped before is in the view that is loaded after.
func TestNoGapWhileABlockMovesFromTheIngesterToTheBucket(t *testing.T) {
	r := newRig(t, rigOption{})
	r.refresh()
	dir := blocktest.Write(t, t.TempDir(), 0, hour, blocktest.Floats("x", 0, hour, minute))
	// While the query opens the ingester's querier, which finds nothing any more, the
	// block appears in the bucket and in the view.
	r.edge = Direct(movingIngester{edge: r.ingester, move: func() {
		r.uploadDir(alice, dir)
		r.refresh()
	}})
	n, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	require.Equal(t, 60, n)
}

func TestABlockThatTheIngesterReadsIsNotReadFromTheBucket(t *testing.T) {
	r := newRig(t, rigOption{})
	b := &write.Batch{}
	b.Add(write.NewHasher(), labels.FromStrings("__name__", "x"), []write.Sample{{T: 0, V: 1}, {T: minute, V: 2}}, nil, nil)
	_, err := r.ingester.Push(context.Background(), alice, b)
	require.NoError(t, err)
	db := r.ingester.get(alice)
	require.NoError(t, db.CompactHead(tsdb.NewRangeHead(db.Head(), 0, hour)))
	require.Len(t, db.Blocks(), 1)
	r.uploadDir(alice, db.Blocks()[0].Dir())
	r.refresh()
	r.bucket.FailFrom(1)
	n, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	require.Equal(t, 2, n)
}

type movingIngester struct {
	*edge
	move func()
}

func (m movingIngester) Querier(id tenant.ID, mint, maxt int64) (storage.Querier, error) {
	q, err := m.edge.Querier(id, mint, maxt)
	m.move()
	return q, err
}

func TestRunRefreshesEveryIntervalAndUponHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		stop := r.running()
		defer stop()
		synctest.Wait()
		require.NoError(t, r.Ready())

		block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		synctest.Wait()
		require.False(t, r.Visible(alice, block), "nobody said anything")
		<-time.After(time.Duration(r.cfg.RefreshInterval))
		synctest.Wait()
		require.True(t, r.Visible(alice, block))
		require.False(t, r.Visible(bob, block))

		block = r.upload(bob, 0, hour, blocktest.Floats("x", 0, hour, minute))
		before := r.bucket.Calls()
		for range 100 {
			r.BlockUploaded(bob, block)
		}
		synctest.Wait()
		require.True(t, r.Visible(bob, block))
		require.Less(t, r.bucket.Calls()-before, int64(20), "hints are taken together")
	})
}

func TestABlockThatIsGoneMakesTheViewFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{inPlace: true})
		block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		stop := r.running()
		defer stop()
		synctest.Wait()
		require.NoError(t, r.store.Delete(t.Context(), alice, block))

		_, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
		require.ErrorIs(t, err, blockstore.ErrBlockNotFound, "not an answer without its samples")
		synctest.Wait()
		n, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
		require.NoError(t, err, "somebody did delete the block")
		require.Zero(t, n)
	})
}

func TestAFirstListingThatFailsIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		r.bucket.FailFrom(1)
		stop := r.running()
		defer stop()
		synctest.Wait()
		require.Error(t, r.Ready())
		r.bucket.Heal()
		<-time.After(2 * firstRetry)
		synctest.Wait()
		require.NoError(t, r.Ready())
	})
}

func TestABlockThatLeavesTheViewStaysOpenUntilItsQueriesEnd(t *testing.T) {
	for _, inPlace := range []bool{true, false} {
		r := newRig(t, rigOption{inPlace: inPlace})
		block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
		r.refresh()

		querier, err := r.Queryable().Querier(0, hour)
		require.NoError(t, err)
		_, err = countIn(as(alice), querier, "x") // opens the block
		require.NoError(t, err)
		require.NoError(t, r.store.Delete(t.Context(), alice, block))
		r.refresh()

		n, err := countIn(as(alice), querier, "x")
		require.NoError(t, err)
		require.Equal(t, 60, n, "the query goes on")
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.blocksOpen), 0)
		n, err = count(t, as(alice), r.Queryable(), "x", 0, hour)
		require.NoError(t, err)
		require.Zero(t, n, "a new query sees the new view")

		require.NoError(t, querier.Close())
		require.NoError(t, querier.Close(), "closing twice closes once")
		require.InDelta(t, 0, testutil.ToFloat64(r.metrics.blocksOpen), 0)
	}
}

func TestPartsOfABlockAreFetchedOnceForAllQueries(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	r.bucket.Heal() // counts from 0
	_, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	once := r.bucket.Calls()

	r2 := newRig(t, rigOption{})
	r2.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r2.refresh()
	r2.bucket.Heal()
	errs := make(chan error)
	for range 20 {
		querier, err := r2.Queryable().Querier(0, hour)
		require.NoError(t, err)
		go func() {
			n, err := countIn(as(alice), querier, "x")
			if n != 60 {
				err = errors.Join(err, errors.New("samples are missing"))
			}
			errs <- errors.Join(err, querier.Close())
		}()
	}
	for range 20 {
		require.NoError(t, <-errs)
	}
	require.LessOrEqual(t, r2.bucket.Calls(), once)
}

func TestARestartUsesThePartsOnDiskAndRemovesOldCopies(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, rigOption{dir: dir})
	block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	_, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	copied := filepath.Join(dir, string(alice), block.String())
	require.NoError(t, os.MkdirAll(filepath.Join(copied, "chunks"), 0o755))

	again, err := New(r.cfg, Direct(r.ingester), r.store, func(tenant.ID) tenant.Limits { return *r.limits }, nil, nil)
	require.NoError(t, err)
	require.NoError(t, again.views.refresh(t.Context()))
	require.NoError(t, removeCopies(dir))
	require.NoDirExists(t, copied)

	r.bucket.FailFrom(1)
	n, err := count(t, as(alice), again.Queryable(), "x", 0, hour-1)
	require.NoError(t, err, "the parts are there")
	require.Equal(t, 60, n)
	r.bucket.Heal()

	// What is not in view goes.
	require.FileExists(t, filepath.Join(dir, "headers", string(alice), block.String()))
	require.NoError(t, r.store.Delete(t.Context(), alice, block))
	require.NoError(t, again.views.refresh(t.Context()))
	require.NoError(t, again.trimBlocks(again.views.current.Load()))
	require.NoFileExists(t, filepath.Join(dir, "headers", string(alice), block.String()))
}

func TestOpeningABlockInTheBucketWritesNothingThere(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	block := r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	dir, _ := r.store.LocalDir(alice, block)
	before := files(t, dir)
	_, err := count(t, as(alice), r.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	require.Equal(t, before, files(t, dir))
	require.NoDirExists(t, r.cfg.Dir)
}

func files(t *testing.T, dir string) (found []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		found = append(found, path+" "+info.ModTime().String())
		return nil
	}))
	return found
}
