package ingester

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sort"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// pushHours pushes a sample of series a every ten minutes for so long.
func (f *fixture) pushHours(id tenant.ID, span time.Duration) (want []string) {
	f.t.Helper()
	for at := time.Duration(0); at <= span; at += 10 * time.Minute {
		f.push(id, sample{"a", at, 1})
		want = append(want, fmt.Sprintf("%s 1", at))
	}
	return want
}

func TestBlocksStayLocalUntilQueriesReadThemFromTheBucket(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(10 * time.Hour)
	want := f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3, "the windows from 12:00, 14:00 and 16:00 are complete")
	require.Equal(t, want, f.stored(acme)["a"])
	require.Equal(t, want[:36], f.inBucket(acme)["a"])

	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3, "uploaded, but no query would find them in the bucket")

	first := f.LocalBlocks(acme)[0]
	f.visible[first] = true
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 2)
	require.Equal(t, want[12:], f.stored(acme)["a"])
}

func TestBlocksStayLocalWhileLateSamplesAreComparedWithThem(t *testing.T) {
	f := newFixture(t)
	f.advance(10 * time.Hour)
	f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 1, "16:00 to 18:00 is within three hours of the newest sample")
	result := f.offer(acme, batch(sample{"a", 5 * time.Hour, 9}))
	require.Equal(t, write.ReasonDuplicateTimestamp, result.Rejected[0].Reason)
	f.push(acme, sample{"a", 5 * time.Hour, 1})

	f.restart()
	require.Len(t, f.LocalBlocks(acme), 1)
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Len(t, f.inBucket(acme)["a"], 49)
}

func TestFullDiskIsRelievedOfUploadedBlocks(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(10 * time.Hour)
	f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	f.push(acme, sample{"a", 10 * time.Hour, 1}) // A cut is due.
	all := f.stored(acme)["a"]
	before := f.LocalBlocks(acme)
	require.Len(t, before, 3)
	f.seeAll, f.visible[before[1]], f.visible[before[2]] = false, true, true
	f.disk.statf, f.disk.checked = func(string) (uint64, bool, error) { return 60 << 20, false, nil }, time.Time{}
	require.ErrorIs(t, f.lookup(acme).maintain(context.Background()), errDisk)
	require.Equal(t, before[:1], f.LocalBlocks(acme))
	require.Equal(t, slices.Concat(all[:12], all[36:]), f.stored(acme)["a"], "what is in the head is there")
}

func TestYearsBetweenTwoSamplesDoNotHoldUpACut(t *testing.T) {
	f := newFixture(t)
	b := &write.Batch{}
	b.Add(write.NewHasher(), seriesLabels("a"), []write.Sample{{T: 0, V: 1}, {T: noon.UnixMilli(), V: 2}}, nil, nil)
	require.Equal(t, 2, f.offer(acme, b).Written.Samples)
	f.seeAll = false
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Len(t, f.LocalBlocks(acme), 2)
}

func TestIdleTenantThatDoesNotCloseCleanlyTakesWritesAgain(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	require.NoError(t, f.Flush(context.Background(), acme))
	f.advance(2 * time.Hour)
	db := f.lookup(acme)
	db.retiring.Store(true)
	require.NoError(t, db.deleteShipped(db.db))
	db.meta.path, db.meta.dirty = "/nonexistent/metadata.json", true
	require.Error(t, db.retire())
	f.push(acme, sample{"a", time.Hour, 2})
}

func TestLateSampleIsNotAcknowledgedWithoutItsLog(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"a", -time.Minute, 2})
	closeLog(t, f.lookup(acme).db.Head(), "wbl")
	_, err := f.Push(context.Background(), acme, batch(sample{"a", -2 * time.Minute, 3}))
	require.ErrorIs(t, err, errLateLog)
	f.round(acme)
	f.push(acme, sample{"a", -2 * time.Minute, 3})
	require.Equal(t, []string{"-2m0s 3", "-1m0s 2", "0s 1"}, f.stored(acme)["a"])
}

