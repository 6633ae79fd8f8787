package compactor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	acme = tenant.ID("acme")
	hour = int64(time.Hour / time.Millisecond)
	step = hour / 60
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a compactor over a real bucket, with a clock of its own.
type fixture struct {
	*Compactor
	store     *blockstore.Store
	root      string // of the bucket
	clock     time.Time
	retention time.Duration
	log       bytes.Buffer
}

// newFixture returns a compactor over a filesystem bucket; it is a week after the
// blocks that the tests write.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	bucket, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	f := fixtureOver(t, blockstore.New(bucket, nil))
	f.root = bucket.LocalPath("")
	return f
}

func fixtureOver(t *testing.T, store *blockstore.Store) *fixture {
	t.Helper()
	f := &fixture{store: store, clock: time.UnixMilli(7 * 24 * hour)}
	limits := func(tenant.ID) tenant.Limits { return tenant.Limits{Retention: model.Duration(f.retention)} }
	config := Default()
	config.Dir = filepath.Join(t.TempDir(), "work")
	var err error
	f.Compactor, err = New(config, store, limits, slog.New(slog.NewTextHandler(&f.log, nil)), prometheus.NewRegistry())
	require.NoError(t, err)
	f.now = func() time.Time { return f.clock }
	return f
}

// upload writes a block and puts it into the bucket.
func (f *fixture) upload(t *testing.T, mint, maxt int64, series ...blocktest.Series) ulid.ULID {
	t.Helper()
	dir := blocktest.Write(t, t.TempDir(), mint, maxt, series...)
	require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	return ulid.MustParse(filepath.Base(dir))
}

// visible returns the names of the blocks that readers read, in order.
func (f *fixture) visible(t *testing.T) []ulid.ULID {
	t.Helper()
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	superseded := blockstore.Superseded(blocks)
	var ids []ulid.ULID
	for _, id := range sorted(blocks) {
		deletion := blocks[id].Deletion
		if _, ok := superseded[id]; !ok && (deletion == nil || deletion.Reason != blockstore.DeletionRetention) {
			ids = append(ids, id)
		}
	}
	return ids
}

// only returns the meta of the only visible block.
func (f *fixture) only(t *testing.T) tsdb.BlockMeta {
	t.Helper()
	ids := f.visible(t)
	require.Len(t, ids, 1)
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return blocks[ids[0]].Meta
}

// samples returns what readers read.
func (f *fixture) samples(t *testing.T) map[string][]string {
	t.Helper()
	var dirs []string
	for _, id := range f.visible(t) {
		dir := filepath.Join(t.TempDir(), id.String())
		require.NoError(t, f.store.Download(t.Context(), acme, id, dir))
		dirs = append(dirs, dir)
	}
	return blocktest.Samples(t, dirs...)
}

// everyKind returns series of each kind of sample there is, from start to end.
func everyKind(start, end int64) []blocktest.Series {
	series := func(name string) blocktest.Series {
		return blocktest.Series{Labels: labels.FromStrings(model.MetricNameLabel, name, "instance", "a")}
	}
	histograms, floatHistograms, custom, mixed := series("histogram"), series("float_histogram"), series("custom"), series("mixed")
	stale := series("stale")
	for t := start; t < end; t += step {
		i := t / step
		histograms.Samples = append(histograms.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestHistogram(i)})
		floatHistograms.Samples = append(floatHistograms.Samples, blocktest.Sample{T: t, FH: tsdbutil.GenerateTestFloatHistogram(i)})
		custom.Samples = append(custom.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestCustomBucketsHistogram(i)})
		v := float64(i)
		switch i % 10 {
		case 7:
			v = math.Float64frombits(value.StaleNaN)
		case 8:
			v = math.NaN()
		case 9:
			v = math.Inf(-1)
		}
		stale.Samples = append(stale.Samples, blocktest.Sample{T: t, V: v})
		// One series that is of another kind every other hour.
		if sample := (blocktest.Sample{T: t, V: v}); (t/hour)%2 == 0 {
			mixed.Samples = append(mixed.Samples, sample)
		} else {
			mixed.Samples = append(mixed.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestHistogram(i)})
		}
	}
	return []blocktest.Series{blocktest.Floats("float", start, end, step), histograms, floatHistograms, custom, stale, mixed}
}

