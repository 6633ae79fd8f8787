package compactor

import (
	"context"
	"errors"
	"fmt"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstream"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// input is a block that goes into a compaction. What is wrong with it is found while it
// is merged, and named by an inputError: it is read once, and not once to be checked and
// once more to be merged.
type input struct {
	*blockstream.Block
	name  ulid.ULID
	shard blockstore.Shard
	// filters hide what is deleted or too old: it is left out of what is made of the block.
	filters []mask.Filter
	// reopen opens the block again, to look for what is wrong with it.
	reopen func() (*blockstream.Block, error)

	listed  int    // chunks that the index names, of all series that were read so far
	chunks  int    // chunks that were read
	samples uint64 // in them
	// overlaps says that chunks of a series overlap, so that samples may be there twice.
	overlaps bool
}

// inputError says what is wrong with an input.
type inputError struct {
	block ulid.ULID
	err   error
}

func (e *inputError) Error() string { return fmt.Sprintf("block %s: %v", e.block, e.err) }

func (e *inputError) Unwrap() error { return e.err }

func openInput(ctx context.Context, cfg blockstream.Config, store *blockstore.Store, id tenant.ID, block blockstore.Block) (in *input, err error) {
	defer recoverDamage(&err)
	in = &input{
		name:   block.Meta.ULID,
		shard:  block.Shard(),
		reopen: func() (*blockstream.Block, error) { return blockstream.Open(ctx, cfg, store, id, block) },
	}
	if in.Block, err = in.reopen(); err != nil {
		return nil, err
	}
	return in, nil
}

// recoverDamage makes an error of a panic: the decoders of the TSDB check what they read,
// but not against everything.
func recoverDamage(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("reading it panics: %v", r)
	}
}

func closeAll(inputs []*input) error {
	var errs []error
	for _, in := range inputs {
		errs = append(errs, in.Close())
	}
	return errors.Join(errs...)
}

// check reads the whole block and returns what is wrong with it.
func (in *input) check(ctx context.Context) (err error) {
	defer recoverDamage(&err)
	block, err := in.reopen()
	if err != nil {
		return err
	}
	_, err = blockcheck.Reader(ctx, block, blockcheck.Full)
	return errors.Join(err, block.Close())
}

// Tombstones implements tsdb.BlockReader.
func (in *input) Tombstones() (tombstones.Reader, error) {
	return mask.Block(in.Block, in.filters...).Tombstones()
}

func (in *input) hasTombstones() bool {
	if len(in.filters) > 0 {
		return true
	}
	stones, err := in.Tombstones()
	return err != nil || stones.Total() > 0
}

// fault returns err as the fault of this input, unless it is none of it.
func (in *input) fault(err error) error {
	if err == nil || errors.Is(err, storage.ErrNotFound) || errors.Is(err, blockstore.ErrBlockNotFound) || isPassing(err) {
		return err
	}
	return &inputError{block: in.name, err: err}
}

// Index implements tsdb.BlockReader.
func (in *input) Index() (tsdb.IndexReader, error) {
	reader, err := in.Block.Index()
	if err != nil {
		return nil, in.fault(err)
	}
	return &inputIndex{IndexReader: reader, in: in}, nil
}

// Chunks implements tsdb.BlockReader.
func (in *input) Chunks() (tsdb.ChunkReader, error) {
	reader, err := in.Block.Chunks()
	if err != nil {
		return nil, in.fault(err)
	}
	return &inputChunks{ChunkReader: reader, in: in}, nil
}

// inputIndex checks the series of an input: that they are in order, and their chunks in
// the range that meta.json states. A compaction would cut off what is outside of it.
type inputIndex struct {
	tsdb.IndexReader
	in       *input
	previous labels.Labels
	last     storage.SeriesRef // 0: none yet
}

// Postings implements tsdb.IndexReader.
func (r *inputIndex) Postings(ctx context.Context, name string, values ...string) (index.Postings, error) {
	postings, err := r.IndexReader.Postings(ctx, name, values...)
	return postings, r.in.fault(err)
}

// Series implements tsdb.IndexReader.
func (r *inputIndex) Series(ref storage.SeriesRef, builder *labels.ScratchBuilder, metas *[]chunks.Meta) error {
	if err := r.IndexReader.Series(ref, builder, metas); err != nil {
		if errors.Is(err, storage.ErrNotFound) {
			err = errors.New("the postings name it, and it is not there")
		}
		return r.in.fault(fmt.Errorf("series %d: %w", ref, err))
	}
	series := builder.Labels()
	if ref > r.last && r.last != 0 && labels.Compare(r.previous, series) >= 0 {
		return r.in.fault(fmt.Errorf("series %s comes after series %s", series, r.previous))
	}
	r.previous, r.last = series, ref
	if shard := r.in.shard; shard.Count > 1 && labels.StableHash(series)%shard.Count != shard.Index {
		return r.in.fault(fmt.Errorf("series %s is not of the shard that meta.json states, %d of %d", series, shard.Index, shard.Count))
	}
	meta := r.in.Meta()
	for _, chunk := range *metas {
		if chunk.MinTime > chunk.MaxTime || chunk.MinTime < meta.MinTime || chunk.MaxTime >= meta.MaxTime {
			return r.in.fault(fmt.Errorf("series %s: the chunk from %d to %d is not in the range that meta.json states, %d to %d",
				series, chunk.MinTime, chunk.MaxTime, meta.MinTime, meta.MaxTime))
		}
	}
	r.in.overlaps = r.in.overlaps || disjoint.Overlap(*metas)
	r.in.listed += len(*metas)
	return nil
}

// inputChunks counts what is read, and names the input in its errors.
type inputChunks struct {
	tsdb.ChunkReader
	in *input
}

// ChunkOrIterable implements tsdb.ChunkReader.
func (r *inputChunks) ChunkOrIterable(meta chunks.Meta) (chunkenc.Chunk, chunkenc.Iterable, error) {
	chunk, iterable, err := r.ChunkReader.ChunkOrIterable(meta)
	if err != nil {
		return nil, nil, r.in.fault(err)
	}
	if len(chunk.Bytes()) < 2 || chunk.NumSamples() == 0 {
		return nil, nil, r.in.fault(fmt.Errorf("chunk from %d: it is empty", meta.MinTime))
	}
	r.in.chunks++
	r.in.samples += uint64(chunk.NumSamples())
	return chunk, iterable, nil
}
