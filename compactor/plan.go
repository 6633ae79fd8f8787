package compactor

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

const (
	// settleData is how far the tenant's newest block must begin after the end of
	// a range before the range is compacted. Samples may come three hours late, and
	// are cut with the head that follows; then they are in the bucket too, and the
	// range is compacted once instead of twice.
	settleData = 4 * time.Hour
	// settleIdle is how long after its end a range is compacted in any case, for
	// tenants that have stopped sending.
	settleIdle = 8 * time.Hour

	// maxInputs bounds the blocks of one job, each of which takes memory and file
	// descriptors. What is left joins the result in a later job.
	maxInputs = 64
)

// state is all that a plan depends on.
type state struct {
	blocks        map[ulid.ULID]blockstore.Block
	now           time.Time
	retention     time.Duration          // 0: for ever
	over          map[ulid.ULID]struct{} // what is beyond the quota
	dropped       map[ulid.ULID]struct{} // what deletions of the tenant take away
	deletionDelay time.Duration
}

// actions is what is to be done, each list in a fixed order.
type actions struct {
	marks       []mark
	unmarks     []ulid.ULID // marked for a reason that holds no more
	deletions   []ulid.ULID // marked long enough ago
	compactions []compaction
}

// none reports whether there is nothing to be done.
func (a actions) none() bool {
	return len(a.marks)+len(a.unmarks)+len(a.deletions)+len(a.compactions) == 0
}

// mark says that a block is to be marked for deletion.
type mark struct {
	block  ulid.ULID
	reason blockstore.DeletionReason
	by     ulid.ULID // the block that supersedes it, for reason compacted
}

// plan says what is to be done with a tenant's blocks. It is a pure function, and
// carrying out its actions, in any order and any number of times, leads to a state
// for which there is nothing left to do but to wait:
//
//   - A block that ends before the retention begins is marked for deletion. The mark
//     is taken off if the retention is lengthened, or the clock set right, in time.
//   - A block that a deletion of the tenant takes away is marked, and not merged with what
//     came after it. If it is marked as compacted, that mark stays, though the block that
//     superseded it is hidden.
//   - The mark of a block that is beyond the quota is taken off once it is not any more.
//     Marked it is by others, after compactions, which save bytes.
//   - A block whose sources are all in another one is marked as compacted, also if that
//     one is marked because of the quota, since they share its fate: otherwise they would be
//     merged again in its place.
//   - A marked block is deleted once the delay has passed. One marked as compacted
//     is first looked at again: if the block that superseded it is gone or damaged,
//     the mark is taken off and the block is compacted anew. So no sequence of
//     failures deletes the last copy of a sample. A block that is beyond the quota is deleted
//     after what it supersedes, or will supersede together with the result of a compaction:
//     that would come back otherwise.
//   - The other blocks are merged within aligned ranges of 24 h, 12 h and 2 h: all
//     blocks in the largest range that has settled at once. Within 2 h there are
//     several blocks only if they overlap or a head was cut early. What is too large
//     for one block, or was cut in shards, is merged shard by shard.
//
// Blocks with other external labels are merged apart, since those are labels of all of a
// block's series.
//
// Blocks that are in the previous bucket only are not touched, and a range with one
// waits until it has been copied, so that it is compacted once.
//
// Blocks longer than 24 h, or across the bounds of a day, are left alone, as are
// those with a mark against compaction. Blocks of stale or selected series, which
// the TSDB keeps apart on an ingester's disk for the sake of its replay, are like
// any others here; and that a Prometheus failed to compact a block says nothing
// about us.
func plan(s state) actions {
	var todo actions
	view := make(map[ulid.ULID]blockstore.Block, len(s.blocks))
	for _, id := range sorted(s.blocks) {
		block := s.blocks[id]
		if block.Previous {
			continue
		}
		switch fate, marked := s.fate(&block), block.Deletion; {
		case fate != "" && marked == nil:
			todo.marks = append(todo.marks, mark{block: id, reason: fate})
			block.Deletion = &blockstore.DeletionMark{Reason: fate, Time: s.now}
		case fate == "" && marked != nil && (marked.Reason == blockstore.DeletionRetention || marked.Reason == blockstore.DeletionQuota && !s.isOver(id)):
			todo.unmarks = append(todo.unmarks, id)
			block.Deletion = nil
		}
		view[id] = block
	}

	lineage := blockstore.NewLineage(view)
	superseded := make(map[ulid.ULID]struct{}) // the sources of blocks that are
	for id, block := range view {
		if _, ok := lineage.Covered(id, block.Shard()); ok {
			for _, source := range blockstore.Sources(block.Meta) {
				superseded[source] = struct{}{}
			}
		}
	}
	candidates := make(map[string][]blockstore.Block) // by external labels
	for _, id := range sorted(view) {
		block := view[id]
		by, isSuperseded := lineage.Covered(id, block.Shard())
		switch {
		case block.Deletion != nil && block.Deletion.Reason == blockstore.DeletionCompacted && !isSuperseded && s.fate(&block) == "":
			todo.unmarks = append(todo.unmarks, id)
		case block.Deletion != nil:
			due := !s.now.Before(block.Deletion.Time.Add(s.deletionDelay)) && s.blocks[id].Deletion != nil
			if due && (isSuperseded || block.Deletion.Reason != blockstore.DeletionQuota || !anyOf(blockstore.Sources(block.Meta), superseded)) {
				todo.deletions = append(todo.deletions, id)
			}
			continue
		case isSuperseded:
			todo.marks = append(todo.marks, mark{block: id, reason: blockstore.DeletionCompacted, by: by})
			continue
		}
		if block.NoCompact == nil {
			key := labels.FromMap(block.Extension.ExternalLabels).String()
			candidates[key] = append(candidates[key], block)
		}
	}
	m := merger{lineage: lineage, settled: s.settled()}
	for _, key := range slices.Sorted(maps.Keys(candidates)) {
		m.plan(candidates[key], []time.Duration{24 * time.Hour, 12 * time.Hour, 2 * time.Hour})
	}
	todo.compactions = m.jobs
	todo.deletions = slices.DeleteFunc(todo.deletions, func(id ulid.ULID) bool {
		block := view[id]
		return block.Deletion.Reason == blockstore.DeletionQuota && restores(&block, todo.compactions)
	})
	return todo
}

