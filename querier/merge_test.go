package querier

import (
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/externallabels"
)

// A label that one series of a block has, and another gets from the block, makes them one.
func TestSeriesThatExternalLabelsMakeEqualAreOne(t *testing.T) {
	series := func(t int64, ls ...string) blocktest.Series {
		return blocktest.Series{Labels: labels.FromStrings(ls...), Samples: []blocktest.Sample{{T: t, V: float64(t)}}}
	}
	set := func(external map[string]string, all ...blocktest.Series) *seriesSource[storage.Series] {
		b, err := tsdb.OpenBlock(nil, blocktest.Write(t, t.TempDir(), 0, 1000, all...), nil, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		q, err := tsdb.NewBlockQuerier(externallabels.Add(b, external), 0, 1000)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, q.Close()) })
		return &seriesSource[storage.Series]{
			set:  q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "a", ".+")),
			span: span{0, 1000}, doubles: len(external) > 0,
		}
	}
	external := map[string]string{"replica": "x"}
	plain := set(nil, series(5, "a", "1", "replica", "x"), series(6, "a", "4"))
	plain.order = 1
	merged := newMergedSet([]*seriesSource[storage.Series]{
		set(external, series(1, "a", "1"), series(2, "a", "1", "replica", "x"), series(3, "a", "2"), series(4, "a", "3"), series(5, "a", "3", "replica", "x")),
		plain,
	}, 0, concatSamples)
	got := map[string][]float64{}
	var it chunkenc.Iterator
	for merged.Next() {
		name := merged.At().Labels().String()
		require.NotContains(t, got, name)
		for it = merged.At().Iterator(it); it.Next() != chunkenc.ValNone; {
			_, v := it.At()
			got[name] = append(got[name], v)
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, merged.Err())
	require.Equal(t, map[string][]float64{
		`{a="1", replica="x"}`: {1, 2, 5}, `{a="2", replica="x"}`: {3}, `{a="3", replica="x"}`: {4, 5}, `{a="4"}`: {6},
	}, got)
}
