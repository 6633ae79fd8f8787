package pagefile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// localPath returns the only local file below dir.
func localPath(t *testing.T, dir string) string {
	t.Helper()
	c := Cache{cfg: Config{Dir: dir}}
	names, err := c.localFiles()
	require.NoError(t, err)
	require.Len(t, names, 1)
	return filepath.Join(dir, names[0])
}

func TestWhatAKilledProcessLeftIsThere(t *testing.T) {
	dir := t.TempDir()
	r := newRemote(300*pageSize+5, 1)
	killed := newCache(t, dir, nil)
	f := killed.file("acme/block/index", r)
	load(t, f, 0, pageSize)
	load(t, f, 200*pageSize, r.size())
	// It is killed: nothing is released, nothing closed.

	c := newCache(t, dir, nil)
	require.Equal(t, killed.usedBytes(), c.usedBytes())
	next := c.file("acme/block/index", r)
	defer next.Release()
	require.Zero(t, load(t, next, 200*pageSize, r.size()))
	requireBytes(t, next, r, 200*pageSize, r.size())
	require.EqualValues(t, 0, load(t, next, 0, 10))
	require.EqualValues(t, pageSize, load(t, next, pageSize, pageSize+1), "it was never fetched")
	requireBytes(t, next, r, 0, 2*pageSize)
	f.Release()
}

func TestEachStartFindsWhatAllBeforeItFetched(t *testing.T) {
	dir := t.TempDir()
	r := newRemote(64*pageSize, 1)
	for start := int64(0); start < 4; start++ {
		c := newCache(t, dir, nil)
		f := c.file("k", r)
		require.EqualValues(t, 16*pageSize, load(t, f, 0, (start+1)*16*pageSize), "start %d", start)
		requireBytes(t, f, r, 0, (start+1)*16*pageSize)
		f.Release()
		require.NoError(t, c.Close())
	}
}

func TestPagesThatWereDamagedMeanwhileAreFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	r := newRemote(10*pageSize, 1)
	before := newCache(t, dir, nil)
	f := before.file("k", r)
	load(t, f, 0, r.size())
	f.Release()
	disk, err := os.OpenFile(localPath(t, dir), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = disk.WriteAt(make([]byte, 100), dataStart+3*pageSize+50) // as after a power failure
	require.NoError(t, err)
	require.NoError(t, disk.Close())

	c := newCache(t, dir, nil)
	f = c.file("k", r)
	defer f.Release()
	require.EqualValues(t, pageSize, load(t, f, 0, r.size()))
	requireBytes(t, f, r, 0, r.size())
	require.Equal(t, 1, count(c.metrics.disbelieved))
	require.Equal(t, before.usedBytes()+entrySize, c.usedBytes())
}

func TestEveryDamageToALocalFileCostsNoMoreThanPages(t *testing.T) {
	r := newRemote(3*pageSize+10, 1)
	whole := t.TempDir()
	before := newCache(t, whole, nil)
	f := before.file("k", r)
	load(t, f, 0, r.size())
	f.Release()
	content, err := os.ReadFile(localPath(t, whole))
	require.NoError(t, err)
	name := filepath.Base(localPath(t, whole))

	check := func(t *testing.T, content []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o666))
		c := newCache(t, dir, nil)
		f := c.file("k", r)
		load(t, f, 0, r.size())
		requireBytes(t, f, r, 0, r.size())
		f.Release()
		require.NoError(t, c.Close())
		require.Equal(t, diskBytes(t, dir), c.usedBytes())
	}
	step := max(1, len(content)/97)
	for end := 0; end < len(content); end += step {
		check(t, content[:end])
	}
	for _, at := range []int{0, 4, 8, 12, 20, 24, 26, dataStart, dataStart + 3*pageSize, len(content) - 1, len(content) - 20} {
		damaged := append([]byte(nil), content...)
		damaged[at] ^= 1
		check(t, damaged)
	}
}

func TestOnlyFilesOfTheCacheAreRemovedAtStart(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("mine"), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.1.pages"), []byte("damaged"), 0o666))
	newCache(t, dir, nil)
	require.FileExists(t, filepath.Join(dir, "notes.txt"))
	require.NoFileExists(t, filepath.Join(dir, "index.1.pages"))
}

func TestStartWithASmallerBudgetKeepsWhatWasUsedLast(t *testing.T) {
	dir := t.TempDir()
	before := newCache(t, dir, nil)
	for i, key := range []string{"a", "b", "c"} {
		f := before.file(key, newRemote(40<<20, uint64(i)))
		load(t, f, 0, 40<<20)
		f.Release()
	}
	for i, key := range []string{"c", "a", "b"} { // ages that do not depend on the clock
		c := Cache{cfg: Config{Dir: dir}}
		names, err := c.localFiles()
		require.NoError(t, err)
		for _, name := range names {
			if name[0] == key[0] {
				require.NoError(t, os.Chtimes(filepath.Join(dir, name), ages[i], ages[i]))
			}
		}
	}
	c := newCache(t, dir, func(cfg *Config, _ *tuning) { cfg.MaxBytes = 100 << 20 })
	require.True(t, c.has("a") && c.has("b"))
	require.False(t, c.has("c"))
}
