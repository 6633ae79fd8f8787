package ingester

import (
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

// TestDeletedLateSamplesDoNotComeBackFromTheFilesOfTheHead deletes late samples that are in
// a block, and chunks of which are in the head's files beside those of samples that stay.
func TestDeletedLateSamplesDoNotComeBackFromTheFilesOfTheHead(t *testing.T) {
	for name, before := range map[string]func(*fixture) *fixture{
		"cut":                         func(f *fixture) *fixture { return f },
		"cut and found after a stop":  endings["stop"],
		"cut and replayed after kill": func(f *fixture) *fixture { return endings["kill"](endings["stop"](f)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			end := func(by func(*fixture) *fixture) {
				f = by(f)
				f.seeAll, f.now = false, noon.Add(7*time.Hour)
			}
			end(func(f *fixture) *fixture { return f })
			f.pushHours(acme, 6*time.Hour)
			for k := range 100 {
				f.push(acme, sample{"a", 3*time.Hour + 15*time.Minute + time.Duration(k+1)*time.Second, 2})
			}
			f.round(acme)
			require.Len(t, f.LocalBlocks(acme), 3)
			end(before)
			f.accept(acme, 0, 4*time.Hour-time.Minute, "a")
			f.apply(acme)
			want := f.stored(acme)
			require.Len(t, want["a"], 13)
			for _, by := range []string{"stop", "kill", "stop"} {
				end(endings[by])
				require.Equal(t, want, f.stored(acme), by)
			}
			f.push(acme, sample{"a", 6*time.Hour + time.Minute, 3})
			f.push(acme, sample{"a", 3*time.Hour + 20*time.Minute, 4}) // late, and after the deletion
			want["a"] = append(append([]string{"3h20m0s 4"}, want["a"]...), "6h1m0s 3")
			for _, by := range []string{"kill", "stop", "kill"} {
				require.Equal(t, want, f.stored(acme), by)
				end(endings[by])
			}
			require.NoError(t, f.Flush(t.Context(), acme))
			require.Equal(t, want, f.stored(acme))
		})
	}
}

// TestDeletedLateSamplesOfASeriesThatHasLeftTheHeadDoNotComeBack deletes a series that has ended
// and was cut, so that its reference has no tombstone in the log, and late chunks of which
// are in the head's files beside those of another.
func TestDeletedLateSamplesOfASeriesThatHasLeftTheHeadDoNotComeBack(t *testing.T) {
	f := newFixture(t)
	f.seeAll, f.now = false, noon.Add(7*time.Hour)
	for at := time.Duration(0); at <= 3*time.Hour; at += 10 * time.Minute {
		f.push(acme, sample{"a", at, 1}, sample{"b", at, 1})
	}
	for k := range 100 {
		at := 2*time.Hour + 15*time.Minute + time.Duration(k+1)*time.Second
		f.push(acme, sample{"a", at, 2}, sample{"b", at, 2})
	}
	for at := 3*time.Hour + 10*time.Minute; at <= 6*time.Hour; at += 10 * time.Minute {
		f.push(acme, sample{"b", at, 1})
	}
	f.round(acme)
	require.EqualValues(t, 1, f.lookup(acme).db.Head().NumSeries(), "a is in blocks only")
	f.accept(acme, 0, 4*time.Hour, "a")
	f.apply(acme)
	want := f.stored(acme)
	require.NotContains(t, want, "a")
	require.FileExists(t, filepath.Join(f.lookup(acme).dir, chunksVoid))
	for _, by := range []string{"kill", "stop", "kill"} {
		f = endings[by](f)
		f.seeAll, f.now = false, noon.Add(7*time.Hour)
		require.Equal(t, want, f.stored(acme), by)
	}
	require.NoFileExists(t, filepath.Join(f.lookup(acme).dir, chunksVoid))
	require.NoError(t, f.Flush(t.Context(), acme))
	require.Equal(t, want, f.stored(acme))
}

func TestADeletionDropsSeriesForEachLateCutOnce(t *testing.T) {
	l := newLateCuts()
	d := ulid.ULID{1}
	require.False(t, l.concern(d, math.MinInt64, math.MaxInt64), "nothing was cut")
	l.add(100, 200)
	require.True(t, l.concern(d, 0, 100))
	require.False(t, l.concern(d, 200, 300))
	l.dropped[d] = l.n
	require.False(t, l.concern(d, 0, 100), "what came since is not to be cut")
	require.True(t, l.concern(ulid.ULID{2}, 0, 100))
	l.add(300, 400)
	require.True(t, l.concern(d, 0, 100))
}
