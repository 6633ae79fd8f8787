package ingester

import (
	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// holding says what is held here of a tenant; t is nil if nothing of it is. Ask after
// the samples were opened for reading: what is deleted in between makes HeldFrom later,
// so that the bucket is read for it too, and never earlier.
func (i *Ingester) holding(t *tenantDB) wire.Holding {
	h := wire.Holding{HeldFrom: i.releasedUntil.Load()}
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
	h.Blocks = t.localBlocks()
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
