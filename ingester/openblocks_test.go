package ingester

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

const testMinute = int64(60_000)

// blocksOf returns the list of a folder with n blocks of an hour, of which no more than most
// stay open.
func blocksOf(t *testing.T, n, most int) *localBlocks {
	t.Helper()
	dir := t.TempDir()
	for k := range int64(n) {
		start, end := k*60*testMinute, (k+1)*60*testMinute
		blocktest.Write(t, dir, start, end, blocktest.Series{
			Labels:  seriesLabels(fmt.Sprint("s", k)),
			Samples: blocktest.Floats("m", start, end, testMinute).Samples,
		})
	}
	l, err := openLocalBlocks(acme, dir, noneShipped(t, dir), newOpenBlocks(most, prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Len(t, l.get(), n)
	t.Cleanup(func() {
		require.NoError(t, l.close())
		require.Zero(t, l.all.count())
	})
	return l
}

// noneShipped knows of no block in dir that is in the bucket.
func noneShipped(t *testing.T, dir string) *shipped {
	t.Helper()
	sh, err := openShipped(dir, noon, 0)
	require.NoError(t, err)
	return sh
}

// readAll returns how many samples are found from mint to maxt.
func (l *localBlocks) readAll(f *fixture, mint, maxt int64) (samples int, err error) {
	q, done, err := l.querier(storage.NoopQuerier(), mint, maxt)
	if err != nil {
		return 0, err
	}
	for _, s := range f.drain(q) {
		samples += len(s)
	}
	err = q.Close()
	done()
	return samples, err
}

func TestBlocksAreOpenWhileTheyAreReadAndTheLastFewAfterwards(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 6, 2)
	require.Zero(t, l.all.count(), "none is opened to know of it")
	require.Empty(t, openBelow(t, l.dir))

	n, err := l.readAll(f, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 360, n)
	require.Equal(t, 2, l.all.count())
	require.InDelta(t, 6, testutil.ToFloat64(l.all.opened), 0)
	require.LessOrEqual(t, blocksAmong(openBelow(t, l.dir)), 2)

	_, err = l.readAll(f, 5*60*testMinute, math.MaxInt64)
	require.NoError(t, err)
	require.InDelta(t, 6, testutil.ToFloat64(l.all.opened), 0, "it was open still")

	// Blocks that are being read are not closed, however many they are.
	blocks, release, err := l.acquire(math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Len(t, blocks, 6)
	require.Equal(t, 6, l.all.count())
	for _, b := range blocks {
		index, err := b.Index()
		require.NoError(t, err)
		require.NoError(t, index.Close())
	}
	release()
	require.Equal(t, 2, l.all.count())
}

func TestTheBlockThatWasReadLongestAgoIsClosedFirst(t *testing.T) {
	l := blocksOf(t, 3, 2)
	touch := func(k int) {
		_, release, err := l.get()[k].acquire()
		require.NoError(t, err)
		release()
	}
	touch(0)
	touch(1)
	touch(0)
	touch(2)
	opened := func() (open []int) {
		for k, b := range l.get() {
			if b.block != nil {
				open = append(open, k)
			}
		}
		return open
	}
	require.Equal(t, []int{0, 2}, opened())
}

func TestADeletedBlockCanBeReadByThoseWhoBeganBefore(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 2, 10)
	q, done, err := l.querier(storage.NoopQuerier(), math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	first := l.get()[0]
	require.NoError(t, l.remove(func(b *localBlock) bool { return b == first }))
	require.NoDirExists(t, first.dir)
	require.Len(t, f.drain(q)["s0"], 60)
	require.Equal(t, 2, l.all.count())
	require.NoError(t, q.Close())
	done()
	require.Equal(t, 1, l.all.count(), "what is gone does not stay open")

	_, _, err = first.acquire()
	require.ErrorIs(t, err, errGone)
	n, err := l.readAll(f, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 60, n)
	require.Zero(t, testutil.ToFloat64(l.all.failed))
}

func TestABlockThatCannotBeDeletedStaysListed(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 2, 10)
	first := l.get()[0]
	inTheWay := filepath.Join(first.dir+deletedSuffix, "something")
	require.NoError(t, os.MkdirAll(inTheWay, 0o750))
	every := func(*localBlock) bool { return true }
	require.ErrorContains(t, l.remove(every), first.meta.ULID.String())
	require.Len(t, l.get(), 1)
	n, err := l.readAll(f, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 60, n)
	require.NoError(t, os.RemoveAll(first.dir+deletedSuffix))
	require.NoError(t, l.remove(every))
	require.Empty(t, l.get())
	require.NoDirExists(t, first.dir)
}

func TestWhoReadsWhileBlocksComeAndGoMissesNothing(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 4, 1)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 30 {
				n, err := l.readAll(f, math.MinInt64, math.MaxInt64)
				if err != nil || n != 240 {
					t.Errorf("%d samples, %v", n, err)
				}
			}
		})
	}
	// The same block takes another's place again and again.
	for range 20 {
		old := l.get()[0]
		meta := old.meta
		meta.ULID = ulid.Make()
		require.NoError(t, copyBlock(old.dir, filepath.Join(l.dir, meta.ULID.String()), meta.ULID))
		next, err := l.read(meta.ULID)
		require.NoError(t, err)
		old.fate.Lock()
		require.NoError(t, l.replace([]*localBlock{old}, next))
		old.fate.Unlock()
	}
	readers.Wait()
}