// closeLog closes a log of a head behind its back, which stands for a disk that takes no
// more bytes. "wbl" is that of late samples.
func closeLog(t *testing.T, head *tsdb.Head, name string) {
	t.Helper()
	field := reflect.ValueOf(head).Elem().FieldByName(name)
	log, ok := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Interface().(io.Closer)
	require.True(t, ok)
	require.NoError(t, log.Close())
}

func TestPushHeedsItsDeadlineWhileAFlushWaitsForAQuery(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	q, err := f.Querier(acme, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	f.drain(q)
	flushed := make(chan error, 1)
	go func() { flushed <- f.Flush(context.Background(), acme) }()
	for len(f.lookup(acme).appending) == 0 {
		runtime.Gosched()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = f.Push(ctx, acme, batch(sample{"a", time.Second, 2}))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, q.Close())
	require.NoError(t, <-flushed)
}

func TestQueryThatAsksForLocalBlocksDoesNotWaitForWhoWaitsForIt(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	q, err := f.Querier(acme, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	tdb := f.lookup(acme)
	closed := make(chan error, 1)
	go func() { closed <- tdb.close() }()
	for tdb.use.TryRLock() { // until close waits
		tdb.use.RUnlock()
		runtime.Gosched()
	}
	require.Empty(t, f.LocalBlocks(acme))
	require.NoError(t, q.Close())
	require.NoError(t, <-closed)
}

func TestQueryOnOneTenantDoesNotHoldUpTheCutsOfOthers(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(10 * time.Hour)
	f.pushHours("one", 5*time.Hour)
	f.pushHours("two", 5*time.Hour)
	q, err := f.Querier("one", math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	f.drain(q)
	done := make(chan struct{})
	go func() { defer close(done); f.maintain(context.Background()) }()
	require.Eventually(t, func() bool { return len(f.LocalBlocks("two")) == 1 }, 10*time.Second, time.Millisecond)
	require.NoError(t, q.Close())
	<-done
	require.Len(t, f.LocalBlocks("one"), 1)
}

func TestCutBlocksAreAlignedToTwoHours(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(8 * time.Hour)
	for at := 30 * time.Minute; at <= 7*time.Hour; at += 30 * time.Minute {
		f.push(acme, sample{"a", at, 1})
	}
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Len(t, f.LocalBlocks(acme), 4)
	for _, b := range f.lookup(acme).blocks.get() {
		require.Equal(t, floorTo(b.meta.MinTime, blockRange.Milliseconds()), floorTo(b.meta.MaxTime-1, blockRange.Milliseconds()), "block %s", b.meta.ULID)
	}
}

func TestUploadIsNotRepeatedAfterARestart(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.push(acme, sample{"a", 0, 1})
	require.NoError(t, f.Flush(context.Background(), acme))
	store := blockstore.New(f.bucket, nil)
	blocks, _, err := store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 1)
	for id := range blocks {
		require.NoError(t, store.Delete(context.Background(), acme, id), "as the compactor does after a merge")
	}
	f.restart()
	f.round(acme)
	blocks, _, err = store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.Empty(t, blocks)
}

func TestIdleTenantIsCutUploadedAndClosed(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.push(acme, sample{"a", 0, 1}, sample{"a", -time.Minute, 2})
	f.advance(2 * time.Hour)
	f.round(acme)
	require.Equal(t, []string{"-1m0s 2", "0s 1"}, f.inBucket(acme)["a"])
	require.NotNil(t, f.lookup(acme), "queries don't read it from the bucket yet")

	f.seeAll = true
	f.round(acme)
	require.Nil(t, f.lookup(acme))
	require.NoDirExists(t, filepath.Join(f.dir, "ingester", string(acme)))
	require.Empty(t, f.stored(acme))
	require.Zero(t, f.caps.series.Load())

	f.push(acme, sample{"a", time.Hour, 3})
	require.Equal(t, []string{"1h0m0s 3"}, f.stored(acme)["a"], "it comes back with its next write")
}

func TestAcknowledgedSamplesSurviveTheDeathOfTheProcess(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 2}, sample{"a", -time.Minute, 3})
	want := f.stored(acme)
	crashed := f.afterCrash()
	require.Equal(t, want, crashed.stored(acme))
	crashed.push(acme, sample{"a", time.Second, 4})
}

