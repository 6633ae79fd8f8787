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
	c.release(fa)
	require.False(t, c.has("a"), "the budget holds again as soon as it can")
	require.LessOrEqual(t, c.usedBytes(), c.cfg.MaxBytes)
	requireBytes(t, fb, b, 0, fb.Size())
	c.release(fb)
}

func TestFilesOfWhichNothingWasFetchedLeaveNothingBehind(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	f := c.file("k", newRemote(10, 1))
	c.release(f)
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

// fill makes the disk full until enough of the cache was evicted.
func (c testCache) fill(free func() bool) {
	c.writeAt = func(disk *os.File, p []byte, offset int64) (int, error) {
		if !free() {
			return 0, &os.PathError{Op: "write", Path: disk.Name(), Err: syscall.ENOSPC}
		}
		return disk.WriteAt(p, offset)
	}
}

func TestFullDiskTakesTheSpaceOfFilesThatNobodyUses(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	old, r := newRemote(pageSize, 1), newRemote(2*pageSize, 2)
	f := c.file("old", old)
	load(t, f, 0, f.Size())
	c.release(f)
	c.fill(func() bool { return !c.has("old") })

	f = c.file("new", r)
	defer f.Release()
	load(t, f, 0, f.Size())
	requireBytes(t, f, r, 0, f.Size())
	require.Equal(t, diskBytes(t, c.dir), c.usedBytes())
}

func TestFullDiskFailsTheLoadAndNothingElse(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	r := newRemote(4*pageSize, 1)
	f := c.file("k", r)
	defer f.Release()
	load(t, f, pageSize, 2*pageSize)
	used := c.usedBytes()
	full := true
	c.fill(func() bool { return !full })

	_, err := f.Load(t.Context(), Range{0, r.size()})
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "free space in "+c.dir+", or give the cache less")
	requireBytes(t, f, r, pageSize, 2*pageSize)
	_, err = f.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, ErrNotResident)
	require.InDelta(t, used, c.usedBytes(), 4*entrySize)

	full = false
	require.Equal(t, r.size(), load(t, f, 0, r.size()), "in one request, over the page that is there")
	requireBytes(t, f, r, 0, r.size())
}