func TestCompactionKeepsEverySampleOfEveryKind(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 12*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...)
	}
	before := f.samples(t)
	require.Len(t, before, 6)
	require.NoError(t, f.RunOnce(t.Context()))
	meta := f.only(t)
	require.Equal(t, before, f.samples(t))
	require.Equal(t, int64(0), meta.MinTime)
	require.Equal(t, 12*hour, meta.MaxTime)
	require.Len(t, meta.Compaction.Sources, 6)
	require.Len(t, meta.Compaction.Parents, 6)
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.compactions), 0)
	require.InDelta(t, 6, testutil.ToFloat64(f.metrics.blocksCompacted), 0)
	require.Empty(t, jobs(t, f), "a job leaves nothing behind")

	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, before, f.samples(t))
	require.Equal(t, []string{meta.ULID.String()}, folders(t, filepath.Join(f.root, string(acme))))
	require.InDelta(t, 6, testutil.ToFloat64(f.metrics.blocksDeleted), 0)
}

func TestChunksThatNeedNoMergingStayAsTheyAreAndOthersAreWrittenAsXOR2(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	f.upload(t, 0, 2*hour, blocktest.Floats("a", step/2, 2*hour, step)) // falls between
	f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
	require.NoError(t, f.RunOnce(t.Context()))
	encodings := make(map[chunkenc.Encoding]int)
	block, err := tsdb.OpenBlock(nil, filepath.Join(f.root, string(acme), f.only(t).ULID.String()), nil, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, block.Close()) }()
	querier, err := tsdb.NewBlockChunkQuerier(block, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	defer func() { require.NoError(t, querier.Close()) }()
	set := querier.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "a"))
	for set.Next() {
		for it := set.At().Iterator(nil); it.Next(); {
			encodings[it.At().Chunk.Encoding()]++
		}
	}
	require.NoError(t, set.Err())
	require.Len(t, encodings, 1)
	require.Contains(t, encodings, chunkenc.EncXOR2)
}

func TestOverlappingBlocksAreMergedWithoutDuplicates(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, 2*hour, everyKind(0, 2*hour)...)
	f.upload(t, 0, 2*hour, everyKind(0, 2*hour)...)                             // a replica with the same samples
	f.upload(t, 0, 2*hour, everyKind(hour/2, hour)...)                          // one that was down for a while
	f.upload(t, 0, 2*hour, blocktest.Floats("late", step/2, 2*hour, step))      // samples out of order, of a series of its own
	f.upload(t, 0, 2*hour, blocktest.Floats("float", step/2, 2*hour, step))     // and between those of another
	f.upload(t, 2*hour, 3*hour, blocktest.Floats("float", 2*hour, 3*hour, 999)) // of a head that was cut early
	before := f.samples(t)
	require.NoError(t, f.RunOnce(t.Context()))
	meta := f.only(t)
	require.Equal(t, before, f.samples(t))
	total := 0
	for _, lines := range before {
		total += len(lines)
	}
	require.Equal(t, uint64(total), meta.Stats.NumSamples, "each sample is stored once")
}

func TestALateBlockIsMergedIntoTheDayThatWasCompactedBefore(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 24*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
	}
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, 24*hour, f.only(t).MaxTime)
	f.upload(t, 6*hour, 8*hour, blocktest.Floats("late", 6*hour, 8*hour, step))
	before := f.samples(t)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, f.only(t).Compaction.Sources, 13)
	require.Equal(t, before, f.samples(t))
}

