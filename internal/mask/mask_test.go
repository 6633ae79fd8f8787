package mask

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func matchers(t testing.TB, selector string) []*labels.Matcher {
	t.Helper()
	ms, err := parser.NewParser(parser.Options{}).ParseMetricSelector(selector)
	require.NoError(t, err)
	return ms
}

func TestTheFirstClassThatMatchesDecidesOnAge(t *testing.T) {
	age := Age{
		{Matchers: matchers(t, `{env="dev",keep="yes"}`), Before: math.MinInt64},
		{Matchers: matchers(t, `{env="dev"}`), Before: 100},
		{Before: 50},
	}
	for _, c := range []struct {
		series labels.Labels
		want   tombstones.Intervals
	}{
		{labels.FromStrings("env", "dev", "keep", "yes"), nil},
		{labels.FromStrings("env", "dev"), tombstones.Intervals{{Mint: math.MinInt64, Maxt: 99}}},
		{labels.FromStrings("env", "prod"), tombstones.Intervals{{Mint: math.MinInt64, Maxt: 49}}},
	} {
		require.Equal(t, c.want, age.Hidden(c.series), c.series)
	}
}

func openBlock(t testing.TB, series ...blocktest.Series) *tsdb.Block {
	t.Helper()
	block, err := tsdb.OpenBlock(nil, blocktest.Write(t, t.TempDir(), 0, 7_200_000, series...), nil, nil)
	require.NoError(t, err)
	return block
}

// times reads the times of all samples, by metric.
func times(t testing.TB, set storage.SeriesSet) map[string][]int64 {
	t.Helper()
	found := map[string][]int64{}
	for set.Next() {
		name := set.At().Labels().Get(model.MetricNameLabel)
		it := set.At().Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			found[name] = append(found[name], it.AtT())
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	return found
}

func span(from, to, step int64) []int64 {
	var ts []int64
	for at := from; at < to; at += step {
		ts = append(ts, at)
	}
	return ts
}

func TestABlockWithoutHiddenSamples(t *testing.T) {
	const end, step = 7_200_000, 15_000
	block := openBlock(t, blocktest.Floats("a", 0, end, step), blocktest.Floats("b", 0, end, step), blocktest.Floats("c", 0, end, step))
	require.NoError(t, block.Delete(context.Background(), 0, step, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "b")))
	all := labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")
	filters := []Filter{
		Selection{Matchers: matchers(t, `{__name__=~"a|b"}`), Mint: 300_000, Maxt: 899_999},
		Selection{Matchers: matchers(t, `c`), Mint: math.MinInt64, Maxt: math.MaxInt64},
	}
	want := map[string][]int64{
		"a": append(span(0, 300_000, step), span(900_000, end, step)...),
		"b": append(span(2*step, 300_000, step), span(900_000, end, step)...), // its own tombstones count too
	}
	hidden := Block(block, filters...)
	hints := &storage.SelectHints{Start: 0, End: end}

	q, err := tsdb.NewBlockQuerier(hidden, 0, end)
	require.NoError(t, err)
	require.Equal(t, want, times(t, q.Select(context.Background(), true, hints, all)))
	require.NoError(t, q.Close())

	cq, err := tsdb.NewBlockChunkQuerier(hidden, 0, end)
	require.NoError(t, err)
	require.Equal(t, want, times(t, storage.NewSeriesSetFromChunkSeriesSet(cq.Select(context.Background(), true, hints, all))))
	require.NoError(t, cq.Close())

	// Sets that are masked from without.
	q, err = tsdb.NewBlockQuerier(block, 0, end)
	require.NoError(t, err)
	require.Equal(t, want, times(t, Querier(q, filters...).Select(context.Background(), true, hints, all)))
	require.NoError(t, q.Close())
	cq, err = tsdb.NewBlockChunkQuerier(block, 0, end)
	require.NoError(t, err)
	require.Equal(t, want, times(t, storage.NewSeriesSetFromChunkSeriesSet(ChunkQuerier(cq, filters...).Select(context.Background(), true, hints, all))))
	require.NoError(t, cq.Close())

	stones, err := hidden.Tombstones()
	require.NoError(t, err)
	require.Equal(t, uint64(4), stones.Total())
	require.NoError(t, stones.Close())
}

func TestWhatIsHiddenIsLeftOutOfABlockThatIsMadeOfIt(t *testing.T) {
	const end, step = 7_200_000, 15_000
	block := openBlock(t, blocktest.Floats("a", 0, end, step), blocktest.Floats("b", 0, end, step))
	compactor, err := tsdb.NewLeveledCompactor(context.Background(), nil, nil, []int64{end}, nil, nil)
	require.NoError(t, err)
	dir := t.TempDir()
	hidden := Block(block, Selection{Matchers: matchers(t, `a`), Mint: 0, Maxt: end / 2})
	ids, err := compactor.Write(dir, hidden, 0, end, nil)
	require.NoError(t, err)
	require.Len(t, ids, 1)
	samples := blocktest.Samples(t, filepath.Join(dir, ids[0].String()))
	counts := map[string]int{}
	for series, lines := range samples {
		counts[series] = len(lines)
	}
	require.Equal(t, map[string]int{`{__name__="a", job="test"}`: 239, `{__name__="b", job="test"}`: 480}, counts)
}

func TestABlockThatNothingIsHiddenOfIsItself(t *testing.T) {
	block := openBlock(t, blocktest.Floats("a", 0, 1000, 100))
	require.Same(t, block, Block(block))
}
