package compactor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstream"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/internal/deletion"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// eraseAfter is how long a deletion waits until blocks are written anew for its sake: so
// that several that are asked for one after another need one go, and for compactions,
// which take out on their way what is deleted.
const eraseAfter = time.Hour

// lookAfter does, for one tenant, what deletions and rules of retention ask for. It is
// quick if they ask for nothing.
func (c *Compactor) lookAfter(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) error {
	if of.Fault != nil {
		return of.Fault
	}
	if len(of.Active) == 0 && !of.Cleaning && !c.prunes(id) && !c.rations(id) {
		return nil
	}
	if c.visits == nil {
		return c.lookAfterNow(ctx, id, of)
	}
	visit, end, err := c.visits.begin(ctx, id)
	if errors.Is(err, errVisited) {
		c.metrics.yielded.Inc()
		return nil
	}
	if err != nil {
		return err
	}
	err = c.lookAfterNow(visit, id, of)
	if errors.Is(context.Cause(visit), errVisited) {
		c.metrics.yielded.Inc()
		err = nil // it is the other one's business now
	}
	return errors.Join(err, end())
}

func (c *Compactor) lookAfterNow(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) error {
	errs := []error{c.settle(ctx, id, of)}
	of, err := c.store.DeletionsOf(ctx, id) // as they are settled now
	if err == nil {
		err = of.Fault
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	blocks, _, err := c.list(ctx, id)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	c.forgetGone(id, blocks)
	errs = append(errs, c.dropTenant(ctx, id, of, blocks), c.erase(ctx, id, of, blocks), c.prune(ctx, id, blocks), c.holdToQuota(ctx, id, blocks))
	return errors.Join(append(errs, c.finish(ctx, id, of))...)
}

// settle has the ingesters carry out what they have not yet.
func (c *Compactor) settle(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) error {
	open := slices.ContainsFunc(of.Active, func(d blockstore.ActiveDeletion) bool { return d.Settlement == nil })
	if !open || c.settling == nil {
		return nil
	}
	missing, err := c.settling(ctx, id)
	if err != nil {
		return fmt.Errorf("settle deletions: %w", err)
	}
	if len(missing) > 0 {
		c.logger.Warn("a deletion is not carried out by all ingesters yet; until it is, what comes late to its range is hidden with it", "tenant", id, "missing", missing)
	}
	return nil
}

// dropped reports whether a deletion of the tenant takes a whole block away: it existed
// when that was accepted. A block that a merge left the old samples out of has only newer
// ones, though its sources are among those that existed.
func dropped(d *blockstore.ActiveDeletion, block *blockstore.Block) bool {
	return d.WholeTenant && d.Includes(block) && !slices.Contains(block.Extension.Deletions, d.ID)
}

// droppedOf returns the blocks that deletions of the tenant take away.
func droppedOf(of blockstore.TenantDeletions, blocks map[ulid.ULID]blockstore.Block) map[ulid.ULID]struct{} {
	out := map[ulid.ULID]struct{}{}
	for i := range of.Active {
		for name, block := range blocks {
			if dropped(&of.Active[i], &block) {
				out[name] = struct{}{}
			}
		}
	}
	return out
}

// dropTenant marks the blocks of a tenant that was deleted.
func (c *Compactor) dropTenant(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions, blocks map[ulid.ULID]blockstore.Block) error {
	gone := droppedOf(of, blocks)
	for _, name := range sorted(blocks) {
		block := blocks[name]
		if _, ok := gone[name]; !ok || block.Deletion != nil || block.Previous {
			continue
		}
		err := c.store.MarkForDeletion(ctx, id, name, blockstore.DeletionMark{Time: c.now(), Reason: blockstore.DeletionTenant})
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		c.metrics.blocksMarked.WithLabelValues(string(blockstore.DeletionTenant)).Inc()
	}
	return nil
}

// rewritable lists the blocks that are to stay and can be written anew.
func rewritable(blocks map[ulid.ULID]blockstore.Block) []blockstore.Block {
	superseded := blockstore.Superseded(blocks)
	var out []blockstore.Block
	for _, name := range sorted(blocks) {
		block := blocks[name]
		if _, covered := superseded[name]; !covered && block.Deletion == nil && block.NoCompact == nil && !block.Previous {
			out = append(out, block)
		}
	}
	return out
}

// erase writes anew the blocks that hold what is deleted.
func (c *Compactor) erase(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions, blocks map[ulid.ULID]blockstore.Block) error {
	var due []blockstore.ActiveDeletion
	for _, d := range of.Active {
		waited := !c.now().Before(d.Accepted.Add(eraseAfter))
		if !d.WholeTenant && d.Settlement != nil && d.Blocks != nil && (waited || of.Cleaning) {
			due = append(due, d)
		}
	}
	set, err := deletion.NewSet(due)
	if err != nil {
		return err
	}
	var errs []error
	for _, block := range rewritable(blocks) {
		filters, ids := set.Of(&block)
		if len(ids) == 0 || !c.owns(id) {
			continue
		}
		err := c.eraseIn(ctx, id, block, filters, ids, due)
		if err != nil {
			if ctx.Err() != nil {
				return errors.Join(append(errs, err)...)
			}
			c.metrics.rewriteFailures.Inc()
			errs = append(errs, err)
		}
	}
	if of.Cleaning && len(errs) == 0 {
		errs = append(errs, c.store.EndCleaning(ctx, id))
	}
	return errors.Join(errs...)
}

// eraseIn carries out deletions in a block: writes it anew, or remembers that it has nothing
// of what they delete. That is found out again after a restart, which costs the index of the
// block and none of its chunks.
func (c *Compactor) eraseIn(ctx context.Context, id tenant.ID, block blockstore.Block, filters []mask.Filter, ids []ulid.ULID, due []blockstore.ActiveDeletion) error {
	name := blockName{id, block.Meta.ULID}
	unknown := slices.DeleteFunc(slices.Clone(ids), func(id ulid.ULID) bool { return c.isUntouched(name, id) })
	if len(unknown) == 0 {
		return nil
	}
	found, err := c.lookInto(ctx, id, block, func(reader tsdb.IndexReader) (bool, error) {
		for i := range due {
			if !slices.Contains(unknown, due[i].ID) {
				continue
			}
			if found, err := anySelected(ctx, reader, &due[i]); found || err != nil {
				return found, err
			}
		}
		return false, nil
	})
	if errors.Is(err, blockstore.ErrBlockNotFound) {
		return nil // It is planned anew.
	}
	if err != nil {
		return fmt.Errorf("look for deleted series in block %s: %w", block.Meta.ULID, err)
	}
	if found {
		return c.rewrite(ctx, id, block, filters, ids)
	}
	for _, deletion := range unknown {
		if c.untouched[deletion] == nil {
			c.untouched[deletion] = make(map[blockName]struct{})
		}
		c.untouched[deletion][name] = struct{}{}
	}
	c.logger.Debug("a block has nothing of what is deleted", "tenant", id, "block", block.Meta.ULID, "deletions", unknown)
	return nil
}

// isUntouched reports whether a block is known to have nothing of what is deleted.
func (c *Compactor) isUntouched(block blockName, deletion ulid.ULID) bool {
	_, ok := c.untouched[deletion][block]
	return ok
}

// forgetComplete forgets what was found out for deletions that are not active any more,
// whichever compactor has completed them.
func (c *Compactor) forgetComplete(active map[tenant.ID]blockstore.TenantDeletions) {
	isActive := map[ulid.ULID]bool{}
	for _, of := range active {
		for i := range of.Active {
			isActive[of.Active[i].ID] = true
		}
	}
	maps.DeleteFunc(c.untouched, func(id ulid.ULID, _ map[blockName]struct{}) bool { return !isActive[id] })
}

// forgetGone forgets what was found out of blocks that a tenant does not have any more.
func (c *Compactor) forgetGone(id tenant.ID, blocks map[ulid.ULID]blockstore.Block) {
	isGone := func(name blockName) bool {
		_, ok := blocks[name.block]
		return name.tenant == id && !ok
	}
	for _, names := range c.untouched {
		maps.DeleteFunc(names, func(name blockName, _ struct{}) bool { return isGone(name) })
	}
	maps.DeleteFunc(c.pruned, func(name blockName, _ []string) bool { return isGone(name) })
}

// anySelected reports whether there are chunks with samples that a deletion may take away.
func anySelected(ctx context.Context, reader tsdb.IndexReader, d *blockstore.ActiveDeletion) (bool, error) {
	var (
		builder labels.ScratchBuilder
		metas   []chunks.Meta
	)
	for _, selector := range d.Selectors {
		matchers, err := deletion.ParseSelector(selector)
		if err != nil {
			return false, err
		}
		selected, err := tsdb.PostingsForMatchers(ctx, reader, matchers...)
		if err != nil {
			return false, err
		}
		for selected.Next() {
			if err := reader.Series(selected.At(), &builder, &metas); err != nil {
				return false, err
			}
			if slices.ContainsFunc(metas, func(m chunks.Meta) bool { return m.OverlapsClosedInterval(d.MinMs, d.MaxMs) }) {
				return true, nil
			}
		}
		if err := selected.Err(); err != nil {
			return false, err
		}
	}
	return false, nil
}

// erasing returns a job that leaves out what is deleted or too old. wait says that it has
// to be put off: while not all ingesters have carried out a deletion, a block that it touches
// is not merged with others, unless all of them surely existed when it was accepted. One
// could not tell any more what came late: the ingesters may name, once they all have carried
// it out, a block that was in the bucket by then.
func (c *Compactor) erasing(ctx context.Context, id tenant.ID, job compaction) (_ compaction, wait bool, err error) {
	of, err := c.store.DeletionsOf(ctx, id)
	if err == nil {
		err = of.Fault
	}
	if err != nil {
		return job, false, err
	}
	var settled []blockstore.ActiveDeletion
	for i := range of.Active {
		d := &of.Active[i]
		if d.Settlement != nil && d.Blocks != nil {
			settled = append(settled, *d)
			continue
		}
		touched, existed := 0, 0
		for k := range job.blocks {
			if block := &job.blocks[k]; d.Masks(block) {
				touched++
				if d.Includes(block) {
					existed++
				}
			}
		}
		if touched > 0 && existed < len(job.blocks) && len(job.blocks) > 1 {
			return job, true, nil
		}
	}
	set, err := deletion.NewSet(settled)
	if err != nil {
		return job, false, err
	}
	policy := c.policy(id)
	rules := c.prunes(id) && c.settledRules(id, policy)
	job.filters, job.erased = make([][]mask.Filter, len(job.blocks)), nil
	for k := range job.blocks {
		block := &job.blocks[k]
		filters, ids := set.Of(block)
		if old := policy.Filter(block.Meta.MinTime, c.now()); rules && old != nil {
			filters = append(filters, deletion.ForBlock(old, block))
		}
		job.filters[k] = filters
		job.erased = append(job.erased, ids...)
	}
	return job, false, nil
}

// rewrite writes a block anew without what filters hide, and notes for which deletions. A
// crash at any step leaves the block as it was, or the new one beside it, which supersedes
// it and says itself what was taken out.
func (c *Compactor) rewrite(ctx context.Context, id tenant.ID, block blockstore.Block, filters []mask.Filter, ids []ulid.ULID) (err error) {
	name := block.Meta.ULID
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return fmt.Errorf("create compactor directory: %w", err)
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, jobPrefix)
	if err != nil {
		return fmt.Errorf("create job directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	into, err := c.writeWithout(ctx, id, block, filters, ids, dir)
	if errors.Is(err, blockstore.ErrBlockNotFound) {
		return nil // It is planned anew.
	}
	if err != nil {
		return fmt.Errorf("write block %s anew: %w", name, err)
	}
	rewrite := blockstore.Rewrite{Blocks: []ulid.ULID{name}}
	if into == "" {
		err := c.store.MarkForDeletion(ctx, id, name, blockstore.DeletionMark{Time: c.now(), Reason: blockstore.DeletionEmpty})
		if err != nil && !errors.Is(err, blockstore.ErrBlockNotFound) {
			return err
		}
		c.metrics.blocksMarked.WithLabelValues(string(blockstore.DeletionEmpty)).Inc()
	} else {
		if err := c.upload(ctx, id, into); err != nil {
			return err
		}
		rewrite.Into = ulid.MustParse(filepath.Base(into))
	}
	for _, deletion := range ids {
		if err := c.store.NoteRewrite(ctx, id, deletion, rewrite); err != nil {
			return err
		}
	}
	c.metrics.rewrites.Inc()
	c.logger.Info("wrote a block anew without what is deleted or too old", "tenant", id, "block", name, "into", rewrite.Into, "deletions", ids)
	return nil
}

// writeWithout writes into dir what is left of a block, and returns the folder of that, or
// "" if nothing is left.
func (c *Compactor) writeWithout(ctx context.Context, id tenant.ID, block blockstore.Block, filters []mask.Filter, ids []ulid.ULID, dir string) (into string, err error) {
	in, err := blockstream.Open(ctx, blockstream.Config{Dir: filepath.Join(dir, "in")}, c.store, id, block)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	spec := blockwriter.Spec{Meta: tsdb.BlockMeta{
		ULID:    ulid.MustNew(ulid.Now(), rand.Reader),
		MinTime: block.Meta.MinTime, MaxTime: block.Meta.MaxTime,
		Compaction: block.Meta.Compaction,
	}, Extension: block.Extension}
	spec.Meta.Compaction.Level++
	spec.Meta.Compaction.Sources = blockstore.Sources(block.Meta)
	spec.Meta.Compaction.Parents = []tsdb.BlockDesc{{ULID: block.Meta.ULID, MinTime: block.Meta.MinTime, MaxTime: block.Meta.MaxTime}}
	spec.Extension.Deletions = slices.Concat(block.Extension.Deletions, ids)
	slices.SortFunc(spec.Extension.Deletions, ulid.ULID.Compare)
	spec.Extension.Deletions = slices.Compact(spec.Extension.Deletions)
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(out, 0o777); err != nil {
		return "", err
	}
	written, err := blockwriter.Write(ctx, blockwriter.Config{Parent: out, All: true}, []tsdb.BlockReader{mask.Block(disjoint.Block(in), filters...)}, []blockwriter.Spec{spec})
	if err != nil || len(written) == 0 {
		return "", err
	}
	return written[0].Commit()
}

// finish ends the deletions that no block needs any more, each with a receipt.
func (c *Compactor) finish(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) error {
	blocks, _, err := c.list(ctx, id) // as they are now, for the index too
	if err != nil {
		return err
	}
	for i := range of.Active {
		d := &of.Active[i]
		touched := maps.Clone(blocks)
		maps.DeleteFunc(touched, func(name ulid.ULID, _ blockstore.Block) bool { return c.isUntouched(blockName{id, name}, d.ID) })
		if d.Settlement == nil || d.Blocks == nil || needed(d, touched) {
			continue
		}
		receipt := blockstore.Receipt{Deletion: d.Deletion, Completed: c.now()}
		if receipt.Rewritten, err = c.store.Rewritten(ctx, id, d.ID); err != nil {
			return err
		}
		receipt.Rewritten = withDescendants(receipt.Rewritten, d.ID, blocks)
		if err := c.store.FinishDeletion(ctx, id, receipt); err != nil {
			return err
		}
		c.metrics.deletionsCompleted.Inc()
		c.logger.Info("a deletion is complete: what it deletes is in no block any more", "tenant", id, "deletion", d.ID, "rewritten", len(receipt.Rewritten))
	}
	return nil
}

// needed reports whether a deletion has something to hide in a block, also in one that
// was superseded or marked: a mark may be taken off.
func needed(d *blockstore.ActiveDeletion, blocks map[ulid.ULID]blockstore.Block) bool {
	for _, block := range blocks {
		if d.Masks(&block) {
			return true
		}
	}
	return false
}

// withDescendants adds the blocks that say that a deletion was carried out on them, and
// that nobody noted: because of a crash, or since a compaction made them.
func withDescendants(rewritten []blockstore.Rewrite, deletion ulid.ULID, blocks map[ulid.ULID]blockstore.Block) []blockstore.Rewrite {
	for _, name := range sorted(blocks) {
		block := blocks[name]
		noted := slices.ContainsFunc(rewritten, func(r blockstore.Rewrite) bool { return r.Into == name })
		if noted || !slices.Contains(block.Extension.Deletions, deletion) {
			continue
		}
		r := blockstore.Rewrite{Into: name, Blocks: []ulid.ULID{}}
		for _, parent := range block.Meta.Compaction.Parents {
			r.Blocks = append(r.Blocks, parent.ULID)
		}
		rewritten = append(rewritten, r)
	}
	return rewritten
}
