// Package hashring decides which ingesters hold a series. It is pure: from a
// list of members it computes the owners of each slot, with no network, clock or
// disk, and in integer arithmetic only, so that all nodes with equal lists agree.
//
// A series belongs to one of Slots slots (SlotOf). The primary owner of a slot is
// chosen among the members by rendezvous hashing; the members stand in one fixed
// circular order, by rank and then zone, and the followers are the next ones whose
// zones the set lacks. Choosing followers as neighbours and not each by a
// rendezvous of its own leaves only N replica sets instead of N^RF. So two dead
// members break few sets, and the replicas of a set hold the same series.
//
// The package does not know which members are alive: placement that followed
// liveness would move data at every hiccup.
package hashring

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Slots is how many slots there are. It can never change: data is placed by it.
const Slots = 1 << 16

// Slot is a part of the series space, the unit of placement.
type Slot uint16

// MaxRF is the highest replication factor.
const MaxRF = 3

var (
	errNoID        = errors.New("a member has no id")
	errDuplicateID = errors.New("two members have the same id")
	errPlaceTaken  = errors.New("two members of a zone have the same rank")
	errRF          = fmt.Errorf("the replication factor is outside 1 to %d", MaxRF)
)

// SlotOf returns the slot of a series whose labels.StableHash is series, for a
// tenant with the given TenantHash. The tenant's hash keeps thousands of tenants with
// the same few hundred series from piling them on the same slots.
func SlotOf(series, tenant uint64) Slot { return Slot((series + tenant) % Slots) }

// TenantHash returns the hash of a tenant's name for SlotOf and Shard.
func TenantHash(name string) uint64 { return xxhash.Sum64String(name) }

// Member is an ingester that takes part in placement.
type Member struct {
	// ID is unique and never used for another ingester.
	ID string
	// Zone is the failure domain; replicas avoid sharing one. It may be empty.
	Zone string
	// Rank is unique within the zone: the lowest that was free when the ingester
	// joined for the first time, and kept for ever.
	Rank int
}

// Ring is a placement: the owners of each slot. It is immutable and so safe for
// concurrent use.
type Ring struct {
	rf      int
	members []Member // in the circular order
	seeds   []uint64 // of the members, for rendezvous
	primary []uint16 // index into members, by slot; nil in a ring of NewSmall
	sets    [][]int  // the replica set that each member leads, by index
}

// New returns the placement of members under a replication factor from 1 to
// MaxRF. The order of the list does not matter. With fewer members than rf every
// member owns every slot.
func New(members []Member, rf int) (*Ring, error) {
	r, err := prepare(members, rf)
	if err != nil {
		return nil, err
	}
	if len(r.members) > 0 {
		r.primary = make([]uint16, Slots)
		for slot := range r.primary {
			r.primary[slot] = r.choose(Slot(slot))
		}
	}
	return r, nil
}

// NewSmall returns the same placement as New, without a table of primaries: they are
// computed when asked. It is for the shards of thousands of tenants, each of a few
// members, since a table takes 130 kB and 0.3 ms per member to make.
func NewSmall(members []Member, rf int) (*Ring, error) { return prepare(members, rf) }

// Next returns the placement of members as New does, but computes only what the
// change from r to members touches: it is far cheaper when few of them differ.
func (r *Ring) Next(members []Member) (*Ring, error) {
	next, err := prepare(members, r.rf)
	if err != nil {
		return nil, err
	}
	if len(next.members) == 0 {
		return next, nil
	}
	if r.primary == nil {
		return New(members, r.rf)
	}
	// moved tells where each old member is now; added are the new ones.
	byID := make(map[string]int, len(next.members))
	for i, m := range next.members {
		byID[m.ID] = i
	}
	const gone = -1
	moved := make([]int, len(r.members))
	for i, m := range r.members {
		moved[i] = gone
		if at, ok := byID[m.ID]; ok {
			moved[i] = at
			delete(byID, m.ID)
		}
	}
	added := make([]int, 0, len(byID))
	for _, at := range byID {
		added = append(added, at)
	}
	next.primary = make([]uint16, Slots)
	for slot := range next.primary {
		owner := moved[r.primary[slot]]
		if owner == gone {
			next.primary[slot] = next.choose(Slot(slot))
			continue
		}
		for _, candidate := range added {
			if next.prefers(Slot(slot), candidate, owner) {
				owner = candidate
			}
		}
		next.primary[slot] = uint16(owner)
	}
	return next, nil
}

