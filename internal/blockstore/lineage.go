package blockstore

import (
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
)

// Sources returns the blocks that a block was made of, those that nothing was
// merged into: its own sources, or itself if its meta names none, as some tools
// leave it.
func Sources(meta tsdb.BlockMeta) []ulid.ULID {
	if len(meta.Compaction.Sources) == 0 {
		return []ulid.ULID{meta.ULID}
	}
	return meta.Compaction.Sources
}

// Superseded returns the blocks whose samples are all in another one, each with
// that other one. It is the one rule by which readers ignore a block and the
// compactor marks it as compacted, so that a sample is neither lost nor doubled at
// any step of a compaction: all sources of the block are sources of the other one.
// With equal sources the block of the higher compaction level stays, then the older one.
//
// A block that must not be compacted supersedes nothing, since it may be damaged,
// not even with equal sources; nor does one that retention has hidden.
func Superseded(blocks map[ulid.ULID]Block) map[ulid.ULID]ulid.ULID {
	order := make([]ulid.ULID, 0, len(blocks))
	for id := range blocks {
		order = append(order, id)
	}
	slices.SortFunc(order, ulid.ULID.Compare)

	// holders lists, for each source, the blocks that have it.
	holders := make(map[ulid.ULID][]ulid.ULID, len(blocks))
	for _, id := range order {
		block := blocks[id]
		if block.NoCompact != nil || block.Deletion != nil && block.Deletion.Reason == DeletionRetention {
			continue
		}
		for _, source := range Sources(block.Meta) {
			holders[source] = append(holders[source], id)
		}
	}
	superseded := make(map[ulid.ULID]ulid.ULID)
	for _, id := range order {
		sources := Sources(blocks[id].Meta)
		for _, other := range holders[sources[0]] {
			if other != id && covers(blocks[other], blocks[id]) {
				superseded[id] = other
				break
			}
		}
	}
	return superseded
}

// covers tells whether a has all sources of b and, if they are the same, goes before b.
func covers(a, b Block) bool {
	inA, inB := sourceSet(a.Meta), sourceSet(b.Meta)
	for source := range inB {
		if _, ok := inA[source]; !ok {
			return false
		}
	}
	levelA, levelB := a.Meta.Compaction.Level, b.Meta.Compaction.Level
	switch {
	case len(inA) != len(inB):
		return true
	case b.NoCompact != nil:
		return true
	case levelA != levelB:
		return levelA > levelB
	default:
		return a.Meta.ULID.Compare(b.Meta.ULID) < 0
	}
}

func sourceSet(meta tsdb.BlockMeta) map[ulid.ULID]struct{} {
	set := make(map[ulid.ULID]struct{}, len(meta.Compaction.Sources))
	for _, source := range Sources(meta) {
		set[source] = struct{}{}
	}
	return set
}
