package remoteblock

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

const (
	// A batch is series whose entries are read at once: few at first, so that the first
	// series is there soon, and then ever more.
	firstBatch = 512
	maxBatch   = 8192
	// maxBatchBytes ends a batch whose entries are large.
	maxBatchBytes = 8 << 20
	// entryGap is up to how many bytes between two entries are read along with them.
	entryGap = 4 << 10
)

// batch is the entries of series that were read together.
type batch struct {
	extents []extent // in order
	at      int      // where the last entry was
}

// extent is a part of the index in memory.
type extent struct {
	start int64
	data  []byte
}

// entry returns the content of the entry at offset; nil if it is not in the batch, or
// is damaged: whoever reads it from the file will say so.
func (b *batch) entry(offset int64) []byte {
	if b.at >= len(b.extents) || !b.extents[b.at].contains(offset) {
		i, found := slices.BinarySearchFunc(b.extents, offset, func(e extent, o int64) int {
			switch {
			case e.start > o:
				return 1
			case e.contains(o):
				return 0
			}
			return -1
		})
		if !found {
			return nil
		}
		b.at = i
	}
	e := &b.extents[b.at]
	content, _, err := parseEntry(e.data[offset-e.start:])
	if err != nil {
		return nil
	}
	return content
}

func (e *extent) contains(offset int64) bool {
	return offset >= e.start && offset < e.start+int64(len(e.data))
}

// batchedPostings passes postings on, after it has read the series that they refer to.
// It may keep the series of one shard only.
type batchedPostings struct {
	ix            *indexReader
	in            index.Postings
	size          int // of the next batch
	shard, shards uint64
	noChunks      bool

	next    *collected          // the next batch, if it was collected; else nil
	refs    []storage.SeriesRef // of this batch
	pos     int                 // of the current one, plus one
	ended   bool
	builder labels.ScratchBuilder
	err     error
}

func (p *batchedPostings) Next() bool {
	for p.pos >= len(p.refs) {
		if p.err != nil || p.ended {
			return false
		}
		if err := p.fill(); err != nil {
			p.err = p.ix.failed(err)
			p.refs = nil
			return false
		}
	}
	p.pos++
	return true
}

func (p *batchedPostings) Seek(v storage.SeriesRef) bool {
	if p.pos > 0 && p.pos <= len(p.refs) && p.refs[p.pos-1] >= v {
		return true
	}
	for p.Next() {
		if p.At() >= v {
			return true
		}
	}
	return false
}

func (p *batchedPostings) At() storage.SeriesRef { return p.refs[p.pos-1] }

func (p *batchedPostings) Err() error {
	if p.err != nil {
		return p.err
	}
	return p.in.Err()
}

// collected is the postings of a batch, and where their entries are.
type collected struct {
	refs    []storage.SeriesRef
	extents []Range
	bytes   int64
	loaded  chan error // of loading the extents ahead; nil: nobody does
}

// fill reads the next batch, and lets the one after it be loaded meanwhile.
func (p *batchedPostings) fill() error {
	next := p.next
	p.next = nil
	if next == nil {
		var err error
		if next, err = p.collect(); err != nil {
			return err
		}
	}
	p.refs, p.pos = next.refs, 0
	if len(p.refs) == 0 {
		return nil
	}
	if err := p.read(next); err != nil {
		return err
	}
	if p.shards > 0 {
		if err := p.keepShard(); err != nil {
			return err
		}
	}
	if !p.noChunks {
		if err := p.ix.sel.ahead(p.ix, p.refs); err != nil {
			return err
		}
	}
	return p.prefetch()
}

