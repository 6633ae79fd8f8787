package cluster

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

// Registry is an immutable set of records, one per instance: a snapshot that can be
// read without locks. The zero value is empty.
type Registry struct {
	records []Record // by ID
}

// Merge returns the registry that knows what r and records know, and those records
// that were news. Merging is idempotent and neither order nor grouping matters. An
// invalid record is left out and reported; the others count.
func (r Registry) Merge(records ...Record) (merged Registry, news []Record, err error) {
	var faults []error
	next := slices.Clone(r.records)
	for _, rec := range records {
		if err := rec.Validate(); err != nil {
			faults = append(faults, err)
			continue
		}
		at, found := slices.BinarySearchFunc(next, rec.ID, byID)
		switch {
		case !found:
			next = slices.Insert(next, at, rec)
		case rec.Compare(next[at]) > 0:
			next[at] = rec
		default:
			continue
		}
		news = slices.DeleteFunc(news, func(n Record) bool { return n.ID == rec.ID })
		news = append(news, rec)
	}
	if len(news) == 0 {
		return r, nil, errors.Join(faults...)
	}
	return Registry{records: next}, news, errors.Join(faults...)
}

func byID(r Record, id string) int { return cmp.Compare(r.ID, id) }

// Without returns r less the records of ids: tombstones that are old enough.
func (r Registry) Without(ids ...string) Registry {
	return Registry{records: slices.DeleteFunc(slices.Clone(r.records), func(rec Record) bool {
		return slices.Contains(ids, rec.ID)
	})}
}

// Records returns all records by ID. The slice belongs to the Registry.
func (r Registry) Records() []Record { return r.records }

// Get returns the record of an instance.
func (r Registry) Get(id string) (Record, bool) {
	at, found := slices.BinarySearchFunc(r.records, id, byID)
	if !found {
		return Record{}, false
	}
	return r.records[at], true
}

// Placement returns the placement of series with the replication factor rf. Of two
// instances that claimed the same place at the same time only one has it: the one
// that is not joining any more, else the one with the lower ID. The other claims
// again.
func (r Registry) Placement(rf int) *Placement { return NewPlacement(rf, r.placed()) }

// PlacementAfter returns the placement as Placement does, computed from the
// previous one (see Placement.Next).
func (r Registry) PlacementAfter(previous *Placement, rf int) *Placement {
	return previous.Next(rf, r.placed())
}

func (r Registry) placed() []Placed {
	var members []Placed
	for _, rec := range r.records {
		if rec.State.Places() && !r.displaced(rec) {
			members = append(members, Placed{
				Member:     hashring.Member{ID: rec.ID, Zone: rec.Zone, Rank: rec.Rank},
				Generation: rec.Generation,
			})
		}
	}
	return members
}

// displaced reports whether another instance has rec's place with better right.
func (r Registry) displaced(rec Record) bool {
	return slices.ContainsFunc(r.records, func(other Record) bool {
		return other.ID != rec.ID && other.State != Left && other.Zone == rec.Zone && other.Rank == rec.Rank && other.precedes(rec)
	})
}

// precedes reports whether r keeps the place that it and other claimed.
func (r Record) precedes(other Record) bool {
	if joins := r.State == Joining; joins != (other.State == Joining) {
		return !joins
	}
	return r.ID < other.ID
}

// Displaced reports whether the instance id has to claim another rank, because
// another instance claimed its place at the same time and keeps it.
func (r Registry) Displaced(id string) bool {
	rec, ok := r.Get(id)
	return ok && rec.State != Left && r.displaced(rec)
}

// FreeRank returns the rank that an instance of a zone claims when it joins.
func (r Registry) FreeRank(zone string) int {
	var taken []hashring.Member
	for _, rec := range r.records {
		if rec.State != Left {
			taken = append(taken, hashring.Member{ID: rec.ID, Zone: rec.Zone, Rank: rec.Rank})
		}
	}
	return hashring.FreeRank(taken, zone)
}

// Readable returns the instances that reads have to ask.
func (r Registry) Readable() []Record {
	return slices.DeleteFunc(slices.Clone(r.records), func(rec Record) bool { return !rec.State.Reads() })
}

// Hash is equal for equal registries, so that nodes can tell whether they agree.
// Those that have left don't count: nodes drop their tombstones at different times.
func (r Registry) Hash() uint64 {
	var buf []byte
	for _, rec := range r.records {
		if rec.State == Left {
			continue
		}
		for _, s := range []string{rec.ID, rec.Zone, rec.Address} {
			buf = binary.AppendUvarint(buf, uint64(len(s)))
			buf = append(buf, s...)
		}
		for _, n := range []uint64{uint64(rec.Rank), uint64(rec.State), rec.Epoch, rec.Incarnation, rec.Generation} {
			buf = binary.AppendUvarint(buf, n)
		}
	}
	return xxhash.Sum64(buf)
}