func TestBrokenLogRefusesWritesUntilItIsOpenedAnew(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	f.lookup(acme).broken.Store(true)

	_, err := f.Push(context.Background(), acme, batch(sample{"a", time.Second, 2}))
	var unavailable *wire.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	require.ErrorIs(t, err, errBroken)
	require.Equal(t, []string{"0s 1"}, f.stored(acme)["a"], "reads go on")

	f.round(acme)
	f.push(acme, sample{"a", time.Second, 2})
	require.Equal(t, []string{"0s 1", "1s 2"}, f.stored(acme)["a"])
}

func TestFullOrReadOnlyDiskRefusesWritesAndRecovers(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	for name, statf := range map[string]func(string) (uint64, bool, error){
		"full":      func(string) (uint64, bool, error) { return 1 << 20, false, nil },
		"read-only": func(string) (uint64, bool, error) { return 1 << 40, true, nil },
		"gone":      func(string) (uint64, bool, error) { return 0, false, errors.New("I/O error") },
	} {
		t.Run(name, func(t *testing.T) {
			f.disk.statf, f.disk.checked = statf, time.Time{}
			_, err := f.Push(context.Background(), acme, batch(sample{"a", time.Second, 2}))
			var unavailable *wire.UnavailableError
			require.ErrorAs(t, err, &unavailable)
			require.ErrorIs(t, err, errDisk)
			require.Equal(t, []string{"0s 1"}, f.stored(acme)["a"], "reads go on")
		})
	}
	f.disk.statf, f.disk.checked = statfs, time.Time{}
	f.push(acme, sample{"a", time.Second, 2})
}

func TestTenantThatDoesNotOpenLeavesTheOthersAlone(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	f.push("other", sample{"a", 0, 2})
	require.NoError(t, f.close())
	broken := filepath.Join(f.dir, "ingester", "acme", shippedFile)
	require.NoError(t, os.WriteFile(broken, []byte("{"), 0o600))
	f.open()

	require.Equal(t, []string{"0s 2"}, f.stored("other")["a"])
	_, err := f.Push(context.Background(), acme, batch(sample{"a", time.Second, 2}))
	var unavailable *wire.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	_, err = f.Querier(acme, 0, 1)
	require.ErrorAs(t, err, &unavailable, "an answer without its samples would be a wrong one")

	require.NoError(t, os.Remove(broken))
	f.lookup(acme).retryAt = time.Time{}
	f.round(acme)
	require.Equal(t, []string{"0s 1"}, f.stored(acme)["a"])
}

func TestTenantSeriesLimit(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.MaxSeries = 2 }))
	result := f.offer(acme, batch(sample{"a", 0, 1}, sample{"b", 0, 1}, sample{"c", 0, 1}, sample{"a", time.Second, 1}))
	require.Equal(t, 3, result.Written.Samples, "known series go on")
	require.Equal(t, write.ReasonTenantSeriesLimit, result.Rejected[0].Reason)
	require.Contains(t, result.Rejected[0].Example.Error(), "tenant acme has reached its limit max_series of 2")
	f.push("other", sample{"a", 0, 1})

	f.limits.MaxSeries = 1
	f.restart()
	f.push(acme, sample{"b", time.Second, 1})
	require.Len(t, f.stored(acme), 2, "no limit drops what the log holds")
}