func TestAHintStaysOnlyIfItHoldsForAllSources(t *testing.T) {
	for _, c := range []struct {
		hints [2][]string
		want  []string
	}{
		{[2][]string{{tsdb.CompactionHintFromStaleSeries}, nil}, nil},
		{[2][]string{nil, {tsdb.CompactionHintFromOutOfOrder}}, nil},
		{[2][]string{{tsdb.CompactionHintFromStaleSeries}, {tsdb.CompactionHintFromStaleSeries}}, []string{tsdb.CompactionHintFromStaleSeries}},
		{[2][]string{{tsdb.CompactionHintFromSelectedSeries}, {tsdb.CompactionHintFromStaleSeries}}, nil},
	} {
		f := newFixture(t)
		for i, hints := range c.hints {
			start := int64(i) * 2 * hour
			dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
			editMeta(t, dir, func(meta *tsdb.BlockMeta) { meta.Compaction.Hints = hints })
			require.NoError(t, f.store.Upload(t.Context(), acme, dir))
		}
		require.NoError(t, f.RunOnce(t.Context()))
		require.Equal(t, c.want, f.only(t).Compaction.Hints)
	}
}

func TestBlocksThatNameNoSourcesAreSupersededAllTheSame(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
		editMeta(t, dir, func(meta *tsdb.BlockMeta) { meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Failed: true} })
		require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	}
	before := f.samples(t)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, f.only(t).Compaction.Sources, 2)
	require.Equal(t, before, f.samples(t))
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.compactions), 0)
}

func TestBlocksOfWhichNoSampleIsLeftAreDeleted(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
		block, err := tsdb.OpenBlock(slog.New(slog.DiscardHandler), dir, nil, nil)
		require.NoError(t, err)
		require.NoError(t, block.Delete(t.Context(), math.MinInt64, math.MaxInt64, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "a")))
		require.NoError(t, block.Close())
		require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	}
	require.NoError(t, f.RunOnce(t.Context()))
	require.InDelta(t, 2, testutil.ToFloat64(f.metrics.blocksMarked.WithLabelValues("empty")), 0)
	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, folders(t, f.root))
}

func TestCompactionDoesNotTouchItsSources(t *testing.T) {
	f := newFixture(t)
	var ids []ulid.ULID
	for start := int64(0); start < 4*hour; start += 2 * hour {
		ids = append(ids, f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step)))
	}
	// A compaction that fails makes the TSDB write to the meta.json of its sources.
	damageFile(t, f, ids[1], "chunks/000001", flipMiddle)
	before := contents(t, f, ids[0])
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, before, contents(t, f, ids[0]))
}

func TestADamagedBlockIsQuarantinedAndTheOthersAreCompacted(t *testing.T) {
	rename := func(from, to string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
		}
	}
	edit := func(file string, change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) { rewrite(t, filepath.Join(dir, file), change) }
	}
	cut := func(text []byte) []byte { return text[:len(text)/2] }
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string
	}{
		{"an index cut short", edit("index", cut), "open: "},
		{"an empty index", edit("index", func([]byte) []byte { return nil }), "open: "},
		{"a flipped bit in the symbols", edit("index", func(text []byte) []byte { text[40] ^= 1; return text }), "checksum"},
		{"no index", rename("index", "elsewhere"), "no such file"},
		{"no chunks", rename("chunks", "elsewhere"), "out of range"},
		{"a segment cut short", edit("chunks/000001", cut), "segment doesn't include enough bytes"},
		{"a flipped bit in a chunk", edit("chunks/000001", flipMiddle), "checksum mismatch"},
		{"a segment that is missing before another", rename("chunks/000001", "chunks/000002"), "segment 000001 of the chunks is missing"},
		{"tombstones that are none", edit("tombstones", func([]byte) []byte { return []byte("nonsense") }), "invalid magic number"},
		{"tombstones that make the decoder panic", edit("tombstones", func(text []byte) []byte { return slices.Concat(text[:4], text[:4]) }), "panics"},
		{"a meta.json that states another range", func(t *testing.T, dir string) {
			editMeta(t, dir, func(meta *tsdb.BlockMeta) { meta.MaxTime -= hour })
		}, "not in the range that meta.json states"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			var ids []ulid.ULID
			for start := int64(0); start < 6*hour; start += 2 * hour {
				ids = append(ids, f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...))
			}
			bad := ids[1]
			c.damage(t, filepath.Join(f.root, string(acme), bad.String()))

			require.NoError(t, f.RunOnce(t.Context()), "the rest goes on")
			visible := f.visible(t)
			require.Len(t, visible, 2, "the damaged block, and the others in one")
			require.Equal(t, bad, visible[0])
			blocks, _, err := f.store.Blocks(t.Context(), acme)
			require.NoError(t, err)
			require.Equal(t, []ulid.ULID{ids[0], ids[2]}, blocks[visible[1]].Meta.Compaction.Sources)
			require.Equal(t, blockstore.NoCompactDamaged, blocks[bad].NoCompact.Reason)
			require.Contains(t, blocks[bad].NoCompact.Details, c.want)
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.quarantined), 0)
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.quarantinedNow), 0)
			require.Equal(t, 1, strings.Count(f.log.String(), "level=ERROR"))
			require.Contains(t, f.log.String(), bad.String())

			require.NoError(t, f.RunOnce(t.Context()))
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.compactions), 0, "it is not tried again")
		})
	}
}

