// Package blockwriter merges blocks, or a head, into new blocks, in one pass over the
// input that needs little memory whatever its size: one series at a time is held, and
// the symbols of what is written.
//
// It writes what the TSDB would write, and three things that the TSDB cannot: several
// blocks at once, each with the series of a shard; chunks of floats joined into larger
// ones (package rechunk); and our extension of meta.json. What is written appears under
// its name only when it is durable and Commit is called for it.
//
// Chunks that are the same to the byte are taken once without being decoded. Chunks that
// overlap are decoded and merged, and of samples with the same time one is kept. Deleted
// samples, those that Tombstones of an input names, are left out.
//
// The package decides nothing: which inputs, which outputs and what their metas say is
// for the caller.
package blockwriter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/rechunk"
)

// Spec says what a block is to be.
type Spec struct {
	// Meta has the name, the range, which must hold all samples that are wanted (others
	// are left out), and Compaction. Stats are filled in.
	Meta tsdb.BlockMeta
	// Extension goes into meta.json. Its shard selects the series that the block gets.
	Extension blockstore.Extension
}

func (s Spec) shard() blockstore.Shard { return blockstore.Block{Extension: s.Extension}.Shard() }

// Config says how blocks are written.
type Config struct {
	// Parent is the directory that the blocks' folders are made in.
	Parent string
	// Rechunk joins chunks of floats.
	Rechunk bool
	// All says that the only spec gets all series of the inputs, whatever its shard says.
	// The caller knows that they are of that shard; then the series need not be looked at to
	// choose among them.
	All bool
	// KeepEmpty writes blocks that have no series, too. They say that there are none.
	KeepEmpty bool
	// Merge merges the series of the inputs, given in the order of these; nil: Merge of
	// this package.
	Merge func(sets []storage.ChunkSeriesSet) storage.ChunkSeriesSet
	// Progress is told how many samples of the inputs were passed by since the last call;
	// nil: nobody is. It MUST NOT block.
	Progress func(samples uint64)
}

// Pending is a block that is written but for its meta.json.
type Pending struct {
	Spec
	temporary, final string
}

// Write reads inputs, in one pass, and writes a block for each spec that there are
// samples for, or all with KeepEmpty; the result, in the order of specs, is to be
// committed or discarded one by one. The ranges of all specs must be the same. After an error nothing is left.
//
// A panic of a decoder, which damaged inputs can cause, becomes an error.
func Write(ctx context.Context, cfg Config, inputs []tsdb.BlockReader, specs []Spec) (result []*Pending, err error) {
	if len(inputs) == 0 || len(specs) == 0 {
		return nil, errors.New("write blocks: there is nothing to read or nothing to write")
	}
	w := writing{cfg: cfg}
	writers, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading panics: %v", r)
		}
		if err != nil {
			result = nil
			cancel() // An index that is closed is completed, unless it was cancelled.
			err = fmt.Errorf("write blocks: %w", errors.Join(err, w.abort()))
		}
	}()
	from, err := open(ctx, inputs, specs[0].Meta.MinTime, specs[0].Meta.MaxTime)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.close()) }()
	if err := w.create(writers, specs); err != nil {
		return nil, err
	}
	if err := w.symbols(ctx, from); err != nil {
		return nil, err
	}
	if err := w.series(ctx, from); err != nil {
		return nil, err
	}
	return w.finish()
}

// writing is one call of Write.
type writing struct {
	cfg     Config
	outputs []*output
	joiner  rechunk.Joiner
	metas   []chunks.Meta
}

// create opens a writer for each spec.
func (w *writing) create(ctx context.Context, specs []Spec) error {
	for _, spec := range specs {
		o, err := createOutput(ctx, w.cfg.Parent, spec)
		if err != nil {
			return err
		}
		w.outputs = append(w.outputs, o)
	}
	return nil
}

// series writes all series to the outputs that they belong to.
func (w *writing) series(ctx context.Context, from *source) error {
	set := from.merged(w.cfg.Merge)
	var it chunks.Iterator
	for set.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		series := set.At()
		to := w.outputOf(series.Labels())
		if to == nil {
			continue
		}
		it = series.Iterator(it)
		if err := w.chunks(it); err != nil {
			return fmt.Errorf("series %s: %w", series.Labels(), err)
		}
		if err := to.add(series.Labels(), w.metas); err != nil {
			return fmt.Errorf("series %s: %w", series.Labels(), err)
		}
	}
	return set.Err()
}