func TestProcessSeriesLimit(t *testing.T) {
	f := newFixture(t, withConfig(func(c *Config) { c.MaxSeries = 10 }))
	for i := range 8 {
		f.push(acme, sample{fmt.Sprint(i), 0, 1})
	}
	f.push("other", sample{"a", 0, 1})
	f.maintain(context.Background())

	near := f.offer(acme, batch(sample{"new", 0, 1}, sample{"1", time.Second, 1}))
	require.Equal(t, 1, near.Written.Samples)
	require.Equal(t, write.ReasonTenantGrowthLimit, near.Rejected[0].Reason, "the tenant that grows fastest is stopped first")
	f.push("other", sample{"b", 0, 1})

	full := f.offer("other", batch(sample{"c", 0, 1}))
	require.Equal(t, write.ReasonInstanceSeriesLimit, full.Rejected[0].Reason)
	require.Equal(t, 503, wire.HTTPStatus(full.Err()))
	require.Contains(t, full.Err().Error(), "ingester.max_series is 10")
}

func TestHeapNearTheMemoryLimitRefusesNewSeries(t *testing.T) {
	c := &caps{maxHeap: 1000}
	c.decide(map[tenant.ID]int64{"calm": 1, "busy": 100}, 700)
	require.Nil(t, c.check("busy"))
	c.decide(map[tenant.ID]int64{"calm": 1, "busy": 100}, 760)
	require.Nil(t, c.check("calm"))
	require.Equal(t, write.ReasonTenantGrowthLimit, c.check("busy").Reason)
	c.decide(map[tenant.ID]int64{"calm": 1, "busy": 100}, 860)
	require.Equal(t, write.ReasonInstanceHeapLimit, c.check("calm").Reason)
}

// TestAnyHistoryKeepsEverySampleOnce pushes samples in random order, again and
// with other values, between restarts, cuts and deletions of local blocks, and
// compares what is held here and in the bucket with a plain map.
func TestAnyHistoryKeepsEverySampleOnce(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			f := newFixture(t)
			twin := map[string]map[time.Duration]float64{}
			var clock time.Duration
			pushRandom(t, f, rng, twin, clock)
			for range 60 {
				switch rng.IntN(13) {
				case 12:
					f.kill()
				case 0:
					f.restart()
				case 1:
					require.NoError(t, f.Flush(context.Background(), acme))
				case 2:
					f.round(acme)
				case 3:
					clock += time.Duration(rng.IntN(90)) * time.Minute
					f.mu.Lock()
					f.now = noon.Add(clock)
					f.mu.Unlock()
				default:
					pushRandom(t, f, rng, twin, clock)
				}
				f.seeAll = rng.IntN(2) == 0
				require.Equal(t, texts(twin), f.everywhere(acme))
			}
			require.NoError(t, f.Flush(context.Background(), acme))
			inBucket := f.inBucket(acme)
			for name, s := range inBucket {
				// After a restart the TSDB may cut late samples again that it had cut.
				inBucket[name] = slices.Compact(s)
			}
			require.Equal(t, texts(twin), inBucket, "the bucket holds every sample, with one value")
		})
	}
}

// everywhere returns the samples that queries find, here or in the bucket.
func (f *fixture) everywhere(id tenant.ID) map[string][]string {
	f.t.Helper()
	out := f.inBucket(id)
	for name, s := range f.stored(id) {
		out[name] = append(out[name], s...)
	}
	for name, s := range out {
		sort.SliceStable(s, func(i, j int) bool { return durationOf(s[i]) < durationOf(s[j]) })
		out[name] = slices.Compact(s)
	}
	return out
}

