package externallabels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func open(t *testing.T, series ...blocktest.Series) *tsdb.Block {
	t.Helper()
	block, err := tsdb.OpenBlock(nil, blocktest.Write(t, t.TempDir(), 0, 1000, series...), nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, block.Close()) })
	return block
}

// random returns series with few names and values, so that many are prefixes of others,
// and the same with external labels added.
func random(seed uint64, external map[string]string) (own, added []blocktest.Series) {
	random := rand.New(rand.NewPCG(seed, 1))
	seen := map[string]bool{}
	for range 60 {
		b := labels.NewBuilder(labels.EmptyLabels())
		b.Set("__name__", "m")
		for _, name := range []string{"a", "b", "cluster", "d", "zone"} {
			if random.IntN(2) == 0 {
				b.Set(name, fmt.Sprint(random.IntN(2)))
			}
		}
		samples := []blocktest.Sample{{T: int64(random.IntN(900)), V: random.Float64()}}
		base := b.Labels()
		for name, value := range external {
			if !base.Has(name) {
				b.Set(name, value)
			}
		}
		// Two series that become one are a merge of samples, which is not asked here.
		if seen[b.Labels().String()] {
			continue
		}
		seen[b.Labels().String()] = true
		own = append(own, blocktest.Series{Labels: base, Samples: samples})
		added = append(added, blocktest.Series{Labels: b.Labels(), Samples: samples})
	}
	return own, added
}

func matchers() [][]*labels.Matcher {
	var all [][]*labels.Matcher
	for _, name := range []string{"cluster", "zone", "a", "absent"} {
		for _, kind := range []labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp} {
			for _, value := range []string{"", "0", "1", "0|1", ".*", ".+", "1|", "[01]", "0.?"} {
				m := labels.MustNewMatcher(kind, name, value)
				all = append(all, []*labels.Matcher{m},
					[]*labels.Matcher{m, labels.MustNewMatcher(labels.MatchEqual, "b", "1")},
					[]*labels.Matcher{m, labels.MustNewMatcher(labels.MatchEqual, "cluster", "1")})
			}
		}
	}
	return all
}

func samplesOf(t *testing.T, q storage.Querier, hints *storage.SelectHints, ms []*labels.Matcher) []string {
	t.Helper()
	var out []string
	set := q.Select(t.Context(), true, hints, ms...)
	for set.Next() {
		it := set.At().Iterator(nil)
		it.Next()
		at, v := it.At()
		out = append(out, fmt.Sprintf("%s %d %v", set.At().Labels(), at, v))
	}
	require.NoError(t, set.Err())
	return out
}

// A block with external labels answers as a block whose series have the labels.
func TestABlockWithExternalLabelsIsOneWhoseSeriesHaveThem(t *testing.T) {
	external := map[string]string{"cluster": "1", "zone": "0"}
	for seed := range uint64(3) {
		own, added := random(seed, external)
		ours, err := tsdb.NewBlockQuerier(Add(open(t, own...), external), math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, ours.Close()) })
		theirs, err := tsdb.NewBlockQuerier(open(t, added...), math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, theirs.Close()) })
		for _, ms := range matchers() {
			want := samplesOf(t, theirs, nil, slices.Clone(ms))
			require.Equal(t, want, samplesOf(t, ours, nil, slices.Clone(ms)), "%s", ms)
			hints := &storage.SelectHints{Start: math.MinInt64, End: math.MaxInt64, ShardIndex: 1, ShardCount: 4}
			require.Equal(t, samplesOf(t, theirs, hints, slices.Clone(ms)), samplesOf(t, ours, hints, slices.Clone(ms)), "%s", ms)
			for _, name := range []string{"cluster", "zone", "a", "__name__"} {
				wantValues, _, err := theirs.LabelValues(t.Context(), name, nil, slices.Clone(ms)...)
				require.NoError(t, err)
				values, _, err := ours.LabelValues(t.Context(), name, nil, slices.Clone(ms)...)
				require.NoError(t, err)
				require.ElementsMatch(t, wantValues, values, "%s of %s", name, ms)
			}
			wantNames, _, err := theirs.LabelNames(t.Context(), nil, slices.Clone(ms)...)
			require.NoError(t, err)
			names, _, err := ours.LabelNames(t.Context(), nil, slices.Clone(ms)...)
			require.NoError(t, err)
			require.ElementsMatch(t, wantNames, names, "%s", ms)
		}
		values, _, err := ours.LabelValues(t.Context(), "zone", nil)
		require.NoError(t, err)
		require.Equal(t, []string{"0", "1"}, values)
	}
}

func TestABlockWithoutExternalLabelsIsLeftAsItIs(t *testing.T) {
	block := open(t, blocktest.Floats("a", 0, 1000, 100))
	require.Same(t, block, Add(block, nil))
}
