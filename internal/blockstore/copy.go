package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// copyTenants bounds the tenants whose blocks are copied at once: small blocks cost
	// round trips more than anything.
	copyTenants = 8
	// copyBytes bounds what is on its way at once, in bytes. Clients of S3 keep parts in
	// memory, of up to partBytes.
	copyBytes = 256 << 20
	partBytes = 64 << 20

	// copyAgain is how long after a complete pass the previous bucket is looked at again:
	// a node that was not restarted yet may still upload there.
	copyAgain = 10 * time.Minute
	// copyRetry is how long after a pass that failed the next one begins.
	copyRetry = 30 * time.Second
)

// CopyProgress says how far a pass of CopyPrevious is.
type CopyProgress struct {
	// Blocks were to be copied when the pass began, and Copied of them are.
	Blocks, Copied int
}

// RunCopy copies the blocks of the previous bucket until ctx ends, see CopyPrevious.
// After all are copied it goes on looking for new ones now and then. Without a
// previous bucket it only waits.
func (s *Store) RunCopy(ctx context.Context, owns func(tenant.ID) bool) error {
	if s.previous == nil {
		<-ctx.Done()
		return nil
	}
	complete := false
	for {
		pause := copyAgain
		progress := CopyProgress{}
		logged := time.Now()
		err := s.CopyPrevious(ctx, owns, func(p CopyProgress) {
			progress = p
			if time.Since(logged) >= time.Minute {
				logged = time.Now()
				s.logger.Info("Blocks of the previous bucket are being copied.", "copied", p.Copied, "of", p.Blocks)
			}
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			pause = copyRetry
			s.logger.Error("Not all blocks could be copied from the previous bucket, from where they are read meanwhile; the copy goes on soon.",
				"copied", progress.Copied, "of", progress.Blocks, "err", err)
		case !complete:
			complete = true
			s.logger.Info("The blocks of the previous bucket are all in the new one. When hundredfold_bucket_previous_blocks is 0 on all nodes that show it, take bucket.previous out of their configuration.",
				"copied", progress.Copied)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// CopyPrevious copies the blocks of the previous bucket that are not in the bucket yet,
// of the tenants that owns names (nil: all). It may be broken off and repeated at any
// time: a block is visible in the bucket when it is whole, what is there is not copied
// again, and until then, and from then on, readers find it. It brings a mark against
// compaction along. Blocks that need not be read any more stay behind. Nothing in the
// previous bucket is changed.
//
// A block that cannot be copied is part of the error and keeps none of the others from
// being copied; without an error nothing is left to copy. progress, which may be nil,
// is called after each block, never concurrently.
func (s *Store) CopyPrevious(ctx context.Context, owns func(tenant.ID) bool, progress func(CopyProgress)) error {
	if s.previous == nil {
		return nil
	}
	c := &copying{store: s, inFlight: semaphore.NewWeighted(copyBytes), progress: progress}
	todo, err := c.plan(ctx, owns)
	if err != nil {
		return fmt.Errorf("plan the copy of the previous bucket: %w", err)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(copyTenants)
	for id, blocks := range todo {
		group.Go(func() error {
			c.tenant(groupCtx, id, blocks)
			return nil
		})
	}
	err = errors.Join(group.Wait(), ctx.Err())
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(append(c.mu.faults, err)...)
}

// copying is a pass of CopyPrevious.
type copying struct {
	store    *Store
	inFlight *semaphore.Weighted // bytes

	mu struct {
		sync.Mutex
		faults    []error
		remaining int
		CopyProgress
	}
	progress func(CopyProgress) // called with mu held
}

// plan returns what is to be copied, by tenant, and notes what is copied already.
func (c *copying) plan(ctx context.Context, owns func(tenant.ID) bool) (map[tenant.ID][]ulid.ULID, error) {
	ids, err := c.store.previous.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	todo := make(map[tenant.ID][]ulid.ULID)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(copyTenants)
	for _, id := range ids {
		if owns != nil && !owns(id) {
			continue
		}
		group.Go(func() error {
			found, err := c.store.survey(groupCtx, id, nil)
			if err != nil {
				return err
			}
			blocks, settled := found.toCopy()
			if err := c.store.addCopied(groupCtx, id, settled); err != nil {
				return err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(blocks) > 0 {
				todo[id] = blocks
				c.mu.Blocks += len(blocks)
				c.mu.remaining += len(blocks)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	c.store.remaining().Set(float64(c.mu.remaining))
	return todo, nil
}

// tenant copies the blocks of a tenant one after the other.
func (c *copying) tenant(ctx context.Context, id tenant.ID, blocks []ulid.ULID) {
	done := copied{}
	for _, block := range blocks {
		if ctx.Err() != nil {
			break
		}
		err := c.block(ctx, id, block)
		if err == nil {
			done.add(block)
		}
		// A block that is gone was deleted by whoever still works on the previous bucket.
		c.note(fmt.Errorf("copy block %s of tenant %s from the previous bucket: %w", block, id, err),
			err == nil, errors.Is(err, ErrBlockNotFound))
	}
	// What was copied is noted even if the copy is broken off; if that fails, the next
	// pass does it.
	if err := c.store.addCopied(context.WithoutCancel(ctx), id, done); err != nil {
		c.note(err, false, false)
	}
}

// note keeps account of a block that is there now, or of a fault.
func (c *copying) note(fault error, copied, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case copied:
		c.mu.Copied++
		c.mu.remaining--
	case gone:
		c.mu.Blocks--
		c.mu.remaining--
	default:
		c.mu.faults = append(c.mu.faults, fault)
		return
	}
	c.store.remaining().Set(float64(c.mu.remaining))
	if c.progress != nil {
		c.progress(c.mu.CopyProgress)
	}
}

// block copies one block as an upload does: meta.json last, and what is there already
// not again.
func (c *copying) block(ctx context.Context, id tenant.ID, block ulid.ULID) error {
	from := c.store.previous
	content, err := from.contents(ctx, id, block)
	if err != nil {
		return err
	}
	if _, _, err := from.readMeta(ctx, id, block); err != nil {
		return err
	}
	for i := range content {
		content[i].open = c.bounded(content[i])
	}
	if err := c.markNoCompact(ctx, id, block); err != nil {
		return err
	}
	return c.store.upload(ctx, id, block, content)
}

// bounded returns a function that opens a file once there is room for it on the way.
func (c *copying) bounded(file sourceFile) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		weight := max(1, min(file.size, partBytes))
		if err := c.inFlight.Acquire(ctx, weight); err != nil {
			return nil, err
		}
		r, err := file.open(ctx)
		if err != nil {
			c.inFlight.Release(weight)
			return nil, err
		}
		return releasing{r, func() { c.inFlight.Release(weight) }}, nil
	}
}

// releasing is a reader that gives something back when it is closed, which is once.
type releasing struct {
	io.ReadCloser
	release func()
}

// Close implements io.Closer.
func (r releasing) Close() error {
	defer r.release()
	return r.ReadCloser.Close()
}

// markNoCompact brings a block's mark against compaction along, before the block can be
// seen, so that no compactor takes the block meanwhile. A mark for deletion stays
// behind: blocks that are to go are not copied, and one that was marked as compacted
// though no other block has its samples is to stay.
func (c *copying) markNoCompact(ctx context.Context, id tenant.ID, block ulid.ULID) error {
	from := c.store.previous
	var mark NoCompactMark
	found, err := from.readMark(ctx, id, block, noCompactMarkFile, &mark)
	switch {
	case errors.Is(err, errCorruptMark):
		mark = NoCompactMark{Version: markVersion, Reason: NoCompactUnreadableMark, Details: err.Error()}
	case err != nil || !found:
		return err
	}
	return c.store.PreMarkNoCompact(ctx, id, block, mark)
}
