package querier

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func TestTrimmedIntervalsHideTheSameTimes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		var intervals tombstones.Intervals
		for at := int64(r.IntN(5)); at < 40 && r.IntN(5) > 0; {
			end := at + int64(r.IntN(8))
			intervals = append(intervals, tombstones.Interval{Mint: at, Maxt: end})
			at = end + 2 + int64(r.IntN(6))
		}
		within := timeRange{int64(r.IntN(30)), 0}
		within.maxt = within.mint + int64(r.IntN(20))
		got := trimIntervals(intervals, within)
		for at := int64(-5); at < 70; at++ {
			want := at < within.mint || at > within.maxt || tombstones.Interval{Mint: at, Maxt: at}.IsSubrange(intervals)
			require.Equal(t, want, tombstones.Interval{Mint: at, Maxt: at}.IsSubrange(got), "%d %v %v: %v", at, intervals, within, got)
		}
		for i := 1; i < len(got); i++ {
			require.Greater(t, got[i].Mint, got[i-1].Maxt+1)
		}
	}
	require.Empty(t, trimIntervals(nil, timeRange{math.MinInt64, math.MaxInt64}))
}

// Prometheus's own code panics here.
func TestADeletionThatReachesBeyondTheEndOfASelectionHidesItsSamples(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	dir := blocktest.Write(t, t.TempDir(), 0, hour, blocktest.Floats("x", 0, hour, minute))
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	require.NoError(t, b.Delete(t.Context(), 20*minute, 40*minute, labels.MustNewMatcher(labels.MatchEqual, "__name__", "x")))
	require.NoError(t, b.Close())
	r.uploadDir(alice, dir)
	r.refresh()
	querier, err := r.Queryable().Querier(10*minute, 30*minute)
	require.NoError(t, err)
	set := querier.Select(as(alice), true, &storage.SelectHints{Start: 10 * minute, End: 30 * minute}, labels.MustNewMatcher(labels.MatchEqual, "__name__", "x"))
	n := 0
	for set.Next() {
		for it := set.At().Iterator(nil); it.Next() != 0; n++ {
			require.Less(t, it.AtT(), 20*minute)
		}
	}
	require.NoError(t, set.Err())
	require.Equal(t, 10, n)
	require.NoError(t, querier.Close())
}
