package blockwriter_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
)

const (
	hour = int64(time.Hour / time.Millisecond)
	step = hour / 120
)

// fleet returns n series of floats and some of histograms.
func fleet(n int, start, end int64) []blocktest.Series {
	var series []blocktest.Series
	for i := range n {
		s := blocktest.Floats("metric", start, end, step)
		s.Labels = labels.FromStrings(model.MetricNameLabel, "metric", "instance", fmt.Sprintf("host-%d", i), "only", fmt.Sprintf("value-%d", i))
		series = append(series, s)
	}
	histogram := blocktest.Series{Labels: labels.FromStrings(model.MetricNameLabel, "histogram")}
	for t := start; t < end; t += step {
		histogram.Samples = append(histogram.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestHistogram(t / step)})
	}
	return append(series, histogram)
}

// open opens blocks in place.
func open(t testing.TB, dirs ...string) []tsdb.BlockReader {
	t.Helper()
	var blocks []tsdb.BlockReader
	for _, dir := range dirs {
		block, err := tsdb.OpenBlock(nil, dir, nil, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, block.Close()) })
		blocks = append(blocks, block)
	}
	return blocks
}

func spec(n uint64, mint, maxt int64, shard *blockstore.Shard) blockwriter.Spec {
	s := blockwriter.Spec{Meta: tsdb.BlockMeta{ULID: ulid.MustNew(n, nil), MinTime: mint, MaxTime: maxt}}
	s.Meta.Compaction.Level = 2
	s.Meta.Compaction.Sources = []ulid.ULID{ulid.MustNew(1, nil)}
	s.Extension.Shard = shard
	return s
}

// write writes blocks and returns their directories.
func write(t testing.TB, cfg blockwriter.Config, inputs []tsdb.BlockReader, specs ...blockwriter.Spec) []string {
	t.Helper()
	if cfg.Parent == "" {
		cfg.Parent = t.TempDir()
	}
	pending, err := blockwriter.Write(t.Context(), cfg, inputs, specs)
	require.NoError(t, err)
	var dirs []string
	for _, p := range pending {
		dir, err := p.Commit()
		require.NoError(t, err)
		_, err = blockcheck.Dir(t.Context(), dir, blockcheck.Full)
		require.NoError(t, err)
		dirs = append(dirs, dir)
	}
	entries, err := os.ReadDir(cfg.Parent)
	require.NoError(t, err)
	require.Len(t, entries, len(dirs), "nothing else is left")
	return dirs
}

// overlapping returns blocks that overlap in all ways.
func overlapping(t testing.TB) []string {
	t.Helper()
	return []string{
		blocktest.Write(t, t.TempDir(), 0, 2*hour, fleet(20, 0, 2*hour)...),
		blocktest.Write(t, t.TempDir(), 0, 2*hour, fleet(20, 0, 2*hour)...), // a replica
		blocktest.Write(t, t.TempDir(), 0, 2*hour, fleet(10, step/2, 2*hour)...),
		blocktest.Write(t, t.TempDir(), 0, 4*hour, fleet(5, hour, 3*hour)...),
		blocktest.Write(t, t.TempDir(), 4*hour, 6*hour, fleet(25, 4*hour, 6*hour)...),
	}
}

func TestMergingKeepsEverySampleAsTheTSDBDoes(t *testing.T) {
	dirs := overlapping(t)
	compactor, err := tsdb.NewLeveledCompactor(t.Context(), nil, nil, []int64{hour}, nil, nil)
	require.NoError(t, err)
	parent := t.TempDir()
	ids, err := compactor.Compact(parent, dirs, nil)
	require.NoError(t, err)
	theirs := filepath.Join(parent, ids[0].String())
	want := blocktest.Samples(t, theirs)
	require.Equal(t, want, blocktest.Samples(t, dirs...))

	plain := write(t, blockwriter.Config{}, open(t, dirs...), spec(9, 0, 6*hour, nil))
	require.Equal(t, want, blocktest.Samples(t, plain...))
	require.Equal(t, open(t, theirs)[0].Meta().Stats, open(t, plain...)[0].Meta().Stats)

	var passed uint64
	joined := write(t, blockwriter.Config{Rechunk: true, Progress: func(n uint64) { passed += n }}, open(t, dirs...), spec(9, 0, 6*hour, nil))
	require.Equal(t, want, blocktest.Samples(t, joined...))
	stats := open(t, joined...)[0].Meta().Stats
	require.Less(t, stats.NumChunks, open(t, plain...)[0].Meta().Stats.NumChunks/2)
	require.Equal(t, open(t, plain...)[0].Meta().Stats.NumSamples, stats.NumSamples)
	require.Equal(t, stats.NumSamples, passed)
}

