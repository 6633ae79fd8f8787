package compactor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// jobPrefix begins the name of a job's directory.
const jobPrefix = "job-"

var errInconsistent = errors.New("the result does not match its sources")

// compact carries out a job: brings the blocks to a directory of its own, merges
// them, checks the result and uploads it. The sources are marked by the next plan,
// which sees the result in the bucket; so a crash before the upload is complete
// leaves nothing visible, and a crash after it leaves nothing undone.
//
// If a block proves damaged, it is marked and nothing else happens; the next plan
// does without it.
func (c *Compactor) compact(ctx context.Context, id tenant.ID, job compaction) (err error) {
	start := c.now()
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return fmt.Errorf("create compactor directory: %w", err)
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, jobPrefix)
	if err != nil {
		return fmt.Errorf("create job directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	inputs, err := c.fetch(ctx, id, job, dir)
	if err != nil || inputs == nil {
		return err
	}
	output, err := mergeBlocks(ctx, inputs, filepath.Join(dir, "out"))
	if err != nil {
		return c.blame(ctx, id, inputs, fmt.Errorf("compact %s: %w", job.key(), err))
	}
	if output == "" {
		return c.discard(ctx, id, inputs)
	}
	if err := c.store.Upload(ctx, id, output); err != nil {
		return err
	}
	c.metrics.compactions.Inc()
	c.metrics.blocksCompacted.Add(float64(len(inputs)))
	c.metrics.compactionDuration.Observe(c.now().Sub(start).Seconds())
	c.logger.Info("compacted blocks", "tenant", id, "sources", len(inputs), "block", filepath.Base(output),
		"start", time.UnixMilli(job.start).UTC(), "range", job.length, "overlapping", job.vertical)
	return nil
}

// input is a block that was brought to the job's directory and found readable.
type input struct {
	id  ulid.ULID
	dir string
	blockcheck.Census
}

// fetch brings the blocks of a job to dir and looks at them. No inputs and no error
// mean that the job is to be planned again: a block is gone, or was quarantined.
//
// Even blocks in a local bucket are brought, as links: the TSDB writes to the
// meta.json of what it compacts.
func (c *Compactor) fetch(ctx context.Context, id tenant.ID, job compaction, dir string) ([]input, error) {
	inputs := make([]input, 0, len(job.blocks))
	quarantined := false
	for _, block := range job.blocks {
		in := input{id: block, dir: filepath.Join(dir, "in", block.String())}
		err := c.store.Download(ctx, id, block, in.dir)
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		in.Census, err = blockcheck.Dir(ctx, in.dir, blockcheck.Quick)
		if errors.Is(err, blockcheck.ErrDamaged) {
			quarantined = true
			if err := c.quarantine(ctx, id, block, err); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at block %s: %w", block, err)
		}
		inputs = append(inputs, in)
	}
	if quarantined {
		return nil, nil
	}
	return inputs, nil
}

// blame looks for the inputs that a compaction failed on and quarantines them. If
// none of them is damaged, the error is that of the machine, or ours, and stays.
func (c *Compactor) blame(ctx context.Context, id tenant.ID, inputs []input, cause error) error {
	if blockcheck.IsEnvironment(cause) {
		return cause
	}
	quarantined := false
	for _, in := range inputs {
		// Only now is it worth while to read every chunk.
		_, err := blockcheck.Dir(ctx, in.dir, blockcheck.Full)
		switch {
		case errors.Is(err, blockcheck.ErrDamaged):
			quarantined = true
			if err := c.quarantine(ctx, id, in.id, err); err != nil {
				return errors.Join(cause, err)
			}
		case err != nil:
			return errors.Join(cause, err)
		}
	}
	if quarantined {
		return nil
	}
	return cause
}

// mergeBlocks merges the inputs into a block in parent, checks it and returns its
// directory, or "" if no sample is left.
func mergeBlocks(ctx context.Context, inputs []input, parent string) (dir string, err error) {
	defer func() {
		if r := recover(); r != nil {
			dir, err = "", fmt.Errorf("the TSDB panics: %v", r)
		}
	}()
	compactor, err := tsdb.NewLeveledCompactorWithOptions(ctx, nil, nil, []int64{(2 * time.Hour).Milliseconds()}, nil, tsdb.LeveledCompactorOptions{
		EnableOverlappingCompaction: true,
		// What the ingesters write; chunks that need no merging stay as they are.
		FloatChunkEncoding: func() chunkenc.Encoding { return chunkenc.EncXOR2 },
	})
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return "", err
	}
	dirs := make([]string, len(inputs))
	metas := make([]*tsdb.BlockMeta, len(inputs))
	for i, in := range inputs {
		dirs[i] = in.dir
		if metas[i], err = readMeta(in.dir); err != nil {
			return "", err
		}
	}
	ids, err := compactor.Compact(parent, dirs, nil)
	if err != nil {
		return "", err
	}
	if len(ids) == 0 {
		return "", checkEmpty(inputs)
	}
	dir = filepath.Join(parent, ids[0].String())
	if err := completeMeta(dir, metas); err != nil {
		return "", err
	}
	return dir, checkOutput(ctx, dir, inputs, metas)
}

