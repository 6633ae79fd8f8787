package compactor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstream"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// jobPrefix begins the name of a job's directory.
	jobPrefix = "job-"
	// windows bounds the memory that the chunks of all inputs of a job take, in bytes.
	windows = 128 << 20
	// rechunkFrom is the length of the range from which on chunks are joined. What is
	// shorter is merged again soon.
	rechunkFrom = 12 * time.Hour
)

var errInconsistent = errors.New("the result does not match its sources")

// compact carries out a job: merges the blocks, as they are read from the bucket, into a
// directory of its own, checks the result and uploads it. The sources are marked by the
// next plan, which sees the result in the bucket; so a crash before the upload is complete
// leaves nothing visible, and a crash after it leaves nothing undone.
//
// If a block proves damaged, it is marked and nothing else happens; the next plan
// does without it.
func (c *Compactor) compact(ctx context.Context, id tenant.ID, job compaction) (err error) {
	start := c.now()
	job, wait, err := c.erasing(ctx, id, job)
	if err != nil || wait {
		return err
	}
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return fmt.Errorf("create compactor directory: %w", err)
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, jobPrefix)
	if err != nil {
		return fmt.Errorf("create job directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	inputs, err := c.open(ctx, id, job, dir)
	if err != nil || inputs == nil {
		return err
	}
	outputs, err := c.merge(ctx, job, inputs, filepath.Join(dir, "out"))
	err = errors.Join(err, closeAll(inputs))
	if err != nil {
		return c.blame(ctx, id, inputs, fmt.Errorf("compact %s: %w", job.key(), err))
	}
	if len(outputs) == 0 {
		return c.discard(ctx, id, inputs)
	}
	for _, output := range outputs {
		if err := c.upload(ctx, id, output); err != nil {
			return err
		}
	}
	c.metrics.compactions.Inc()
	c.metrics.blocksCompacted.Add(float64(len(inputs)))
	c.metrics.compactionDuration.Observe(c.now().Sub(start).Seconds())
	c.logger.Info("compacted blocks", "tenant", id, "sources", len(inputs), "results", len(outputs), "block", filepath.Base(outputs[0]),
		"start", time.UnixMilli(job.start).UTC(), "range", job.length, "overlapping", job.vertical)
	return nil
}

// upload brings the block in dir to the bucket.
func (c *Compactor) upload(ctx context.Context, id tenant.ID, dir string) error {
	// Before the block, so that its first reader finds it. Nothing needs it.
	if err := remoteblock.WriteSidecar(ctx, c.store, id, dir); err != nil {
		c.logger.Warn("a block goes to the bucket without its sidecar; the first query for it takes longer", "tenant", id, "err", err)
	}
	return c.store.Upload(ctx, id, dir)
}

// open opens the blocks of a job. No inputs and no error mean that the job is to be
// planned again: a block is gone, or was quarantined.
func (c *Compactor) open(ctx context.Context, id tenant.ID, job compaction, dir string) (inputs []*input, err error) {
	defer func() {
		if inputs == nil || err != nil {
			err = errors.Join(err, closeAll(inputs))
			inputs = nil
		}
	}()
	window := blockstream.Window(windows, len(job.blocks))
	for i, block := range job.blocks {
		name := block.Meta.ULID
		cfg := blockstream.Config{Dir: filepath.Join(dir, "in", name.String()), Window: window}
		in, err := openInput(ctx, cfg, c.store, id, block)
		switch {
		case errors.Is(err, blockstore.ErrBlockNotFound):
			return nil, closeAll(inputs)
		case err != nil && isPassing(err):
			return inputs, fmt.Errorf("open block %s: %w", name, err)
		case err != nil:
			return nil, errors.Join(closeAll(inputs), c.quarantine(ctx, id, name, err))
		}
		in.filters = job.filters[i]
		inputs = append(inputs, in)
	}
	return inputs, nil
}

// merge merges the inputs into blocks in parent, checks them and returns their
// directories; none if no sample is left.
func (c *Compactor) merge(ctx context.Context, job compaction, inputs []*input, parent string) ([]string, error) {
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return nil, err
	}
	readers := make([]tsdb.BlockReader, len(inputs))
	for i, in := range inputs {
		readers[i] = disjoint.Block(in)
	}
	cfg := blockwriter.Config{
		Parent:    parent,
		Rechunk:   job.length >= rechunkFrom,
		All:       !job.splits(),
		KeepEmpty: job.splits(),
		Progress: func(samples uint64) {
			c.board.Progress(samples)
			c.metrics.samples.Add(float64(samples))
		},
	}
	pending, err := blockwriter.Write(ctx, cfg, readers, job.specs())
	if err != nil {
		return nil, err
	}
	if len(pending) == 0 {
		return nil, checkEmpty(inputs)
	}
	if err := checkCounts(job, inputs, pending); err != nil {
		return nil, err
	}
	var dirs []string
	for _, p := range pending {
		dir, err := p.Commit()
		if err != nil {
			return nil, err
		}
		if err := checkOutput(ctx, dir, p.Meta); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// blame looks for the inputs that a compaction failed on and quarantines them. If
// none of them is damaged, the error is that of the machine, or ours, and stays.
func (c *Compactor) blame(ctx context.Context, id tenant.ID, inputs []*input, cause error) error {
	if errors.Is(cause, blockstore.ErrBlockNotFound) {
		return nil // It is planned again, without it.
	}
	if isPassing(cause) {
		return cause
	}
	var known *inputError
	if errors.As(cause, &known) {
		return c.quarantine(ctx, id, known.block, known.err)
	}
	quarantined := false
	for _, in := range inputs {
		// Only now is it worth while to read every chunk.
		err := in.check(ctx)
		switch {
		case errors.Is(err, blockstore.ErrBlockNotFound):
			return nil
		case err != nil && isPassing(err):
			return errors.Join(cause, err)
		case err != nil:
			quarantined = true
			if err := c.quarantine(ctx, id, in.name, err); err != nil {
				return errors.Join(cause, err)
			}
		}
	}
	if quarantined {
		return nil
	}
	return cause
}

// isPassing tells whether an error is due to the machine, the bucket or a shutdown, rather
// than to what was read.
func isPassing(err error) bool {
	return errors.Is(err, blockstream.ErrUnreachable) || blockcheck.IsEnvironment(err)
}

// checkCounts checks that what was read is what was written, where nothing was to be merged or
// left out.
func checkCounts(job compaction, inputs []*input, outputs []*blockwriter.Pending) error {
	read, written := uint64(0), uint64(0)
	for _, in := range inputs {
		if job.vertical || in.overlaps || in.hasTombstones() {
			return nil
		}
		if !job.splits() && in.chunks != in.listed {
			return fmt.Errorf("%w: %d chunks of block %s were read of %d", errInconsistent, in.chunks, in.name, in.listed)
		}
		read += in.samples
	}
	for _, output := range outputs {
		written += output.Meta.Stats.NumSamples
	}
	if read != written {
		return fmt.Errorf("%w: it has %d samples of %d", errInconsistent, written, read)
	}
	return nil
}

// checkOutput reads a result once more, since its sources will be deleted.
func checkOutput(ctx context.Context, dir string, meta tsdb.BlockMeta) (err error) {
	block, err := blockstream.OpenDir(dir, meta, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errInconsistent, err)
	}
	defer func() { err = errors.Join(err, block.Close()) }()
	found, err := blockcheck.Reader(ctx, block, blockcheck.Quick)
	if err == nil {
		err = blockcheck.CheckStats(meta.Stats, found, blockcheck.Quick)
	}
	if err != nil && !isPassing(err) {
		err = fmt.Errorf("%w: %w", errInconsistent, err)
	}
	return err
}

// checkEmpty checks that nothing was expected of inputs that led to no block.
func checkEmpty(inputs []*input) error {
	for _, in := range inputs {
		if in.listed > 0 && !in.hasTombstones() {
			return fmt.Errorf("%w: it is empty, block %s has %d chunks", errInconsistent, in.name, in.listed)
		}
	}
	return nil
}

// discard marks the inputs of a job that had no result.
func (c *Compactor) discard(ctx context.Context, id tenant.ID, inputs []*input) error {
	for _, in := range inputs {
		err := c.store.MarkForDeletion(ctx, id, in.name, blockstore.DeletionMark{Time: c.now(), Reason: blockstore.DeletionEmpty})
		if err != nil && !errors.Is(err, blockstore.ErrBlockNotFound) {
			return err
		}
		c.metrics.blocksMarked.WithLabelValues(string(blockstore.DeletionEmpty)).Inc()
	}
	c.logger.Info("compacted blocks of which no sample is left", "tenant", id, "sources", len(inputs))
	return nil
}

// quarantine marks a damaged block, so that it is left alone from now on.
func (c *Compactor) quarantine(ctx context.Context, id tenant.ID, block ulid.ULID, cause error) error {
	err := c.store.MarkNoCompact(ctx, id, block, blockstore.NoCompactMark{
		Time:    c.now(),
		Reason:  blockstore.NoCompactDamaged,
		Details: cause.Error(),
	})
	if err != nil {
		return errors.Join(cause, err)
	}
	c.metrics.quarantined.Inc()
	c.logger.Error("a block is damaged; it is no longer compacted and queries may fail on it or miss samples: replace it from a backup or delete it, or remove its no-compact-mark.json to have it tried again",
		"tenant", id, "block", block, "err", cause)
	return nil
}