func TestNoFlippedBitEndsTheProcessOrChangesASample(t *testing.T) {
	whole := blocktest.Write(t, t.TempDir(), 0, 2*hour, everyKind(0, hour)...)
	want := blocktest.Samples(t, whole)
	for _, file := range []string{"index", "chunks/000001", "tombstones"} {
		text, err := os.ReadFile(filepath.Join(whole, file))
		require.NoError(t, err)
		for at := 0; at < len(text); at += max(1, len(text)/300) {
			dir := filepath.Join(t.TempDir(), filepath.Base(whole))
			require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
			rewrite(t, filepath.Join(dir, file), func(text []byte) []byte { text[at] ^= 0x10; return text })
			if _, err := verify(t.Context(), dir, true); err != nil {
				require.ErrorIs(t, err, errDamaged)
				continue
			}
			// What no checksum covers must not matter either.
			require.Equal(t, want, blocktest.Samples(t, dir), "bit in byte %d of %s", at, file)
		}
	}
}

func TestADamagedMetaIsReportedOnceAndItsBlockKept(t *testing.T) {
	f := newFixture(t)
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	damageFile(t, f, id, "meta.json", func(text []byte) []byte { return text[:9] })
	f.clock = time.Now().Add(1000 * time.Hour)
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
	}
	require.Equal(t, []string{id.String()}, folders(t, filepath.Join(f.root, string(acme))))
	require.Equal(t, 1, strings.Count(f.log.String(), "level=ERROR"))
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.quarantined), 0)
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.quarantinedNow), 0)
}

func TestAWorkDirectoryThatCannotBeWrittenQuarantinesNothing(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
	}
	require.NoError(t, os.WriteFile(f.cfg.Dir, nil, 0o600)) // a file in its place
	require.ErrorContains(t, f.RunOnce(t.Context()), "create compactor directory")
	require.Len(t, f.visible(t), 2)
	require.InDelta(t, 0, testutil.ToFloat64(f.metrics.quarantined), 0)
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.backlog), 0)
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.compactionFailures), 0)

	require.NoError(t, os.Remove(f.cfg.Dir))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, f.visible(t), 1)
	require.InDelta(t, 0, testutil.ToFloat64(f.metrics.backlog), 0)
}

func TestErrorsOfTheMachineAreNotTheFaultOfABlock(t *testing.T) {
	for _, err := range []error{
		&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC},
		fmt.Errorf("open: %w", &os.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}),
		context.Canceled,
	} {
		require.NotErrorIs(t, damaged(err), errDamaged, "%v", err)
	}
	require.ErrorIs(t, damaged(errors.New("invalid checksum")), errDamaged)
}

