package remoteblock

import (
	"context"
	"errors"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

// indexReader implements tsdb.IndexReader for one Select. One goroutine at a time.
type indexReader struct {
	sel     *Selection
	ctx     context.Context //nolint:containedctx // half of tsdb.IndexReader has no place for it
	h       *header
	file    file
	symbols symbolReader
	entries entryReader

	pending []*lazyPostings
	metric  string // that was selected by name; "": none
	batch   *batch // the series entries that were read last; nil: none
}

var _ tsdb.IndexReader = (*indexReader)(nil)

func newIndexReader(sel *Selection) *indexReader {
	ix := &indexReader{sel: sel, ctx: sel.ctx, h: sel.r.header, file: sel.r.index}
	load := func(ctx context.Context, ranges ...Range) (int64, error) { return 0, ix.load(ctx, ranges...) }
	ix.symbols = newSymbolReader(ix.h, ix.file, load, sel.r.hold)
	ix.entries = entryReader{f: ix.file, h: ix.h, load: load}
	return ix
}

// load makes parts of the index resident.
func (ix *indexReader) load(ctx context.Context, ranges ...Range) error {
	if ix.sel.r.indexResident || len(ranges) == 0 {
		return nil
	}
	return ix.sel.r.load(ctx, ix.file, ranges...)
}

// failed makes err the error of the reader, and says where it happened.
func (ix *indexReader) failed(err error) error { return ix.sel.r.failed(indexName, err) }

// Symbols implements tsdb.IndexReader. The strings stay valid.
func (ix *indexReader) Symbols() index.StringIter {
	return &reportedStrings{ix: ix, in: &symbolIterator{ctx: ix.ctx, reader: newSymbolReader(ix.h, ix.file, ix.symbols.load, noHold)}}
}

// noHold is for memory that is let go at once.
func noHold(int64) error { return nil }

// reportedStrings says where in the block an error happened.
type reportedStrings struct {
	ix *indexReader
	in *symbolIterator
}

func (s *reportedStrings) Next() bool { return s.in.Next() }
func (s *reportedStrings) At() string { return s.in.At() }
func (s *reportedStrings) Err() error { return s.ix.failed(s.in.Err()) }

// SortedLabelValues implements tsdb.IndexReader.
func (ix *indexReader) SortedLabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, error) {
	return ix.LabelValues(ctx, name, hints, matchers...) // they are sorted
}

// LabelValues implements tsdb.IndexReader.
func (ix *indexReader) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, error) {
	limit := 0
	if hints != nil {
		limit = hints.Limit
	}
	values, err := ix.labelValues(ctx, name, limit, matchers)
	return values, ix.failed(err)
}

func (ix *indexReader) labelValues(ctx context.Context, name string, limit int, matchers []*labels.Matcher) ([]string, error) {
	label := ix.h.label(name)
	if label == nil {
		return nil, nil
	}
	others := slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return m.Name != name })
	wanted := func(value string) bool {
		for _, m := range matchers {
			if m.Name == name && !m.Matches(value) {
				return false
			}
		}
		return true
	}
	if others {
		return ix.labelValuesOf(ctx, label, limit, wanted, matchers)
	}
	var values []string
	for from := 0; from < len(label.groups); {
		// Much at once, but not more than the limit needs.
		count, to := 0, from
		for to < len(label.groups) && (to == from || label.tableRange(from, to).End-label.groups[from].table < scanWindow) {
			if limit > 0 && len(matchers) == 0 && len(values)+count >= limit {
				break
			}
			count += int(label.groups[to].count)
			to++
		}
		if to == from {
			break
		}
		found, err := ix.tableValues(ctx, label, from, to)
		if err != nil {
			return nil, err
		}
		for _, v := range found {
			if !wanted(v.value) {
				continue
			}
			if values = append(values, v.value); limit > 0 && len(values) == limit {
				return values, nil
			}
		}
		from = to
	}
	return values, nil
}

func (ix *indexReader) tableValues(ctx context.Context, label *labelName, from, to int) ([]tableValue, error) {
	r := label.tableRange(from, to)
	if err := ix.sel.r.hold(2 * (r.End - r.Start)); err != nil {
		return nil, err
	}
	if err := ix.load(ctx, r); err != nil {
		return nil, err
	}
	return readTable(ix.file, label, from, to)
}

