package blockstore

import (
	"context"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Holdings knows what a tenant has, for those who bring blocks that keep their names: whose
// samples are there to stay, and what cannot be brought now because it would be deleted with
// what is there. It is immutable, and as old as the call of Store.Holdings.
type Holdings struct {
	blocks map[ulid.ULID]Block
	// lasting are the blocks without a deletion mark.
	lasting *Lineage
	// untilGone are these, and those that supersede what they were made of until they are
	// gone: the empty ones, and those beyond the quota.
	untilGone *Lineage
	// halfDeleted are blocks without a meta.json whose deletion was begun.
	halfDeleted map[ulid.ULID]struct{}
	deletions   []ActiveDeletion
}

// Holdings returns what a tenant has.
func (s *Store) Holdings(ctx context.Context, id tenant.ID) (*Holdings, error) {
	blocks, partial, err := s.Blocks(ctx, id)
	if err != nil {
		return nil, err
	}
	deletions, err := s.DeletionsOf(ctx, id)
	if err == nil {
		err = deletions.Fault
	}
	if err != nil {
		return nil, err
	}
	h := &Holdings{blocks: blocks, halfDeleted: make(map[ulid.ULID]struct{}), deletions: deletions.Active}
	marked := make([]bool, len(partial))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(metaReads)
	for i, block := range partial {
		group.Go(func() (err error) {
			if marked[i], err = s.bucket.Exists(groupCtx, blockKey(id, block, deletionMarkFile)); err != nil {
				return fmt.Errorf("look at partial block %s of tenant %s: %w", block, id, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, block := range partial {
		if marked[i] {
			h.halfDeleted[block] = struct{}{}
		}
	}
	lasting, untilGone := make(map[ulid.ULID]Block), make(map[ulid.ULID]Block)
	for name, b := range blocks {
		if b.Deletion == nil {
			lasting[name] = b
		}
		if b.Deletion == nil || b.Deletion.Reason == DeletionEmpty || b.Deletion.Reason == DeletionQuota {
			untilGone[name] = b
		}
	}
	h.lasting, h.untilGone = NewLineage(lasting), NewLineage(untilGone)
	return h, nil
}

// Of tells whether the samples of a block that is to be brought are there to stay, in the
// block itself or in others, or why it cannot be brought now. Otherwise it is missing.
func (h *Holdings) Of(b Block) (there bool, refusal string) {
	name := b.Meta.ULID
	own, isWhole := h.blocks[name]
	there = isWhole && own.Deletion == nil || h.lasting.covers(b)
	for k := range h.deletions {
		d := &h.deletions[k]
		unlisted := d.Blocks == nil && d.MinMs < b.Meta.MaxTime && d.MaxMs >= b.Meta.MinTime
		if (unlisted || d.Includes(&b)) && (!there || d.WholeTenant) {
			return false, fmt.Sprintf("deletion %s, which is not complete, takes away what the tenant had, this block too; bring it once there is a receipt of the deletion", d.ID)
		}
	}
	if there {
		return true, ""
	}
	if isWhole {
		return false, fmt.Sprintf("the bucket has it, marked for deletion (%s) at %s; bring it once it is gone, which it is when compactor.deletion_delay has passed since, or into another tenant",
			own.Deletion.Reason, own.Deletion.Time.UTC().Format(time.RFC3339))
	}
	if _, ok := h.halfDeleted[name]; ok {
		return false, "its deletion is under way in the bucket; bring it after the next pass of the compactor, which completes that"
	}
	if h.untilGone.covers(b) {
		by := h.marked(b)
		return false, fmt.Sprintf("block %s, which was made of it, is marked for deletion (%s) at %s; bring it once that is gone, which it is when compactor.deletion_delay has passed since, or into another tenant",
			by.Meta.ULID, by.Deletion.Reason, by.Deletion.Time.UTC().Format(time.RFC3339))
	}
	return false, ""
}

// marked returns one of the marked blocks by which untilGone covers a block, and lasting does not.
func (h *Holdings) marked(b Block) Block {
	sources := sortedSources(b)
	var found Block
	for _, other := range h.untilGone.holders[sources[0]] {
		candidate := h.blocks[other]
		if candidate.Deletion != nil && candidate.Shard().Overlaps(b.Shard()) && h.untilGone.precedes(other, b, sources) {
			found = candidate
			break
		}
	}
	return found
}
