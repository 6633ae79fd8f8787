package ingester

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

var staleNaN = math.Float64frombits(value.StaleNaN)

// staleText is how describe shows a stale marker.
const staleText = "NaN(7ff0000000000002)"

// evict evicts what is gone, whether or not it is worth it.
func (f *fixture) evict(id tenant.ID) error {
	f.t.Helper()
	t := f.lookup(id)
	if t == nil {
		return nil
	}
	t.working.Lock()
	defer t.working.Unlock()
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return nil
	}
	require.NoError(f.t, err)
	defer release()
	return t.evict(context.Background(), db)
}

// kill has another process go on with what the files hold at this moment.
func (f *fixture) kill() {
	f.t.Helper()
	dir := f.t.TempDir()
	require.NoError(f.t, os.CopyFS(dir, os.DirFS(f.dir)))
	require.NoError(f.t, f.close())
	f.dir = dir
	f.open()
}

// inHead returns how many series the head of acme has.
func (f *fixture) inHead() int { return int(f.lookup(acme).db.Head().NumSeries()) }

// three pushes a series that ended, one that is silent, and one that goes on for as long.
func (f *fixture) three(until time.Duration) {
	f.t.Helper()
	f.advance(2 * time.Hour)
	f.push(acme, sample{"ended", 0, 1}, sample{"silent", 0, 1}, sample{"on", 0, 1})
	f.push(acme, sample{"ended", time.Minute, staleNaN}, sample{"silent", time.Minute, 2})
	for at := time.Minute; at <= until; at += time.Minute {
		f.push(acme, sample{"on", at, 1})
	}
}

func TestSeriesLeaveTheHeadTenMinutesAfterAStaleMarkerOrAfterAnHour(t *testing.T) {
	f := newFixture(t)
	for _, step := range []struct {
		until time.Duration
		want  int
	}{{10 * time.Minute, 3}, {11 * time.Minute, 2}, {60 * time.Minute, 2}, {61 * time.Minute, 1}} {
		if step.until == 10*time.Minute {
			f.three(step.until)
		}
		f.push(acme, sample{"on", step.until + time.Second, 1})
		want := f.stored(acme)
		require.NoError(t, f.evict(acme))
		require.Equal(t, step.want, f.inHead(), "%s", step.until)
		require.Equal(t, want, f.stored(acme))
		require.Equal(t, int64(step.want), f.caps.series.Load())
	}
	require.Equal(t, 2.0, testutil.ToFloat64(f.metrics.evictedSeries))
}

func TestABlockOfEvictedSeriesSaysSoAndEndsWithTheirLastSample(t *testing.T) {
	f := newFixture(t)
	f.three(70 * time.Minute)
	require.NoError(t, f.evict(acme))
	f.round(acme)
	blocks, _, err := blockstore.New(f.bucket, nil).Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 1)
	for _, b := range blocks {
		require.Equal(t, []string{tsdb.CompactionHintFromStaleSeries}, b.Meta.Compaction.Hints)
		require.Equal(t, noon.UnixMilli(), b.Meta.MinTime)
		require.Equal(t, noon.Add(time.Minute).UnixMilli()+1, b.Meta.MaxTime)
	}
	require.Equal(t, map[string][]string{"ended": {"0s 1", "1m0s " + staleText}, "silent": {"0s 1", "1m0s 2"}}, f.inBucket(acme))
	require.LessOrEqual(t, f.Holding(acme).HeldFrom, noon.Add(maxAhead).UnixMilli())
}