// collect takes the postings of the next batch.
func (p *batchedPostings) collect() (*collected, error) {
	h := p.ix.h
	guess := h.entryGuess()
	c := &collected{}
	for len(c.refs) < p.size && c.bytes < maxBatchBytes {
		if !p.in.Next() {
			p.ended = true
			break
		}
		ref := p.in.At()
		if uint64(ref) > uint64(h.seriesEnd())/seriesAlign {
			return nil, damagef("the postings name series %d, which is outside of the index", ref)
		}
		c.refs = append(c.refs, ref)
		start := int64(ref) * seriesAlign
		end := min(start+guess, h.seriesEnd())
		if last := len(c.extents) - 1; last >= 0 && start >= c.extents[last].Start && start <= c.extents[last].End+entryGap {
			c.bytes += max(end-c.extents[last].End, 0)
			c.extents[last].End = max(c.extents[last].End, end)
		} else if end > start {
			c.bytes += end - start
			c.extents = append(c.extents, part(start, end))
		}
	}
	p.size = min(2*p.size, maxBatch)
	return c, p.in.Err()
}

// prefetch lets the entries of the next batch be loaded, if they may be elsewhere.
func (p *batchedPostings) prefetch() error {
	if p.ended || p.ix.sel.r.indexResident {
		return nil
	}
	next, err := p.collect()
	if err != nil {
		return err
	}
	p.next = next
	loaded := make(chan error, 1)
	if p.ix.sel.r.spawn(func() { loaded <- p.ix.load(p.ix.ctx, next.extents...) }) {
		next.loaded = loaded
	}
	return nil
}

func (p *batchedPostings) read(c *collected) error {
	if err := p.ix.sel.holdBatch(c.bytes); err != nil {
		return err
	}
	if c.loaded != nil {
		if err := <-c.loaded; err != nil {
			return err
		}
	} else if err := p.ix.load(p.ix.ctx, c.extents...); err != nil {
		return err
	}
	b := &batch{extents: make([]extent, len(c.extents))}
	data := make([]byte, c.bytes)
	for i, r := range c.extents {
		n := r.End - r.Start
		into := data[:n:n]
		data = data[n:]
		if err := readFull(p.ix.file, into, r.Start); err != nil {
			return at(r.Start, err)
		}
		b.extents[i] = extent{r.Start, into}
	}
	p.ix.batch = b
	return nil
}

// keepShard drops the series of other shards.
func (p *batchedPostings) keepShard() error {
	kept := p.refs[:0]
	for _, ref := range p.refs {
		if err := p.ix.Series(ref, &p.builder, nil); err != nil {
			return err
		}
		if labels.StableHash(p.builder.Labels())%p.shards == p.shard {
			kept = append(kept, ref)
		}
	}
	p.refs = kept
	return nil
}

// ahead plans to load the chunks of a batch of series and the symbols of their labels.
func (sel *Selection) ahead(ix *indexReader, refs []storage.SeriesRef) error {
	if sel.r.local {
		return nil
	}
	var (
		pages  map[int]struct{}
		metas  []chunks.Meta
		symbol = func(_, _ uint32) {}
	)
	if !sel.r.indexResident {
		pages = map[int]struct{}{}
		symbol = func(name, value uint32) {
			pages[int(name/symbolsPerPage)] = struct{}{}
			pages[int(value/symbolsPerPage)] = struct{}{}
		}
	}
	for _, ref := range refs {
		content, err := ix.entry(ix.ctx, ref)
		if err != nil {
			return at(int64(ref)*seriesAlign, err)
		}
		rest := labelRefs(content, symbol)
		metas = metas[:0]
		if rest == nil || appendChunks(rest, &metas) != nil || !sel.chunks {
			continue // Series says what is wrong with it
		}
		sel.plan.add(sel, metas)
	}
	sel.plan.start(sel)
	if len(pages) == 0 {
		return nil
	}
	ranges := make([]Range, 0, len(pages))
	for page := range pages {
		if page < len(ix.h.symbols.pages) && (ix.symbols.pages == nil || ix.symbols.pages[page] == nil) {
			ranges = append(ranges, ix.h.symbols.pageRange(page))
		}
	}
	slices.SortFunc(ranges, func(a, b Range) int { return int(a.Start - b.Start) })
	return ix.load(ix.ctx, ranges...)
}
