package pagefile

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestLoadedBytesAreThoseOfTheRemoteFile(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	r := newRemote(5*pageSize+100, 1)
	f := c.file("acme/block/index", r)
	defer f.Release()

	_, err := f.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, ErrNotResident)

	require.EqualValues(t, pageSize, load(t, f, 10, 20), "pages are fetched whole")
	requireBytes(t, f, r, 0, pageSize)
	_, err = f.ReadAt(make([]byte, 2), pageSize-1)
	require.ErrorIs(t, err, ErrNotResident, "the second page was not asked for")

	require.EqualValues(t, 4*pageSize+100, load(t, f, 0, r.size()), "the first page is there")
	require.EqualValues(t, 0, load(t, f, 0, r.size()))
	require.NoError(t, iotest.TestReader(io.NewSectionReader(f, 0, f.Size()), r.content))
	require.Equal(t, r.size(), c.metrics.fetchedBytes())
}

func TestReadAtEndsWhereTheFileEnds(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	r := newRemote(pageSize+10, 1)
	f := c.file("k", r)
	defer f.Release()
	load(t, f, 0, r.size())

	got := make([]byte, 20)
	n, err := f.ReadAt(got, pageSize)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, r.content[pageSize:], got[:n])
	_, err = f.ReadAt(got, r.size())
	require.ErrorIs(t, err, io.EOF)
	_, err = f.ReadAt(got, -1)
	require.Error(t, err)
}

func TestRangesOutsideOfTheFileAreRefused(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	f := c.file("k", newRemote(100, 1))
	defer f.Release()
	for _, bad := range []Range{{-1, 5}, {5, 4}, {0, 101}, {101, 101}} {
		_, err := f.Load(t.Context(), bad)
		require.ErrorContains(t, err, "of k, which has 100", "%v", bad)
		require.Error(t, f.Discard(bad), "%v", bad)
	}
	require.EqualValues(t, 0, load(t, f, 7, 7), "nothing of a file is always there")
}

func TestAbsentIsWhatLoadWillFetch(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	r := newRemote(100*pageSize, 1)
	f := c.file("k", r)
	defer f.Release()
	ranges := []Range{{0, 10}, {3 * pageSize, 3*pageSize + 1}, {50 * pageSize, 52 * pageSize}}
	absent, err := f.Absent(ranges...)
	require.NoError(t, err)
	require.EqualValues(t, (4+2)*pageSize, absent, "the small gap is fetched, the large one not")
	fetched, err := f.Load(t.Context(), ranges...)
	require.NoError(t, err)
	require.Equal(t, absent, fetched)
	require.EqualValues(t, 2, r.requests.Load())
	absent, err = f.Absent(ranges...)
	require.NoError(t, err)
	require.Zero(t, absent)
}

func TestLargeRangesAreFetchedInParts(t *testing.T) {
	c := newCache(t, t.TempDir(), func(_ *Config, tn *tuning) { tn.maxRequest = 4 * pageSize })
	r := newRemote(10*pageSize, 1)
	f := c.file("k", r)
	defer f.Release()
	load(t, f, 0, r.size())
	require.EqualValues(t, 3, r.requests.Load())
	requireBytes(t, f, r, 0, r.size())
}

func TestDiscardedPagesAreFetchedAgain(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	r := newRemote(4*pageSize, 1)
	f := c.file("k", r)
	defer f.Release()
	load(t, f, 0, r.size())
	used := c.usedBytes()
	require.NoError(t, f.Discard(Range{pageSize, pageSize + 1}))
	require.Equal(t, used-pageSize, c.usedBytes())
	_, err := f.ReadAt(make([]byte, 1), pageSize)
	require.ErrorIs(t, err, ErrNotResident)
	requireBytes(t, f, r, 0, pageSize)

	require.EqualValues(t, pageSize, load(t, f, 0, r.size()))
	requireBytes(t, f, r, 0, r.size())
	require.Equal(t, used+entrySize, c.usedBytes())
}