func TestAReturningSeriesIsComparedWithWhatWasEvicted(t *testing.T) {
	for name, next := range map[string]func(*fixture){
		"at once":         func(*fixture) {},
		"after a restart": (*fixture).restart,
		"after a kill":    (*fixture).kill,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.three(70 * time.Minute)
			require.NoError(t, f.evict(acme))
			require.Equal(t, 1, f.inHead())
			next(f)
			require.Equal(t, 1, f.inHead())

			f.push(acme, sample{"ended", time.Minute, staleNaN}, sample{"ended", 0, 1}, sample{"silent", time.Minute, 2})
			require.Equal(t, 1, f.inHead(), "retries bring nothing back")
			other := f.offer(acme, batch(sample{"ended", 0, 7}))
			require.Equal(t, 1, other.Rejected[0].Count)
			f.push(acme, sample{"ended", 30 * time.Second, 5})
			f.push(acme, sample{"ended", 71 * time.Minute, 6}, sample{"silent", 71 * time.Minute, 6}, sample{"on", 71 * time.Minute, 6})
			f.push(acme, sample{"ended", time.Minute, staleNaN})
			want := map[string][]string{
				"ended":  {"0s 1", "30s 5", "1m0s " + staleText, "1h11m0s 6"},
				"silent": {"0s 1", "1m0s 2", "1h11m0s 6"},
			}
			got := f.stored(acme)
			delete(got, "on")
			require.Equal(t, want, got)

			require.NoError(t, f.Flush(context.Background(), acme))
			got = f.inBucket(acme)
			delete(got, "on")
			require.Equal(t, want, got, "each once")
		})
	}
}

// begin begins an eviction while a query is open. It returns once the block is written and the
// end of the query is waited for.
func (f *fixture) begin() (done chan error) {
	f.t.Helper()
	done = make(chan error, 1)
	go func() { done <- f.evict(acme) }()
	r := &f.lookup(acme).readers
	require.Eventually(f.t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.mu.idle != nil
	}, 10*time.Second, time.Millisecond)
	return done
}

func TestQueriesThatAreOpenFindWhatIsEvicted(t *testing.T) {
	f := newFixture(t)
	f.three(70 * time.Minute)
	want := f.stored(acme)
	before, err := f.Querier(acme, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	chunks, err := f.ChunkQuerier(acme, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	done := f.begin()
	require.Equal(t, want, f.stored(acme))
	require.Equal(t, want, f.drain(before))
	f.push(acme, sample{"on", 71 * time.Minute, 1})
	crashed := f.afterCrash()
	want["on"] = append(want["on"], "1h11m0s 1")
	require.Equal(t, want, crashed.stored(acme), "half way")
	require.Equal(t, 3, crashed.inHead())
	require.NoError(t, crashed.evict(acme))
	require.Equal(t, want, crashed.stored(acme), "again")

	require.NoError(t, before.Close())
	require.Equal(t, 3, f.inHead())
	require.NoError(t, chunks.Close())
	require.NoError(t, <-done)
	require.Equal(t, 1, f.inHead())
	require.Equal(t, want, f.stored(acme))
}

func TestASeriesThatIsSentWhileItIsEvictedLosesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		at    time.Duration
		want  error
		stays int
	}{
		"a sample that the TSDB would lose": {70 * time.Minute, errReturned, 3},
		"a late sample":                     {30 * time.Second, errReturned, 3},
		"a sample newer than all":           {71 * time.Minute, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.three(70 * time.Minute)
			f.push(acme, sample{"on", 30 * time.Second, 1}) // The first late sample waits for the eviction.
			open, err := f.Querier(acme, math.MinInt64, math.MaxInt64)
			require.NoError(t, err)
			done := f.begin()
			f.push(acme, sample{"ended", c.at, 9})
			want := f.stored(acme)
			require.NoError(t, open.Close())
			require.ErrorIs(t, <-done, c.want)
			require.Equal(t, c.stays, f.inHead())
			require.Equal(t, want, f.stored(acme))
			f.push(acme, sample{"ended", 72 * time.Minute, 9}, sample{"ended", c.at, 9})
			want = f.stored(acme)
			f.kill()
			require.Equal(t, want, f.stored(acme))
			require.Contains(t, want["ended"], fmt.Sprintf("%s 9", c.at))
		})
	}
}

func TestSeriesWithLateSamplesStayUntilTheCut(t *testing.T) {
	f := newFixture(t)
	f.three(70 * time.Minute)
	f.push(acme, sample{"ended", 30 * time.Second, 5})
	for at := 71 * time.Minute; at < 85*time.Minute; at += time.Minute {
		f.push(acme, sample{"on", at, 1})
	}
	want := f.stored(acme)
	require.NoError(t, f.evict(acme))
	require.Equal(t, 2, f.inHead())
	require.Equal(t, want, f.stored(acme))
	require.NoError(t, f.evict(acme), "which are not tried again")
	f.push(acme, sample{"ended", 30 * time.Second, 5}, sample{"ended", time.Minute, staleNaN})
	require.Equal(t, want, f.stored(acme))
}

