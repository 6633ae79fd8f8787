package compactor

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
)

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
	for start := int64(0); start < 12*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...)
	}
	require.NoError(t, f.RunOnce(t.Context()))
	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	meta := f.only(t)
	dir := filepath.Join(f.root, string(acme))
	out, err := exec.Command(promtool, "tsdb", "list", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), meta.ULID.String())
	out, err = exec.Command(promtool, "tsdb", "analyze", dir, meta.ULID.String()).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), fmt.Sprintf("Total Series: %d", meta.Stats.NumSeries))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "wal"), 0o700)) // it insists on one
	out, err = exec.Command(promtool, "tsdb", "dump", "--sandbox-dir-root", t.TempDir(), "--match", `{__name__="float"}`, dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Len(t, lines, int(12*hour/step), "from chunks that are larger than any that Prometheus writes")
	require.Equal(t, fmt.Sprintf(`{__name__="float", job="test"} %v %d`, float64(500)+0.5, 500*step), lines[500])
}

func TestAForeignBlockWithChunksThatOverlapIsCompacted(t *testing.T) {
	f := newFixture(t)
	whole := blocktest.Floats("a", 0, 2*hour, step)
	n := len(whole.Samples)
	first, second := whole, whole
	first.Samples, second.Samples = whole.Samples[:3*n/4], whole.Samples[n/4:]
	foreign := blocktest.WriteOverlapping(t, t.TempDir(), 0, 2*hour, []blocktest.Series{first}, []blocktest.Series{second})
	require.NoError(t, f.store.Upload(t.Context(), acme, foreign))
	dirs := []string{blocktest.Write(t, t.TempDir(), 0, 2*hour, whole)}
	for start := 2 * hour; start < 12*hour; start += 2 * hour {
		dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
		require.NoError(t, f.store.Upload(t.Context(), acme, dir))
		dirs = append(dirs, dir)
	}
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, 12*hour, f.only(t).MaxTime)
	require.Equal(t, blocktest.Samples(t, dirs...), f.samples(t))
	require.InDelta(t, 0, testutil.ToFloat64(f.metrics.quarantined), 0)
}