// prepare checks members and returns a Ring that lacks only the primaries.
func prepare(members []Member, rf int) (*Ring, error) {
	if rf < 1 || rf > MaxRF {
		return nil, fmt.Errorf("%w: %d", errRF, rf)
	}
	r := &Ring{rf: rf, members: slices.Clone(members)}
	slices.SortFunc(r.members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.ID, b.ID))
	})
	if len(r.members) > 1<<16 {
		return nil, fmt.Errorf("%d members are more than %d", len(r.members), 1<<16)
	}
	seen := make(map[string]bool, len(r.members))
	for i, m := range r.members {
		switch {
		case m.ID == "":
			return nil, errNoID
		case seen[m.ID]:
			return nil, fmt.Errorf("%w: %s", errDuplicateID, m.ID)
		case i > 0 && m.Zone == r.members[i-1].Zone && m.Rank == r.members[i-1].Rank:
			return nil, fmt.Errorf("%w: %s and %s both have rank %d in zone %q", errPlaceTaken, r.members[i-1].ID, m.ID, m.Rank, m.Zone)
		}
		seen[m.ID] = true
		r.seeds = append(r.seeds, xxhash.Sum64String(m.ID))
	}
	r.sets = make([][]int, len(r.members))
	for i := range r.members {
		r.sets[i] = r.replicas(i)
	}
	return r, nil
}

// replicas returns the replica set that member first leads: itself and the next
// members in the circle, new zones before repeated ones.
func (r *Ring) replicas(first int) []int {
	n := len(r.members)
	set := make([]int, 1, r.rf)
	set[0] = first
	// A zone is repeated only when there are not enough of them.
	for _, repeat := range []bool{false, true} {
		for step := 1; step < n && len(set) < r.rf; step++ {
			candidate := (first + step) % n
			if slices.Contains(set, candidate) {
				continue
			}
			if repeat || !r.sharesZone(set, candidate) {
				set = append(set, candidate)
			}
		}
	}
	return set
}

func (r *Ring) sharesZone(set []int, candidate int) bool {
	return slices.ContainsFunc(set, func(i int) bool { return r.members[i].Zone == r.members[candidate].Zone })
}

// choose returns the member with the highest score for a slot.
func (r *Ring) choose(slot Slot) uint16 {
	best := 0
	for i := 1; i < len(r.members); i++ {
		if r.prefers(slot, i, best) {
			best = i
		}
	}
	return uint16(best)
}

// prefers reports whether a slot goes to member a rather than to b.
func (r *Ring) prefers(slot Slot, a, b int) bool {
	x, y := score(slot, r.seeds[a]), score(slot, r.seeds[b])
	if x != y {
		return x > y
	}
	return r.members[a].ID < r.members[b].ID
}

// score is the weight of a member for a slot: a mix of both that avalanches (the
// folded product of wyhash, https://github.com/wangyi-fudan/wyhash). Golden tests
// pin it, since nodes of different releases must agree on it.
func score(slot Slot, seed uint64) uint64 {
	const a, b = 0xa0761d6478bd642f, 0xe7037ed1a0b428db
	hi, lo := bits.Mul64(seed^a, (uint64(slot)+1)*0x9e3779b97f4a7c15^b)
	hi, lo = bits.Mul64(hi^lo^a, seed^b)
	return hi ^ lo
}

// RF returns the replication factor the placement was made for.
func (r *Ring) RF() int { return r.rf }

// Members returns the members in their circular order. The slice belongs to the Ring.
func (r *Ring) Members() []Member { return r.members }

// Owners returns the indexes into Members of a slot's owners, the primary
// first. The slice belongs to the Ring; it is nil without members.
func (r *Ring) Owners(slot Slot) []int {
	if len(r.members) == 0 {
		return nil
	}
	return r.sets[r.lead(slot)]
}

// lead returns the index of the primary owner of a slot. There are members.
func (r *Ring) lead(slot Slot) int {
	if r.primary == nil {
		return int(r.choose(slot))
	}
	return int(r.primary[slot])
}

// Set returns the indexes into Members of the replica set that member i leads, i
// first. The slice belongs to the Ring.
func (r *Ring) Set(i int) []int { return r.sets[i] }

// Bytes returns how much memory the ring takes, about, for caches.
func (r *Ring) Bytes() int { return 2*len(r.primary) + 150*len(r.members) }

// Load returns how many slots each member owns, as primary or follower.
func (r *Ring) Load() []int {
	load := make([]int, len(r.members))
	if len(r.members) == 0 {
		return load
	}
	for slot := range Slots {
		for _, i := range r.Owners(Slot(slot)) {
			load[i]++
		}
	}
	return load
}