// many pushes so many series, which a stale marker ends, and moves the time on.
func (f *fixture) many(n int) {
	f.t.Helper()
	f.advance(time.Hour)
	var first, last []sample
	for i := range n {
		first = append(first, sample{fmt.Sprint(i), 0, 1})
		last = append(last, sample{fmt.Sprint(i), time.Minute, staleNaN})
	}
	f.push(acme, first...)
	f.push(acme, last...)
	f.push(acme, sample{"on", 12 * time.Minute, 1})
}

func TestARoundEvictsManySeries(t *testing.T) {
	f := newFixture(t)
	f.many(evictLeast)
	want := f.stored(acme)
	f.round(acme)
	require.Equal(t, 1, f.inHead())
	require.Equal(t, want, f.stored(acme))
	require.Len(t, f.uploads, 1)
	require.Equal(t, 1, f.lookup(acme).app.table.size())
}

func TestARoundPutsAnEvictionOffWhileTheTenantIsReadAllTheTime(t *testing.T) {
	f := newFixture(t)
	f.many(evictLeast)
	q, err := f.Querier(acme, math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	_, f.lookup(acme).evictions.idles = f.lookup(acme).readers.idledSince(0)
	f.round(acme)
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.evictionsPutOff))
	require.NoError(t, q.Close())
	f.round(acme)
	require.Equal(t, evictLeast+1, f.inHead(), "not at once")
	f.advance(evictAgain)
	f.round(acme)
	require.Equal(t, 1, f.inHead())
}

func TestAFullDiskPutsAnEvictionOff(t *testing.T) {
	f := newFixture(t)
	f.many(evictLeast)
	f.disk.statf, f.disk.checked = func(string) (uint64, bool, error) { return diskReserve, false, nil }, time.Time{}
	f.round(acme)
	require.Equal(t, evictLeast+1, f.inHead())
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.evictionsPutOff))
	f.disk.statf, f.disk.checked = statfs, time.Time{}
	f.round(acme)
	require.Equal(t, evictLeast+1, f.inHead(), "not at once")
	f.advance(evictAgain)
	f.round(acme)
	require.Equal(t, 1, f.inHead())
}

func TestASeriesThatWasJustFoundInTheHeadIsNotEvicted(t *testing.T) {
	f := newFixture(t)
	f.three(70 * time.Minute)
	require.NoError(t, f.lookup(acme).eachSegment(context.Background(), func(s *segment) {
		s.each(func(e *entry) { e.seen = 0 })
	}))
	require.NoError(t, f.evict(acme))
	require.Equal(t, 3, f.inHead(), "nobody knows when it got its last sample")
}

func TestAnAdoptedDirectoryKeepsItsSeriesUntilTheCut(t *testing.T) {
	f, _, _ := adopting(t)
	f.many(evictLeast)
	f.round(acme)
	require.Equal(t, evictLeast+1, f.inHead())
}

func TestEvictionsHaveToBeWorthABlock(t *testing.T) {
	hour := time.Hour.Milliseconds()
	for name, c := range map[string]struct {
		gone   int
		series uint64
		span   int64
		want   bool
	}{
		"a quarter":       {25_000, 100_000, hour, true},
		"less":            {24_999, 100_000, hour, false},
		"a small tenant":  {evictLeast - 1, evictLeast, hour, false},
		"soon to be cut":  {100_000, 100_000, 3*hour - cutSoon, false},
		"just before":     {100_000, 100_000, 3*hour - cutSoon - 1, true},
		"still soon":      {100_000, 100_000, 3*hour + cutSoon - 1, false},
		"overdue":         {100_000, 100_000, 3*hour + cutSoon, true},
		"nothing is gone": {0, 0, 0, false},
	} {
		require.Equal(t, c.want, worthIt(c.gone, c.series, c.span), name)
	}
}

// age makes half of the series look as if they had got no sample for long.
func (f *fixture) age(rng *rand.Rand) {
	f.t.Helper()
	t := f.lookup(acme)
	long := minuteOf(t.db.Head().MaxTime() - (silentFor+1)*time.Minute.Milliseconds())
	require.NoError(f.t, t.eachSegment(context.Background(), func(s *segment) {
		s.each(func(e *entry) {
			if rng.IntN(2) == 0 {
				e.seen = long
			}
		})
	}))
}

