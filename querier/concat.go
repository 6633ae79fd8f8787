package querier

import (
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// concatSeries is a series whose samples lie in several places. What does not overlap
// in time is read one after the other, each place only when the one before it is used up,
// so that a long query holds the chunks of one block at a time; a merge of all, as
// storage.ChainedSeriesMerge does it, would open every block at the first sample. The
// samples are the same.
type concatSeries struct {
	labels labels.Labels
	parts  []seriesPart // in order of time
	recent []storage.Series
	// single says that there is one part in all: then nothing is merged.
	single bool
}

// seriesPart is what one block has, or several that overlap.
type seriesPart struct {
	storage.Series
	end  int64 // ms, exclusive: no sample is later
	fail func(error) error
}

func (p *seriesPart) failed(err error) error {
	if err != nil && p.fail != nil {
		return p.fail(err)
	}
	return err
}

// concatSamples merges the pieces of one series.
func concatSamples(pieces []fragment[storage.Series]) storage.Series {
	s := &concatSeries{labels: pieces[0].series.Labels(), single: len(pieces) == 1}
	groups, recent := spans(pieces)
	s.parts = make([]seriesPart, 0, len(groups))
	for _, g := range groups {
		part := seriesPart{Series: g[0].series, end: g[0].maxt, fail: g[0].fail}
		if len(g) > 1 {
			several := make([]storage.Series, len(g))
			for i, p := range g {
				several[i] = &failingSeries{p.series, p.fail}
				part.end = max(part.end, p.maxt)
			}
			part.Series, part.fail = storage.ChainedSeriesMerge(several...), nil
		}
		s.parts = append(s.parts, part)
	}
	for _, p := range recent {
		s.recent = append(s.recent, p.series)
	}
	if s.single && len(s.recent) == 1 {
		return s.recent[0]
	}
	return s
}

func (s *concatSeries) Labels() labels.Labels { return s.labels }

// Iterator implements storage.Series.
func (s *concatSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	c, ok := it.(*concatIterator)
	if !ok {
		c = &concatIterator{}
	}
	spare := c.at
	if spare == nil {
		spare = c.spare
	}
	*c = concatIterator{parts: s.parts, recent: s.recent, single: s.single, spare: spare}
	return c
}

// concatIterator iterates over the samples of a concatSeries.
type concatIterator struct {
	parts  []seriesPart // that come after the current one
	recent []storage.Series
	single bool

	at    chunkenc.Iterator  // nil: none is open
	part  seriesPart         // of at
	spare chunkenc.Iterator  // to be used again
	kind  chunkenc.ValueType // of the current sample; ValNone: there is none
	// consecutive says that the current sample follows the one before in the same place.
	// If not, nobody knows whether a counter was reset in between.
	consecutive bool
	err         error
}

// open opens the next place; ok is false if there is none.
func (c *concatIterator) open() (ok bool) {
	if len(c.recent) > 0 {
		c.joinRecent()
	}
	if c.err != nil || len(c.parts) == 0 {
		return false
	}
	c.part, c.parts = c.parts[0], c.parts[1:]
	c.at = c.part.Iterator(c.spare)
	c.spare = nil
	return true
}

// joinRecent makes one part of the recent samples and of those parts that may overlap
// with them, which are few: their first sample says which.
func (c *concatIterator) joinRecent() {
	recent := c.recent
	c.recent = nil
	joined := len(c.parts) // the first part that may overlap
	for _, s := range recent {
		it := s.Iterator(nil)
		if it.Next() == chunkenc.ValNone {
			if c.err = it.Err(); c.err != nil {
				return
			}
			continue
		}
		first := it.AtT()
		for joined > 0 && c.parts[joined-1].end > first {
			joined--
		}
	}
	several := make([]storage.Series, 0, len(c.parts)-joined+len(recent))
	for i := range c.parts[joined:] {
		p := &c.parts[joined+i]
		several = append(several, &failingSeries{p.Series, p.fail})
	}
	several = append(several, recent...)
	part := seriesPart{Series: several[0], end: maxTime}
	if len(several) > 1 {
		part.Series = storage.ChainedSeriesMerge(several...)
	}
	c.parts = append(c.parts[:joined:joined], part)
}

// close ends the current place, which has no more samples or failed; it reports whether
// the next one may be opened.
func (c *concatIterator) close() bool {
	c.err = c.part.failed(c.at.Err())
	c.spare, c.at = c.at, nil
	return c.err == nil
}

func (c *concatIterator) Next() chunkenc.ValueType {
	if c.at != nil {
		if c.kind = c.at.Next(); c.kind != chunkenc.ValNone {
			c.consecutive = true
			return c.kind
		}
		if !c.close() {
			return chunkenc.ValNone
		}
	}
	for c.err == nil && c.open() {
		if c.kind = c.at.Next(); c.kind != chunkenc.ValNone {
			c.consecutive = false
			return c.kind
		}
		if !c.close() {
			break
		}
	}
	c.kind = chunkenc.ValNone
	return c.kind
}

func (c *concatIterator) Seek(t milliseconds) chunkenc.ValueType {
	if c.kind != chunkenc.ValNone && c.at.AtT() >= t {
		return c.kind
	}
	if c.at != nil {
		if c.part.end > t {
			if c.kind = c.at.Seek(t); c.kind != chunkenc.ValNone {
				c.consecutive = false
				return c.kind
			}
		}
		if !c.close() {
			return chunkenc.ValNone
		}
	}
	for c.err == nil {
		for len(c.recent) == 0 && len(c.parts) > 0 && c.parts[0].end <= t {
			c.parts = c.parts[1:]
		}
		if !c.open() {
			break
		}
		if c.part.end > t { // recent samples may have been joined in between
			if c.kind = c.at.Seek(t); c.kind != chunkenc.ValNone {
				c.consecutive = false
				return c.kind
			}
		}
		if !c.close() {
			break
		}
	}
	c.kind = chunkenc.ValNone
	return c.kind
}

func (c *concatIterator) At() (int64, float64) { return c.at.At() }
func (c *concatIterator) AtT() int64           { return c.at.AtT() }
func (c *concatIterator) AtST() int64          { return c.at.AtST() }

func (c *concatIterator) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, h := c.at.AtHistogram(h)
	if !c.single && !c.consecutive && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

func (c *concatIterator) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, h := c.at.AtFloatHistogram(h)
	if !c.single && !c.consecutive && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

func (c *concatIterator) Err() error {
	if c.err == nil && c.at != nil {
		return c.part.failed(c.at.Err())
	}
	return c.err
}

// failingSeries makes the errors of a series those of the query.
type failingSeries struct {
	storage.Series
	fail func(error) error
}

func (s *failingSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	f, ok := it.(*failingIterator)
	if !ok {
		f = &failingIterator{}
	}
	f.Iterator, f.fail = s.Series.Iterator(f.Iterator), s.fail
	return f
}

type failingIterator struct {
	chunkenc.Iterator
	fail func(error) error
}

func (f *failingIterator) Err() error {
	err := f.Iterator.Err()
	if err != nil && f.fail != nil {
		return f.fail(err)
	}
	return err
}

// concatChunks merges the pieces of one series of chunks. What overlaps is merged as
// Prometheus does, and the rest read one after the other.
func concatChunks(pieces []fragment[storage.ChunkSeries]) storage.ChunkSeries {
	for _, p := range pieces {
		if p.recent && len(pieces) > 1 { // it may overlap with any
			return mergeOverlapping(pieces)
		}
	}
	if len(pieces) == 1 {
		return &concatChunkSeries{labels: pieces[0].series.Labels(), parts: pieces}
	}
	groups, _ := spans(pieces)
	s := &concatChunkSeries{labels: pieces[0].series.Labels()}
	for _, g := range groups {
		if len(g) > 1 {
			g = []fragment[storage.ChunkSeries]{{series: mergeOverlapping(g)}}
		}
		s.parts = append(s.parts, g[0])
	}
	return s
}

func mergeOverlapping(pieces []fragment[storage.ChunkSeries]) storage.ChunkSeries {
	several := make([]storage.ChunkSeries, len(pieces))
	for i, p := range pieces {
		several[i] = &concatChunkSeries{labels: p.series.Labels(), parts: pieces[i : i+1]}
	}
	return storage.NewCompactingChunkSeriesMerger(storage.ChainedSeriesMerge)(several...)
}

type concatChunkSeries struct {
	labels labels.Labels
	parts  []fragment[storage.ChunkSeries]
}

func (s *concatChunkSeries) Labels() labels.Labels { return s.labels }

func (s *concatChunkSeries) Iterator(chunks.Iterator) chunks.Iterator {
	return &concatChunkIterator{parts: s.parts}
}

type concatChunkIterator struct {
	parts []fragment[storage.ChunkSeries] // that come after the current one
	part  fragment[storage.ChunkSeries]
	at    chunks.Iterator // nil: none is open
	err   error
}

func (c *concatChunkIterator) Next() bool {
	for c.err == nil {
		if c.at != nil {
			if c.at.Next() {
				return true
			}
			if c.err = c.at.Err(); c.err != nil {
				if c.part.fail != nil {
					c.err = c.part.fail(c.err)
				}
				return false
			}
		}
		if len(c.parts) == 0 {
			return false
		}
		c.part, c.parts = c.parts[0], c.parts[1:]
		c.at = c.part.series.Iterator(nil)
	}
	return false
}

func (c *concatChunkIterator) At() chunks.Meta { return c.at.At() }

func (c *concatChunkIterator) Err() error { return c.err }