func TestAPassInterruptedAtAnyStepIsCompletedByTheNext(t *testing.T) {
	for name, fail := range map[string]func(*blocktest.Faulty, int64){
		"a crash":       (*blocktest.Faulty).FailFrom,
		"a short fault": (*blocktest.Faulty).FailOnly,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			blocks := []string{
				blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step)),
				blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", step/2, 2*hour, step)),
				blocktest.Write(t, t.TempDir(), 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step)),
			}
			want := blocktest.Samples(t, blocks...)
			n := int64(1)
			for interrupted(t, blocks, want, func(bucket *blocktest.Faulty) { fail(bucket, n) }) >= n {
				n++
				if testing.Short() {
					n += 9
				}
			}
			require.Greater(t, n, int64(40), "there are at least that many calls to fail")
		})
	}
}

// interrupted lets a pass fail, looks at what it left, and lets further passes
// complete the work. It returns how many calls the pass made.
func interrupted(t *testing.T, blocks []string, want map[string][]string, fail func(*blocktest.Faulty)) (calls int64) {
	t.Helper()
	// In memory, because there are many calls to fail; what a filesystem adds to this
	// is tested where it is.
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	f := fixtureOver(t, blockstore.New(bucket, nil))
	for _, dir := range blocks {
		require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	}
	// A compaction, and then the deletion of its sources, in one sequence of calls.
	pass := func() error {
		return errors.Join(f.RunOnce(t.Context()), func() error {
			f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
			return f.RunOnce(t.Context())
		}())
	}
	fail(bucket)
	err := pass()
	calls = bucket.Calls()
	bucket.Heal()
	require.Equal(t, want, f.samples(t), "after the fault")
	require.InDelta(t, 0, testutil.ToFloat64(f.metrics.quarantined), 0, "a bucket that is away is not a damaged block")
	if err != nil {
		require.ErrorIs(t, err, blocktest.ErrBucketDown)
	}

	f.clock = time.Now().Add(2 * partialAge) // partial blocks go by the time that the bucket gives them
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
		f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	}
	require.Equal(t, want, f.samples(t), "after recovery")
	blocksLeft, partial, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, blocksLeft, 1)
	require.Empty(t, partial)
	return calls
}

func TestRetentionIsOfEachTenant(t *testing.T) {
	f := newFixture(t)
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	for _, id := range []tenant.ID{"short", "long"} {
		require.NoError(t, f.store.Upload(t.Context(), id, dir))
	}
	f.limits = func(id tenant.ID) tenant.Limits {
		if id == "short" {
			return tenant.Limits{Retention: model.Duration(48 * time.Hour)}
		}
		return tenant.Limits{Retention: model.Duration(30 * 24 * time.Hour)}
	}
	require.NoError(t, f.RunOnce(t.Context()))
	blocks, _, err := f.store.Blocks(t.Context(), "short")
	require.NoError(t, err)
	require.Len(t, blocks, 1, "marked, and not yet deleted")
	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	tenants, err := f.store.Tenants(t.Context())
	require.NoError(t, err)
	require.Equal(t, []tenant.ID{"long"}, tenants)
}

func TestATenantThatFailsDoesNotStopTheOthers(t *testing.T) {
	f := newFixture(t)
	for _, id := range []tenant.ID{"a-broken", "b-whole"} {
		for start := int64(0); start < 4*hour; start += 2 * hour {
			dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
			require.NoError(t, f.store.Upload(t.Context(), id, dir))
		}
	}
	// A meta.json that is a folder makes the list of the tenant fail.
	for _, name := range folders(t, filepath.Join(f.root, "a-broken")) {
		meta := filepath.Join(f.root, "a-broken", name, "deletion-mark.json")
		require.NoError(t, os.Symlink(meta, meta))
	}
	require.ErrorContains(t, f.RunOnce(t.Context()), "tenant a-broken")
	blocks, _, err := f.store.Blocks(t.Context(), "b-whole")
	require.NoError(t, err)
	require.Len(t, blocks, 3, "two sources and their result")
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.passFailures), 0)
}