// history is one of samples, evictions and what else happens.
type history struct {
	*fixture
	rng     *rand.Rand
	twin    map[string]map[time.Duration]float64
	clock   time.Duration
	evicted float64
}

// texts returns what must be stored.
func (h *history) texts() map[string][]string {
	out := map[string][]string{}
	for name, samples := range h.twin {
		for _, at := range slices.Sorted(maps.Keys(samples)) {
			text := fmt.Sprint(samples[at])
			if value.IsStaleNaN(samples[at]) {
				text = staleText
			}
			out[name] = append(out[name], at.String()+" "+text)
		}
	}
	return out
}

// known returns one of the samples that are stored.
func (h *history) known() sample {
	for name, samples := range h.twin {
		for at, v := range samples {
			if at > h.clock-2*time.Hour {
				return sample{name, at, v}
			}
		}
	}
	return sample{}
}

// store pushes samples that are new.
func (h *history) store(samples ...sample) {
	h.t.Helper()
	h.push(acme, samples...)
	for _, s := range samples {
		if h.twin[s.series] == nil {
			h.twin[s.series] = map[time.Duration]float64{}
		}
		h.twin[s.series][s.at] = s.v
	}
}

// scrape pushes a sample or a stale marker of some series, all newer than what was before.
func (h *history) scrape(after time.Duration) {
	h.t.Helper()
	h.clock += after
	h.advance(after)
	samples := []sample{{"on", h.clock, 1}}
	for i := range 8 {
		switch h.rng.IntN(4) {
		case 0:
			samples = append(samples, sample{fmt.Sprint(i), h.clock, float64(h.rng.IntN(100))})
		case 1:
			samples = append(samples, sample{fmt.Sprint(i), h.clock, staleNaN})
		}
	}
	h.rng.Shuffle(len(samples), func(i, j int) { samples[i], samples[j] = samples[j], samples[i] })
	h.store(samples...)
}

// late pushes samples of one series that are late, and new.
func (h *history) late(n int) {
	h.t.Helper()
	series := fmt.Sprint(h.rng.IntN(8))
	var samples []sample
	times := map[time.Duration]bool{}
	for range n {
		at := h.clock - time.Duration(1+h.rng.IntN(100*60))*time.Second
		if _, known := h.twin[series][at]; !known && !times[at] {
			times[at] = true
			samples = append(samples, sample{series, at, 7})
		}
	}
	h.store(samples...)
}

func (h *history) step() {
	h.t.Helper()
	switch h.rng.IntN(16) {
	case 0:
		h.restart()
	case 1, 11:
		h.kill()
	case 2:
		h.round(acme)
	case 3, 4, 5:
		h.age(h.rng)
		before := testutil.ToFloat64(h.metrics.evictedSeries)
		require.NoError(h.t, h.evict(acme))
		h.evicted += testutil.ToFloat64(h.metrics.evictedSeries) - before
	case 6:
		h.scrape(time.Duration(20+h.rng.IntN(20)) * time.Minute)
	case 7:
		h.late(1)
	case 12:
		h.late(33 + h.rng.IntN(64)) // more than a chunk of them takes
	case 8, 9:
		h.push(acme, h.known())
	case 10:
		s := h.known()
		s.v = -1
		require.Equal(h.t, 1, h.offer(acme, batch(s)).Rejected[0].Count)
	default:
		h.scrape(time.Minute)
	}
}

func TestAnyHistoryOfEvictionsKeepsEverySampleOnce(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := &history{
				fixture: newFixture(t), rng: rand.New(rand.NewPCG(seed, 2)),
				twin: map[string]map[time.Duration]float64{},
			}
			h.seeAll = false
			h.scrape(0)
			for range 100 {
				h.step()
				require.Equal(t, h.texts(), h.stored(acme))
			}
			require.Greater(t, h.evicted, 10.0)
			require.NoError(t, h.Flush(context.Background(), acme))
			got := h.inBucket(acme)
			for name, s := range got {
				got[name] = slices.Compact(s) // Kills and evictions may leave a sample in two blocks.
			}
			require.Equal(t, h.texts(), got)
		})
	}
}