// labelValuesOf returns the values of a label that series which match have. It reads
// either these series, or the postings of all values, whichever is less.
func (ix *indexReader) labelValuesOf(ctx context.Context, label *labelName, limit int, wanted func(string) bool, matchers []*labels.Matcher) ([]string, error) {
	p, err := tsdb.PostingsForMatchers(ctx, ix, slices.Clone(matchers)...)
	if err != nil {
		return nil, err
	}
	lists := label.postingsRange(0, len(label.groups))
	few := int((lists.End - lists.Start) / max(ix.h.entryGuess()/2, 1))
	refs, more, err := expand(ctx, p, few+64)
	if err != nil {
		return nil, err
	}
	var values []string
	if !more {
		values, err = ix.valuesOfSeries(ctx, label.name, refs)
	} else {
		values, err = ix.valuesByPostings(ctx, label, matchers)
	}
	if err != nil {
		return nil, err
	}
	values = slices.DeleteFunc(values, func(v string) bool { return !wanted(v) })
	if limit > 0 && len(values) > limit {
		values = values[:limit]
	}
	return values, nil
}

func (ix *indexReader) valuesOfSeries(ctx context.Context, name string, refs []storage.SeriesRef) ([]string, error) {
	seen := map[uint32]struct{}{}
	nameRef := int64(-1)
	var fault error
	err := ix.eachEntry(ctx, index.NewListPostings(refs), func(content []byte) {
		labelRefs(content, func(n, v uint32) {
			if nameRef < 0 {
				text, err := ix.symbols.lookup(ctx, n)
				if fault = errors.Join(fault, err); err != nil || text != name {
					return
				}
				nameRef = int64(n)
			}
			if int64(n) == nameRef {
				seen[v] = struct{}{}
			}
		})
	})
	if err = errors.Join(err, fault); err != nil {
		return nil, err
	}
	return ix.texts(ctx, seen)
}

