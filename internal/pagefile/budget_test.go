package pagefile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var ages = []time.Time{time.Unix(1e9, 0), time.Unix(1.1e9, 0), time.Unix(1.2e9, 0)}

// small gives a cache room for about n pages.
func small(n int64) func(*Config, *tuning) {
	return func(cfg *Config, _ *tuning) { cfg.MaxBytes = n*pageSize + pageSize/2 }
}

func TestFileThatWasNotUsedForLongestIsEvicted(t *testing.T) {
	c := newCache(t, t.TempDir(), small(30))
	remotes := map[string]*remote{}
	use := func(key string) int64 {
		if remotes[key] == nil {
			remotes[key] = newRemote(10*pageSize, uint64(len(remotes)))
		}
		f := c.file("acme/"+key+"/index", remotes[key])
		defer f.Release()
		fetched := load(t, f, 0, f.Size())
		requireBytes(t, f, remotes[key], 0, f.Size())
		return fetched
	}
	use("a")
	use("b")
	use("c")
	require.Zero(t, use("a"))
	use("d")
	require.False(t, c.has("acme/b/index"))
	require.NoDirExists(t, filepath.Join(c.dir, "acme", "b"), "the empty folder is gone too")
	require.Zero(t, use("a"))
	require.Zero(t, use("c"))
	require.EqualValues(t, 10*pageSize, use("b"))
	require.Equal(t, 2, count(c.metrics.evictions))
	require.LessOrEqual(t, c.usedBytes(), c.cfg.MaxBytes)
	require.Equal(t, diskBytes(t, c.dir), c.usedBytes())
}

func TestFilesInUseAreKeptBeyondTheBudget(t *testing.T) {
	c := newCache(t, t.TempDir(), small(15))
	a, b := newRemote(10*pageSize, 1), newRemote(10*pageSize, 2)
	fa, fb := c.file("a", a), c.file("b", b)
	load(t, fa, 0, fa.Size())
	load(t, fb, 0, fb.Size())
	requireBytes(t, fa, a, 0, fa.Size())
	requireBytes(t, fb, b, 0, fb.Size())
	require.Equal(t, 1, count(c.metrics.overBudget))
	fa.Release()
	require.False(t, c.has("a"), "the budget holds again as soon as it can")
	require.LessOrEqual(t, c.usedBytes(), c.cfg.MaxBytes)
	requireBytes(t, fb, b, 0, fb.Size())
	fb.Release()
}

func TestFilesOfWhichNothingWasFetchedLeaveNothingBehind(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	f := c.file("k", newRemote(10, 1))
	f.Release()
	require.False(t, c.has("k"))
	entries, err := os.ReadDir(c.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestDiskThatCannotBeWrittenFailsTheLoadAndSaysWhy(t *testing.T) {
	dir := t.TempDir()
	c := newCache(t, dir, nil)
	r := newRemote(2*pageSize, 1)
	f := c.file("acme/block/index", r)
	defer f.Release()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "acme"), nil, 0o666)) // where a folder belongs
	_, err := f.Load(t.Context(), Range{0, r.size()})
	require.ErrorContains(t, err, "acme/block/index")
	require.ErrorIs(t, err, syscall.ENOTDIR)
	_, err = f.ReadAt(make([]byte, 1), 0)
	require.Error(t, err)

	require.NoError(t, os.Remove(filepath.Join(dir, "acme")))
	load(t, f, 0, r.size())
	requireBytes(t, f, r, 0, r.size())
}

func TestConfigurationThatCannotWorkIsRefused(t *testing.T) {
	_, err := Open(Config{MaxBytes: 1}, nil, nil)
	require.ErrorContains(t, err, "no directory")
	require.ErrorContains(t, err, "at least 67108864 (64 MiB)")
}
