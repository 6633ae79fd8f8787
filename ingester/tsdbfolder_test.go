package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// cutTenants returns a fixture with so many tenants, each with two cut blocks that stay
// and a head.
func cutTenants(t *testing.T, tenants int) *fixture {
	t.Helper()
	f := newFixture(t)
	f.seeAll = false
	f.advance(10 * time.Hour)
	for k := range tenants {
		id := tenant.ID(fmt.Sprint("t", k))
		for at := time.Duration(0); at <= 6*time.Hour; at += time.Hour {
			f.push(id, sample{"a", at, 1})
		}
	}
	f.maintain(context.Background())
	return f
}

func TestBlocksOfManyTenantsTakeNoFilesAndQueriesOpenABoundedNumber(t *testing.T) {
	const tenants = 30
	f := cutTenants(t, tenants)
	blocks := 0
	for _, s := range f.Summaries() {
		blocks += s.LocalBlocks
	}
	require.Equal(t, 2*tenants, blocks)
	require.Zero(t, blocksAmong(openBelow(t, f.dir)), "after a cut and an upload")
	f.restart()
	require.Zero(t, blocksAmong(openBelow(t, f.dir)), "after a restart")

	f.openBlocks.most = 5
	for k := range tenants {
		require.Len(t, f.stored(tenant.ID(fmt.Sprint("t", k)))["a"], 7)
	}
	require.Equal(t, 5, f.openBlocks.count())
	require.LessOrEqual(t, blocksAmong(openBelow(t, f.dir)), 5, "after a burst of queries")
	f.push("t0", sample{"a", 6*time.Hour + time.Minute, 1})
	f.push("t0", sample{"a", 4*time.Hour - time.Minute, 1}) // late: it is looked for in a block
	require.Equal(t, 5, f.openBlocks.count())

	require.NoError(t, f.close())
	require.Empty(t, openBelow(t, f.dir))
	require.Zero(t, f.openBlocks.count())
	f.open()
}

func TestQueriesOfTheHeadAloneOpenNoBlock(t *testing.T) {
	f := cutTenants(t, 1)
	q, err := f.Querier("t0", noon.Add(5*time.Hour).UnixMilli(), math.MaxInt64)
	require.NoError(t, err)
	require.Len(t, f.drain(q)["a"], 2)
	require.NoError(t, q.Close())
	require.Zero(t, f.openBlocks.count())
}

func TestWhatWasCutComesBackAfterNoKindOfEnd(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.seeAll = false
			f.advance(10 * time.Hour)
			f.pushHours(acme, 6*time.Hour)
			f.push(acme, sample{"a", 5*time.Hour - time.Second, 7})
			f.round(acme)
			want := f.stored(acme)
			for _, end := range []func(*fixture) *fixture{end, endings["stop"], endings["kill"]} {
				f = end(f)
				f.seeAll = false
				db := f.lookup(acme).db
				require.Empty(t, db.Blocks())
				require.Equal(t, noon.Add(4*time.Hour).UnixMilli(), db.Head().MinTime())
				require.Len(t, f.LocalBlocks(acme), 3, "two windows, and the late sample")
				require.Equal(t, want, f.stored(acme))
				entries, err := os.ReadDir(filepath.Join(f.dir, "ingester", string(acme), tsdbFolder))
				require.NoError(t, err)
				for _, e := range entries {
					require.NotEqual(t, markerID().String(), e.Name())
				}
			}
		})
	}
}

