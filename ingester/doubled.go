package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/write"
)

// A series that leaves the head and comes back has a new reference, and the log may have
// both. Such a series is doubled. Who replays the log goes on with the first reference, and
// takes what the log has under the other for its own; but the next replay drops what was
// written to the head's files under the first, when it comes to the record of the other, and
// a snapshot does not know whose the files are that were written under the other. So doubled
// series leave the head as soon as the log was replayed, with all their samples in blocks and
// a tombstone of the reference in the log, and come back under a reference that is new to it.
// See ADR 005.

// sightings tells which series a TSDB finds more than once while it reads its log. Each record
// of a series is announced, and then the series if it is new. Safe for concurrent use.
type sightings struct {
	hashers sync.Pool // of *write.Hasher
	mu      sync.Mutex
	again   map[write.Identity]struct{} // announced and not new; guarded by mu
}

func newSightings() *sightings {
	return &sightings{
		hashers: sync.Pool{New: func() any { return write.NewHasher() }},
		again:   map[write.Identity]struct{}{},
	}
}

func (s *sightings) identify(ls labels.Labels) write.Identity {
	h, _ := s.hashers.Get().(*write.Hasher)
	defer s.hashers.Put(h)
	return h.Labels(ls)
}

// announced is called before a series is created, or found to be there.
func (s *sightings) announced(ls labels.Labels) {
	id := s.identify(ls)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again[id] = struct{}{}
}

// created is called after a series was created, under a reference that is the only one which
// the log has for it so far, but for those that tombstones have ended.
func (s *sightings) created(ls labels.Labels) {
	id := s.identify(ls)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.again, id)
}

// doubled are the series of a TSDB that the log has under two references. All but part and
// those who close the TSDB only read it.
type doubled struct {
	series map[write.Identity]struct{}
	retry  time.Time // when part is called again
}

func (d *doubled) has(id write.Identity) bool {
	if len(d.series) == 0 {
		return false
	}
	_, ok := d.series[id]
	return ok
}

// due reports whether part is to be called.
func (d *doubled) due(now time.Time) bool { return len(d.series) > 0 && !now.Before(d.retry) }

// part takes doubled series out of the head. If it can't, no late samples of them are taken
// until it could: in-order ones are in the log, which is all that they need. An error says
// that the TSDB panicked, and is to be opened anew. use is held exclusively.
func (t *tenantDB) part(db *tsdb.DB) (err error) {
	now := t.ing.now()
	if !t.doubled.due(now) {
		return nil
	}
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("write the samples of series with two references as blocks: %v", cause)
		}
	}()
	start := time.Now()
	parted, failure := t.partNow(context.Background(), db)
	if failure != nil {
		t.doubled.retry = now.Add(reopenInterval)
		t.log.Warn("Series that the log has under two references stay in memory, and late samples of them are refused; it is tried again", "series", len(t.doubled.series), "err", failure)
		return nil
	}
	t.doubled = doubled{}
	if parted > 0 {
		t.log.Info("Wrote the series as blocks that the log had under two references", "series", parted, "took", time.Since(start))
	}
	return nil
}

// partNow does so, and returns how many series left.
func (t *tenantDB) partNow(ctx context.Context, db *tsdb.DB) (parted int, err error) {
	refs, err := t.doubledRefs(db)
	if err != nil || len(refs) == 0 {
		return 0, err
	}
	if err := t.roomToCut(); err != nil {
		return 0, err
	}
	if t.adopted() == nil { // A Prometheus of some years ago takes such blocks and tombstones for others.
		if err := t.evictDoubled(ctx, db, refs); err != nil {
			return 0, err
		}
	}
	left, _, err := inHead(db, refs)
	if err == nil && len(left) > 0 {
		// The TSDB keeps what it thinks has late samples, too. A cut of everything leaves nothing.
		err = t.cutAllHeld(ctx, db)
	}
	return len(refs), err
}

// doubledRefs returns the references that the doubled series have in the head. Some have left
// it, since all of their samples were cut.
func (t *tenantDB) doubledRefs(db *tsdb.DB) (refs []storage.SeriesRef, err error) {
	known, err := recall(db, t.blocks) // The table may have been emptied since the opening.
	if err != nil {
		return nil, err
	}
	for id := range t.doubled.series {
		if e := known.find(id); e != nil {
			refs = append(refs, e.ref())
		}
	}
	return refs, nil
}

// evictDoubled writes all late samples as blocks, and then the series with these references,
// which the head drops with tombstones in the log.
func (t *tenantDB) evictDoubled(ctx context.Context, db *tsdb.DB, refs []storage.SeriesRef) error {
	if db.Head().MinOOOTime() != math.MaxInt64 {
		if err := t.cutter.cut(func() error { return db.CompactOOOHead(ctx) }); err != nil {
			return fmt.Errorf("cut blocks of late samples: %w", err)
		}
	}
	refs, newest, err := inHead(db, refs)
	if err != nil || len(refs) == 0 {
		return err
	}
	t.cutter.evicting = &eviction{
		refs: refs, until: max(newest, db.Head().MinTime()), returned: math.MaxInt64, newest: math.MaxInt64, headMax: db.Head().MaxTime,
		hold: func(*eviction) error { return nil }, // Nobody reads or pushes.
	}
	defer func() { t.cutter.evicting = nil }() // Also if the TSDB panics.
	if err := t.cutter.cut(func() error { return db.CompactSelectedSeries(refs) }); err != nil {
		return fmt.Errorf("evict series: %w", err)
	}
	t.app.table.dropRefs(refs)
	return nil
}

// inHead returns which of the references the head has, and the time of the newest in-order
// sample of any.
func inHead(db *tsdb.DB, refs []storage.SeriesRef) (found []storage.SeriesRef, newest int64, err error) {
	reader, err := readHead(db.Head())
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	scratch := labels.NewScratchBuilder(0)
	newest = math.MinInt64
	for _, ref := range refs {
		if err := reader.series(ref, &scratch); errors.Is(err, storage.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, 0, err
		}
		t, _, err := reader.newest()
		if err != nil {
			return nil, 0, err
		}
		found, newest = append(found, ref), max(newest, t)
	}
	return found, newest, nil
}

// closeToReplay closes a TSDB of the tenant, and has the next one replay the log.
func (t *tenantDB) closeToReplay(db *tsdb.DB) error {
	return errors.Join(voidSnapshots(t.dir), closeTSDB(db), removeSnapshots(t.dir))
}
