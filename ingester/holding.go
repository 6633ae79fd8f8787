package ingester

import (
	"math"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// holding says what is held here of a tenant; t is nil if nothing of it is. Ask after
// the samples were opened for reading: what is deleted in between makes HeldFrom later,
// so that the bucket is read for it too, and never earlier.
func (i *Ingester) holding(t *tenantDB) wire.Holding {
	h := wire.Holding{HeldFrom: i.releasedUntil.Load(), HeldMin: math.MaxInt64}
	if self := i.self.Load(); self != nil {
		h.Instance, h.Generation = self.Instance, self.Generation
	}
	if t == nil {
		return h
	}
	// Queries hold use shared already; they must not wait here behind somebody who
	// waits for them.
	if held := t.held.Load(); held != nil {
		h.HeldFrom = held.shipped.from() // before the generation is asked for, which is later
		if held.placements != nil {
			h.Placements = held.placements.refs()
		}
	}
	h.IndexGeneration = t.indexed.needed()
	h.Blocks, h.BlockMins, h.HeldMin = t.oldest()
	return h
}

// Holding says what is held here of a tenant at this moment.
func (i *Ingester) Holding(id tenant.ID) wire.Holding { return i.holding(i.lookup(id)) }

// held is what a holding takes from a tenant's files. It outlives the TSDB.
type held struct {
	shipped    *shipped
	placements *placements // nil outside of a cluster
}

// without returns those of blocks that are not visible.
func without(blocks, visible []ulid.ULID) []ulid.ULID {
	seen := make(map[ulid.ULID]struct{}, len(visible))
	for _, b := range visible {
		seen[b] = struct{}{}
	}
	var left []ulid.ULID
	for _, b := range blocks {
		if _, ok := seen[b]; !ok {
			left = append(left, b)
		}
	}
	return left
}

// oldest returns the local blocks, the least time of any sample in each, and that of any sample in
// the head: math.MaxInt64 if it has none, math.MinInt64 if that is not known.
//
// It is called by queries that hold use shared. They must not wait for it behind somebody who waits for
// them; an answer of nothing costs them only work.
func (t *tenantDB) oldest() (blocks []ulid.ULID, blockMins []int64, head int64) {
	if !t.use.TryRLock() {
		return nil, nil, math.MinInt64
	}
	defer t.use.RUnlock()
	if t.db == nil {
		if t.dormant {
			return nil, nil, math.MaxInt64
		}
		return nil, nil, math.MinInt64
	}
	// The head first: what is cut from it meanwhile is in a block then.
	head = min(t.db.Head().MinTime(), t.db.Head().MinOOOTime())
	for _, b := range t.blocks.get() {
		blocks, blockMins = append(blocks, b.meta.ULID), append(blockMins, b.meta.MinTime)
	}
	return blocks, blockMins, head
}

// Oldest says which local blocks of a tenant there are, the least time of any sample in each, and that
// of any sample in the head: math.MaxInt64 if it has none, math.MinInt64 if that is not known.
func (i *Ingester) Oldest(id tenant.ID) (blocks []ulid.ULID, blockMins []int64, head int64) {
	if t := i.lookup(id); t != nil {
		return t.oldest()
	}
	return nil, nil, math.MaxInt64
}
