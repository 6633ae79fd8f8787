package distributor

import (
	"fmt"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
)

// routes is who takes which series at one moment. It is immutable but for the layouts
// that it keeps, and safe for concurrent use.
type routes struct {
	placement *cluster.Placement
	// nodes are the members of the placement, in its order.
	nodes   []node
	layouts *layouts
}

// node is a member of the placement: the way to it, or why there is none.
type node struct {
	id   string
	link *link
	why  error // if link is nil
}

// rf and quorum are the numbers of replicas that are wanted and needed.
func (r *routes) rf() int     { return r.placement.RF() }
func (r *routes) quorum() int { return cluster.Quorum(r.placement.RF()) }

// layout says which replica set the slots of a tenant belong to.
type layout struct {
	ring *hashring.Ring
	// sets are the different replica sets, as ascending indexes into routes.nodes.
	sets [][]int
	// setOf is the index into sets by the member of the ring that leads the set.
	setOf []uint16
}

// of returns the index into l.sets of the set that a slot belongs to.
func (l *layout) of(slot hashring.Slot) int {
	if len(l.sets) == 1 {
		return 0
	}
	return int(l.setOf[l.ring.Owners(slot)[0]])
}

// newLayout returns the layout of ring, whose members are among those of placement.
// Sets that differ only in who leads are one: with as many members as replicas, all of
// them are.
func newLayout(ring *hashring.Ring, placement *cluster.Placement) *layout {
	at := make(map[string]int, len(placement.Members()))
	for i, m := range placement.Members() {
		at[m.ID] = i
	}
	members := ring.Members()
	l := &layout{ring: ring, setOf: make([]uint16, len(members))}
	known := map[string]uint16{}
	for leader := range members {
		owners := ring.Set(leader)
		set := make([]int, 0, len(owners))
		for _, owner := range owners {
			set = append(set, at[members[owner].ID])
		}
		slices.Sort(set)
		key := fmt.Sprint(set)
		index, ok := known[key]
		if !ok {
			index = uint16(len(l.sets))
			known[key] = index
			l.sets = append(l.sets, set)
		}
		l.setOf[leader] = index
	}
	return l
}

// layouts keeps the layouts of one placement, which take a while to compute.
type layouts struct {
	placement *cluster.Placement
	mu        struct {
		sync.RWMutex
		known map[layoutKey]*layout
		bytes int // of the rings of known
	}
}

type layoutKey struct {
	tenant uint64
	shard  int
}

// maxLayoutBytes bounds the layouts of tenants with a shard of their own, and the rings
// that they hold.
const maxLayoutBytes = 32 << 20

func newLayouts(p *cluster.Placement) *layouts {
	l := &layouts{placement: p}
	l.mu.known = map[layoutKey]*layout{}
	return l
}

// get returns the layout of a tenant with the given shard size.
func (l *layouts) get(tenantHash uint64, shard int) (*layout, error) {
	key := layoutKey{tenant: tenantHash, shard: shard}
	if shard <= 0 || shard >= len(l.placement.Members()) {
		key = layoutKey{}
	}
	l.mu.RLock()
	known := l.mu.known[key]
	l.mu.RUnlock()
	if known != nil {
		return known, nil
	}
	ring, err := l.placement.Ring(key.tenant, key.shard)
	if err != nil {
		return nil, err
	}
	made := newLayout(ring, l.placement)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.bytes += ring.Bytes(); l.mu.bytes > maxLayoutBytes {
		clear(l.mu.known)
		l.mu.bytes = ring.Bytes()
	}
	l.mu.known[key] = made
	return made, nil
}

// metadataSlot returns the slot whose replica set keeps the metadata of a metric.
// It can never change, or metadata would be looked for where it is not.
func metadataSlot(tenantHash uint64, metric string) hashring.Slot {
	return hashring.SlotOf(xxhash.Sum64String(metric), tenantHash)
}
