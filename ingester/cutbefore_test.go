package ingester

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

// emptied is a tenant with samples of six hours in its log, of which four were cut into two
// blocks. A deletion has left nothing of these.
func emptied(t *testing.T, f *fixture) map[string][]string {
	t.Helper()
	f.seeAll = false
	f.advance(7 * time.Hour)
	f.pushHours(acme, 6*time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 2)
	f.accept(acme, 0, 4*time.Hour-time.Second, "a")
	f.apply(acme)
	require.Empty(t, f.LocalBlocks(acme))
	want := f.stored(acme)
	require.Len(t, want["a"], 13)
	return want
}

func TestWhatADeletionLeftNothingOfDoesNotComeBackFromTheLog(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			want := emptied(t, f)
			for _, end := range []func(*fixture) *fixture{end, endings["kill"], endings["stop"]} {
				f = end(f)
				f.seeAll, f.now = false, noon.Add(7*time.Hour)
				require.Equal(t, want, f.stored(acme))
			}
			// What comes late for that time is taken, as before.
			f.push(acme, sample{"a", 3*time.Hour + time.Minute, 9})
			require.NoError(t, f.Flush(t.Context(), acme))
			f = endings["kill"](f)
			require.Equal(t, append([]string{"3h1m0s 9"}, want["a"]...), f.stored(acme)["a"])
		})
	}
}

func TestADeletedTenantThatComesBackIsNotBoundByHowFarItsHeadWasCut(t *testing.T) {
	f := newFixture(t)
	emptied(t, f)
	f.acceptTenant(acme, 0)
	f.apply(acme)
	require.Empty(t, f.stored(acme))
	f.push(acme, sample{"a", time.Hour, 2})
	want := map[string][]string{"a": {"1h0m0s 2"}}
	require.Equal(t, want, f.stored(acme))
	require.Equal(t, want, f.afterCrash().stored(acme))
}

func TestADeletionInAnAdoptedDirectoryIsNotUndoneByAKill(t *testing.T) {
	f, dir, old := adopting(t)
	f.seeAll = false
	f.advance(20 * time.Hour)
	for at := 4 * time.Hour; at <= 10*time.Hour; at += 10 * time.Minute {
		f.push(acme, sample{"a", at, 1})
	}
	f.round(acme)
	require.Greater(t, len(f.LocalBlocks(acme)), 1)
	f.accept(acme, 4*time.Hour, 8*time.Hour-time.Second, "a")
	f.apply(acme)
	require.Equal(t, old, f.LocalBlocks(acme)[0])
	require.Len(t, f.LocalBlocks(acme), 1)
	want := f.stored(acme)
	require.Len(t, want["a"], 13)
	killed := t.TempDir()
	require.NoError(t, os.CopyFS(killed, os.DirFS(dir)))
	f = newFixture(t, withConfig(func(c *Config) { c.Adopted = &Adopted{Tenant: acme, Dir: killed, Keep: []ulid.ULID{old}} }))
	require.Equal(t, want, f.stored(acme))
	f.restart()
	require.Equal(t, want, f.stored(acme))
}

// TestWhatIsInTheBucketAloneDoesNotComeBackFromTheLog also has a folder that a release left
// which did not write down how far heads were cut.
func TestWhatIsInTheBucketAloneDoesNotComeBackFromTheLog(t *testing.T) {
	for name, forgotten := range map[string]bool{"noted at the upload": false, "noted before the last block goes": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.seeAll = false
			f.advance(20 * time.Hour)
			f.pushHours(acme, 6*time.Hour)
			f.push(acme, sample{"a", 19 * time.Hour, 1}) // so that nothing is late that is in a block
			f.round(acme)
			require.NotEmpty(t, f.LocalBlocks(acme))
			if forgotten {
				require.NoError(t, f.close())
				path := filepath.Join(f.dir, "ingester", string(acme), shippedFile)
				text, err := os.ReadFile(path)
				require.NoError(t, err)
				var fields map[string]any
				decoder := json.NewDecoder(bytes.NewReader(text))
				decoder.UseNumber()
				require.NoError(t, decoder.Decode(&fields))
				require.Contains(t, fields, "cut_before_ms")
				delete(fields, "cut_before_ms")
				text, err = json.Marshal(fields)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(path, text, 0o600))
				f.open()
			}
			f.seeAll = true
			f.round(acme)
			require.Empty(t, f.LocalBlocks(acme))
			want := map[string][]string{"a": {"19h0m0s 1"}}
			require.Equal(t, want, f.stored(acme))
			crashed := f.afterCrash()
			require.Equal(t, want, crashed.stored(acme))
			require.NoError(t, crashed.Flush(context.Background(), acme))
			require.Equal(t, want, crashed.afterCrash().stored(acme))
		})
	}
}

func TestTheLastBlockStaysUntilItIsWrittenDownHowFarTheHeadWasCut(t *testing.T) {
	l := blocksOf(t, 2, 10)
	before, ok := l.cutBefore()
	require.True(t, ok)
	inTheWay := filepath.Join(l.dir, shippedFile, "something")
	require.NoError(t, os.MkdirAll(inTheWay, 0o750))
	every := func(*localBlock) bool { return true }
	require.ErrorContains(t, l.remove(every), "how far the head was cut")
	require.Len(t, l.get(), 2)
	require.NoError(t, l.remove(l.get()[0].is), "the other one says so")
	last := l.get()[0]
	require.DirExists(t, last.dir)

	require.NoError(t, os.RemoveAll(filepath.Join(l.dir, shippedFile)))
	require.NoError(t, l.remove(every))
	require.NoDirExists(t, last.dir)
	again, err := openLocalBlocks(acme, l.dir, noneShipped(t, l.dir), l.all, l.log)
	require.NoError(t, err)
	for _, list := range []*localBlocks{l, again} {
		after, ok := list.cutBefore()
		require.True(t, ok)
		require.Equal(t, before, after)
	}
}
