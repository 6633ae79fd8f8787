package compactor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// partialAge is how long the newest object of a partial block must have lain there
// before the block is deleted: long enough for any upload to be resumed.
const partialAge = 24 * time.Hour

// retain carries out the marks and deletions of a plan. A block that is gone by
// now is none of its business any more.
func (c *Compactor) retain(ctx context.Context, id tenant.ID, todo actions) error {
	for _, block := range todo.unmarks {
		c.logger.Warn("a block is kept that was to be deleted: the retention or the quota covers it again, or the block that replaced it is gone or damaged", "tenant", id, "block", block)
		if err := c.store.UnmarkForDeletion(ctx, id, block); err != nil {
			return err
		}
		c.metrics.blocksUnmarked.Inc()
	}
	for _, m := range todo.marks {
		err := c.store.MarkForDeletion(ctx, id, m.block, blockstore.DeletionMark{Time: c.now(), Reason: m.reason})
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		c.metrics.blocksMarked.WithLabelValues(string(m.reason)).Inc()
		c.logger.Debug("marked a block for deletion", "tenant", id, "block", m.block, "reason", m.reason, "superseded_by", m.by)
	}
	for _, block := range todo.deletions {
		if err := c.store.Delete(ctx, id, block); err != nil {
			return err
		}
		c.metrics.blocksDeleted.Inc()
		c.logger.Info("deleted a block", "tenant", id, "block", block)
	}
	return nil
}

// cleanPartial deletes what uploads and deletions left behind that nobody will
// complete, and reports blocks whose meta.json cannot be understood.
func (c *Compactor) cleanPartial(ctx context.Context, id tenant.ID, partial []ulid.ULID) error {
	var errs []error
	for _, block := range partial {
		found, err := c.store.Partial(ctx, id, block)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch {
		case found.Whole:
			// Its upload was completed since the blocks were listed.
		case found.DamagedMeta:
			c.reportMeta(id, block)
		case found.Marked, !found.LastModified.IsZero() && c.now().Sub(found.LastModified) > partialAge:
			if err := c.store.Delete(ctx, id, block); err != nil {
				errs = append(errs, err)
				continue
			}
			c.metrics.partialDeleted.Inc()
			c.logger.Info("deleted a block that was never whole or half deleted", "tenant", id, "block", block)
		}
	}
	return errors.Join(errs...)
}

// reportMeta reports a block with a damaged meta.json, once. Such a block cannot be
// marked: without its range and sources nobody can tell what to do with it. Its
// data may be whole, so it is not deleted either.
func (c *Compactor) reportMeta(id tenant.ID, block ulid.ULID) {
	name := blockName{id, block}
	if _, ok := c.reported[name]; ok {
		return
	}
	c.reported[name] = struct{}{}
	c.metrics.quarantined.Inc()
	c.logger.Error("the meta.json of a block is damaged; queries miss the samples of the block until its meta.json is restored or the block is deleted",
		"tenant", id, "block", block)
}

// removeAborted removes the directories of jobs that a crash ended.
func (c *Compactor) removeAborted() error {
	entries, err := os.ReadDir(c.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean compactor directory: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), jobPrefix) {
			continue // not ours
		}
		if err := os.RemoveAll(filepath.Join(c.cfg.Dir, entry.Name())); err != nil {
			return fmt.Errorf("clean compactor directory: %w", err)
		}
	}
	return nil
}