func copyBlock(from, to string, id ulid.ULID) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	path := filepath.Join(to, "meta.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.ReplaceAll(string(text), filepath.Base(from), id.String())), 0o600)
}

func TestABlockThatCannotBeOpenedFailsWhoNeedsItAndNobodyElse(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 3, 10)
	bad := l.get()[1]
	index := filepath.Join(bad.dir, "index")
	good, err := os.ReadFile(index)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(index, good[:20], 0o600))

	_, err = l.readAll(f, math.MinInt64, math.MaxInt64)
	require.ErrorContains(t, err, bad.meta.ULID.String())
	require.ErrorContains(t, err, string(acme))
	_, _, err = l.chunkQuerier(storage.NoopChunkedQuerier(), math.MinInt64, math.MaxInt64, nil)
	require.ErrorContains(t, err, bad.dir)
	require.InDelta(t, 2, testutil.ToFloat64(l.all.failed), 0)
	n, err := l.readAll(f, 0, bad.meta.MinTime-1)
	require.NoError(t, err)
	require.Equal(t, 60, n)
	n, err = l.readAll(f, bad.meta.MaxTime, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 60, n)

	require.NoError(t, os.WriteFile(index, good, 0o600))
	n, err = l.readAll(f, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 180, n)
}

func TestWhatADeathLeftOfBlocksIsTakenUp(t *testing.T) {
	l := blocksOf(t, 3, 10)
	ids := make([]string, 3)
	for k, b := range l.get() {
		ids[k] = b.meta.ULID.String()
	}
	for _, name := range []string{ids[0] + ".tmp-for-deletion", ids[1] + ".tmp-for-creation", ulid.Make().String() + ".tmp", "else.tmp", "01.tmp-for-deletion"} {
		require.NoError(t, os.Mkdir(filepath.Join(l.dir, name), 0o750))
	}
	// The second was written in place of the first, and of the third nothing is left.
	require.NoError(t, editMeta(l.get()[1], func(m *tsdb.BlockMeta) {
		m.Compaction.Parents = []tsdb.BlockDesc{{ULID: l.get()[0].meta.ULID}}
	}))
	require.NoError(t, editMeta(l.get()[2], func(m *tsdb.BlockMeta) { m.Compaction.Deletable = true }))
	stranger := filepath.Join(l.dir, ulid.Make().String())
	require.NoError(t, os.Mkdir(stranger, 0o750))
	again, err := openLocalBlocks(acme, l.dir, l.shipped, l.all, l.log)
	require.NoError(t, err)
	require.Len(t, again.get(), 1)
	require.Equal(t, ids[1], again.get()[0].meta.ULID.String())
	require.DirExists(t, stranger, "it is not ours to delete")
	require.Empty(t, again.leftOut(), "nor has it anything of a block")
	entries, err := os.ReadDir(l.dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{"01.tmp-for-deletion", "else.tmp", ids[1], filepath.Base(stranger), shippedFile}
	slices.Sort(want)
	require.Equal(t, want, names)
}

func TestTombstonesAreCleanedFromOverlappingBlocksAlone(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 3, 10)
	before := l.get()
	db := newFixture(t)
	db.push(acme, sample{"a", 0, 1})
	compactor := blockCompactor{&db.lookup(acme).cutter}
	from, to := before[1].meta.MinTime, before[1].meta.MinTime+10*testMinute-1
	calls := 0
	err := l.rewrite(context.Background(), compactor, from, to, func(b *tsdb.Block) error {
		calls++
		return b.Delete(context.Background(), from, to, matchAll())
	})
	require.NoError(t, err)
	require.Equal(t, 1, calls)
	require.Same(t, before[0], l.get()[0])
	require.NotEqual(t, before[1].meta.ULID, l.get()[1].meta.ULID)
	require.NoDirExists(t, before[1].dir)
	n, err := l.readAll(f, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 170, n)

	// An attempt that ended half way has left tombstones in a block of another time.
	require.NoError(t, withBlock(l.get()[2], func(b *tsdb.Block) error {
		return b.Delete(context.Background(), math.MinInt64, math.MaxInt64, matchAll())
	}))
	require.NoError(t, l.rewrite(context.Background(), compactor, from, to, func(*tsdb.Block) error { return nil }))
	require.Len(t, l.get(), 2, "nothing was left of it")

	failure := errors.New("no")
	require.ErrorIs(t, l.rewrite(context.Background(), compactor, from, to, func(*tsdb.Block) error { return failure }), failure)
	require.Len(t, l.get(), 2)
}

