package compactor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// maxSidecars bounds the blocks that get a sidecar in one pass, over all tenants, so that a
// bucket full of foreign blocks does not hold up what a pass is for.
const maxSidecars = 64

// sidecars gives a sidecar to blocks that have none: that were imported, uploaded by another
// program, or written by a release that wrote none.
type sidecars struct {
	// lacking are, for each tenant, the blocks without one as it was planned last.
	lacking map[tenant.ID][]blockstore.Block
	// hopeless are blocks of which none can be made, since they are damaged. They may be
	// replaced, so a new process looks again.
	hopeless map[blockName]struct{}
}

func newSidecars() *sidecars {
	return &sidecars{lacking: make(map[tenant.ID][]blockstore.Block), hopeless: make(map[blockName]struct{})}
}

// plan notes the blocks of a tenant that lack a sidecar and are to stay, as far as is
// known: those that are about to be merged are not worth one.
func (s *sidecars) plan(id tenant.ID, blocks map[ulid.ULID]blockstore.Block, todo actions) {
	passing := make(map[ulid.ULID]struct{})
	for _, job := range todo.compactions {
		for _, block := range job.blocks {
			passing[block.Meta.ULID] = struct{}{}
		}
	}
	for _, mark := range todo.marks {
		passing[mark.block] = struct{}{}
	}
	var lacking []blockstore.Block
	for _, block := range rewritable(blocks) {
		_, passes := passing[block.Meta.ULID]
		_, hopeless := s.hopeless[blockName{id, block.Meta.ULID}]
		if !block.HasSidecar && !passes && !hopeless {
			lacking = append(lacking, block)
		}
	}
	delete(s.lacking, id)
	if len(lacking) > 0 {
		s.lacking[id] = lacking
	}
}

// addSidecars gives a sidecar to blocks of a tenant that have none, to at most left, and
// returns how many more it might. What fails is logged and counted, and is no failure of
// the pass: nothing needs a sidecar.
func (c *Compactor) addSidecars(ctx context.Context, id tenant.ID, left int) int {
	lacking := c.sidecars.lacking[id]
	delete(c.sidecars.lacking, id)
	for _, block := range lacking {
		if left == 0 || ctx.Err() != nil || !c.owns(id) {
			return left
		}
		left--
		err := c.addSidecar(ctx, id, block)
		switch {
		case err == nil:
			c.metrics.sidecarsAdded.Inc()
			c.logger.Debug("a block got a sidecar", "tenant", id, "block", block.Meta.ULID)
		case ctx.Err() != nil, errors.Is(err, blockstore.ErrBlockNotFound):
		case errors.Is(err, remoteblock.ErrDamaged):
			c.sidecars.hopeless[blockName{id, block.Meta.ULID}] = struct{}{}
			c.metrics.sidecarFailures.Inc()
			c.logger.Error("a block without a sidecar cannot be given one, since it is damaged: queries fail on it or miss samples; replace it from a backup or delete it", "tenant", id, "block", block.Meta.ULID, "err", err)
		default:
			c.metrics.sidecarFailures.Inc()
			c.logger.Warn("a block without a sidecar could not be given one; the first query for it takes longer, and the next pass tries again", "tenant", id, "block", block.Meta.ULID, "err", err)
		}
	}
	return left
}

func (c *Compactor) addSidecar(ctx context.Context, id tenant.ID, block blockstore.Block) (err error) {
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return fmt.Errorf("create compactor directory: %w", err)
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, jobPrefix)
	if err != nil {
		return fmt.Errorf("create job directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return remoteblock.AddSidecar(ctx, c.store, id, block, dir)
}
