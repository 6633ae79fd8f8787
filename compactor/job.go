package compactor

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/backlog"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/internal/mask"
)

// compaction says that blocks are to be merged, into one, or into one for each of
// several shards.
type compaction struct {
	blocks   []blockstore.Block // by start, then by name
	shards   []blockstore.Shard // of the results
	start    int64              // of the aligned range that they lie in, in ms
	length   time.Duration
	vertical bool // some of them overlap

	// filters are, for each block, what is left out of it, and erased the deletions that
	// are carried out with that. See erasing.
	filters [][]mask.Filter
	erased  []ulid.ULID
}

// newCompaction returns the job for some blocks, which it puts in order.
func newCompaction(start int64, length time.Duration, blocks []blockstore.Block, shards ...blockstore.Shard) compaction {
	blocks = slices.Clone(blocks)
	slices.SortFunc(blocks, func(a, b blockstore.Block) int {
		return cmp.Or(cmp.Compare(a.Meta.MinTime, b.Meta.MinTime), a.Meta.ULID.Compare(b.Meta.ULID))
	})
	if len(blocks) > maxInputs {
		blocks = blocks[:maxInputs]
	}
	job := compaction{start: start, length: length, blocks: blocks, shards: shards}
	end := blocks[0].Meta.MinTime
	for _, block := range blocks {
		job.vertical = job.vertical || block.Meta.MinTime < end
		end = max(end, block.Meta.MaxTime)
	}
	return job
}

// ids returns the names of the blocks.
func (c compaction) ids() []ulid.ULID {
	ids := make([]ulid.ULID, len(c.blocks))
	for i, block := range c.blocks {
		ids[i] = block.Meta.ULID
	}
	return ids
}

// key identifies a job.
func (c compaction) key() string {
	names := make([]string, len(c.blocks))
	for i, id := range c.ids() {
		names[i] = id.String()
	}
	key := strings.Join(names, ",")
	if len(c.shards) > 1 || c.shards[0].Count > 1 {
		key += fmt.Sprintf(" into shards %v", c.shards)
	}
	return key
}

// samples returns how many samples the blocks have, as they say.
func (c compaction) samples() (n uint64) {
	for _, block := range c.blocks {
		n += block.Meta.Stats.NumSamples
	}
	return n
}

// describe says for people what the job does.
func (c compaction) describe() backlog.Job {
	return backlog.Job{
		Blocks: len(c.blocks), Results: len(c.shards), Samples: c.samples(),
		Start: time.UnixMilli(c.start).UTC(), End: time.UnixMilli(c.start).Add(c.length).UTC(),
	}
}

// splits tells whether some block has series that a result has not.
func (c compaction) splits() bool {
	return len(c.shards) > 1 || slices.ContainsFunc(c.blocks, func(b blockstore.Block) bool {
		return !c.shards[0].Contains(b.Shard())
	})
}

// specs describes the results.
func (c compaction) specs() []blockwriter.Spec {
	specs := make([]blockwriter.Spec, len(c.shards))
	for i, shard := range c.shards {
		specs[i] = c.spec(ulid.MustNew(ulid.Now(), rand.Reader), shard)
	}
	return specs
}

// spec describes the result for a shard.
//
// A source that names no sources of its own is a source itself, otherwise the result
// would not be known to supersede it. And a hint that the samples are stale,
// selected or out of order holds only if it holds for all sources.
func (c compaction) spec(name ulid.ULID, shard blockstore.Shard) blockwriter.Spec {
	first := c.blocks[0]
	spec := blockwriter.Spec{Meta: tsdb.BlockMeta{ULID: name, MinTime: first.Meta.MinTime, MaxTime: first.Meta.MaxTime}}
	spec.Extension.ExternalLabels = first.Extension.ExternalLabels
	if shard.Count > 1 {
		spec.Extension.Shard = &shard
	}
	to := &spec.Meta.Compaction
	to.Hints = slices.Clone(first.Meta.Compaction.Hints)
	partial := false
	for _, block := range c.blocks {
		meta := block.Meta
		spec.Meta.MinTime, spec.Meta.MaxTime = min(spec.Meta.MinTime, meta.MinTime), max(spec.Meta.MaxTime, meta.MaxTime)
		if !block.Shard().Overlaps(shard) {
			continue
		}
		partial = partial || len(block.Extension.Sources) > 0 || !shard.Contains(block.Shard())
		to.Level = max(to.Level, meta.Compaction.Level+1)
		to.Sources = append(to.Sources, blockstore.Sources(meta)...)
		to.Parents = append(to.Parents, tsdb.BlockDesc{ULID: meta.ULID, MinTime: meta.MinTime, MaxTime: meta.MaxTime})
		to.Hints = slices.DeleteFunc(to.Hints, func(hint string) bool { return !slices.Contains(meta.Compaction.Hints, hint) })
		spec.Extension.Deletions = append(spec.Extension.Deletions, block.Extension.Deletions...)
	}
	to.Sources = unique(to.Sources)
	spec.Extension.Deletions = unique(append(spec.Extension.Deletions, c.erased...))
	if partial {
		spec.Extension.Sources = to.Sources
	}
	return spec
}

// unique puts names in order, each once.
func unique(ids []ulid.ULID) []ulid.ULID {
	slices.SortFunc(ids, ulid.ULID.Compare)
	return slices.Compact(ids)
}
