package querier

import (
	"cmp"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// tenantView is what one listing says about a tenant's blocks. It is immutable.
type tenantView struct {
	blocks []blockstore.Block // the blocks to read, by MinTime
	known  map[ulid.ULID]struct{}
	listed time.Time // when the listing began
	hiding           // what is hidden in the blocks; views.of sets it
}

// newTenantView decides which of the listed blocks are read: not one whose samples
// are all in another (blockstore.Superseded), nor one that is hidden (Block.Hidden). A
// block that is marked because it was compacted is read until its descendant is listed.
func newTenantView(listed map[ulid.ULID]blockstore.Block, begun time.Time) *tenantView {
	v := &tenantView{known: make(map[ulid.ULID]struct{}, len(listed)), listed: begun}
	superseded := blockstore.Superseded(listed)
	for id, b := range listed {
		v.known[id] = struct{}{}
		for _, source := range blockstore.Sources(b.Meta) {
			v.known[source] = struct{}{}
		}
		_, covered := superseded[id]
		if !covered && !b.Hidden() {
			v.blocks = append(v.blocks, b)
		}
	}
	slices.SortFunc(v.blocks, func(a, b blockstore.Block) int {
		return cmp.Or(cmp.Compare(a.Meta.MinTime, b.Meta.MinTime), a.Meta.ULID.Compare(b.Meta.ULID))
	})
	return v
}

// overlapping returns the blocks with samples from mint to maxt, both inclusive.
func (v *tenantView) overlapping(mint, maxt int64) []blockstore.Block {
	var out []blockstore.Block
	for i := range v.blocks {
		meta := &v.blocks[i].Meta
		if meta.MinTime > maxt {
			break // by MinTime: so are all that follow
		}
		if mint < meta.MaxTime { // the end of a block is exclusive
			out = append(out, v.blocks[i])
		}
	}
	return out
}

// version is a fingerprint of what the bucket has from mint to maxt, both inclusive, and
// of what is hidden of it: as long as it stays, so do the samples that are read from there. It differs after a
// compaction, too, which changes no sample.
func (v *tenantView) version(mint, maxt int64) uint64 {
	hash := xxhash.New()
	write := func(p []byte) { _, _ = hash.Write(p) } // it never fails
	blocks := v.overlapping(mint, maxt)
	for i := range blocks {
		write(blocks[i].Meta.ULID[:])
	}
	v.hiding.version(write, mint, maxt, blocks)
	return hash.Sum64()
}

// reads reports whether the samples of a block are read from the bucket.
func (v *tenantView) reads(block ulid.ULID) bool {
	_, ok := v.known[block]
	return ok
}
