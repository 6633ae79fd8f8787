package remoteblock

import (
	"context"
	"slices"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/encoding"
	"github.com/prometheus/prometheus/tsdb/index"
)

// eagerPostings is up to how many bytes of postings are loaded together with the part of
// the table that says which of them are wanted: that spares a round trip.
const eagerPostings = 1 << 20

// A selector's postings are not read when they are asked for but when the first of them
// is looked at: by then all lists of the selector are known, and are loaded at once.
type lazyPostings struct {
	ix *indexReader
	// What is wanted: of the label, the lists of values, or of those that match.
	label  *labelName
	values []string // in order; nil: see match
	match  func(string) bool

	lists    []Range // that were found to be wanted; the ends are bounds
	groups   []int   // whose values have to be looked at
	resolved bool
	list     index.Postings
}

func (p *lazyPostings) Next() bool {
	p.ix.resolve()
	return p.list.Next()
}

func (p *lazyPostings) Seek(v storage.SeriesRef) bool {
	p.ix.resolve()
	return p.list.Seek(v)
}

func (p *lazyPostings) At() storage.SeriesRef { return p.list.At() }

func (p *lazyPostings) Err() error {
	if p.list == nil {
		return nil
	}
	return p.list.Err()
}

// plan finds the lists, as far as the header knows them.
func (p *lazyPostings) plan() {
	if p.values == nil {
		for i := range p.label.groups {
			p.planGroup(i, func() bool { return p.match == nil || p.match(p.label.groups[i].first) })
		}
		return
	}
	last := -1
	for _, v := range p.values {
		i, ok := p.label.group(v)
		if !ok || i == last {
			continue
		}
		p.planGroup(i, func() bool { return p.label.groups[i].first == v })
		last = i
	}
}

func (p *lazyPostings) planGroup(i int, single func() bool) {
	if p.label.groups[i].count > 1 {
		p.groups = append(p.groups, i)
	} else if single() {
		p.lists = append(p.lists, p.label.postingsRange(i, i+1))
	}
}

// first returns what has to be loaded first: the lists that are known, and the parts of
// the table that tell the others, with their postings if they are small.
func (p *lazyPostings) first() []Range {
	ranges := slices.Clone(p.lists)
	small := int64(0)
	for _, i := range p.groups {
		ranges = append(ranges, p.label.tableRange(i, i+1))
		r := p.label.postingsRange(i, i+1)
		small += r.End - r.Start
	}
	if small <= eagerPostings {
		for _, i := range p.groups {
			ranges = append(ranges, p.label.postingsRange(i, i+1))
		}
	}
	return ranges
}

// look finds the wanted lists of the groups, whose part of the table is loaded.
func (p *lazyPostings) look(f file) error {
	for _, i := range p.groups {
		values, err := readTable(f, p.label, i, i+1)
		if err != nil {
			return err
		}
		for j, v := range values {
			if !p.wants(v.value) {
				continue
			}
			end := p.label.postingsRange(i, i+1).End
			if j+1 < len(values) {
				end = values[j+1].postings
			}
			p.lists = append(p.lists, part(v.postings, end))
		}
	}
	return nil
}

func (p *lazyPostings) wants(value string) bool {
	if p.values == nil {
		return p.match == nil || p.match(value)
	}
	_, found := slices.BinarySearch(p.values, value)
	return found
}

// resolve reads all postings that were asked for.
func (ix *indexReader) resolve() {
	if len(ix.pending) == 0 {
		return
	}
	pending := ix.pending
	ix.pending = nil
	err := ix.readPostings(pending)
	for _, p := range pending {
		p.resolved = true
		if err != nil {
			p.list = index.ErrPostings(ix.failed(err))
		}
	}
}

func (ix *indexReader) readPostings(pending []*lazyPostings) error {
	var ranges []Range
	for _, p := range pending {
		ranges = append(ranges, p.first()...)
	}
	ranges = append(ranges, ix.speculate()...)
	if err := ix.load(ix.ctx, ranges...); err != nil {
		return err
	}
	ranges = ranges[:0]
	for _, p := range pending {
		if err := p.look(ix.file); err != nil {
			return err
		}
		ranges = append(ranges, p.lists...)
	}
	if err := ix.load(ix.ctx, ranges...); err != nil {
		return err
	}
	for _, p := range pending {
		lists := make([]index.Postings, 0, len(p.lists))
		for _, r := range p.lists {
			list, err := ix.readList(r)
			if err != nil {
				return err
			}
			lists = append(lists, list)
		}
		p.list = index.Merge(ix.ctx, lists...)
	}
	return nil
}

// readList reads one list of postings, which is loaded.
func (ix *indexReader) readList(r Range) (index.Postings, error) {
	if r.End-r.Start < 12 {
		return nil, at(r.Start, damagef("the postings have %d bytes", r.End-r.Start))
	}
	if err := ix.sel.r.hold(r.End - r.Start); err != nil {
		return nil, err
	}
	p := make([]byte, r.End-r.Start)
	if err := readFull(ix.file, p, r.Start); err != nil {
		return nil, at(r.Start, err)
	}
	c := cursor{b: p}
	content := c.bytes(uint64(c.be32()))
	sum := c.be32()
	if c.bad {
		return nil, at(r.Start, damagef("the postings end early"))
	}
	if castagnoli(content) != sum {
		return nil, at(r.Start, damagef("the checksum of postings does not match"))
	}
	_, list, err := index.DecodePostingsRaw(encoding.Decbuf{B: content})
	if err != nil {
		return nil, at(r.Start, damagef("%w", err))
	}
	return list, nil
}

// speculate returns the series entries of the metric that is selected, if they are few:
// to load them now, needed or not, spares a round trip.
func (ix *indexReader) speculate() []Range {
	const few = 256 << 10
	if ix.metric == "" {
		return nil
	}
	r, ok := ix.h.metricRange(ix.metric)
	if !ok || r.End-r.Start > few {
		return nil
	}
	return []Range{r}
}

// expand collects at most limit postings; more says that there are others.
func expand(ctx context.Context, p index.Postings, limit int) (refs []storage.SeriesRef, more bool, err error) {
	for p.Next() {
		if len(refs) == limit {
			return refs, true, nil
		}
		refs = append(refs, p.At())
		if len(refs)%4096 == 0 && ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
	}
	return refs, false, p.Err()
}
