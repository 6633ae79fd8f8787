package blockwriter

import (
	"context"
	"errors"
	"io"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// source is the inputs of one call of Write.
type source struct {
	inputs     []input
	mint, maxt int64 // both inclusive
	opened     []io.Closer
}

// input is one of them, opened.
type input struct {
	meta       tsdb.BlockMeta
	index      tsdb.IndexReader
	chunks     tsdb.ChunkReader
	tombstones tombstones.Reader
	// refs are all its series in order, if they were needed twice.
	refs []storage.SeriesRef
	all  index.Postings

	scratch []chunks.Meta
}

// open opens the inputs. maxt is exclusive, as in metas.
func open(ctx context.Context, blocks []tsdb.BlockReader, mint, maxt int64) (_ *source, err error) {
	s := &source{mint: mint, maxt: maxt - 1}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, block := range blocks {
		in := input{meta: block.Meta()}
		if in.index, err = block.Index(); err != nil {
			return nil, err
		}
		s.opened = append(s.opened, in.index)
		if in.chunks, err = block.Chunks(); err != nil {
			return nil, err
		}
		s.opened = append(s.opened, in.chunks)
		if in.tombstones, err = block.Tombstones(); err != nil {
			return nil, err
		}
		s.opened = append(s.opened, in.tombstones)
		in.all = tsdb.AllSortedPostings(ctx, in.index)
		s.inputs = append(s.inputs, in)
	}
	return s, nil
}

func (s *source) close() error {
	var errs []error
	for _, c := range s.opened {
		errs = append(errs, c.Close())
	}
	s.opened = nil
	return errors.Join(errs...)
}

// symbols returns the symbols of all inputs, in order. It can be called once.
func (s *source) symbols() index.StringIter {
	iters := make([]index.StringIter, len(s.inputs))
	for i, in := range s.inputs {
		iters[i] = in.index.Symbols()
	}
	// Merged in pairs, each symbol passes as many mergers as there are doublings.
	for len(iters) > 1 {
		var next []index.StringIter
		for i := 0; i < len(iters); i += 2 {
			if i+1 == len(iters) {
				next = append(next, iters[i])
				break
			}
			next = append(next, tsdb.NewMergedStringIter(iters[i], iters[i+1]))
		}
		iters = next
	}
	return iters[0]
}

// merged returns the series of all inputs, in order, with their chunks merged. It can be
// called once.
func (s *source) merged(merge func([]storage.ChunkSeriesSet) storage.ChunkSeriesSet) storage.ChunkSeriesSet {
	sets := make([]storage.ChunkSeriesSet, len(s.inputs))
	for i, in := range s.inputs {
		all := in.all
		if in.refs != nil {
			all = index.NewListPostings(in.refs)
		}
		sets[i] = tsdb.NewBlockChunkSeriesSet(in.meta.ULID, in.index, in.chunks, in.tombstones, all, s.mint, s.maxt, false)
	}
	if merge == nil {
		merge = Merge
	}
	return merge(sets)
}

// Merge merges series by time: chunks that are the same are taken once, and of samples
// with the same time one is kept.
func Merge(sets []storage.ChunkSeriesSet) storage.ChunkSeriesSet {
	if len(sets) == 1 {
		return sets[0]
	}
	// Samples of chunks that overlap are encoded as those of heads are.
	merge := storage.NewCompactingChunkSeriesMergerWithFloatEncoding(storage.ChainedSeriesMerge, func() chunkenc.Encoding { return chunkenc.EncXOR2 })
	return storage.NewMergeChunkSeriesSet(sets, 0, merge)
}
