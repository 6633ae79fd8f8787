package blockstore

import (
	"cmp"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
)

// Sources returns the blocks that a block was made of, those that nothing was
// merged into: its own sources, or itself if its meta names none, as some tools
// leave it. Of the meta of a listed block they are those of Extension.Sources.
func Sources(meta tsdb.BlockMeta) []ulid.ULID {
	if len(meta.Compaction.Sources) == 0 {
		return []ulid.ULID{meta.ULID}
	}
	return meta.Compaction.Sources
}

// Superseded returns the blocks whose samples are all in others, each with one of
// those. It is the one rule by which readers ignore a block and the compactor marks
// it as compacted, so that a sample is neither lost nor doubled at any step of a
// compaction.
//
// A block holds, of each of its sources, the series of its shard. The others must have
// all its sources and go before it, and their shards together must hold all series of
// its shard: one block with the same or a wider shard, or all parts that it was split
// into. Of two blocks with the same sources the one of the higher compaction level goes
// before the other, then the older one; a block with more sources goes before one that
// has some of them. So there is an order, no two blocks supersede each other, and the
// first block in it of those that hold some sample is never superseded.
//
// A block that must not be compacted supersedes nothing, since it may be damaged,
// not even with equal sources; nor does one that is hidden (Block.Hidden), but for the
// quota's sake: what it was made of shares its fate, or else samples that are beyond the
// quota would be read from there.
func Superseded(blocks map[ulid.ULID]Block) map[ulid.ULID]ulid.ULID {
	lineage := NewLineage(blocks)
	superseded := make(map[ulid.ULID]ulid.ULID)
	for id, block := range blocks {
		if by, ok := lineage.Covered(id, block.Shard()); ok {
			superseded[id] = by
		}
	}
	return superseded
}

// Lineage knows which blocks of a tenant hold the samples of which others. It is
// immutable.
type Lineage struct {
	blocks map[ulid.ULID]Block
	// sources are those of each block in order, each once.
	sources map[ulid.ULID][]ulid.ULID
	// holders lists, for each source, the blocks with it that may supersede others, in
	// order of name.
	holders map[ulid.ULID][]ulid.ULID
}

// NewLineage returns the lineage of blocks, which must not change.
func NewLineage(blocks map[ulid.ULID]Block) *Lineage {
	l := &Lineage{
		blocks:  blocks,
		sources: make(map[ulid.ULID][]ulid.ULID, len(blocks)),
		holders: make(map[ulid.ULID][]ulid.ULID, len(blocks)),
	}
	order := make([]ulid.ULID, 0, len(blocks))
	for id := range blocks {
		order = append(order, id)
	}
	slices.SortFunc(order, ulid.ULID.Compare)
	for _, id := range order {
		block := blocks[id]
		l.sources[id] = sortedSources(block)
		if block.NoCompact != nil || block.Hidden() && block.Deletion.Reason != DeletionQuota {
			continue
		}
		for _, source := range l.sources[id] {
			l.holders[source] = append(l.holders[source], id)
		}
	}
	return l
}

// Covered tells whether the samples that a block has of the series of a shard are all in
// other blocks, which go before it, and names the first of those.
func (l *Lineage) Covered(id ulid.ULID, shard Shard) (by ulid.ULID, ok bool) {
	return l.covered(l.blocks[id], l.sources[id], shard)
}

// covers tells whether the samples of a block, which need not be one of the lineage's, are
// all in others that go before it.
func (l *Lineage) covers(b Block) bool {
	_, ok := l.covered(b, sortedSources(b), b.Shard())
	return ok
}

func (l *Lineage) covered(b Block, sources []ulid.ULID, shard Shard) (by ulid.ULID, ok bool) {
	var (
		parts []Shard
		first ulid.ULID
	)
	for _, other := range l.holders[sources[0]] {
		if part := l.blocks[other].Shard(); other != b.Meta.ULID && part.Overlaps(shard) && l.precedes(other, b, sources) {
			if part.Contains(shard) {
				return other, true
			}
			if len(parts) == 0 {
				first = other
			}
			parts = append(parts, part)
		}
	}
	return first, unionContains(parts, shard)
}

// precedes tells whether block a has all of the sources of b and goes before it.
func (l *Lineage) precedes(a ulid.ULID, b Block, sources []ulid.ULID) bool {
	inA := l.sources[a]
	if len(inA) < len(sources) || !isSubset(sources, inA) {
		return false
	}
	return len(inA) > len(sources) || b.NoCompact != nil || cmp.Or(
		cmp.Compare(b.Meta.Compaction.Level, l.blocks[a].Meta.Compaction.Level),
		a.Compare(b.Meta.ULID),
	) < 0
}

// sortedSources returns the sources of a block in order, each once.
func sortedSources(b Block) []ulid.ULID {
	sources := slices.Clone(Sources(b.Meta))
	slices.SortFunc(sources, ulid.ULID.Compare)
	return slices.Compact(sources)
}

// isSubset tells whether all of a are in b; both are in order.
func isSubset(a, b []ulid.ULID) bool {
	for _, id := range a {
		at, ok := slices.BinarySearchFunc(b, id, ulid.ULID.Compare)
		if !ok {
			return false
		}
		b = b[at+1:]
	}
	return true
}

// unionContains tells whether each series of whole is in one of parts.
func unionContains(parts []Shard, whole Shard) bool {
	var inside []Shard
	for _, part := range parts {
		if part.Contains(whole) {
			return true
		}
		if whole.Contains(part) {
			inside = append(inside, part)
		}
	}
	if len(inside) < 2 {
		return false
	}
	for _, half := range whole.Halves() {
		if !unionContains(inside, half) {
			return false
		}
	}
	return true
}