// outputOf returns the output that a series belongs to; nil: none wants it.
func (w *writing) outputOf(series labels.Labels) *output {
	if w.takesAll() {
		return w.outputs[0]
	}
	hash := labels.StableHash(series)
	for _, o := range w.outputs {
		if shard := o.shard(); hash%shard.Count == shard.Index {
			return o
		}
	}
	return nil
}

// takesAll tells whether all series go to the only output.
func (w *writing) takesAll() bool {
	return len(w.outputs) == 1 && (w.cfg.All || w.outputs[0].shard().Count == 1)
}

// chunks brings the chunks of a series to w.metas, joined if that is wanted.
func (w *writing) chunks(it chunks.Iterator) error {
	w.metas = w.metas[:0]
	samples := uint64(0)
	for it.Next() {
		meta := it.At()
		samples += uint64(meta.Chunk.NumSamples())
		w.metas = append(w.metas, meta)
	}
	if err := it.Err(); err != nil {
		return err
	}
	if w.cfg.Progress != nil && samples > 0 {
		w.cfg.Progress(samples)
	}
	if !w.cfg.Rechunk {
		return nil
	}
	joined, err := w.joiner.Join(w.metas)
	if err != nil {
		return err
	}
	w.metas = append(w.metas[:0], joined...)
	return nil
}

// finish closes the outputs and returns those with samples.
func (w *writing) finish() ([]*Pending, error) {
	var (
		result []*Pending
		errs   []error
	)
	for _, o := range w.outputs {
		empty := o.Meta.Stats.NumSamples == 0
		if empty && w.cfg.KeepEmpty {
			errs = append(errs, o.chunks.WriteChunks()) // a segment without chunks
		}
		errs = append(errs, o.close())
		if empty && !w.cfg.KeepEmpty {
			errs = append(errs, os.RemoveAll(o.temporary))
			continue
		}
		result = append(result, &o.Pending)
	}
	return result, errors.Join(errs...)
}

// abort removes all that was written.
func (w *writing) abort() error {
	var errs []error
	for _, o := range w.outputs {
		_ = o.close() // What it could not write is not wanted any more.
		errs = append(errs, os.RemoveAll(o.temporary))
	}
	return errors.Join(errs...)
}

// output is a block that is being written.
type output struct {
	Pending
	index  *index.Writer
	chunks *chunks.Writer
	opened []io.Closer
	count  storage.SeriesRef
}

// temporarySuffix is what the TSDB gives to the folders of blocks that it writes, and
// removes when it opens.
const temporarySuffix = ".tmp-for-creation"

func createOutput(ctx context.Context, parent string, spec Spec) (*output, error) {
	final := filepath.Join(parent, spec.Meta.ULID.String())
	o := &output{Pending: Pending{Spec: spec, temporary: final + temporarySuffix, final: final}}
	o.Meta.Stats = tsdb.BlockStats{}
	if err := os.RemoveAll(o.temporary); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.temporary, 0o777); err != nil {
		return nil, err
	}
	var err error
	if o.chunks, err = chunks.NewWriter(filepath.Join(o.temporary, "chunks")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(o.temporary))
	}
	o.opened = append(o.opened, o.chunks)
	if o.index, err = index.NewWriter(ctx, filepath.Join(o.temporary, "index")); err != nil {
		return nil, errors.Join(err, o.close(), os.RemoveAll(o.temporary))
	}
	o.opened = append(o.opened, o.index)
	return o, nil
}

// add writes a series with its chunks. One that has none left is left out.
func (o *output) add(series labels.Labels, metas []chunks.Meta) error {
	if len(metas) == 0 {
		return nil
	}
	if err := o.chunks.WriteChunks(metas...); err != nil {
		return fmt.Errorf("write chunks: %w", err)
	}
	if err := o.index.AddSeries(o.count, series, metas...); err != nil {
		return fmt.Errorf("write to the index: %w", err)
	}
	o.count++
	stats := &o.Meta.Stats
	stats.NumSeries++
	stats.NumChunks += uint64(len(metas))
	for _, meta := range metas {
		samples := uint64(meta.Chunk.NumSamples())
		stats.NumSamples += samples
		switch meta.Chunk.Encoding() {
		case chunkenc.EncXOR, chunkenc.EncXOR2:
			stats.NumFloatSamples += samples
		default:
			stats.NumHistogramSamples += samples
		}
	}
	return nil
}

func (o *output) close() error {
	var errs []error
	for _, c := range o.opened {
		errs = append(errs, c.Close())
	}
	o.opened = nil
	return errors.Join(errs...)
}