func TestRemainsOfUploadsAreDeletedAfterADay(t *testing.T) {
	f := newFixture(t)
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, os.Remove(filepath.Join(f.root, string(acme), id.String(), "meta.json")))
	f.clock = time.Now().Add(partialAge - time.Hour)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, folders(t, f.root), 1, "the upload may still be completed")
	f.clock = time.Now().Add(partialAge + time.Hour)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, folders(t, f.root))
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.partialDeleted), 0)
}

func TestRunRemovesWhatACrashLeftInTheWorkDirectoryAndNothingElse(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{jobPrefix + "123/out", "precious"} {
		require.NoError(t, os.MkdirAll(filepath.Join(f.cfg.Dir, name), 0o755))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, f.Run(ctx))
	require.Equal(t, []string{"precious"}, folders(t, f.cfg.Dir))
}

func TestRunWorksUntilItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
		f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
		ctx, cancel := context.WithCancel(t.Context())
		start, plans := time.Now(), 0
		f.limits = func(tenant.ID) tenant.Limits {
			if plans++; plans == 3 { // two in the first pass, around the compaction
				cancel()
			}
			return tenant.Limits{}
		}
		require.NoError(t, f.Run(ctx))
		require.Equal(t, time.Duration(f.cfg.Interval), time.Since(start))
		require.Len(t, f.visible(t), 1)
		require.NotContains(t, f.log.String(), "level=ERROR")
	})
}

func TestConfigurationReportsAllFaults(t *testing.T) {
	require.NoError(t, Default().Validate())
	err := Config{Interval: model.Duration(time.Millisecond), DeletionDelay: -1}.Validate()
	for _, want := range []string{"compactor.dir", "compactor.interval: 1ms is below 1s", "compactor.deletion_delay"} {
		require.ErrorContains(t, err, want)
	}
}

func TestCompactionWorksOnS3(t *testing.T) {
	store, err := blockstore.Open(s3test.Start(t), nil, prometheus.NewRegistry())
	require.NoError(t, err)
	f := fixtureOver(t, store)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...)
	}
	before := f.samples(t)
	require.NoError(t, f.RunOnce(t.Context()))
	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, before, f.samples(t))
	blocks, partial, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 1)
	require.Empty(t, partial)
}

func TestStockPromtoolReadsTheBlocks(t *testing.T) {
	promtool := s3test.Tool(t, "promtool")
	f := newFixture(t)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...)
	}
	require.NoError(t, f.RunOnce(t.Context()))
	meta := f.only(t)
	dir := filepath.Join(f.root, string(acme))
	out, err := exec.Command(promtool, "tsdb", "list", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), meta.ULID.String())
	out, err = exec.Command(promtool, "tsdb", "analyze", dir, meta.ULID.String()).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), fmt.Sprintf("Total Series: %d", meta.Stats.NumSeries))
}

func editMeta(t *testing.T, dir string, edit func(*tsdb.BlockMeta)) {
	t.Helper()
	meta, err := readMeta(dir)
	require.NoError(t, err)
	edit(meta)
	text, err := json.Marshal(meta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o600))
}

// rewrite changes a file without changing those that share its content by a link.
func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, change(text), 0o600))
}

func damageFile(t *testing.T, f *fixture, id ulid.ULID, file string, change func([]byte) []byte) {
	t.Helper()
	rewrite(t, filepath.Join(f.root, string(acme), id.String(), file), change)
}

func flipMiddle(text []byte) []byte {
	text[len(text)/2] ^= 1
	return text
}

// contents returns the files of a block in the bucket.
func contents(t *testing.T, f *fixture, id ulid.ULID) map[string]string {
	t.Helper()
	files := make(map[string]string)
	dir := filepath.Join(f.root, string(acme), id.String())
	for _, name := range []string{"meta.json", "index", "tombstones", "chunks/000001"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		files[name] = string(text)
	}
	return files
}

// folders lists the folders in dir, but for that of the bucket's temporary files.
func folders(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), "~") {
			names = append(names, entry.Name())
		}
	}
	return names
}

func jobs(t *testing.T, f *fixture) []string {
	t.Helper()
	return folders(t, f.cfg.Dir)
}
