package compactor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstream"
	"github.com/hundredfold/hundredfold/internal/deletion"
	"github.com/hundredfold/hundredfold/internal/externallabels"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/retention"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// prunedFile is a side file of a block. It says of which classes of series the block
// has no samples that are too old.
const prunedFile = "pruned.json"

type prunedMark struct {
	Version int      `json:"version"`
	Classes []string `json:"classes"`
}

// rulesSince says since when this process has known the rules of a tenant.
type rulesSince struct {
	key   string
	since time.Time
}

// policy returns the retention of a tenant. One that cannot be understood keeps all.
func (c *Compactor) policy(id tenant.ID) retention.Policy {
	policy, err := retention.New(c.limits(id))
	if err != nil {
		c.logger.Error("the retention of a tenant cannot be understood, so nothing of it expires", "tenant", id, "err", err)
		return retention.Policy{}
	}
	return policy
}

// prunes reports whether the rules of a tenant take samples out of blocks.
func (c *Compactor) prunes(id tenant.ID) bool { return len(c.limits(id).RetentionRules) > 0 }

// settledRules reports whether the rules of a tenant have been the same for as long as a
// block that is marked waits: what they take out of blocks does not come back.
func (c *Compactor) settledRules(id tenant.ID, policy retention.Policy) bool {
	now, key := c.now(), policy.Key()
	if known, ok := c.rules[id]; !ok || known.key != key {
		c.rules[id] = rulesSince{key: key, since: now}
	}
	return !now.Before(c.rules[id].since.Add(time.Duration(c.cfg.DeletionDelay)))
}

// prune writes anew the blocks in which all samples of some class of series are too old,
// though others are not: once for each class, so that a block is not written again and
// again as a rule passes over it. Queries do not wait for that.
func (c *Compactor) prune(ctx context.Context, id tenant.ID, blocks map[ulid.ULID]blockstore.Block) error {
	if !c.prunes(id) {
		delete(c.rules, id)
		return nil
	}
	policy := c.policy(id)
	if !c.settledRules(id, policy) {
		return nil
	}
	var errs []error
	for _, block := range rewritable(blocks) {
		gone := policy.Gone(block.Meta.MaxTime, c.now())
		if len(gone) == 0 || policy.Expired(block.Meta.MaxTime, c.now()) || !c.owns(id) {
			continue
		}
		if err := c.pruneBlock(ctx, id, block, policy, gone); err != nil {
			if ctx.Err() != nil {
				return errors.Join(append(errs, err)...)
			}
			c.metrics.rewriteFailures.Inc()
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c *Compactor) pruneBlock(ctx context.Context, id tenant.ID, block blockstore.Block, policy retention.Policy, gone []string) error {
	name := blockName{id, block.Meta.ULID}
	known, ok := c.pruned[name]
	if !ok {
		var err error
		if known, err = c.readPruned(ctx, name); err != nil {
			return err
		}
		c.pruned[name] = known
	}
	if !slices.ContainsFunc(gone, func(class string) bool { return !slices.Contains(known, class) }) {
		return nil
	}
	filter := deletion.ForBlock(policy.Filter(block.Meta.MinTime, c.now()), &block)
	found, err := c.holdsAny(ctx, id, block, filter)
	if errors.Is(err, blockstore.ErrBlockNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for series in block %s that are too old: %w", block.Meta.ULID, err)
	}
	if found {
		return c.rewrite(ctx, id, block, []mask.Filter{filter}, nil)
	}
	text, err := json.Marshal(prunedMark{Version: 1, Classes: gone})
	if err == nil {
		err = c.store.WriteSideFile(ctx, id, block.Meta.ULID, prunedFile, text)
	}
	if err == nil {
		c.pruned[name] = gone
	}
	return err
}

// readPruned returns the classes that a block was looked through for. What cannot be
// understood counts as nothing: the block is looked through again.
func (c *Compactor) readPruned(ctx context.Context, name blockName) ([]string, error) {
	text, found, err := c.store.ReadSideFile(ctx, name.tenant, name.block, prunedFile)
	if err != nil || !found {
		return nil, err
	}
	var mark prunedMark
	if json.Unmarshal(text, &mark) != nil || mark.Version != 1 {
		return nil, nil
	}
	return mark.Classes, nil
}

// holdsAny reports whether a block has chunks of series all of whose samples a filter
// hides. It reads the index alone.
func (c *Compactor) holdsAny(ctx context.Context, id tenant.ID, block blockstore.Block, filter mask.Filter) (bool, error) {
	return c.lookInto(ctx, id, block, func(reader tsdb.IndexReader) (bool, error) {
		return anyHidden(ctx, reader, block.Meta.MaxTime, filter)
	})
}

// lookInto asks something of the index of a block, whose series have its external labels.
func (c *Compactor) lookInto(ctx context.Context, id tenant.ID, block blockstore.Block, ask func(tsdb.IndexReader) (bool, error)) (found bool, err error) {
	defer recoverDamage(&err)
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, jobPrefix)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in, err := blockstream.Open(ctx, blockstream.Config{Dir: dir}, c.store, id, block)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	reader, err := externallabels.Add(in, block.Extension.ExternalLabels).Index()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	return ask(reader)
}

func anyHidden(ctx context.Context, reader tsdb.IndexReader, end int64, filter mask.Filter) (bool, error) {
	key, value := index.AllPostingsKey()
	all, err := reader.Postings(ctx, key, value)
	if err != nil {
		return false, err
	}
	var (
		builder labels.ScratchBuilder
		metas   []chunks.Meta
	)
	for all.Next() {
		if err := reader.Series(all.At(), &builder, &metas); err != nil {
			return false, err
		}
		for _, interval := range filter.Hidden(builder.Labels()) {
			if len(metas) > 0 && interval.Mint == math.MinInt64 && interval.Maxt >= end-1 {
				return true, nil
			}
		}
	}
	return false, all.Err()
}
