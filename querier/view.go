package querier

import (
	"cmp"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// tenantView is what one listing says about a tenant's blocks. It is immutable.
type tenantView struct {
	blocks []tsdb.BlockMeta // the blocks to read, by MinTime
	known  map[ulid.ULID]struct{}
	listed time.Time // when the listing began
}

// newTenantView decides which of the listed blocks are read: not one whose samples
// are all in another (blockstore.Superseded), nor one that retention has marked. A
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
		expired := b.Deletion != nil && b.Deletion.Reason == blockstore.DeletionRetention
		if !covered && !expired {
			v.blocks = append(v.blocks, b.Meta)
		}
	}
	slices.SortFunc(v.blocks, func(a, b tsdb.BlockMeta) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), a.ULID.Compare(b.ULID))
	})
	return v
}

// overlapping returns the blocks with samples from mint to maxt, both inclusive.
func (v *tenantView) overlapping(mint, maxt int64) []tsdb.BlockMeta {
	var out []tsdb.BlockMeta
	for _, meta := range v.blocks {
		if meta.MinTime > maxt {
			break // by MinTime: so are all that follow
		}
		if mint < meta.MaxTime { // the end of a block is exclusive
			out = append(out, meta)
		}
	}
	return out
}

// reads reports whether the samples of a block are read from the bucket.
func (v *tenantView) reads(block ulid.ULID) bool {
	_, ok := v.known[block]
	return ok
}
