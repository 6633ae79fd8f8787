package ingester

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync/atomic"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
)

// cutter makes the blocks that a tenant's TSDB cuts from its head. Those of a large
// tenant it cuts as shards, so that nobody has to split them later. It is used by one
// cut at a time.
type cutter struct {
	// most is how many series a block should have; 0: blockstore.MaxSeries.
	most uint64
	// shards only ever rises, so that blocks which are merged seldom differ in it. A restart
	// forgets it, which costs a split.
	shards uint64
	// reload is set while a TSDB is to load its blocks anew.
	reload atomic.Bool
	// evicting is not nil while series are evicted.
	evicting *eviction
}

// open is the tsdb.NewCompactorFunc of a tenant's TSDB.
func (c *cutter) open(ctx context.Context, reg prometheus.Registerer, logger *slog.Logger, ranges []int64, pool chunkenc.Pool, o *tsdb.Options) (tsdb.Compactor, error) {
	whole, err := tsdb.NewLeveledCompactorWithOptions(ctx, reg, logger, ranges, pool, tsdb.LeveledCompactorOptions{
		MaxBlockChunkSegmentSize:    o.MaxBlockChunkSegmentSize,
		EnableOverlappingCompaction: o.EnableOverlappingCompaction,
		FloatChunkEncoding:          func() chunkenc.Encoding { return o.FloatChunkEncoding },
	})
	if err != nil {
		return nil, err
	}
	return evictor{&shardingCompactor{Compactor: whole, ctx: func() context.Context { return ctx }, cutter: c}, c}, nil
}

// count returns the number of shards for a head with so many series.
func (c *cutter) count(series uint64) uint64 {
	most := c.most
	if most == 0 {
		most = blockstore.MaxSeries
	}
	c.shards = max(c.shards, blockstore.ShardsFor(series, most))
	return c.shards
}

// reloadBlocks has the TSDB load its blocks anew, and delete those that it is told. It does so
// only after it has cut or compacted something, so the next plan of its compactor is a
// compaction of nothing. But a head with a complete window would be cut by that, for which it
// may be too early, and the disk too full: then nothing is cut from it, up to a time that
// is before all others when the TSDB adds the 1 that makes it exclusive.
func (c *cutter) reloadBlocks(ctx context.Context, db *tsdb.DB) error {
	if head := db.Head(); head.MinTime() != math.MaxInt64 && windowComplete(head) {
		return db.CompactHead(tsdb.NewRangeHead(head, math.MaxInt64, math.MaxInt64))
	}
	c.reload.Store(true)
	defer c.reload.Store(false)
	return db.Compact(ctx)
}

// windowComplete tells the time when the TSDB cuts its head.
func windowComplete(head *tsdb.Head) bool {
	return head.MaxTime()-head.MinTime() > blockRange.Milliseconds()/2*3
}

// shardingCompactor is the TSDB's compactor but for the cut of large heads, and for reloads.
type shardingCompactor struct {
	tsdb.Compactor
	// ctx returns the context of the TSDB, which its interface does not pass on.
	ctx    func() context.Context
	cutter *cutter
}

// reloadPlan is the plan of a compaction that does nothing.
const reloadPlan = "reload"

// Plan implements tsdb.Compactor.
func (c *shardingCompactor) Plan(dir string) ([]string, error) {
	if c.cutter.reload.Swap(false) {
		return []string{reloadPlan}, nil
	}
	return c.Compactor.Plan(dir)
}

// Compact implements tsdb.Compactor.
func (c *shardingCompactor) Compact(dest string, dirs []string, open []*tsdb.Block) ([]ulid.ULID, error) {
	if len(dirs) == 1 && dirs[0] == reloadPlan {
		return nil, nil
	}
	return c.Compactor.Compact(dest, dirs, open)
}

// Write implements tsdb.Compactor.
func (c *shardingCompactor) Write(dest string, head tsdb.BlockReader, mint, maxt int64, base *tsdb.BlockMeta) ([]ulid.ULID, error) {
	if mint == math.MaxInt64 {
		return nil, nil // See reloadBlocks.
	}
	count := c.cutter.count(head.Meta().Stats.NumSeries)
	if count == 1 {
		return c.Compactor.Write(dest, head, mint, maxt, base)
	}
	specs := make([]blockwriter.Spec, count)
	for i := range specs {
		meta := tsdb.BlockMeta{ULID: ulid.MustNew(ulid.Now(), rand.Reader), MinTime: mint, MaxTime: maxt}
		meta.Compaction.Level = 1
		meta.Compaction.Sources = []ulid.ULID{meta.ULID}
		if base != nil {
			meta.Compaction.Parents = []tsdb.BlockDesc{{ULID: base.ULID, MinTime: base.MinTime, MaxTime: base.MaxTime}}
			meta.Compaction.Hints = slices.Clone(base.Compaction.Hints)
		}
		specs[i] = blockwriter.Spec{Meta: meta, Extension: blockstore.Extension{Shard: &blockstore.Shard{Index: uint64(i), Count: count}}}
	}
	pending, err := blockwriter.Write(c.ctx(), blockwriter.Config{Parent: dest}, []tsdb.BlockReader{head}, specs)
	if err != nil {
		return nil, err
	}
	return commit(pending)
}

// commit gives the shards of a cut their names, all or none of them.
//
// After a restart the TSDB takes what its blocks end before for cut, and leaves it out
// when it replays its log. So that a crash in here loses nothing, all shards but the last
// say that they hold selected series only, which the TSDB does not count. What a crash
// leaves of them is cut once more, and merged with that in the bucket.
func commit(pending []*blockwriter.Pending) ([]ulid.ULID, error) {
	var (
		ids  []ulid.ULID
		dirs []string
	)
	for i, p := range pending {
		if i < len(pending)-1 {
			p.Meta.Compaction.SetSelectedSeries()
		}
		dir, err := p.Commit()
		if err != nil {
			errs := []error{err}
			for _, done := range dirs {
				errs = append(errs, os.RemoveAll(done))
			}
			for _, rest := range pending[i:] {
				errs = append(errs, rest.Discard())
			}
			return nil, fmt.Errorf("cut blocks in shards: %w", errors.Join(errs...))
		}
		ids, dirs = append(ids, p.Meta.ULID), append(dirs, dir)
	}
	return ids, nil
}
