package querier

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// tenantView is what is known of a tenant's blocks: from the tenant's index, from a listing
// of the bucket, and from whoever has uploaded blocks. It is immutable. The next one is
// made of it by relisted, reindexed or uploaded, none of which loses a block unless the
// bucket says that it is gone.
type tenantView struct {
	blocks []blockstore.Block // the blocks to read, by MinTime
	known  map[ulid.ULID]struct{}
	// listed is when a listing of the bucket began: the view has all that was there then,
	// and has had since. Zero: there was none since the start.
	listed time.Time

	// all are the blocks that the view was made of, those that are not read included.
	all map[ulid.ULID]blockstore.Block
	// index is the last one that was accepted; of generation 0, if none was.
	index blockstore.Index
	// unindexed are those of all that the index does not list, and since when each is
	// known.
	unindexed map[ulid.ULID]time.Time
	// unlisted are those of all that no listing has shown yet, and since when each is known.
	unlisted map[ulid.ULID]time.Time

	hiding // what is hidden in the blocks; views.of sets it
}

// newTenantView returns the view of blocks that were listed.
func newTenantView(listed map[ulid.ULID]blockstore.Block, begun time.Time) *tenantView {
	return (&tenantView{}).relisted(listed, begun)
}

// build decides which of the blocks are read: not one whose samples are all in others
// (blockstore.Superseded), nor one that retention has marked. A block that is marked
// because it was compacted is read until its descendant is known. A superseded block that
// no index lists is let go.
func (v *tenantView) build() *tenantView {
	v.known = make(map[ulid.ULID]struct{}, 2*len(v.all))
	superseded := blockstore.Superseded(v.all)
	for id, b := range v.all {
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

// relisted returns the view after a listing that began at begun. It is the truth: only what
// first became known since then is kept beside, be it by an index or by a notice, since it
// may have been uploaded behind the listing's back. If it was deleted instead, a query that
// needs it fails and asks for another listing.
func (v *tenantView) relisted(blocks map[ulid.ULID]blockstore.Block, begun time.Time) *tenantView {
	if begun.Before(v.listed) {
		return v // Another listing that began later has ended sooner.
	}
	next := &tenantView{
		listed: begun, index: v.index, all: maps.Clone(blocks),
		unindexed: map[ulid.ULID]time.Time{}, unlisted: map[ulid.ULID]time.Time{},
	}
	if next.all == nil {
		next.all = map[ulid.ULID]blockstore.Block{}
	}
	for id, since := range v.unlisted {
		if _, ok := next.all[id]; !ok && since.After(begun) {
			next.all[id], next.unlisted[id] = v.all[id], since
		}
	}
	for id := range next.all {
		if _, ok := v.index.Blocks[id]; ok {
			continue
		}
		next.unindexed[id] = begun
		if since, ok := v.unindexed[id]; ok {
			next.unindexed[id] = since
		}
	}
	return next.build()
}

// refusal says why an index is not taken for what the bucket has.
type refusal struct {
	reason string // of a metric
	text   string
}

func (r *refusal) Error() string { return r.text }

// reindexed returns the view after an index was read, which ended before now. It refuses
// one that is older than the last, or lacks blocks that the last one or a listing has
// shown, though nothing says that they may be gone (blockstore.Dropped). What no index has
// listed yet is kept beside, since it may be younger than the listing that the index was
// made of.
func (v *tenantView) reindexed(index blockstore.Index, now time.Time) (*tenantView, error) {
	if index.Generation < v.index.Generation {
		return nil, &refusal{"older", fmt.Sprintf("its generation %d is before %d, which was there already", index.Generation, v.index.Generation)}
	}
	before := maps.Clone(v.all)
	maps.DeleteFunc(before, func(id ulid.ULID, _ blockstore.Block) bool {
		_, ok := v.unindexed[id]
		return ok
	})
	if dropped := blockstore.Dropped(before, index.Blocks); len(dropped) > 0 {
		return nil, &refusal{"drops_blocks", fmt.Sprintf("%d blocks that were there are missing in it, among them %s, and nothing says that they may be gone", len(dropped), dropped[0])}
	}
	next := &tenantView{
		listed: v.listed, index: index, all: maps.Clone(index.Blocks),
		unindexed: map[ulid.ULID]time.Time{}, unlisted: map[ulid.ULID]time.Time{},
	}
	for id, since := range v.unindexed {
		if _, ok := index.Blocks[id]; !ok {
			next.all[id], next.unindexed[id] = v.all[id], since
		}
	}
	if len(next.unindexed) > 0 {
		superseded := blockstore.Superseded(next.all)
		for id := range next.unindexed {
			if _, ok := superseded[id]; ok {
				delete(next.all, id)
				delete(next.unindexed, id)
			}
		}
	}
	for id := range next.all {
		if since, ok := v.unlisted[id]; ok {
			next.unlisted[id] = since
		} else if _, ok := v.all[id]; !ok {
			next.unlisted[id] = now
		}
	}
	return next.build(), nil
}

// uploaded returns the view after somebody has told of blocks, which were then found in the
// bucket.
func (v *tenantView) uploaded(blocks []blockstore.Block, now time.Time) *tenantView {
	next := &tenantView{
		listed: v.listed, index: v.index, all: maps.Clone(v.all),
		unindexed: maps.Clone(v.unindexed), unlisted: maps.Clone(v.unlisted),
	}
	if next.all == nil {
		next.all = map[ulid.ULID]blockstore.Block{}
		next.unindexed, next.unlisted = map[ulid.ULID]time.Time{}, map[ulid.ULID]time.Time{}
	}
	for _, block := range blocks {
		id := block.Meta.ULID
		if _, ok := next.all[id]; !ok && !v.reads(id) {
			next.all[id], next.unindexed[id], next.unlisted[id] = block, now, now
		}
	}
	return next.build()
}

// lag returns for how long the index has lacked a block that is in the bucket.
func (v *tenantView) lag(now time.Time) time.Duration {
	lag := time.Duration(0)
	for _, since := range v.unindexed {
		lag = max(lag, now.Sub(since))
	}
	return lag
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
