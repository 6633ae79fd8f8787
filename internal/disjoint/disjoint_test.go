package disjoint

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/mask"
)

const end = 7_200_000

// cases are how two chunks of a series may lie to each other: each has the begin and the
// end of the first and of the second, in seconds, and the step of the second.
func cases() map[string][5]int64 {
	return map[string][5]int64{
		"a: apart":            {0, 600, 600, 1200, 15},
		"b: the end":          {0, 600, 300, 1200, 15},
		"c: the end, between": {0, 600, 307, 1200, 15},
		"d: one in the other": {0, 1200, 300, 600, 10},
		"e: the same":         {0, 600, 0, 600, 15},
		"f: reversed":         {600, 1200, 0, 600, 15},
		"g: reversed, some":   {300, 1200, 0, 600, 10},
	}
}

// overlapping writes a block with all cases, and returns the samples that each series has.
func overlapping(t *testing.T) (dir string, want map[string][]string) {
	t.Helper()
	var parts [2][]blocktest.Series
	want = map[string][]string{}
	all := cases()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		c := all[name]
		times := map[int64]bool{}
		series := func(from, to, step int64) blocktest.Series {
			s := blocktest.Series{Labels: labels.FromStrings("case", name)}
			for at := from * 1000; at < to*1000; at += step * 1000 {
				s.Samples = append(s.Samples, blocktest.Sample{T: at, V: float64(at)})
				times[at] = true
			}
			return s
		}
		parts[0] = append(parts[0], series(c[0], c[1], 15))
		parts[1] = append(parts[1], series(c[2], c[3], c[4]))
		for at := range times {
			want[name] = append(want[name], fmt.Sprintf("%08d", at))
		}
		slices.Sort(want[name])
	}
	return blocktest.WriteOverlapping(t, t.TempDir(), 0, end, parts[0], parts[1]), want
}

func open(t *testing.T, dir string) *tsdb.Block {
	t.Helper()
	block, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, block.Close()) })
	return block
}

// read returns the times of the samples from mint to maxt, by case.
func read(t *testing.T, block tsdb.BlockReader, asChunks bool, mint, maxt int64) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	matcher := labels.MustNewMatcher(labels.MatchNotEqual, "case", "")
	add := func(series labels.Labels, it chunkenc.Iterator) {
		name := series.Get("case")
		for it.Next() != chunkenc.ValNone {
			at, v := it.At()
			require.InDelta(t, at, v, 0)
			found[name] = append(found[name], fmt.Sprintf("%08d", at))
		}
		require.NoError(t, it.Err())
	}
	if !asChunks {
		q, err := tsdb.NewBlockQuerier(block, mint, maxt)
		require.NoError(t, err)
		set := q.Select(t.Context(), true, nil, matcher)
		for set.Next() {
			add(set.At().Labels(), set.At().Iterator(nil))
		}
		require.NoError(t, errors.Join(set.Err(), q.Close()))
		return found
	}
	q, err := tsdb.NewBlockChunkQuerier(block, mint, maxt)
	require.NoError(t, err)
	set := q.Select(t.Context(), true, nil, matcher)
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() {
			add(set.At().Labels(), it.At().Chunk.Iterator(nil))
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, errors.Join(set.Err(), q.Close()))
	return found
}

func TestSamplesOfChunksThatOverlapAreReadInOrderAndOnce(t *testing.T) {
	dir, want := overlapping(t)
	block := open(t, dir)
	for _, asChunks := range []bool{false, true} {
		require.Equal(t, want, read(t, Block(block), asChunks, math.MinInt64, math.MaxInt64))
		for mint := int64(0); mint < 1_200_000; mint += 130_000 {
			for maxt := mint; maxt < 1_300_000; maxt += 170_000 {
				within := map[string][]string{}
				for name, samples := range want {
					for _, at := range samples {
						if at >= fmt.Sprintf("%08d", mint) && at <= fmt.Sprintf("%08d", maxt) {
							within[name] = append(within[name], at)
						}
					}
				}
				require.Equal(t, within, read(t, Block(block), asChunks, mint, maxt), "%d to %d", mint, maxt)
			}
		}
	}

	// With tombstones.
	masked := mask.Block(Block(block), mask.Selection{Mint: 400_000, Maxt: 500_000})
	for name, samples := range want {
		want[name] = slices.DeleteFunc(samples, func(at string) bool { return at >= "00400000" && at <= "00500000" })
	}
	for _, asChunks := range []bool{false, true} {
		require.Equal(t, want, read(t, masked, asChunks, math.MinInt64, math.MaxInt64))
	}
}

// This is what Prometheus does with such a block. If it does better, the package may go.
func TestPrometheusReadsSuchSamplesOutOfOrderAndCannotCompactThem(t *testing.T) {
	dir, want := overlapping(t)
	stock := read(t, open(t, dir), false, math.MinInt64, math.MaxInt64)
	require.False(t, slices.IsSorted(stock["b: the end"]))
	for name := range stock {
		slices.SortFunc(stock[name], cmp.Compare[string])
		stock[name] = slices.Compact(stock[name])
	}
	require.Equal(t, want, stock, "they are the same samples")
	compactor, err := tsdb.NewLeveledCompactor(t.Context(), nil, nil, []int64{end}, nil, nil)
	require.NoError(t, err)
	_, err = compactor.Compact(t.TempDir(), []string{dir}, nil)
	require.ErrorContains(t, err, "is not higher than previous chunk maxT")
}
