package ingester

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
)

// cutter makes the blocks that a tenant's TSDB cuts from its head. Those of a large
// tenant it cuts as shards, so that nobody has to split them later. They go into the
// tenant's folder, where the TSDB does not look: to the TSDB, every cut comes out empty.
// It is used by one cut at a time.
type cutter struct {
	// blocks are the tenant's, once its TSDB is being opened.
	blocks *localBlocks
	// staged are blocks that were cut, and whose samples the head still has.
	staged []*localBlock

	whole *tsdb.LeveledCompactor // that of the TSDB
	// ctx returns the context of the TSDB, which its interface does not pass on.
	ctx func() context.Context

	// most is how many series a block should have; 0: blockstore.MaxSeries.
	most uint64
	// shards only ever rises, so that blocks which are merged seldom differ in it. A restart
	// forgets it, which costs a split.
	shards uint64
	// evicting is not nil while series are evicted.
	evicting *eviction
	late     lateCuts
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
	c.whole, c.staged, c.late, c.evicting = whole, nil, newLateCuts(), nil
	c.ctx = func() context.Context { return ctx }
	return evictor{headCompactor{cutter: c}, c}, nil
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

// reloaded is the tsdb.BlocksToDeleteFunc of the TSDB, which calls it between the cut of
// a range of its head, or of all late samples, and dropping what was cut. That is when
// the blocks get into the list: before, the cut may fail and be tried again.
func (c *cutter) reloaded(blocks []*tsdb.Block) map[ulid.ULID]struct{} {
	c.list()
	return markerOnly(blocks)
}

// list puts what was cut into the list, before the head drops it.
func (c *cutter) list() {
	c.blocks.add(c.staged...)
	c.staged = nil
}

// cut has the TSDB cut, and removes what that wrote if the head still has all of it.
func (c *cutter) cut(by func() error) (err error) {
	defer func() {
		dirs := make([]string, len(c.staged))
		for k, b := range c.staged {
			dirs[k] = b.dir
		}
		c.staged = nil
		err = errors.Join(err, undo(dirs))
	}()
	return by()
}

// undo removes blocks that were cut, whose samples the head still has. The last one goes
// first, and if it cannot, all stay: of shards it alone says that the head was cut, and with
// it the replay of the log leaves out what was in the others.
func undo(dirs []string) error {
	for _, dir := range slices.Backward(dirs) {
		if err := removeBlock(dir); err != nil {
			return fmt.Errorf("remove what a cut that failed has written: %w", err)
		}
	}
	return nil
}

// headCompactor is what the TSDB cuts its head with. It has no blocks to compact.
type headCompactor struct{ cutter *cutter }

// Plan implements tsdb.Compactor.
func (headCompactor) Plan(string) ([]string, error) { return nil, nil }

// Compact implements tsdb.Compactor.
func (headCompactor) Compact(string, []string, []*tsdb.Block) ([]ulid.ULID, error) { return nil, nil }

// Write implements tsdb.Compactor.
func (h headCompactor) Write(_ string, head tsdb.BlockReader, mint, maxt int64, base *tsdb.BlockMeta) ([]ulid.ULID, error) {
	c := h.cutter
	if base != nil && base.ULID == markerID() {
		return nil, nil // What is left of it is nothing.
	}
	ids, err := blockCompactor(h).Write(c.blocks.dir, head, mint, maxt, base)
	if err != nil {
		return nil, err
	}
	blocks := make([]*localBlock, len(ids))
	for k, id := range ids {
		if blocks[k], err = c.blocks.read(id); err != nil {
			dirs := make([]string, len(ids))
			for k, id := range ids {
				dirs[k] = filepath.Join(c.blocks.dir, id.String())
			}
			return nil, errors.Join(fmt.Errorf("read what was cut: %w", err), undo(dirs))
		}
	}
	c.staged = append(c.staged, blocks...)
	if base != nil && base.Compaction.FromOutOfOrder() && len(blocks) > 0 {
		c.late.add(mint, maxt)
	}
	if base != nil && (base.Compaction.FromStaleSeries() || base.Compaction.FromSelectedSeries()) && c.evicting == nil {
		c.list() // The TSDB does not reload after an empty cut of some series.
	}
	return nil, nil
}

// blockCompactor writes blocks, in shards if the tenant is large.
type blockCompactor struct{ cutter *cutter }

// Plan implements tsdb.Compactor.
func (blockCompactor) Plan(string) ([]string, error) { return nil, nil }

// Compact implements tsdb.Compactor.
func (blockCompactor) Compact(string, []string, []*tsdb.Block) ([]ulid.ULID, error) { return nil, nil }

// Write implements tsdb.Compactor.
func (b blockCompactor) Write(dest string, from tsdb.BlockReader, mint, maxt int64, base *tsdb.BlockMeta) ([]ulid.ULID, error) {
	c := b.cutter
	count := c.count(from.Meta().Stats.NumSeries)
	if count == 1 {
		return c.whole.Write(dest, from, mint, maxt, base)
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
	pending, err := blockwriter.Write(c.ctx(), blockwriter.Config{Parent: dest}, []tsdb.BlockReader{from}, specs)
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
