// Package blocktest writes real TSDB blocks for tests, and reads back every sample
// of blocks, so that a test can say that nothing was lost, doubled or changed.
package blocktest

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
)

// Sample is a float unless one of the histograms is set.
type Sample struct {
	T  int64 // ms
	V  float64
	H  *histogram.Histogram
	FH *histogram.FloatHistogram
}

// Series is a series with its samples in order of time.
type Series struct {
	Labels  labels.Labels
	Samples []Sample
}

// Floats returns a series of floats from start (inclusive) to end (exclusive), in
// ms. Its values are a function of name and time, so that the same time in two
// blocks has the same sample.
func Floats(name string, start, end, step int64) Series {
	s := Series{Labels: labels.FromStrings(model.MetricNameLabel, name, "job", "test")}
	for t := start; t < end; t += step {
		s.Samples = append(s.Samples, Sample{T: t, V: float64(t/step) + float64(len(name))/10})
	}
	return s
}

// Write writes a block of the range [mint, maxt) into a new folder of parent and
// returns that folder. Samples outside the range are left out, as when a head is cut.
func Write(t testing.TB, parent string, mint, maxt int64, series ...Series) string {
	t.Helper()
	options := tsdb.DefaultHeadOptions()
	options.ChunkDirRoot = t.TempDir()
	// Twice the range, so that each series may begin at the start of the block.
	options.ChunkRange = max(2*(maxt-mint), 1000)
	options.FloatChunkEncoding.Store(uint32(chunkenc.EncXOR2))
	head, err := tsdb.NewHead(nil, nil, nil, nil, options, tsdb.NewHeadStats())
	require.NoError(t, err)
	defer func() { require.NoError(t, head.Close()) }()
	require.NoError(t, head.Init(math.MinInt64))

	for _, s := range series {
		appender := head.AppenderV2(context.Background())
		for _, sample := range s.Samples {
			_, err := appender.Append(0, s.Labels, 0, sample.T, sample.V, sample.H, sample.FH, storage.AOptions{})
			require.NoError(t, err, "sample at %d of %s", sample.T, s.Labels)
		}
		require.NoError(t, appender.Commit())
	}
	compactor, err := tsdb.NewLeveledCompactor(context.Background(), nil, nil, []int64{options.ChunkRange}, nil, nil)
	require.NoError(t, err)
	ids, err := compactor.Write(parent, head, mint, maxt, nil)
	require.NoError(t, err)
	require.Len(t, ids, 1, "the block has no samples")
	return filepath.Join(parent, ids[0].String())
}

// Samples reads all samples of the blocks in dirs, as a reader that merges them
// would: for each series, each sample as one line "time value". Values are exact to
// the bit, so stale markers are told from other NaNs.
func Samples(t testing.TB, dirs ...string) map[string][]string {
	t.Helper()
	var queriers []storage.Querier
	for _, dir := range dirs {
		block, err := tsdb.OpenBlock(nil, dir, nil, nil)
		require.NoError(t, err)
		defer func() { require.NoError(t, block.Close()) }()
		querier, err := tsdb.NewBlockQuerier(block, math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		queriers = append(queriers, querier)
	}
	merged := storage.NewMergeQuerier(queriers, nil, storage.ChainedSeriesMerge)
	defer func() { require.NoError(t, merged.Close()) }()

	all := labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".*")
	set := merged.Select(context.Background(), true, nil, all)
	samples := make(map[string][]string)
	for set.Next() {
		series := set.At()
		samples[series.Labels().String()] = lines(t, series.Iterator(nil))
	}
	require.NoError(t, set.Err())
	return samples
}

func lines(t testing.TB, it chunkenc.Iterator) []string {
	t.Helper()
	var result []string
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		switch kind {
		case chunkenc.ValFloat:
			at, v := it.At()
			result = append(result, fmt.Sprintf("%d %s %x", at, strconv.FormatFloat(v, 'g', -1, 64), math.Float64bits(v)))
		case chunkenc.ValHistogram:
			at, h := it.AtHistogram(nil)
			result = append(result, fmt.Sprintf("%d %s schema=%d", at, h, h.Schema))
		case chunkenc.ValFloatHistogram:
			at, h := it.AtFloatHistogram(nil)
			result = append(result, fmt.Sprintf("%d float %s schema=%d", at, h, h.Schema))
		default:
			require.Fail(t, "unknown kind of sample", "%s", kind)
		}
	}
	require.NoError(t, it.Err())
	return result
}
