package compactor

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// maxParts bounds the shards that are told apart within one block.
const maxParts = 64

// overQuota returns the blocks that must go so that the others fit into quota bytes: the
// oldest. Blocks count that are to stay, and those that went for the same reason and are
// there still, so that a larger quota saves them.
func overQuota(blocks map[ulid.ULID]blockstore.Block, sizes map[ulid.ULID]int64, quota int64) map[ulid.ULID]struct{} {
	lineage := blockstore.NewLineage(blocks)
	finest := uint64(1)
	for _, block := range blocks {
		finest = max(finest, block.Shard().Count)
	}
	var candidates []blockstore.Block
	bytes, total := make(map[ulid.ULID]int64, len(blocks)), int64(0)
	for _, name := range sorted(blocks) {
		block := blocks[name]
		_, covered := lineage.Covered(name, block.Shard())
		if covered || block.Previous || block.Deletion != nil && block.Deletion.Reason != blockstore.DeletionQuota {
			continue
		}
		candidates = append(candidates, block)
		bytes[name] = bytesOf(lineage, block, sizes[name], finest)
		total += bytes[name]
	}
	slices.SortStableFunc(candidates, func(a, b blockstore.Block) int { return cmp.Compare(a.Meta.MaxTime, b.Meta.MaxTime) })
	over := map[ulid.ULID]struct{}{}
	for _, block := range candidates {
		if total <= quota {
			break
		}
		over[block.Meta.ULID] = struct{}{}
		total -= bytes[block.Meta.ULID]
	}
	return over
}

// bytesOf returns how many of a block's bytes are of samples that are in no other block
// which supersedes it for them. While a block is being split, some of its shards are
// covered and others are not; finest is the largest number of shards that there is.
func bytesOf(lineage *blockstore.Lineage, block blockstore.Block, size int64, finest uint64) int64 {
	shard := block.Shard()
	parts := min(max(finest/shard.Count, 1), maxParts)
	covered := int64(0)
	for k := range parts {
		part := blockstore.Shard{Index: shard.Index + k*shard.Count, Count: parts * shard.Count}
		if _, ok := lineage.Covered(block.Meta.ULID, part); ok {
			covered++
		}
	}
	return size - size*covered/int64(parts) //nolint:gosec // it is at most maxParts
}

// beyondQuota returns the blocks of a tenant that are beyond its quota. It is an error if
// not all sizes are known: then nobody can tell.
func (c *Compactor) beyondQuota(ctx context.Context, id tenant.ID, blocks map[ulid.ULID]blockstore.Block) (map[ulid.ULID]struct{}, error) {
	if !c.rations(id) {
		return map[ulid.ULID]struct{}{}, nil
	}
	sizes, err := c.sizes.of(ctx, c.store, id, blocks)
	if err != nil {
		return nil, err
	}
	return overQuota(blocks, sizes, c.limits(id).MaxBucketBytes), nil
}

// rations reports whether a tenant has a quota. Marks of one that it had, plan takes off.
func (c *Compactor) rations(id tenant.ID) bool { return c.limits(id).MaxBucketBytes > 0 }

// holdToQuota marks the blocks of a tenant that are beyond its quota. The plan takes the
// marks off those that are not any more, before it deletes any.
func (c *Compactor) holdToQuota(ctx context.Context, id tenant.ID, blocks map[ulid.ULID]blockstore.Block) error {
	over, err := c.beyondQuota(ctx, id, blocks)
	if err != nil {
		return err
	}
	for _, name := range sorted(blocks) {
		if _, beyond := over[name]; !beyond || blocks[name].Deletion != nil {
			continue
		}
		err := c.store.MarkForDeletion(ctx, id, name, blockstore.DeletionMark{Time: c.now(), Reason: blockstore.DeletionQuota})
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		c.metrics.blocksMarked.WithLabelValues(string(blockstore.DeletionQuota)).Inc()
		c.logger.Info("marked a block for deletion, since the tenant has more in the bucket than limits.max_bucket_bytes",
			"tenant", id, "block", name, "limit", c.limits(id).MaxBucketBytes)
	}
	return nil
}