func TestReleasedHandlesAreOfNoUse(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	r := newRemote(100, 1)
	f, other := c.file("k", r), c.file("k", r)
	defer other.Release()
	load(t, f, 0, 100)
	f.Release()
	f.Release()
	_, err := f.Load(t.Context(), Range{0, 1})
	require.ErrorIs(t, err, ErrClosed)
	_, err = f.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, ErrClosed)
	requireBytes(t, other, r, 0, 100)
}

func TestAnotherObjectOfTheSameNameIsNotMistaken(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	before, after := newRemote(100, 1), newRemote(200, 2)
	f := c.file("k", before)
	load(t, f, 0, 100)
	_, err := c.File("k", 200, after.read)
	require.ErrorContains(t, err, "k is in use with 100 bytes, and now has 200")
	c.release(f)
	f = c.file("k", after)
	defer f.Release()
	require.EqualValues(t, 200, load(t, f, 0, 200))
	requireBytes(t, f, after, 0, 200)
}

func TestImpossibleFilesAreRefused(t *testing.T) {
	c := newCache(t, t.TempDir(), nil)
	for _, size := range []int64{-1, maxFileSize + 1} {
		_, err := c.File("k", size, nil)
		require.Error(t, err)
	}
	_, err := c.File("", 1, nil)
	require.Error(t, err)
	require.NoError(t, c.Close())
	_, err = c.File("k", 1, nil)
	require.ErrorIs(t, err, ErrClosed)
}

func TestFilesThatSomebodyRemovedAreFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	c := newCache(t, dir, nil)
	r := newRemote(3*pageSize, 1)
	f := c.file("acme/block/index", r)
	load(t, f, 0, r.size())
	c.release(f)
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "acme")))

	f = c.file("acme/block/index", r)
	defer f.Release()
	_, err := f.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, ErrNotResident)
	require.Equal(t, r.size(), load(t, f, 0, r.size()))
	requireBytes(t, f, r, 0, r.size())
}

func TestManyCallersGetRightBytesWhileFilesComeAndGo(t *testing.T) {
	c := newCache(t, t.TempDir(), func(cfg *Config, tn *tuning) {
		cfg.MaxBytes = 40 * pageSize
		tn.maxRequest, tn.maxGap, tn.requestWeight = 8*pageSize, 2*pageSize, pageSize
		tn.maxInFlight = 20 * pageSize
	})
	twins := make([]*remote, 6)
	for i := range twins {
		twins[i] = newRemote(int64(20*pageSize+i*777), uint64(i))
		twins[i].before = unreliable(uint64(i))
	}
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() { wander(t, c, twins, uint64(worker)) })
	}
	group.Wait()
	require.NoError(t, c.Close())
	require.LessOrEqual(t, c.usedBytes(), int64(40*pageSize), "nobody holds any file")
	// The next process takes over no file of which no page was fetched in the end.
	require.InDelta(t, diskBytes(t, c.dir), c.usedBytes(), float64(len(twins)*(headerSize+len("a/index"))))
	require.Positive(t, count(c.metrics.evictions))
}

// wander does what a query may do, at random: it holds a file, loads ranges of it, some
// of them with a context that ends too early, and reads what must be resident.
func wander(t *testing.T, c testCache, twins []*remote, seed uint64) {
	random := newRandom(seed)
	for range 150 {
		i := random.IntN(len(twins))
		r := twins[i]
		f := c.file(string(rune('a'+i))+"/index", r)
		for range random.IntN(4) {
			start := random.Int64N(r.size())
			end := start + random.Int64N(r.size()-start) + 1
			other := random.Int64N(r.size())
			ctx, cancel := context.WithCancel(t.Context())
			switch random.IntN(10) {
			case 0:
				cancel()
			case 1:
				go cancel()
			}
			_, err := f.Load(ctx, Range{start, end}, Range{other, min(other+100, r.size())})
			if err == nil {
				got := make([]byte, end-start)
				if _, err := f.ReadAt(got, start); err != nil || string(got) != string(r.content[start:end]) {
					t.Errorf("bytes [%d, %d) of file %d are wrong: %v", start, end, i, err)
				}
			} else if ctx.Err() == nil && !isExpected(err) {
				t.Errorf("load: %v", err)
			}
			cancel()
		}
		f.Release()
	}
}