func (b *localBlock) is(other *localBlock) bool { return b == other }

func TestACutDoesNotWaitForBlocksThatAreBeingDeleted(t *testing.T) {
	l := blocksOf(t, 2, 10)
	first := l.get()[0]
	l.all.mu.Lock() // Who deletes a block closes it first, and so stands still.
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := l.remove(first.is); err != nil {
			t.Error(err)
		}
	})
	for len(l.get()) == 2 {
		runtime.Gosched()
	}
	added := make(chan struct{})
	ended.Go(func() {
		l.add(&localBlock{meta: tsdb.BlockMeta{MinTime: math.MaxInt64}, all: l.all})
		close(added)
	})
	select {
	case <-added:
	case <-time.After(10 * time.Second):
		t.Error("what was cut is not listed while a block is being deleted")
	}
	l.all.mu.Unlock()
	ended.Wait()
	require.Len(t, l.get(), 2)
	require.NoDirExists(t, first.dir)
}

func TestABlockThatIsDeletedBeforeItIsWrittenAnewIsNoneToRewrite(t *testing.T) {
	f := &fixture{t: t}
	l := blocksOf(t, 3, 10)
	before := l.get()
	db := newFixture(t)
	db.push(acme, sample{"a", 0, 1})
	compactor := blockCompactor{&db.lookup(acme).cutter}
	var called []string
	err := l.rewrite(context.Background(), compactor, math.MinInt64, math.MaxInt64, func(b *tsdb.Block) error {
		called = append(called, b.Meta().ULID.String())
		switch len(called) {
		case 1: // The next one is deleted, and the one after it cannot be.
			if err := l.remove(before[1].is); err != nil {
				return err
			}
			inTheWay := before[2].dir + deletedSuffix
			if err := os.MkdirAll(filepath.Join(inTheWay, "something"), 0o750); err != nil {
				return err
			}
			if l.remove(before[2].is) == nil {
				return errors.New("it was deleted")
			}
			return os.RemoveAll(inTheWay)
		default: // It is not deleted while it is being written anew.
			if err := l.remove(func(b *localBlock) bool { return b.meta.ULID == before[2].meta.ULID }); err != nil {
				return err
			}
			return b.Delete(context.Background(), before[2].meta.MinTime, before[2].meta.MinTime+10*testMinute-1, matchAll())
		}
	})
	require.NoError(t, err)
	require.Equal(t, []string{before[0].meta.ULID.String(), before[2].meta.ULID.String()}, called)
	require.Len(t, l.get(), 2)
	require.Same(t, before[0], l.get()[0])
	require.NotEqual(t, before[2].meta.ULID, l.get()[1].meta.ULID)
	require.NoDirExists(t, before[2].dir)
	n, err := l.readAll(f, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	require.Equal(t, 60+50, n)
}

func withBlock(b *localBlock, do func(*tsdb.Block) error) error {
	block, err := tsdb.OpenBlock(b.log, b.dir, nil, nil)
	if err != nil {
		return err
	}
	return errors.Join(do(block), block.Close())
}

// editMeta changes what the meta.json of a block says.
func editMeta(b *localBlock, change func(*tsdb.BlockMeta)) error {
	meta := b.meta
	change(&meta)
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "meta.json"), text, 0o600)
}

func matchAll() *labels.Matcher { return labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+") }

// openBelow returns the files below dir that this process has open or mapped, as Linux
// says; none elsewhere.
func openBelow(t *testing.T, dir string) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		return nil
	}
	var open []string
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if path, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && strings.HasPrefix(path, dir) {
			open = append(open, path)
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	for line := range strings.Lines(string(maps)) {
		if _, path, ok := strings.Cut(strings.TrimSpace(line), dir); ok {
			open = append(open, dir+path)
		}
	}
	return open
}

// blocksAmong returns how many blocks the files are of.
func blocksAmong(files []string) int {
	blocks := map[string]bool{}
	for _, path := range files {
		for part := range strings.SplitSeq(path, "/") {
			if id, err := ulid.ParseStrict(part); err == nil {
				blocks[id.String()] = true
			}
		}
	}
	return len(blocks)
}
