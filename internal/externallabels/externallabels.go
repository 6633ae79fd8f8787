// Package externallabels gives the series of a block the labels that its meta.json says
// they have beside their own: those that a Prometheus adds to all it sends, and that
// Thanos, Cortex and Mimir keep with the block and not in its index. A label that a series
// has itself wins, as in Prometheus.
//
// It is a decorator of tsdb.BlockReader, so that selectors, names, values, shards and the
// order of series are right wherever the block is read.
package externallabels

import (
	"context"
	"maps"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

// Add returns block with labels added to its series; without labels it is block itself.
func Add(block tsdb.BlockReader, external map[string]string) tsdb.BlockReader {
	if len(external) == 0 {
		return block
	}
	return reader{BlockReader: block, external: external}
}

type reader struct {
	tsdb.BlockReader
	external map[string]string
}

// Index implements tsdb.BlockReader.
func (r reader) Index() (tsdb.IndexReader, error) {
	next, err := r.BlockReader.Index()
	if err != nil {
		return nil, err
	}
	return &indexReader{IndexReader: next, external: r.external, names: slices.Sorted(maps.Keys(r.external))}, nil
}

// indexReader is an index with external labels. Series are told by the references that
// the index gives them.
type indexReader struct {
	tsdb.IndexReader
	external map[string]string
	names    []string // of external, in order
}

// Symbols implements tsdb.IndexReader.
func (r *indexReader) Symbols() index.StringIter {
	symbols := append(slices.Clone(r.names), slices.Collect(maps.Values(r.external))...)
	slices.Sort(symbols)
	return tsdb.NewMergedStringIter(r.IndexReader.Symbols(), index.NewStringListIter(slices.Compact(symbols)))
}

// Series implements tsdb.IndexReader.
func (r *indexReader) Series(ref storage.SeriesRef, builder *labels.ScratchBuilder, metas *[]chunks.Meta) error {
	if err := r.IndexReader.Series(ref, builder, metas); err != nil || builder == nil {
		return err
	}
	own := builder.Labels()
	all := labels.NewBuilder(own)
	for _, name := range r.names {
		if !own.Has(name) {
			all.Set(name, r.external[name])
		}
	}
	builder.Assign(all.Labels())
	return nil
}

// others returns the series that have no label of that name themselves.
func (r *indexReader) others(ctx context.Context, name string) (index.Postings, error) {
	all, err := r.IndexReader.Postings(ctx, "", "")
	if err != nil {
		return nil, err
	}
	return index.Without(all, r.IndexReader.PostingsForAllLabelValues(ctx, name)), nil
}

// Postings implements tsdb.IndexReader.
func (r *indexReader) Postings(ctx context.Context, name string, values ...string) (index.Postings, error) {
	value, ok := r.external[name]
	if !ok || !slices.Contains(values, value) {
		return r.IndexReader.Postings(ctx, name, values...)
	}
	own, err := r.IndexReader.Postings(ctx, name, values...)
	if err != nil {
		return nil, err
	}
	others, err := r.others(ctx, name)
	if err != nil {
		return nil, err
	}
	return index.Merge(ctx, own, others), nil
}

// PostingsForLabelMatching implements tsdb.IndexReader.
func (r *indexReader) PostingsForLabelMatching(ctx context.Context, name string, match func(string) bool) index.Postings {
	own := r.IndexReader.PostingsForLabelMatching(ctx, name, match)
	value, ok := r.external[name]
	if !ok || !match(value) {
		return own
	}
	others, err := r.others(ctx, name)
	if err != nil {
		return index.ErrPostings(err)
	}
	return index.Merge(ctx, own, others)
}

// PostingsForAllLabelValues implements tsdb.IndexReader.
func (r *indexReader) PostingsForAllLabelValues(ctx context.Context, name string) index.Postings {
	if _, ok := r.external[name]; !ok {
		return r.IndexReader.PostingsForAllLabelValues(ctx, name)
	}
	all, err := r.IndexReader.Postings(ctx, "", "")
	if err != nil {
		return index.ErrPostings(err)
	}
	return all
}

// SortedPostings implements tsdb.IndexReader. One more label changes the order of series
// only where one has all labels of the other, so mostly there is nothing to sort.
func (r *indexReader) SortedPostings(p index.Postings) index.Postings {
	p = r.ahead(p)
	var (
		refs     []storage.SeriesRef
		builder  labels.ScratchBuilder
		previous labels.Labels
		sorted   = true
	)
	for first := true; p.Next(); first = false {
		ref := p.At()
		if err := r.Series(ref, &builder, nil); err != nil {
			return index.ErrPostings(err)
		}
		current := builder.Labels()
		sorted = sorted && (first || labels.Compare(previous, current) < 0)
		previous = current
		refs = append(refs, ref)
	}
	if err := p.Err(); err != nil {
		return index.ErrPostings(err)
	}
	if sorted {
		return index.NewListPostings(refs)
	}
	return r.sort(refs)
}

// loadedPostings are postings whose series the index has read already.
type loadedPostings struct{ index.Postings }

// ahead returns p so that the index reads the series it names, and their chunks, before
// they are asked for, and many at once: it may be far away. It MUST be done once for a
// Select, since chunks are expected to be wanted in the order in which they are named.
func (r *indexReader) ahead(p index.Postings) index.Postings {
	if loaded, ok := p.(loadedPostings); ok {
		return loaded.Postings
	}
	return r.IndexReader.SortedPostings(p)
}

func (r *indexReader) sort(refs []storage.SeriesRef) index.Postings {
	type series struct {
		ref    storage.SeriesRef
		labels labels.Labels
	}
	var builder labels.ScratchBuilder
	all := make([]series, len(refs))
	for i, ref := range refs {
		if err := r.Series(ref, &builder, nil); err != nil {
			return index.ErrPostings(err)
		}
		all[i] = series{ref, builder.Labels()}
	}
	slices.SortFunc(all, func(a, b series) int { return labels.Compare(a.labels, b.labels) })
	for i := range all {
		refs[i] = all[i].ref
	}
	return index.NewListPostings(refs)
}

// ShardedPostings implements tsdb.IndexReader.
func (r *indexReader) ShardedPostings(p index.Postings, shard, count uint64) index.Postings {
	var (
		refs    []storage.SeriesRef
		builder labels.ScratchBuilder
	)
	p = r.ahead(p)
	for p.Next() {
		ref := p.At()
		if err := r.Series(ref, &builder, nil); err != nil {
			return index.ErrPostings(err)
		}
		if labels.StableHash(builder.Labels())%count == shard {
			refs = append(refs, ref)
		}
	}
	if err := p.Err(); err != nil {
		return index.ErrPostings(err)
	}
	return loadedPostings{index.NewListPostings(refs)}
}
