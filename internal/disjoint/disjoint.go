// Package disjoint reads blocks with series whose chunks overlap, which Prometheus never
// writes and other programs have written. Prometheus's readers give the samples of such
// chunks one chunk after the other, so that time goes back within a series, and its
// compaction fails. Here those of a series that overlap are given as one, with the samples
// in order, and of those with the same time one. Other series pass as they are.
//
// It decorates a tsdb.BlockReader below whatever selects, masks or merges.
package disjoint

import (
	"cmp"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Block returns block with chunks that do not overlap.
func Block(block tsdb.BlockReader) tsdb.BlockReader { return reader{block} }

// Overlap tells whether chunks of a series overlap, or are not in order of time.
func Overlap(metas []chunks.Meta) bool {
	for i := 1; i < len(metas); i++ {
		if metas[i].MinTime <= metas[i-1].MaxTime {
			return true
		}
	}
	return false
}

type reader struct{ tsdb.BlockReader }

// Index implements tsdb.BlockReader.
func (r reader) Index() (tsdb.IndexReader, error) {
	next, err := r.BlockReader.Index()
	if err != nil {
		return nil, err
	}
	return indexReader{next}, nil
}

// Chunks implements tsdb.BlockReader.
func (r reader) Chunks() (tsdb.ChunkReader, error) {
	next, err := r.BlockReader.Chunks()
	if err != nil {
		return nil, err
	}
	return chunkReader{next}, nil
}

type indexReader struct{ tsdb.IndexReader }

// Series implements tsdb.IndexReader.
func (r indexReader) Series(ref storage.SeriesRef, builder *labels.ScratchBuilder, metas *[]chunks.Meta) error {
	if err := r.IndexReader.Series(ref, builder, metas); err != nil || metas == nil || !Overlap(*metas) {
		return err
	}
	*metas = grouped(*metas)
	return nil
}

// group stands for chunks of a series that overlap, in the place of a chunk of an index,
// which has none.
type group struct {
	chunkenc.Chunk // nil
	members        []chunks.Meta
}

// grouped makes one meta of those that overlap.
func grouped(metas []chunks.Meta) []chunks.Meta {
	sorted := slices.Clone(metas) // members outlive the buffer of the caller
	slices.SortStableFunc(sorted, func(a, b chunks.Meta) int { return cmp.Compare(a.MinTime, b.MinTime) })
	out := metas[:0]
	for from := 0; from < len(sorted); {
		one, to := sorted[from], from+1
		for ; to < len(sorted) && sorted[to].MinTime <= one.MaxTime; to++ {
			one.MaxTime = max(one.MaxTime, sorted[to].MaxTime)
		}
		if to > from+1 {
			one.Chunk = group{members: sorted[from:to]}
		}
		out = append(out, one)
		from = to
	}
	return out
}

type chunkReader struct{ tsdb.ChunkReader }

// ChunkOrIterable implements tsdb.ChunkReader.
func (r chunkReader) ChunkOrIterable(meta chunks.Meta) (chunkenc.Chunk, chunkenc.Iterable, error) {
	g, ok := meta.Chunk.(group)
	if !ok {
		return r.ChunkReader.ChunkOrIterable(meta)
	}
	all := make(merged, len(g.members))
	for i, member := range g.members {
		chunk, iterable, err := r.ChunkReader.ChunkOrIterable(member)
		if err != nil {
			return nil, nil, err
		}
		if all[i] = iterable; chunk != nil {
			all[i] = chunk
		}
	}
	return nil, all, nil
}

// merged are the samples of several chunks of one series.
type merged []chunkenc.Iterable

// Iterator implements chunkenc.Iterable.
func (m merged) Iterator(chunkenc.Iterator) chunkenc.Iterator {
	iterators := make([]chunkenc.Iterator, len(m))
	for i, one := range m {
		iterators[i] = one.Iterator(nil)
	}
	return storage.ChainSampleIteratorFromIterators(nil, iterators)
}