// texts returns symbols in order.
func (ix *indexReader) texts(ctx context.Context, refs map[uint32]struct{}) ([]string, error) {
	out := make([]string, 0, len(refs))
	for ref := range refs {
		text, err := ix.symbols.lookup(ctx, ref)
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out, nil
}

func (ix *indexReader) valuesByPostings(ctx context.Context, label *labelName, matchers []*labels.Matcher) ([]string, error) {
	p, err := tsdb.PostingsForMatchers(ctx, ix, slices.Clone(matchers)...)
	if err != nil {
		return nil, err
	}
	all, err := ix.tableValues(ctx, label, 0, len(label.groups))
	if err != nil {
		return nil, err
	}
	lists := make([]index.Postings, len(all))
	for i, v := range all {
		lists[i] = ix.ask(&lazyPostings{label: label, values: []string{v.value}})
	}
	found, err := index.FindIntersectingPostings(p, lists)
	if err != nil {
		return nil, err
	}
	slices.Sort(found)
	values := make([]string, len(found))
	for i, f := range found {
		values[i] = all[f].value
	}
	return values, nil
}

// Postings implements tsdb.IndexReader.
func (ix *indexReader) Postings(_ context.Context, name string, values ...string) (index.Postings, error) {
	label := ix.h.label(name)
	if label == nil || len(values) == 0 {
		return index.EmptyPostings(), nil
	}
	values = slices.Clone(values)
	slices.Sort(values)
	if name == model.MetricNameLabel && len(values) == 1 {
		ix.metric = values[0]
	}
	return ix.ask(&lazyPostings{label: label, values: slices.Compact(values)}), nil
}

// PostingsForLabelMatching implements tsdb.IndexReader.
func (ix *indexReader) PostingsForLabelMatching(_ context.Context, name string, match func(string) bool) index.Postings {
	label := ix.h.label(name)
	if label == nil {
		return index.EmptyPostings()
	}
	return ix.ask(&lazyPostings{label: label, match: match})
}

// PostingsForAllLabelValues implements tsdb.IndexReader.
func (ix *indexReader) PostingsForAllLabelValues(ctx context.Context, name string) index.Postings {
	return ix.PostingsForLabelMatching(ctx, name, nil)
}

func (ix *indexReader) ask(p *lazyPostings) index.Postings {
	p.ix = ix
	p.plan()
	if len(p.lists) == 0 && len(p.groups) == 0 {
		return index.EmptyPostings()
	}
	ix.pending = append(ix.pending, p)
	return p
}

// SortedPostings implements tsdb.IndexReader: references rise in the order of labels.
// What it returns reads series in batches, and their chunks ahead.
func (ix *indexReader) SortedPostings(p index.Postings) index.Postings {
	if b, ok := p.(*batchedPostings); ok || index.IsEmptyPostingsType(p) {
		if ok {
			return b
		}
		return p
	}
	return ix.batched(p)
}

// ShardedPostings implements tsdb.IndexReader.
func (ix *indexReader) ShardedPostings(p index.Postings, shardIndex, shardCount uint64) index.Postings {
	b := ix.batched(p)
	b.shard, b.shards = shardIndex, shardCount
	return b
}

func (ix *indexReader) batched(p index.Postings) *batchedPostings {
	size := firstBatch
	if !ix.sel.r.indexResident {
		size = maxBatch // a round trip takes longer than to read them all
	}
	return &batchedPostings{ix: ix, in: p, size: size}
}

// Series implements tsdb.IndexReader.
func (ix *indexReader) Series(ref storage.SeriesRef, builder *labels.ScratchBuilder, out *[]chunks.Meta) error {
	builder.Reset()
	if out != nil {
		*out = (*out)[:0]
	}
	content, err := ix.entry(ix.ctx, ref)
	if err != nil {
		return ix.failed(err)
	}
	rest, err := decodeLabels(content, func(s uint32) (string, error) { return ix.symbols.lookup(ix.ctx, s) }, builder)
	if err != nil {
		return ix.failed(at(int64(ref)*seriesAlign, err))
	}
	if out == nil {
		return nil
	}
	if err := appendChunks(rest, out); err != nil {
		return ix.failed(at(int64(ref)*seriesAlign, err))
	}
	if err := ix.sel.r.checkTimes(*out); err != nil {
		return ix.failed(at(int64(ref)*seriesAlign, err))
	}
	return nil
}

// entry returns the content of the entry of a series, from the batch at hand if it is
// there.
func (ix *indexReader) entry(ctx context.Context, ref storage.SeriesRef) ([]byte, error) {
	if ix.batch != nil {
		if content := ix.batch.entry(int64(ref) * seriesAlign); content != nil {
			return content, nil
		}
	}
	return ix.entries.read(ctx, uint64(ref))
}

// LabelNames implements tsdb.IndexReader.
func (ix *indexReader) LabelNames(ctx context.Context, matchers ...*labels.Matcher) ([]string, error) {
	if len(matchers) > 0 {
		p, err := tsdb.PostingsForMatchers(ctx, ix, slices.Clone(matchers)...)
		if err != nil {
			return nil, ix.failed(err)
		}
		return ix.LabelNamesFor(ctx, p)
	}
	names := make([]string, 0, len(ix.h.names))
	for i := range ix.h.names {
		if name := ix.h.names[i].name; name != "" { // that has all series
			names = append(names, name)
		}
	}
	return names, nil
}

// LabelNamesFor implements tsdb.IndexReader.
func (ix *indexReader) LabelNamesFor(ctx context.Context, p index.Postings) ([]string, error) {
	seen := map[uint32]struct{}{}
	err := ix.eachEntry(ctx, p, func(content []byte) {
		labelRefs(content, func(name, _ uint32) { seen[name] = struct{}{} })
	})
	if err != nil {
		return nil, ix.failed(err)
	}
	names, err := ix.texts(ctx, seen)
	return names, ix.failed(err)
}

// eachEntry calls f with the entry of each series.
func (ix *indexReader) eachEntry(ctx context.Context, p index.Postings, f func(content []byte)) error {
	batched := ix.batched(p)
	batched.noChunks = true
	for n := 0; batched.Next(); n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		content, err := ix.entry(ctx, batched.At())
		if err != nil {
			return at(int64(batched.At())*seriesAlign, err)
		}
		f(content)
	}
	return batched.Err()
}

// Close implements tsdb.IndexReader.
func (ix *indexReader) Close() error {
	ix.batch, ix.pending = nil, nil
	ix.symbols.pages = nil
	return nil
}
