package ingester

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// snapshots returns the snapshots of the head of acme.
func (f *fixture) snapshots() []string {
	f.t.Helper()
	found, err := filepath.Glob(filepath.Join(f.dir, "ingester", string(acme), tsdbFolder, snapshotPrefix+"*"))
	require.NoError(f.t, err)
	return found
}

func TestAStopAfterAKillLosesNothingOfASeriesThatCameBack(t *testing.T) {
	for name, fill := range map[string]func(f *fixture, from time.Duration){
		"late samples": func(f *fixture, from time.Duration) {
			f.push(acme, sample{"a", from - time.Minute, 2})
		},
		"full chunks of late samples": func(f *fixture, from time.Duration) {
			for k := range 100 {
				f.push(acme, sample{"a", from - time.Duration(k+1)*time.Second, float64(k % 7)})
			}
		},
		"chunks": func(f *fixture, from time.Duration) {
			for k := range 300 {
				f.push(acme, sample{"a", from + time.Duration(k+1)*time.Second, float64(k % 7)})
			}
			f.lookup(acme).db.ForceHeadMMap()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.advance(12 * time.Hour)
			f.push(acme, sample{"a", 0, 1}, sample{"a", -time.Minute, 1})
			require.NoError(t, f.Flush(context.Background(), acme))
			require.Empty(t, f.refs())
			f.push(acme, sample{"a", time.Hour, 1})
			fill(f, time.Hour)
			want := f.everywhere(acme)
			f.kill()
			require.Equal(t, want, f.everywhere(acme))
			fill(f, time.Hour+10*time.Minute)
			want = f.everywhere(acme)
			for range 2 {
				f.restart()
				require.Equal(t, want, f.everywhere(acme))
			}
		})
	}
}

func TestAStopAfterAKillLeavesASnapshotIfTheLogHasEverything(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 1})
	f.kill()
	require.NoError(t, f.close())
	require.NotEmpty(t, f.snapshots())
	f.open()
	require.Equal(t, map[string][]string{"a": {"0s 1"}, "b": {"0s 1"}}, f.stored(acme))
}
