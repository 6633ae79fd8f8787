package compactor

import (
	"cmp"
	"slices"
	"time"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

const (
	// maxOutputs bounds the blocks that a job writes at once, each of which takes about
	// 40 MB for buffers.
	maxOutputs = 8
	// splitFrom is the length of the range from which on blocks are split. In shorter ones
	// those with the same shard are merged, and the rest waits: it will be read soon in any
	// case.
	splitFrom = 12 * time.Hour
)

// merger plans the merging of blocks.
type merger struct {
	lineage *blockstore.Lineage
	settled func(start, end int64) bool
	jobs    []compaction
}

// plan adds the jobs for blocks within aligned ranges of the first length that have
// settled, and looks at the shorter lengths within the others.
func (m *merger) plan(blocks []blockstore.Block, lengths []time.Duration) {
	if len(lengths) == 0 {
		return
	}
	length := lengths[0]
	ranges := make(map[int64][]blockstore.Block)
	for _, block := range blocks {
		start := alignDown(block.Meta.MinTime, length)
		if block.Meta.MaxTime <= start+length.Milliseconds() {
			ranges[start] = append(ranges[start], block)
		}
	}
	starts := make([]int64, 0, len(ranges))
	for start := range ranges {
		starts = append(starts, start)
	}
	slices.Sort(starts)
	for _, start := range starts {
		if m.settled(start, start+length.Milliseconds()) {
			m.merge(start, length, ranges[start])
		} else {
			m.plan(ranges[start], lengths[1:])
		}
	}
}

// merge adds the jobs for the blocks of one range: one for all of them, or for each shard
// those that have series of it.
func (m *merger) merge(start int64, length time.Duration, blocks []blockstore.Block) {
	if length < splitFrom {
		m.mergeEqual(start, length, blocks)
		return
	}
	count := shardCount(blocks)
	// wide are blocks with more series than one shard's. They are read once for several
	// shards, with what those are merged with.
	var (
		wide   []blockstore.Block
		shards []blockstore.Shard
	)
	flush := func() {
		if len(shards) > 0 {
			m.jobs = append(m.jobs, newCompaction(start, length, wide, shards...))
		}
		wide, shards = nil, nil
	}
	for index := range count {
		shard := blockstore.Shard{Index: index, Count: count}
		parts, split := m.parts(blocks, shard)
		switch {
		case len(parts) < 2 && !split:
		case !split:
			m.jobs = append(m.jobs, newCompaction(start, length, parts, shard))
		default:
			together := union(wide, parts)
			if len(shards) == maxOutputs || len(together) > maxInputs {
				flush()
				together = parts
			}
			wide, shards = together, append(shards, shard)
			if len(wide) > maxInputs {
				flush() // Its first blocks, and then the rest with the result.
			}
		}
	}
	flush()
}

// mergeEqual adds the jobs for blocks with the same shard.
func (m *merger) mergeEqual(start int64, length time.Duration, blocks []blockstore.Block) {
	var shards []blockstore.Shard
	byShard := make(map[blockstore.Shard][]blockstore.Block)
	for _, block := range blocks {
		shard := block.Shard()
		if len(byShard[shard]) == 0 {
			shards = append(shards, shard)
		}
		byShard[shard] = append(byShard[shard], block)
	}
	slices.SortFunc(shards, func(a, b blockstore.Shard) int {
		return cmp.Or(cmp.Compare(a.Count, b.Count), cmp.Compare(a.Index, b.Index))
	})
	for _, shard := range shards {
		if len(byShard[shard]) > 1 {
			m.jobs = append(m.jobs, newCompaction(start, length, byShard[shard], shard))
		}
	}
}

// parts returns the blocks that have series of a shard which are not in others that were
// made of them already. split tells whether one of them has other series, too.
func (m *merger) parts(blocks []blockstore.Block, shard blockstore.Shard) (parts []blockstore.Block, split bool) {
	for _, block := range blocks {
		if !block.Shard().Overlaps(shard) {
			continue
		}
		if _, covered := m.lineage.Covered(block.Meta.ULID, shard); covered {
			continue
		}
		parts = append(parts, block)
		split = split || block.Shard().Count < shard.Count
	}
	return parts, split
}

// union returns the blocks of a and b, each once.
func union(a, b []blockstore.Block) []blockstore.Block {
	all := slices.Clone(a)
	for _, block := range b {
		if !slices.ContainsFunc(a, func(other blockstore.Block) bool { return other.Meta.ULID == block.Meta.ULID }) {
			all = append(all, block)
		}
	}
	return all
}

// shardCount returns into how many shards blocks are to be merged: as many as those that
// have most, so that shards are only ever split, and more if the series are too many.
func shardCount(blocks []blockstore.Block) uint64 {
	count := blockstore.ShardsFor(mostSeries(blocks), blockstore.MaxSeries)
	for _, block := range blocks {
		count = max(count, block.Shard().Count)
	}
	return count
}

// mostSeries returns how many series there are at the time at which there are most, as
// blocks state it. Replicas count as often as there are; those are few, and it only
// makes shards smaller.
func mostSeries(blocks []blockstore.Block) uint64 {
	most := uint64(0)
	for _, at := range blocks {
		sum := uint64(0)
		for _, block := range blocks {
			if block.Meta.MinTime <= at.Meta.MinTime && at.Meta.MinTime < block.Meta.MaxTime {
				// What meta.json states may be anything, but each series has a chunk.
				sum += min(block.Meta.Stats.NumSeries, block.Meta.Stats.NumChunks, 1<<40)
			}
		}
		most = max(most, sum)
	}
	return most
}