// restores tells whether a compaction reads what a block was made of. Its sources may be
// superseded by its result and the block together, and come back without the block.
func restores(block *blockstore.Block, compactions []compaction) bool {
	return slices.ContainsFunc(compactions, func(job compaction) bool {
		return slices.ContainsFunc(job.blocks, func(input blockstore.Block) bool {
			return slices.ContainsFunc(blockstore.Sources(input.Meta), func(source ulid.ULID) bool {
				return slices.Contains(blockstore.Sources(block.Meta), source)
			})
		})
	})
}

// fate returns why a block must go, whatever other blocks there are; "" if it need not.
func (s state) fate(block *blockstore.Block) blockstore.DeletionReason {
	_, isDropped := s.dropped[block.Meta.ULID]
	switch {
	case s.expired(block.Meta):
		return blockstore.DeletionRetention
	case isDropped:
		return blockstore.DeletionTenant
	default:
		return ""
	}
}

// isOver tells whether a block is beyond the quota.
func (s state) isOver(id ulid.ULID) bool {
	_, over := s.over[id]
	return over
}

// expired tells whether all samples of a block are older than the retention.
func (s state) expired(meta tsdb.BlockMeta) bool {
	return s.retention > 0 && meta.MaxTime <= s.now.Add(-s.retention).UnixMilli()
}

// settled returns a function that tells whether what belongs between start and end (in
// ms) has probably arrived.
func (s state) settled() func(start, end int64) bool {
	now := s.now.UnixMilli()
	newest := int64(math.MinInt64)
	uncopied := s.uncopied()
	for _, block := range s.blocks {
		// A block from the future says nothing about the past, and one of series that left the
		// memory of an ingester early nothing about how far the others were cut.
		if start := block.Meta.MinTime; start <= now && !block.Meta.Compaction.FromStaleSeries() {
			newest = max(newest, start)
		}
	}
	return func(start, end int64) bool {
		for _, meta := range uncopied {
			if meta.MinTime < end && meta.MaxTime > start {
				return false
			}
		}
		return now >= end+settleIdle.Milliseconds() || newest >= end+settleData.Milliseconds()
	}
}

// uncopied returns the blocks that are yet to be copied from the previous bucket.
func (s state) uncopied() []tsdb.BlockMeta {
	var (
		metas      []tsdb.BlockMeta
		superseded map[ulid.ULID]ulid.ULID
	)
	for _, id := range sorted(s.blocks) {
		block := s.blocks[id]
		if !block.Previous || block.Deletion != nil && block.Deletion.Reason != blockstore.DeletionCompacted {
			continue
		}
		if superseded == nil {
			superseded = blockstore.Superseded(s.blocks)
		}
		if _, ok := superseded[id]; !ok {
			metas = append(metas, block.Meta)
		}
	}
	return metas
}

// anyOf tells whether one of ids is in set.
func anyOf(ids []ulid.ULID, set map[ulid.ULID]struct{}) bool {
	return slices.ContainsFunc(ids, func(id ulid.ULID) bool {
		_, ok := set[id]
		return ok
	})
}

// alignDown returns the start of the aligned range that t (in ms) lies in.
func alignDown(t int64, length time.Duration) int64 {
	into := t % length.Milliseconds()
	if into < 0 {
		into += length.Milliseconds()
	}
	return t - into
}

func sorted(blocks map[ulid.ULID]blockstore.Block) []ulid.ULID {
	ids := make([]ulid.ULID, 0, len(blocks))
	for id := range blocks {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, ulid.ULID.Compare)
	return ids
}