// TestADeathBetweenWritingABlockAndDroppingItFromTheHeadLosesAndDoublesNothing copies the
// tenant's folder at the moment when the block has its name and the head has all of it.
func TestADeathBetweenWritingABlockAndDroppingItFromTheHeadLosesAndDoublesNothing(t *testing.T) {
	for name, late := range map[string]bool{"in order": false, "late samples": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.seeAll = false
			f.advance(10 * time.Hour)
			f.pushHours(acme, 6*time.Hour)
			f.push(acme, sample{"a", 5*time.Hour - time.Second, 7})
			want := f.stored(acme)
			tdb := f.lookup(acme)
			head := headCompactor{&tdb.cutter}
			var err error
			if late {
				ooo, oooErr := tsdb.NewOOOCompactionHead(t.Context(), tdb.db.Head())
				require.NoError(t, oooErr)
				base := &tsdb.BlockMeta{}
				base.Compaction.SetOutOfOrder()
				mint := noon.Add(4 * time.Hour).UnixMilli()
				maxt := mint + blockRange.Milliseconds()
				_, err = head.Write("", ooo.CloneForTimeRange(mint, maxt-1), mint, maxt, base)
			} else {
				mint, maxt := noon.UnixMilli(), noon.Add(blockRange).UnixMilli()
				_, err = head.Write("", tsdb.NewRangeHead(tdb.db.Head(), mint, maxt-1), mint, maxt, nil)
			}
			require.NoError(t, err)
			require.Len(t, tdb.cutter.staged, 1)
			require.Empty(t, f.LocalBlocks(acme), "the cut may fail still")

			crashed := f.afterCrash()
			crashed.seeAll = false
			require.Len(t, crashed.LocalBlocks(acme), 1)
			require.Equal(t, want, crashed.stored(acme))
			require.NoError(t, crashed.Flush(t.Context(), acme))
			require.Equal(t, want, crashed.stored(acme))

			// Here it fails, and leaves nothing.
			staged := tdb.cutter.staged[0].dir
			failure := errors.New("no")
			require.ErrorIs(t, tdb.cutter.cut(func() error { return failure }), failure)
			require.NoDirExists(t, staged)
			require.Equal(t, want, f.stored(acme))
			require.NoError(t, f.Flush(t.Context(), acme))
			require.Equal(t, want, f.stored(acme))
			require.Equal(t, want, f.inBucket(acme))
		})
	}
}

func TestATenantWithADamagedBlockTakesWritesAndAnswersWhatDoesNotNeedIt(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(10 * time.Hour)
	f.pushHours(acme, 6*time.Hour)
	f.round(acme)
	blocks := f.LocalBlocks(acme)
	require.Len(t, blocks, 2)
	folder := filepath.Join(f.dir, "ingester", string(acme))
	damaged := filepath.Join(folder, blocks[0].String())
	require.NoError(t, os.Truncate(filepath.Join(damaged, "index"), 30))
	f.restart()

	f.push(acme, sample{"a", 6*time.Hour + time.Minute, 1})
	_, err := f.Querier(acme, math.MinInt64, math.MaxInt64)
	require.ErrorContains(t, err, blocks[0].String())
	_, err = f.ChunkQuerier(acme, math.MinInt64, math.MaxInt64)
	require.ErrorContains(t, err, blocks[0].String())
	q, err := f.Querier(acme, noon.Add(2*time.Hour).UnixMilli(), math.MaxInt64)
	require.NoError(t, err)
	require.Len(t, f.drain(q)["a"], 26)
	require.NoError(t, q.Close())
	f.advance(time.Hour)
	f.pushLater(acme)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3, "cuts go on")

	require.NoError(t, os.Rename(damaged, filepath.Join(t.TempDir(), "aside")))
	f.restart()
	require.Len(t, f.stored(acme)["a"], 26+6)
}

// pushLater pushes for another two hours after six.
func (f *fixture) pushLater(id tenant.ID) {
	f.t.Helper()
	for at := 6*time.Hour + 20*time.Minute; at <= 8*time.Hour; at += 20 * time.Minute {
		f.push(id, sample{"a", at, 1})
	}
}