// completeMeta corrects what the TSDB writes into the meta of a merged block. A
// source that names no sources of its own is a source itself, otherwise the result
// would not be known to supersede it. And a hint that the samples are stale,
// selected or out of order holds only if it holds for all sources.
func completeMeta(dir string, sources []*tsdb.BlockMeta) error {
	meta, err := readMeta(dir)
	if err != nil {
		return err
	}
	meta.Compaction.Sources = nil
	meta.Compaction.Hints = slices.Clone(sources[0].Compaction.Hints)
	for _, source := range sources {
		meta.Compaction.Sources = append(meta.Compaction.Sources, blockstore.Sources(*source)...)
		meta.Compaction.Hints = slices.DeleteFunc(meta.Compaction.Hints, func(hint string) bool {
			return !slices.Contains(source.Compaction.Hints, hint)
		})
	}
	slices.SortFunc(meta.Compaction.Sources, ulid.ULID.Compare)
	meta.Compaction.Sources = slices.Compact(meta.Compaction.Sources)
	text, err := json.MarshalIndent(meta, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o666)
}

// checkOutput reads the result once more, since its sources will be deleted.
func checkOutput(ctx context.Context, dir string, inputs []input, metas []*tsdb.BlockMeta) error {
	result, err := blockcheck.Dir(ctx, dir, blockcheck.Quick)
	if err != nil {
		return fmt.Errorf("%w: %w", errInconsistent, err)
	}
	chunks, series, exact := 0, 0, true
	end := metas[0].MinTime
	for i, in := range inputs {
		exact = exact && in.Tombstones == 0 && metas[i].MinTime >= end
		end = max(end, metas[i].MaxTime)
		chunks += in.Chunks
		series = max(series, in.Series)
	}
	// Without overlaps and deletions every chunk goes into the result as it is.
	if exact && (result.Chunks != chunks || result.Series < series) {
		return fmt.Errorf("%w: it has %d chunks of %d and %d series of at least %d", errInconsistent, result.Chunks, chunks, result.Series, series)
	}
	return nil
}

// checkEmpty checks that nothing was expected of inputs that led to no block.
func checkEmpty(inputs []input) error {
	for _, in := range inputs {
		if in.Chunks > 0 && in.Tombstones == 0 {
			return fmt.Errorf("%w: it is empty, block %s has %d chunks", errInconsistent, in.id, in.Chunks)
		}
	}
	return nil
}

// discard marks the inputs of a job that had no result.
func (c *Compactor) discard(ctx context.Context, id tenant.ID, inputs []input) error {
	for _, in := range inputs {
		err := c.store.MarkForDeletion(ctx, id, in.id, blockstore.DeletionMark{Time: c.now(), Reason: blockstore.DeletionEmpty})
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

func readMeta(dir string) (*tsdb.BlockMeta, error) {
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return nil, err
	}
	var meta tsdb.BlockMeta
	if err := json.Unmarshal(text, &meta); err != nil {
		return nil, err
	}
	return &meta, nil
}
