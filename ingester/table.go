package ingester

import (
	"math/bits"

	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/write"
)

// entry is what the table knows of a series.
type entry struct {
	id  write.Identity
	ref storage.SeriesRef // of the head this table belongs to; 0: not created yet
	// lastT is not before the time of any sample of the series that is stored
	// here, in milliseconds. Samples at or before it may be stored already.
	lastT int64
}

// table maps identities to the references of one head. It is an open-addressed
// hash table without pointers, so the garbage collector never looks inside: at a
// million series that is the difference between scanning 50 MB in every cycle
// and nothing. It belongs to one head instance and goes with it, since
// references are used again by the next. One goroutine.
type table struct {
	entries []entry // length is a power of two; a zero id is a free place
	used    int
}

const minTableSize = 64

// find returns the entry of id, or nil. The pointer is good until the next insert.
func (t *table) find(id write.Identity) *entry {
	if len(t.entries) == 0 || id.IsZero() {
		return nil
	}
	mask := uint64(len(t.entries) - 1)
	for i := id.Lo & mask; ; i = (i + 1) & mask {
		e := &t.entries[i]
		if e.id == id {
			return e
		}
		if e.id.IsZero() {
			return nil
		}
	}
}

// warm touches the places where the lookups of a batch will begin. Each lookup in
// a large table waits for memory; here the processor waits for many at once, since
// none depends on another.
func (t *table) warm(series []write.Series) (sum uint64) {
	if len(t.entries) == 0 {
		return 0
	}
	mask := uint64(len(t.entries) - 1)
	for i := range series {
		sum += t.entries[series[i].ID.Lo&mask].id.Lo
	}
	return sum
}

// insert adds e, whose id must not be in the table yet, and returns its place.
// The pointer is good until the next insert.
func (t *table) insert(e entry) *entry {
	if t.used*4 >= len(t.entries)*3 {
		t.resize(max(minTableSize, len(t.entries)*2))
	}
	t.used++
	return t.place(e)
}

func (t *table) place(e entry) *entry {
	mask := uint64(len(t.entries) - 1)
	i := e.id.Lo & mask
	for !t.entries[i].id.IsZero() {
		i = (i + 1) & mask
	}
	t.entries[i] = e
	return &t.entries[i]
}

func (t *table) resize(size int) {
	old := t.entries
	t.entries = make([]entry, size)
	for _, e := range old {
		if !e.id.IsZero() {
			t.place(e)
		}
	}
}

// dropBefore forgets the series without a sample at or after mint. A forgotten
// series is found again by its labels.
func (t *table) dropBefore(mint int64) {
	kept := 0
	for i := range t.entries {
		if e := &t.entries[i]; !e.id.IsZero() && e.lastT >= mint {
			kept++
		}
	}
	if kept == t.used {
		return
	}
	old := t.entries
	t.entries = make([]entry, sizeFor(kept))
	t.used = kept
	for _, e := range old {
		if !e.id.IsZero() && e.lastT >= mint {
			t.place(e)
		}
	}
}

// dropRefs forgets the series with these references, which the head has dropped.
func (t *table) dropRefs(refs []storage.SeriesRef) {
	gone := make(map[storage.SeriesRef]struct{}, len(refs))
	for _, ref := range refs {
		gone[ref] = struct{}{}
	}
	old := t.entries
	*t = table{}
	for _, e := range old {
		if _, drop := gone[e.ref]; !drop && !e.id.IsZero() {
			t.insert(e)
		}
	}
}

// sizeFor returns the smallest table size that holds n entries at most three quarters full.
func sizeFor(n int) int {
	return max(minTableSize, 1<<bits.Len(uint(n*4/3)))
}