func TestTheFolderOfATenantIsOneThatATSDBGoesOnWith(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(10 * time.Hour)
	f.pushHours(acme, 6*time.Hour)
	f.push(acme, sample{"a", 5*time.Hour - time.Second, 7})
	f.round(acme)
	want := f.stored(acme)
	require.NoError(t, f.close())
	folder := filepath.Join(f.dir, "ingester", string(acme))

	// Another opens it as earlier releases did, and leaves a snapshot of the head.
	options := tsdb.DefaultOptions()
	options.RetentionDuration = 0
	options.OutOfOrderTimeWindow = (3 * time.Hour).Milliseconds()
	options.EnableMemorySnapshotOnShutdown = true
	options.FloatChunkEncoding = chunkenc.EncXOR2
	options.NoLockfile = true
	db, err := tsdb.Open(folder, nil, nil, options, nil)
	require.NoError(t, err)
	db.DisableCompactions()
	require.Len(t, db.Blocks(), 3)
	q, err := db.Querier(math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, want, f.drain(q))
	require.NoError(t, q.Close())
	appender := db.AppenderV2(t.Context())
	_, err = appender.Append(0, seriesLabels("a"), 0, noon.Add(6*time.Hour+time.Minute).UnixMilli(), 1, nil, nil, storage.AOptions{})
	require.NoError(t, err)
	require.NoError(t, appender.Commit())
	want["a"] = append(want["a"], "6h1m0s 1")
	require.NoError(t, db.Close())
	left, err := filepath.Glob(filepath.Join(folder, "chunk_snapshot.*"))
	require.NoError(t, err)
	require.Len(t, left, 1)

	for range 2 {
		f.open()
		require.Equal(t, want, f.stored(acme))
		taken, err := filepath.Glob(filepath.Join(folder, tsdbFolder, "chunk_snapshot.*"))
		require.NoError(t, err)
		require.Len(t, taken, 1)
		require.NoFileExists(t, left[0])
		require.NoError(t, f.close())
	}
	f.open()
	f.push(acme, sample{"a", 6*time.Hour + 2*time.Minute, 1})
}

func TestTheMarkerIsABlockThatPrometheusReads(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeMarker(dir, noon.UnixMilli()))
	b, err := tsdb.OpenBlock(nil, filepath.Join(dir, markerID().String()), nil, nil)
	require.NoError(t, err)
	require.Equal(t, noon.UnixMilli(), b.MaxTime())
	q, err := tsdb.NewBlockQuerier(b, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	set := q.Select(t.Context(), true, nil, matchAll())
	require.False(t, set.Next())
	require.NoError(t, set.Err())
	names, _, err := q.LabelNames(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, names)
	require.NoError(t, q.Close())
	require.NoError(t, b.Close())
}

// TestHeadAndBlocksAnswerAsOneTSDBDoes pushes samples, late ones too, into an ingester
// and a plain TSDB, with cuts and restarts of the ingester in between.
func TestHeadAndBlocksAnswerAsOneTSDBDoes(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			f := newFixture(t)
			f.seeAll = false
			f.openBlocks.most = 2
			twin := openTwin(t)
			f.advance(40 * time.Hour)
			clock := time.Duration(0)
			for range 60 {
				clock += time.Duration(rng.IntN(30)) * time.Minute
				at := clock
				if rng.IntN(3) == 0 {
					at -= time.Duration(rng.IntN(170)) * time.Minute
				}
				s := sample{fmt.Sprint(rng.IntN(3)), at, float64(at / time.Minute)}
				f.push(acme, s)
				appendTo(t, twin, s)
				switch rng.IntN(10) {
				case 0:
					f.round(acme)
				case 1:
					require.NoError(t, f.Flush(t.Context(), acme))
				case 2:
					f.restart()
					f.seeAll, f.openBlocks.most = false, 2
				}
				mint := noon.Add(clock - time.Duration(rng.IntN(600))*time.Minute).UnixMilli()
				requireSameAnswers(t, f, twin, mint, mint+rng.Int64N(6*time.Hour.Milliseconds()))
			}
			requireSameAnswers(t, f, twin, math.MinInt64, math.MaxInt64)
		})
	}
}