// pushRandom pushes a random request and requires the answer that twin predicts.
func pushRandom(t *testing.T, f *fixture, rng *rand.Rand, twin map[string]map[time.Duration]float64, clock time.Duration) {
	t.Helper()
	const never = time.Duration(-1 << 62)
	before := never
	for _, s := range twin {
		for at := range s {
			before = max(before, at)
		}
	}
	candidates := make([]sample, 1+rng.IntN(8))
	after := before
	for i := range candidates {
		candidates[i] = sample{fmt.Sprint(rng.IntN(4)), clock - time.Duration(rng.IntN(200))*time.Minute, float64(rng.IntN(2))}
		after = max(after, candidates[i].at)
	}
	if rng.IntN(6) == 0 { // More of one series than a chunk of late samples takes.
		for range 33 + rng.IntN(32) {
			candidates = append(candidates, sample{candidates[0].series, after - time.Duration(rng.IntN(170*60))*time.Second, float64(rng.IntN(2))})
		}
	}
	if before == never {
		candidates, after = candidates[:1], candidates[0].at
	}
	var (
		request         []sample
		written, denied int
	)
	for _, s := range candidates {
		v, known := twin[s.series][s.at]
		if s.at < after-3*time.Hour+time.Minute && (known || s.at >= before-3*time.Hour) {
			continue // Its fate depends on its place in the request, on a millisecond, or on whether its block is still here.
		}
		request = append(request, s)
		if twin[s.series] == nil {
			twin[s.series] = map[time.Duration]float64{}
		}
		switch {
		case known && v == s.v:
			written++
		case known, before != never && s.at < before-3*time.Hour:
			denied++
		default:
			twin[s.series][s.at] = s.v
			written++
		}
	}
	result := f.offer(acme, batch(request...))
	rejected := 0
	for _, r := range result.Rejected {
		rejected += r.Count
	}
	require.Equal(t, written, result.Written.Samples, "%v %v", request, result.Err())
	require.Equal(t, denied, rejected)
}

func texts(twin map[string]map[time.Duration]float64) map[string][]string {
	out := map[string][]string{}
	for name, s := range twin {
		var ats []time.Duration
		for at := range s {
			ats = append(ats, at)
		}
		sort.Slice(ats, func(i, j int) bool { return ats[i] < ats[j] })
		for _, at := range ats {
			out[name] = append(out[name], fmt.Sprintf("%s %v", at, s[at]))
		}
	}
	return out
}

func TestConcurrentPushesQueriesAndMaintenance(t *testing.T) {
	f := newFixture(t)
	f.advance(24 * time.Hour)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for at := time.Duration(0); at < 20*time.Hour; at += 10 * time.Minute {
			for _, id := range []tenant.ID{"one", "two"} {
				if _, err := f.Push(context.Background(), id, batch(sample{"a", at, 1}, sample{"b", at, 2})); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		f.maintain(context.Background())
		for _, id := range []tenant.ID{"one", "two"} {
			f.stored(id)
			for _, s := range f.Summaries() {
				require.LessOrEqual(t, s.Series, uint64(2))
			}
		}
	}
	for _, id := range []tenant.ID{"one", "two"} {
		require.NoError(t, f.Flush(context.Background(), id))
		require.Len(t, f.inBucket(id)["a"], 120)
	}
}

// faultySource panics at the labels of all series but the first.
type faultySource struct{ write.LabelSource }

func (s faultySource) AppendLabels(i int, b *labels.ScratchBuilder) error {
	if i > 0 {
		panic("BUG: for a test")
	}
	return s.LabelSource.AppendLabels(i, b)
}

func TestPanicOfAPushCostsNoSampleThatIsAcknowledgedLater(t *testing.T) {
	f := newFixture(t)
	b := batch(sample{"a", 0, 1}, sample{"b", 0, 2})
	b.Source = faultySource{b.Source}
	require.Panics(t, func() { _, _ = f.Push(context.Background(), acme, b) })

	// Series a is in the head and not in the log.
	_, err := f.Push(context.Background(), acme, batch(sample{"a", time.Second, 3}))
	var unavailable *wire.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	f.round(acme)
	f.push(acme, sample{"a", 0, 1}, sample{"a", time.Second, 3})
	want := f.stored(acme)
	require.Equal(t, []string{"0s 1", "1s 3"}, want["a"])
	require.Equal(t, want, f.afterCrash().stored(acme))
}

// afterCrash returns what a killed process leaves, which is what its files hold at this
// moment.
func (f *fixture) afterCrash() *fixture {
	f.t.Helper()
	crashed := newFixture(f.t)
	require.NoError(f.t, crashed.close())
	require.NoError(f.t, os.RemoveAll(crashed.dir))
	require.NoError(f.t, os.CopyFS(crashed.dir, os.DirFS(f.dir)))
	crashed.open()
	return crashed
}
