package distributor

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"unsafe"

	"github.com/zeebo/xxh3"

	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// sighting is what is remembered of a series that was seen, checked and placed
// before. It has no pointers, so the garbage collector never looks at a million of them.
type sighting struct {
	// hi and lo are 96 bits of the key: the upper half, and the upper half of the lower.
	// The shard and the place in its table are chosen by them, too.
	hi uint64
	// id is the series' true identity, whatever order its labels are sent in.
	id   write.Identity
	lo   uint32
	slot hashring.Slot
	mark sightingMark
}

// String says what series the sighting is of.
func (s sighting) String() string {
	return fmt.Sprintf("the series of identity %016x%016x in slot %d", s.id.Hi, s.id.Lo, s.slot)
}

type sightingMark uint8

const (
	// sighted is set in every sighting; a place in a table without it is free.
	sighted sightingMark = 1 << iota
	// acknowledged says that the ingesters of the series know its labels, as far as
	// they could be asked. One that does not says so and gets them.
	acknowledged
	// aging is set in what lookup returns from the older generation; it is not stored.
	aging
	// refused says that the labels are not valid, and id.Lo which of write.LabelReasons
	// says why. The sighting is of no series.
	refused
)

const (
	sightingSize = int64(unsafe.Sizeof(sighting{}))
	// sightingShards bounds how long a growing table holds up others: a shard of
	// the default size moves 4 MiB at most.
	sightingShards    = 16
	minSightingPlaces = 64
)

// sightings remembers series as they are sent. It is bounded: each shard fills one
// table, then starts another and forgets the one before. What is used again moves to
// the new table on the way, so a working set that fits into one table is never
// forgotten. A series takes 43 to 85 bytes, and twice that for a while if others come
// and go. It is safe for concurrent use.
type sightings struct {
	shards [sightingShards]sightingShard
}

type sightingShard struct {
	sync.RWMutex
	recent, older sightingTable
	places        int // the most that a table has; a power of two
}

// newSightings returns sightings that take at most about limit bytes.
func newSightings(limit int64) *sightings {
	const generations = 2
	places := max(minSightingPlaces, limit/sightingSize/sightingShards/generations)
	s := &sightings{}
	for i := range s.shards {
		s.shards[i].places = 1 << (bits.Len64(uint64(places)) - 1)
	}
	return s
}

// sightingSalt returns what turns identities as sent into keys: so that tenants share
// nothing, and that series are checked again when a limit on labels changes.
func sightingSalt(tenantHash uint64, l tenant.Limits) xxh3.Uint128 {
	var b [32]byte
	binary.LittleEndian.PutUint64(b[0:], tenantHash)
	binary.LittleEndian.PutUint64(b[8:], uint64(l.MaxLabelsPerSeries))
	binary.LittleEndian.PutUint64(b[16:], uint64(l.MaxLabelNameBytes))
	binary.LittleEndian.PutUint64(b[24:], uint64(l.MaxLabelValueBytes))
	return xxh3.Hash128(b[:])
}

// lookup sets found[i] to the sighting of keys[i], without a mark if there is none,
// and returns how many there are.
func (s *sightings) lookup(keys []write.Identity, found []sighting) (hits int) {
	// One round of locks for thousands of keys. Writers hold one lock at a time and
	// wait for nothing meanwhile.
	for i := range s.shards {
		s.shards[i].RLock()
		defer s.shards[i].RUnlock()
	}
	for i, key := range keys {
		shard := &s.shards[key.Hi%sightingShards]
		if e := shard.recent.find(key); e != nil {
			found[i] = *e
			hits++
		} else if e := shard.older.find(key); e != nil {
			found[i] = *e
			found[i].mark |= aging
			hits++
		} else {
			found[i] = sighting{}
		}
	}
	return hits
}

// add remembers e under key.
func (s *sightings) add(key write.Identity, e sighting) {
	e.hi, e.lo, e.mark = key.Hi, uint32(key.Lo>>32), (e.mark|sighted)&^aging
	shard := &s.shards[key.Hi%sightingShards]
	shard.Lock()
	defer shard.Unlock()
	if known := shard.recent.find(key); known != nil {
		return // Somebody else saw it at the same time, and may know more.
	}
	if known := shard.older.find(key); known != nil {
		e.mark |= known.mark
	}
	if shard.recent.full() {
		if len(shard.recent.places) < shard.places {
			shard.recent.grow()
		} else {
			shard.older = shard.recent
			shard.recent = sightingTable{}
			shard.recent.grow()
		}
	}
	shard.recent.insert(e)
}

// acknowledge notes that the series under key is known, or not, where it belongs.
func (s *sightings) acknowledge(key write.Identity, known bool) {
	shard := &s.shards[key.Hi%sightingShards]
	shard.Lock()
	defer shard.Unlock()
	for _, table := range []*sightingTable{&shard.recent, &shard.older} {
		e := table.find(key)
		switch {
		case e == nil:
		case known:
			e.mark |= acknowledged
		default:
			e.mark &^= acknowledged
		}
	}
}

// correct replaces what is remembered under key, if anything is: it was wrong.
func (s *sightings) correct(key write.Identity, truth sighting) {
	shard := &s.shards[key.Hi%sightingShards]
	shard.Lock()
	defer shard.Unlock()
	for _, table := range []*sightingTable{&shard.recent, &shard.older} {
		if e := table.find(key); e != nil {
			e.id, e.slot, e.mark = truth.id, truth.slot, sighted
		}
	}
}

// size returns how many series are remembered, some perhaps twice, and the bytes they take.
func (s *sightings) size() (series int, bytes int64) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.RLock()
		series += shard.recent.used + shard.older.used
		bytes += int64(len(shard.recent.places)+len(shard.older.places)) * sightingSize
		shard.RUnlock()
	}
	return series, bytes
}

// sightingTable is an open-addressed hash table, at most three quarters full.
type sightingTable struct {
	places []sighting // a power of two of them
	used   int
}

func (t *sightingTable) full() bool { return t.used*4 >= len(t.places)*3 }

// find returns the sighting under key, or nil. The pointer is good until the table changes.
func (t *sightingTable) find(key write.Identity) *sighting {
	if len(t.places) == 0 {
		return nil
	}
	lo := uint32(key.Lo >> 32)
	mask := uint32(len(t.places) - 1)
	for i := lo & mask; ; i = (i + 1) & mask {
		e := &t.places[i]
		if e.hi == key.Hi && e.lo == lo && e.mark != 0 {
			return e
		}
		if e.mark == 0 {
			return nil
		}
	}
}

// insert adds e, whose key is not in the table yet. The table must not be full.
func (t *sightingTable) insert(e sighting) {
	mask := uint32(len(t.places) - 1)
	i := e.lo & mask
	for t.places[i].mark != 0 {
		i = (i + 1) & mask
	}
	t.places[i] = e
	t.used++
}

// grow doubles the table.
func (t *sightingTable) grow() {
	old := t.places
	*t = sightingTable{places: make([]sighting, max(minSightingPlaces, 2*len(old)))}
	for _, e := range old {
		if e.mark != 0 {
			t.insert(e)
		}
	}
}