func TestShardsTogetherAreTheWholeAndEachSeriesIsInOne(t *testing.T) {
	dirs := overlapping(t)
	want := blocktest.Samples(t, dirs...)
	var specs []blockwriter.Spec
	for i := range uint64(4) {
		specs = append(specs, spec(10+i, 0, 6*hour, &blockstore.Shard{Index: i, Count: 4}))
	}
	shards := write(t, blockwriter.Config{Rechunk: true}, open(t, dirs...), specs...)
	require.Len(t, shards, 4)
	got := map[string][]string{}
	for i, dir := range shards {
		samples := blocktest.Samples(t, dir)
		for series := range samples {
			require.NotContains(t, got, series)
		}
		maps.Copy(got, samples)

		text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
		require.NoError(t, err)
		_, extension, err := blockstore.DecodeMeta(specs[i].Meta.ULID, text)
		require.NoError(t, err)
		require.Equal(t, specs[i].Extension.Shard, extension.Shard)
		reader, err := open(t, dir)[0].Index()
		require.NoError(t, err)
		symbols, it := 0, reader.Symbols()
		for it.Next() {
			symbols++
		}
		require.NoError(t, reader.Close())
		require.Less(t, symbols, 40, "a shard has its own symbols alone, of 56")
	}
	require.Equal(t, want, got)

	// A part of a shard can be cut from it, and parts that nobody wants are left out.
	half := write(t, blockwriter.Config{}, open(t, shards...), spec(20, 0, 6*hour, &blockstore.Shard{Index: 1, Count: 2}))
	require.Equal(t, blocktest.Samples(t, shards[1], shards[3]), blocktest.Samples(t, half...))
}

func TestDeletedSamplesAreLeftOutAndEmptyBlocksNotWritten(t *testing.T) {
	dirs := []string{blocktest.Write(t, t.TempDir(), 0, 2*hour, fleet(3, 0, 2*hour)...)}
	block, err := tsdb.OpenBlock(nil, dirs[0], nil, nil)
	require.NoError(t, err)
	require.NoError(t, block.Delete(t.Context(), 0, hour, labels.MustNewMatcher(labels.MatchEqual, "instance", "host-1")))
	require.NoError(t, block.Close())
	want := blocktest.Samples(t, dirs...)
	require.Equal(t, want, blocktest.Samples(t, write(t, blockwriter.Config{Rechunk: true}, open(t, dirs...), spec(9, 0, 2*hour, nil))...))

	block, err = tsdb.OpenBlock(nil, dirs[0], nil, nil)
	require.NoError(t, err)
	require.NoError(t, block.Delete(t.Context(), 0, 2*hour, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")))
	require.NoError(t, block.Close())
	require.Empty(t, write(t, blockwriter.Config{}, open(t, dirs...), spec(9, 0, 2*hour, nil)))
}

func TestABlockWithoutSeriesCanBeWritten(t *testing.T) {
	dirs := []string{blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("alone", 0, 2*hour, step))}
	shard := func(i uint64) *blockstore.Shard { return &blockstore.Shard{Index: i, Count: 2} }
	halves := write(t, blockwriter.Config{KeepEmpty: true}, open(t, dirs...), spec(9, 0, 2*hour, shard(0)), spec(10, 0, 2*hour, shard(1)))
	require.Len(t, halves, 2)
	require.Equal(t, blocktest.Samples(t, dirs...), blocktest.Samples(t, halves...))
	bucket, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	for _, dir := range halves {
		require.NoError(t, blockstore.New(bucket, nil).Upload(t.Context(), "acme", dir), "it can be uploaded like any other")
	}
	again := write(t, blockwriter.Config{Rechunk: true}, open(t, halves...), spec(11, 0, 2*hour, nil))
	require.Equal(t, blocktest.Samples(t, dirs...), blocktest.Samples(t, again...))
}

func TestAHeadIsWrittenAsShardsWithItsLateSamples(t *testing.T) {
	options := tsdb.DefaultOptions()
	options.FloatChunkEncoding = chunkenc.EncXOR2
	options.EnableSharding = true
	db, err := tsdb.Open(t.TempDir(), nil, nil, options, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	appender := db.Appender(t.Context())
	for i := range 50 {
		for at := int64(0); at < hour; at += step {
			_, err := appender.Append(0, labels.FromStrings(model.MetricNameLabel, "m", "i", fmt.Sprint(i)), at, float64(at))
			require.NoError(t, err)
		}
	}
	require.NoError(t, appender.Commit())
	head := tsdb.NewRangeHead(db.Head(), 0, hour)
	dirs := write(t, blockwriter.Config{}, []tsdb.BlockReader{head},
		spec(1, 0, hour+1, &blockstore.Shard{Index: 0, Count: 2}), spec(2, 0, hour+1, &blockstore.Shard{Index: 1, Count: 2}))
	require.Len(t, dirs, 2)
	samples := blocktest.Samples(t, dirs...)
	require.Len(t, samples, 50)
	for series, lines := range samples {
		require.Len(t, lines, 120, series)
	}
}

func TestNothingIsLeftOfAWriteThatFails(t *testing.T) {
	dirs := overlapping(t)
	ctx, cancel := context.WithCancel(t.Context())
	parent := t.TempDir()
	cfg := blockwriter.Config{Parent: parent, Progress: func(uint64) { cancel() }}
	_, err := blockwriter.Write(ctx, cfg, open(t, dirs...), []blockwriter.Spec{spec(9, 0, 6*hour, nil)})
	require.ErrorIs(t, err, context.Canceled)
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, entries)
}
