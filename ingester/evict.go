package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

// A series that gets no more samples would stay in memory until its window is cut, two to
// three hours later. Where many are replaced all the time, most series in memory would be
// such. They leave early: their samples are written as a block, and the head drops them. See
// ADR 026.
const (
	// endedFor is after how many minutes a series leaves that a stale marker has ended: what
	// is only restarted is back by then.
	endedFor = 10
	// silentFor is the same for one without, whose sender may be out of reach and come back
	// with what it has kept.
	silentFor = 60

	// evictShare: it is worth a block if one in so many series of the head leaves.
	evictShare = 4
	// evictLeast is how many have to leave at least. A series takes about a kilobyte.
	evictLeast = 2000
	// evictMost bounds how long writes and queries wait, which is about 30 microseconds for each
	// where several processes share two cores. The next round takes the rest.
	evictMost = 40_000
	// cutSoon is how long before a cut nothing is evicted, in ms: most leave with the cut. One
	// that is overdue by as much, as in a backfill, is not waited for.
	cutSoon = 15 * int64(time.Minute/time.Millisecond)

	// readersPatience is how long a moment is waited for when nobody reads the tenant; after
	// that no reader is let in, and those that read get as long as readersLast. Who needs the
	// turn of cuts, such as a push with the tenant's first late samples, waits meanwhile.
	readersPatience = 5 * time.Second
	readersLast     = 500 * time.Millisecond
	// evictAgain is how long after an eviction that did not come about it is tried again.
	evictAgain = 10 * time.Minute
)

var (
	// errReaders says that the tenant is read all the time.
	errReaders = errors.New("there was no moment without queries of the tenant")
	// errReturned says that a series got a sample while it was being evicted.
	errReturned = errors.New("a series was sent again meanwhile")
)

type evictionMetrics struct {
	evictedSeries   prometheus.Counter
	evictionsPutOff prometheus.Counter
	evictionPause   prometheus.Histogram
}

func newEvictionMetrics(f promauto.Factory) evictionMetrics {
	return evictionMetrics{
		evictedSeries: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_evicted_series_total",
			Help: "Series that were taken out of memory before their window was cut, since they get no more samples.",
		}),
		evictionsPutOff: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_evictions_put_off_total",
			Help: "Times that such series stayed because queries never paused, one of them was sent again, or the disk was full.",
		}),
		evictionPause: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "hundredfold_ingester_eviction_pause_seconds",
			Help:    "How long writes and queries of a tenant waited for an eviction.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
}

// gone reports whether a series will probably get no more samples, so many minutes after
// its last.
func (e *entry) gone(age int) bool {
	if e.state&ended != 0 {
		return age >= endedFor
	}
	return age >= silentFor
}

// evictions is what a tenant remembers of them. Guarded by working.
type evictions struct {
	idles uint64    // of readers, at the last round
	after time.Time // when the next may be tried
}

// worthIt reports whether a head with so many series and such a span is relieved by letting
// go as many as gone.
func worthIt(gone int, series uint64, span int64) bool {
	untilCut := blockRange.Milliseconds()/2*3 - span
	soon := -cutSoon < untilCut && untilCut <= cutSoon
	return gone >= evictLeast && uint64(gone) >= series/evictShare && !soon
}

// lookAtSeries counts the series of a tenant, and evicts those that are gone if it is worth
// it. use is held shared, and working.
func (t *tenantDB) lookAtSeries(ctx context.Context, db *tsdb.DB) error {
	c, err := t.census(ctx, db)
	if err != nil {
		return err
	}
	idled, idles := t.readers.idledSince(t.evictions.idles)
	t.evictions.idles = idles
	head, now := db.Head(), t.ing.now()
	if !worthIt(c.gone, head.NumSeries(), head.MaxTime()-head.MinTime()) || t.adopted() != nil || now.Before(t.evictions.after) {
		return nil
	}
	err = errReaders
	if idled {
		err = t.evict(ctx, db)
	}
	if errors.Is(err, errReaders) || errors.Is(err, errReturned) || errors.Is(err, errDisk) {
		t.ing.metrics.evictionsPutOff.Inc()
		t.evictions.after = now.Add(evictAgain)
		t.log.Info("Series that get no more samples stay in memory for now; it is tried again", "series", c.gone, "cause", err)
		return nil
	}
	return err
}

// eviction is one at work.
type eviction struct {
	refs  []storage.SeriesRef
	known map[storage.SeriesRef]struct{} // refs, but for those that were appended to since
	until int64                          // the newest sample of any of them is not after
	// returned is the time of the oldest sample that any of them got since.
	returned int64
	// newest is not before what the TSDB takes for the newest sample of the head when it
	// begins to write.
	newest  int64
	headMax func() int64 // the newest sample of the head
	// hold stops reads and pushes, or says why it does not.
	hold func(*eviction) error
	held bool
}