func openTwin(t *testing.T) *tsdb.DB {
	t.Helper()
	options := tsdb.DefaultOptions()
	options.OutOfOrderTimeWindow = (100 * time.Hour).Milliseconds()
	options.RetentionDuration = 0
	db, err := tsdb.Open(t.TempDir(), nil, nil, options, nil)
	require.NoError(t, err)
	db.DisableCompactions()
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func appendTo(t *testing.T, db *tsdb.DB, s sample) {
	t.Helper()
	appender := db.AppenderV2(t.Context())
	_, err := appender.Append(0, seriesLabels(s.series), 0, noon.Add(s.at).UnixMilli(), s.v, nil, nil, storage.AOptions{})
	require.NoError(t, err)
	require.NoError(t, appender.Commit())
}

func requireSameAnswers(t *testing.T, f *fixture, twin *tsdb.DB, mint, maxt int64) {
	t.Helper()
	q, err := twin.Querier(mint, maxt)
	require.NoError(t, err)
	want := f.drain(q)
	require.NoError(t, q.Close())
	ours, err := f.Querier(acme, mint, maxt)
	require.NoError(t, err)
	got := f.drain(ours)
	require.NoError(t, ours.Close())
	require.Equal(t, want, got, "from %d to %d", mint, maxt)

	chunks, err := f.ChunkQuerier(acme, mint, maxt)
	require.NoError(t, err)
	defer func() { require.NoError(t, chunks.Close()) }()
	clear(got)
	set := chunks.Select(t.Context(), true, nil, matchAll())
	for set.Next() {
		name := set.At().Labels().Get("s")
		metas := set.At().Iterator(nil)
		for metas.Next() {
			it := metas.At().Chunk.Iterator(nil)
			for typ := it.Next(); typ != chunkenc.ValNone; typ = it.Next() {
				if at := it.AtT(); mint <= at && at <= maxt {
					got[name] = append(got[name], describe(it, typ))
				}
			}
			require.NoError(t, it.Err())
		}
		require.NoError(t, metas.Err())
	}
	require.NoError(t, set.Err())
	require.Equal(t, want, got, "chunks from %d to %d", mint, maxt)
}

func TestALateSampleIsComparedWithABlock(t *testing.T) {
	f := cutTenants(t, 1)
	for range 2 {
		result := f.offer("t0", batch(sample{"a", 3 * time.Hour, 2}))
		require.Equal(t, write.ReasonDuplicateTimestamp, result.Rejected[0].Reason)
		f.push("t0", sample{"a", 3 * time.Hour, 1})
		require.Equal(t, 1, f.openBlocks.count())
		f.restart()
		f.seeAll = false
	}
}

func TestALogThatATSDBBeganInItsOwnFolderIsNotLost(t *testing.T) {
	dir := t.TempDir()
	_, err := prepareTSDB(dir, false, 0, false)
	require.NoError(t, err)
	own := filepath.Join(dir, tsdbFolder, lateLogFolder)
	require.NoDirExists(t, own, "it has no log of late samples, which would take memory")
	require.NoError(t, os.Mkdir(own, 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(own, "00000000"), []byte("x"), 0o600))
	for range 2 {
		_, err = prepareTSDB(dir, false, 0, false)
		require.NoError(t, err)
		require.FileExists(t, filepath.Join(dir, lateLogFolder, "00000000"))
		target, err := os.Readlink(own)
		require.NoError(t, err)
		require.Equal(t, filepath.Join("..", lateLogFolder), target)
	}
	// A copy that followed the links has everything twice.
	require.NoError(t, os.Remove(own))
	require.NoError(t, os.CopyFS(own, os.DirFS(filepath.Join(dir, lateLogFolder))))
	_, err = prepareTSDB(dir, false, 0, false)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(own, "00000000"))
	size, err := headBytes(dir)
	require.NoError(t, err)
	require.Positive(t, size)
}
