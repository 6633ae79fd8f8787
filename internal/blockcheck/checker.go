package blockcheck

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/chunkbounds"
	"github.com/hundredfold/hundredfold/internal/disjoint"
)

// checker is one check of a block.
type checker struct {
	depth Depth
	// report is told of faults after which the check goes on; nil: it ends with the first.
	report func(error)
}

// fault returns err, or reports it and returns nil. What comes from the machine ends
// every check.
func (c checker) fault(err error) error {
	if c.report == nil || IsEnvironment(err) {
		return err
	}
	c.report(damaged(err))
	return nil
}

func (c checker) check(ctx context.Context, block tsdb.BlockReader) (Census, error) {
	var opened []io.Closer
	defer func() {
		for _, reader := range opened {
			reader.Close()
		}
	}()
	indexReader, err := block.Index()
	if err != nil {
		return Census{}, err
	}
	opened = append(opened, indexReader)
	chunkReader, err := block.Chunks()
	if err != nil {
		return Census{}, err
	}
	opened = append(opened, chunkReader)
	tombstoneReader, err := block.Tombstones()
	if err != nil {
		return Census{}, err
	}
	opened = append(opened, tombstoneReader)

	w := walk{checker: c, meta: block.Meta(), index: indexReader, chunks: chunkReader, last: make(map[int]chunks.Meta)}
	w.found.Tombstones = tombstoneReader.Total()
	if c.depth == Full {
		w.sums = make(sums)
	}
	if err := w.series(ctx); err != nil {
		return w.found, err
	}
	for segment, meta := range w.last {
		if _, err := readChunks(chunkReader, []chunks.Meta{meta}); err != nil {
			if err := c.fault(fmt.Errorf("the end of segment %06d: %w", segment+1, err)); err != nil {
				return w.found, err
			}
		}
	}
	if c.depth == Full {
		return w.found, w.postings(ctx)
	}
	return w.found, nil
}

// walk goes through the series of a block.
type walk struct {
	checker
	meta   tsdb.BlockMeta
	index  tsdb.IndexReader
	chunks tsdb.ChunkReader

	found Census
	last  map[int]chunks.Meta // by segment
	sums  sums                // nil: postings are not compared
}

func (w *walk) series(ctx context.Context) error {
	name, value := index.AllPostingsKey()
	postings, err := w.index.Postings(ctx, name, value)
	if err != nil {
		return err
	}
	var (
		builder  labels.ScratchBuilder
		metas    []chunks.Meta
		previous labels.Labels
	)
	for postings.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		ref := postings.At()
		if err := w.index.Series(ref, &builder, &metas); err != nil {
			if errors.Is(err, storage.ErrNotFound) {
				err = errors.New("the postings name it, and it is not there")
			}
			if err := w.fault(fmt.Errorf("series %d: %w", ref, err)); err != nil {
				return err
			}
			continue
		}
		current := builder.Labels()
		if w.found.Series > 0 && labels.Compare(previous, current) >= 0 {
			if err := w.fault(fmt.Errorf("series %s comes after series %s", current, previous)); err != nil {
				return err
			}
		}
		previous = current
		w.found.Series++
		w.found.Chunks += len(metas)
		if w.sums != nil {
			current.Range(func(l labels.Label) { w.sums.add(l.Name, l.Value, ref) })
		}
		if err := w.chunksOf(metas); err != nil {
			if err := w.fault(fmt.Errorf("series %s: %w", current, err)); err != nil {
				return err
			}
		}
	}
	return postings.Err()
}

// chunksOf checks the chunks of one series.
func (w *walk) chunksOf(metas []chunks.Meta) error {
	for _, meta := range metas {
		segment, _ := chunks.BlockChunkRef(meta.Ref).Unpack()
		if meta.Ref >= w.last[segment].Ref {
			w.last[segment] = meta
		}
	}
	if err := checkChunks(w.meta, metas); err != nil {
		return err
	}
	if disjoint.Overlap(metas) {
		w.found.Overlapping++
	}
	if w.depth != Full {
		return nil
	}
	samples, err := readChunks(w.chunks, metas)
	w.found.Samples += samples
	return err
}

// checkChunks checks the ranges of a series' chunks.
func checkChunks(meta tsdb.BlockMeta, metas []chunks.Meta) error {
	for _, chunk := range metas {
		if chunk.MinTime > chunk.MaxTime || chunk.MinTime < meta.MinTime || chunk.MaxTime >= meta.MaxTime {
			return fmt.Errorf("the chunk from %d to %d is not in the range that meta.json states, %d to %d",
				chunk.MinTime, chunk.MaxTime, meta.MinTime, meta.MaxTime)
		}
	}
	return nil
}

// readChunks reads and decodes the chunks of a series.
func readChunks(reader tsdb.ChunkReader, metas []chunks.Meta) (samples uint64, err error) {
	for _, meta := range metas {
		chunk, _, err := reader.ChunkOrIterable(meta)
		if err != nil {
			return samples, fmt.Errorf("chunk from %d: %w", meta.MinTime, err)
		}
		if err := chunkbounds.Check(chunk.Encoding(), chunk.Bytes()); err != nil {
			return samples, fmt.Errorf("chunk from %d: %w", meta.MinTime, err)
		}
		n, last := 0, int64(0)
		it := chunk.Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			at := it.AtT()
			if n > 0 && at <= last {
				return samples, fmt.Errorf("chunk from %d: the sample at %d comes after one at %d", meta.MinTime, at, last)
			}
			if at < meta.MinTime || at > meta.MaxTime {
				return samples, fmt.Errorf("chunk from %d to %d: it has a sample at %d", meta.MinTime, meta.MaxTime, at)
			}
			last = at
			n++
		}
		if err := it.Err(); err != nil {
			return samples, fmt.Errorf("chunk from %d: %w", meta.MinTime, err)
		}
		if n != chunk.NumSamples() {
			return samples, fmt.Errorf("chunk from %d: it has %d samples of %d", meta.MinTime, n, chunk.NumSamples())
		}
		samples += uint64(n)
	}
	return samples, nil
}
