package ingester

import (
	"math/bits"

	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/write"
)

// entry is what the table knows of a series.
type entry struct {
	id write.Identity
	// lastT is not before the time of any sample of the series that is stored
	// here, in milliseconds. Samples at or before it may be stored already.
	lastT int64
	// The reference in the head this table belongs to, in the 40 bits that the TSDB's
	// references have.
	refLow  uint32
	refHigh uint8
	state   entryState
	seen    minute // when the series got its last sample here; see entryState
}

// entryState says more about a series.
type entryState uint8

const (
	// ended: the newest sample of the series is a stale marker.
	ended entryState = 1 << iota
	// guessed: the series has got no sample here, since it became known, that seen tells of.
	guessed
)

func newEntry(id write.Identity, ref storage.SeriesRef, lastT int64) entry {
	e := entry{id: id, lastT: lastT, state: guessed}
	e.setRef(ref)
	return e
}

// ref returns the reference of the series; 0: it is not created yet.
func (e *entry) ref() storage.SeriesRef {
	return storage.SeriesRef(e.refHigh)<<32 | storage.SeriesRef(e.refLow)
}

func (e *entry) setRef(ref storage.SeriesRef) { e.refLow, e.refHigh = uint32(ref), uint8(ref>>32) }

// appended notes a sample of time t that was appended at now.
func (e *entry) appended(t int64, stale bool, now minute) {
	e.seen = now
	if t < e.lastT {
		e.state &^= guessed
		return
	}
	e.lastT, e.state = t, 0
	if stale {
		e.state = ended
	}
}

// table maps identities to the references of one head. It is an open-addressed
// hash table without pointers, so the garbage collector never looks inside: at a
// million series that is the difference between scanning 50 MB in every cycle
// and nothing. It belongs to one head instance and goes with it, since
// references are used again by the next. One goroutine.
//
// It is made of segments that grow by a quarter, each by itself: a series takes 43 to 53
// bytes. One array that doubles takes up to 85, and half as much again while it does.
type table struct {
	segments [tableSegments]segment
}

// segment holds the entries whose identities begin with the same bits. The place of one
// is where its other half lies among all numbers, so any number of places will do.
type segment struct {
	entries []entry // a zero id is a free place
	used    int
}

const (
	tableSegments    = 1 << tableSegmentBits
	tableSegmentBits = 4
	minSegmentSize   = 8
)

func (t *table) segment(id write.Identity) *segment {
	return &t.segments[id.Hi>>(64-tableSegmentBits)]
}

// home returns the place where the search for id begins. There must be places.
func (s *segment) home(id write.Identity) int {
	place, _ := bits.Mul64(id.Lo, uint64(len(s.entries)))
	return int(place)
}

// find returns the entry of id, or nil. The pointer is good until the next insert.
func (t *table) find(id write.Identity) *entry {
	s := t.segment(id)
	if len(s.entries) == 0 || id.IsZero() {
		return nil
	}
	for i := s.home(id); ; {
		e := &s.entries[i]
		if e.id == id {
			return e
		}
		if e.id.IsZero() {
			return nil
		}
		if i++; i == len(s.entries) {
			i = 0
		}
	}
}

// warm touches the places where the lookups of a batch will begin. Each lookup in
// a large table waits for memory; here the processor waits for many at once, since
// none depends on another.
func (t *table) warm(series []write.Series) (sum uint64) {
	for i := range series {
		id := series[i].ID
		if s := t.segment(id); len(s.entries) > 0 {
			sum += s.entries[s.home(id)].id.Lo
		}
	}
	return sum
}

// insert adds e, whose id must not be in the table yet, and returns its place.
// The pointer is good until the next insert.
func (t *table) insert(e entry) *entry {
	s := t.segment(e.id)
	if s.used >= fill(len(s.entries)) {
		s.rebuild(max(minSegmentSize, len(s.entries)*5/4), nil)
	}
	s.used++
	return s.place(e)
}

func (s *segment) place(e entry) *entry {
	i := s.home(e.id)
	for !s.entries[i].id.IsZero() {
		if i++; i == len(s.entries) {
			i = 0
		}
	}
	s.entries[i] = e
	return &s.entries[i]
}

// rebuild moves the entries into so many places, but for those that drop, unless it is
// nil, says are to go.
func (s *segment) rebuild(size int, drop func(*entry) bool) {
	old := s.entries
	*s = segment{entries: make([]entry, size)}
	for i := range old {
		if e := &old[i]; !e.id.IsZero() && (drop == nil || !drop(e)) {
			s.used++
			s.place(*e)
		}
	}
}

// reserve makes room for so many series in an empty table, so that it is made at once
// rather than by growing. Many series spread evenly enough over the segments.
func (t *table) reserve(series int) {
	for i := range t.segments {
		t.segments[i] = segment{entries: make([]entry, sizeFor(series/tableSegments))}
	}
}

// drop forgets the entries that gone says are to go.
func (t *table) drop(gone func(*entry) bool) {
	for i := range t.segments {
		s := &t.segments[i]
		kept := s.used
		for k := range s.entries {
			if e := &s.entries[k]; !e.id.IsZero() && gone(e) {
				kept--
			}
		}
		switch kept {
		case s.used:
		case 0:
			*s = segment{}
		default:
			s.rebuild(sizeFor(kept), gone)
		}
	}
}

// each calls f with the entries of one segment.
func (s *segment) each(f func(*entry)) {
	for i := range s.entries {
		if e := &s.entries[i]; !e.id.IsZero() {
			f(e)
		}
	}
}

// forgetOld forgets the series that a head has dropped, whose oldest sample is of oldest now.
// Those whose samples come late stay as long as any is taken, since all samples of one that is
// found again are compared with what is stored.
func (t *table) forgetOld(oldest, oldestLate int64, now minute) {
	t.drop(func(e *entry) bool {
		return e.lastT < min(oldest, oldestLate) || e.lastT < oldest && now.since(e.seen) >= activeFor
	})
}

// dropRefs forgets the series with these references, which the head has dropped.
func (t *table) dropRefs(refs []storage.SeriesRef) {
	gone := make(map[storage.SeriesRef]struct{}, len(refs))
	for _, ref := range refs {
		gone[ref] = struct{}{}
	}
	t.drop(func(e *entry) bool {
		_, ok := gone[e.ref()]
		return ok
	})
}

// size returns the number of series.
func (t *table) size() (n int) {
	for i := range t.segments {
		n += t.segments[i].used
	}
	return n
}

// fill returns how many of size places are filled before there have to be more. 7/8 would
// save 8 bytes per series and cost 5 ns per lookup.
func fill(size int) int { return size * 3 / 4 }

// sizeFor returns a number of places that n entries fill by less than that.
func sizeFor(n int) int { return max(minSegmentSize, n*3/2) }