// touch is told of a sample that was appended. It is called with appending held.
func (e *eviction) touch(ref storage.SeriesRef, t int64) {
	if _, ok := e.known[ref]; ok {
		delete(e.known, ref)
		e.returned = min(e.returned, t)
	}
}

// evict writes the series that are gone as a block and has the head drop them. use is held
// shared, and working.
//
// The block is written while pushes and queries go on. Dropping needs a moment in which
// nobody reads, since a reader may hold on to a series that it has not read yet, and nobody
// pushes, since the TSDB, without isolation, does not know what came after the block: it
// keeps a series only if its newest sample is newer than all that was in the head at the
// beginning. If one got another sample meanwhile nothing is dropped.
func (t *tenantDB) evict(ctx context.Context, db *tsdb.DB) error {
	if err := t.cutting.take(ctx); err != nil {
		return err
	}
	defer t.cutting.give()
	if err := t.roomToCut(); err != nil {
		return err
	}
	start := time.Now()
	e, err := t.choose(ctx, db)
	if err != nil || e == nil {
		return err
	}
	var paused time.Time
	e.hold = func(e *eviction) error {
		if !t.readers.shut(ctx, readersPatience, readersLast) {
			return errReaders
		}
		if err := t.appending.take(ctx); err != nil {
			t.readers.open()
			return err
		}
		paused = time.Now()
		var err error
		switch {
		case t.broken.Load():
			err = errBroken
		case e.returned <= e.newest:
			err = errReturned
		}
		if err != nil {
			t.appending.give()
			t.readers.open()
		}
		return err
	}
	before := db.Head().NumSeries()
	t.cutter.evicting = e
	err = t.cutter.cut(func() error { return db.CompactSelectedSeries(e.refs) })
	t.cutter.evicting = nil
	after := db.Head().NumSeries()
	if !e.held {
		// The lock is what the end needs, whether or not ctx has ended.
		if err := t.appending.take(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	t.app.evicting = nil
	if err == nil {
		t.app.table.dropRefs(e.refs)
	}
	t.appending.give()
	if e.held {
		t.readers.open()
		t.ing.metrics.evictionPause.Observe(time.Since(paused).Seconds())
	}
	if err != nil {
		return fmt.Errorf("evict series that are gone: %w", err)
	}
	t.ing.metrics.evictedSeries.Add(float64(before - min(before, after)))
	t.log.Info("Evicted series that get no more samples", "series", before-min(before, after), "left", after, "took", time.Since(start))
	return nil
}

// choose finds the series that are gone. From then on pushes tell what they append to them.
// It returns nil if there are none.
func (t *tenantDB) choose(ctx context.Context, db *tsdb.DB) (*eviction, error) {
	if err := t.appending.take(ctx); err != nil {
		return nil, err
	}
	e := &eviction{known: map[storage.SeriesRef]struct{}{}, until: math.MinInt64, returned: math.MaxInt64, newest: math.MaxInt64, headMax: db.Head().MaxTime}
	t.app.evicting = e
	t.appending.give()
	err := t.eachSegment(ctx, func(s *segment) {
		now, oldest := minuteOf(db.Head().MaxTime()), db.Head().MinTime()
		s.each(func(x *entry) {
			// Those that the census has not seen yet age from when it does.
			if len(e.refs) < evictMost && x.seen > 0 && x.lastT >= oldest && x.gone(now.since(x.seen)) {
				e.refs = append(e.refs, x.ref())
				e.known[x.ref()] = struct{}{}
				e.until = max(e.until, x.lastT)
			}
		})
	})
	if err == nil && len(e.refs) > 0 {
		e.until = min(e.until, db.Head().MaxTime())
		return e, nil
	}
	if err := t.appending.take(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	t.app.evicting = nil
	t.appending.give()
	return nil, err
}

// evictor is a tsdb.Compactor that knows of evictions.
type evictor struct {
	tsdb.Compactor
	cutter *cutter
}

// Write implements tsdb.Compactor. The TSDB calls it window by window, and drops the series
// after the last.
func (c evictor) Write(dest string, head tsdb.BlockReader, mint, maxt int64, base *tsdb.BlockMeta) ([]ulid.ULID, error) {
	e := c.cutter.evicting
	if e == nil {
		return c.Compactor.Write(dest, head, mint, maxt, base)
	}
	if e.held {
		return nil, nil // This window is after all their samples.
	}
	if e.newest == math.MaxInt64 {
		e.newest = e.headMax()
	}
	base.Compaction.Hints = nil
	base.Compaction.SetStaleSeries()
	// The block ends with their last sample, not with the window, whose rest is still to come:
	// what is not before the end of a block is not looked for in it.
	ids, err := c.Compactor.Write(dest, head, mint, min(maxt, e.until+1), base)
	if err != nil || maxt <= e.until {
		return ids, err
	}
	if err := e.hold(e); err != nil {
		return nil, err // The head still has what is in the blocks, which are removed.
	}
	e.held = true
	c.cutter.list()
	return ids, nil
}
