package querier

import (
	"maps"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/querier/coverage"
)

const (
	// maxRemembered bounds the tenants of which anything is remembered. To forget costs
	// a query that asks all ingesters.
	maxRemembered = 20_000
	// maxPlacements bounds the definitions of placements that are kept, and
	// maxSets the replica sets that were computed of them, by tenant.
	maxPlacements = 512
	maxSets       = 4096
	// placementsKept is how long a placement is remembered at least that was current or that
	// somebody named: a distributor may hear later than queriers that it is current no more.
	placementsKept = 10 * time.Minute
	// cutsKept is how long the name of a block that was cut is remembered, which is
	// of use for blocks that are younger than placementsNamed only.
	cutsKept = 24 * time.Hour
)

// memory is what queries learn from the answers of ingesters for those that follow.
// It is safe for concurrent use.
type memory struct {
	mu struct {
		sync.Mutex
		tenants    map[tenant.ID]*remembered
		placements map[uint64]*cluster.Placement
		sets       map[setsKey][]coverage.Set
		// left is when an instance was first seen to have left.
		left map[departure]time.Time
	}
}

// remembered is what is known of one tenant.
type remembered struct {
	// placements are those that the tenant's samples may have been written under, and when
	// they were current, or named, last.
	placements map[wire.PlacementRef]time.Time
	// under is the one that the last query took for the current one. Whoever answered
	// since then has named all others that it has samples under; unheard are those
	// ingesters who have not.
	under   wire.PlacementRef
	unheard map[string]struct{}
	cuts    map[ulid.ULID]struct{} // blocks that ingesters cut
	trimmed time.Time
}

type setsKey struct {
	placement uint64
	tenant    uint64 // 0 where the shard is all members
	shard     int
}

func newMemory() *memory {
	m := &memory{}
	m.mu.tenants = map[tenant.ID]*remembered{}
	m.mu.placements = map[uint64]*cluster.Placement{}
	m.mu.sets = map[setsKey][]coverage.Set{}
	m.mu.left = map[departure]time.Time{}
	return m
}

// recall returns the placements that are known of a tenant, and those of the readable
// ingesters who may know others: all of them, unless samples are placed as they were
// when the last query asked.
func (m *memory) recall(id tenant.ID, under wire.PlacementRef, readable []cluster.Record) (refs map[wire.PlacementRef]struct{}, unheard map[string]struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.mu.tenants[id]
	if t == nil {
		return map[wire.PlacementRef]struct{}{}, instances(readable)
	}
	for ref := range t.placements {
		if m.mu.placements[ref.Hash] == nil {
			// Its definition was let go. Whoever has samples of it names it again.
			delete(t.placements, ref)
			t.under = wire.PlacementRef{}
		}
	}
	if t.under != under {
		unheard = instances(readable)
	} else {
		unheard = maps.Clone(t.unheard)
	}
	refs = make(map[wire.PlacementRef]struct{}, len(t.placements))
	for ref := range t.placements {
		refs[ref] = struct{}{}
	}
	return refs, unheard
}

func instances(records []cluster.Record) map[string]struct{} {
	out := make(map[string]struct{}, len(records))
	for i := range records {
		out[records[i].ID] = struct{}{}
	}
	return out
}

// lesson is what the answers to one query say of a tenant.
type lesson struct {
	// under is what the query took for the current placement, and known are all
	// placements that it knew in the end. Those in the answers are named; full says
	// that the members of the others would have named them, too.
	under        wire.PlacementRef
	known, named map[wire.PlacementRef]struct{}
	full         bool
	// unheard are those ingesters who may know yet others.
	unheard map[string]struct{}
	// cuts are blocks that ingesters cut.
	cuts []ulid.ULID
}

// learn remembers what answers say of a tenant.
func (m *memory) learn(id tenant.ID, l lesson) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.mu.tenants[id]
	if t == nil {
		if len(m.mu.tenants) >= maxRemembered {
			clear(m.mu.tenants)
		}
		t = &remembered{placements: map[wire.PlacementRef]time.Time{}, cuts: map[ulid.ULID]struct{}{}}
		m.mu.tenants[id] = t
	}
	now := time.Now()
	for ref := range l.named {
		t.placements[ref] = now
	}
	if l.under != (wire.PlacementRef{}) {
		t.placements[l.under] = now // the next samples may come under it
	}
	if l.full {
		maps.DeleteFunc(t.placements, func(ref wire.PlacementRef, last time.Time) bool {
			_, known := l.known[ref] // else another query has learned of it meanwhile
			return known && now.Sub(last) > placementsKept
		})
	}
	if t.under != l.under {
		t.under, t.unheard = l.under, l.unheard
	} else {
		maps.DeleteFunc(t.unheard, func(instance string, _ struct{}) bool {
			_, still := l.unheard[instance]
			return !still
		})
	}
	for _, block := range l.cuts {
		t.cuts[block] = struct{}{}
	}
	if now.Sub(t.trimmed) > time.Hour {
		t.trimmed = now
		oldest := ulid.Timestamp(now.Add(-cutsKept))
		maps.DeleteFunc(t.cuts, func(block ulid.ULID, _ struct{}) bool { return block.Time() < oldest })
	}
}

// wasCut reports whether an ingester is known to have cut a block of a tenant.
func (m *memory) wasCut(id tenant.ID, block ulid.ULID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.mu.tenants[id]
	if t == nil {
		return false
	}
	_, ok := t.cuts[block]
	return ok
}

// knows reports whether a placement's definition is known.
func (m *memory) knows(hash uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.placements[hash] != nil
}

// define remembers the definitions of placements.
func (m *memory) define(placements ...*cluster.Placement) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range placements {
		if m.mu.placements[p.Hash()] != nil {
			continue
		}
		if len(m.mu.placements) >= maxPlacements {
			clear(m.mu.placements)
		}
		m.mu.placements[p.Hash()] = p
	}
}

// sets returns the replica sets of a tenant under a placement.
func (m *memory) sets(id tenant.ID, p *cluster.Placement, shard int) ([]coverage.Set, error) {
	key := setsKey{placement: p.Hash(), tenant: hashring.TenantHash(string(id)), shard: shard}
	if shard <= 0 || shard >= len(p.Members()) {
		key.tenant, key.shard = 0, 0
	}
	m.mu.Lock()
	sets, ok := m.mu.sets[key]
	m.mu.Unlock()
	if ok {
		return sets, nil
	}
	sets, err := coverage.SetsOf(p, key.tenant, key.shard)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.mu.sets) >= maxSets {
		clear(m.mu.sets)
	}
	m.mu.sets[key] = sets
	return sets, nil
}

// placement returns the definition of a placement, or nil.
func (m *memory) placement(hash uint64) *cluster.Placement {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.placements[hash]
}

// departure is the version of a record with which an instance left.
type departure struct {
	id    string
	epoch uint64
}

// leftSince returns when a record that says that its instance has left was first seen:
// now, if it was not before.
func (m *memory) leftSince(rec cluster.Record) time.Time {
	key := departure{id: rec.ID, epoch: rec.Epoch}
	m.mu.Lock()
	defer m.mu.Unlock()
	since, ok := m.mu.left[key]
	if !ok {
		since = time.Now()
		m.mu.left[key] = since
	}
	return since
}

// observe notes who has left by now, and lets go of departures that are history.
func (m *memory) observe(registry cluster.Registry) {
	for _, rec := range registry.Records() {
		if rec.State == cluster.Left {
			m.leftSince(rec)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.mu.left, func(d departure, _ time.Time) bool {
		rec, ok := registry.Get(d.id)
		return !ok || rec.Epoch != d.epoch
	})
}
