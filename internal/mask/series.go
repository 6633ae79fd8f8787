package mask

import (
	"context"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// Querier returns q without the samples that filters hide, and without the series of
// which none is left, unless it is asked for labels alone.
func Querier(q storage.Querier, filters ...Filter) storage.Querier {
	if len(filters) == 0 {
		return q
	}
	return querier{q, filters}
}

// ChunkQuerier is Querier for chunks. A chunk of which a part is hidden is encoded anew.
func ChunkQuerier(q storage.ChunkQuerier, filters ...Filter) storage.ChunkQuerier {
	if len(filters) == 0 {
		return q
	}
	return chunkQuerier{q, filters}
}

type querier struct {
	storage.Querier
	filters []Filter
}

// Select implements storage.Querier.
func (q querier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := q.Querier.Select(ctx, sorted, hints, matchers...)
	if labelsOnly(hints) {
		return set
	}
	return &seriesSet{SeriesSet: set, filters: q.filters}
}

// labelsOnly reports whether no samples are wanted: Prometheus's way to say it.
func labelsOnly(hints *storage.SelectHints) bool { return hints != nil && hints.Func == "series" }

type seriesSet struct {
	storage.SeriesSet
	filters []Filter
	at      storage.Series
}

// Next implements storage.SeriesSet.
func (s *seriesSet) Next() bool {
	for s.SeriesSet.Next() {
		s.at = s.SeriesSet.At()
		intervals := hidden(nil, s.filters, s.at.Labels())
		if len(intervals) == 0 {
			return true
		}
		s.at = maskedSeries{s.at, intervals}
		if it := s.at.Iterator(nil); it.Next() != chunkenc.ValNone || it.Err() != nil {
			return true // whoever reads it meets the error
		}
	}
	return false
}

// At implements storage.SeriesSet.
func (s *seriesSet) At() storage.Series { return s.at }

type maskedSeries struct {
	storage.Series
	intervals tombstones.Intervals
}

// Iterator implements storage.Series.
func (s maskedSeries) Iterator(chunkenc.Iterator) chunkenc.Iterator {
	return without(s.Series.Iterator(nil), s.intervals)
}

func without(samples chunkenc.Iterator, intervals tombstones.Intervals) chunkenc.Iterator {
	return &tsdb.DeletedIterator{Iter: samples, Intervals: intervals}
}

type chunkQuerier struct {
	storage.ChunkQuerier
	filters []Filter
}

// Select implements storage.ChunkQuerier.
func (q chunkQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	set := q.ChunkQuerier.Select(ctx, sorted, hints, matchers...)
	if labelsOnly(hints) {
		return set
	}
	return &chunkSeriesSet{ChunkSeriesSet: set, filters: q.filters}
}

type chunkSeriesSet struct {
	storage.ChunkSeriesSet
	filters []Filter
	at      storage.ChunkSeries
}

// Next implements storage.ChunkSeriesSet.
func (s *chunkSeriesSet) Next() bool {
	for s.ChunkSeriesSet.Next() {
		s.at = s.ChunkSeriesSet.At()
		intervals := hidden(nil, s.filters, s.at.Labels())
		if len(intervals) == 0 {
			return true
		}
		s.at = maskedChunkSeries{s.at, intervals}
		if it := s.at.Iterator(nil); it.Next() || it.Err() != nil {
			return true
		}
	}
	return false
}

// At implements storage.ChunkSeriesSet.
func (s *chunkSeriesSet) At() storage.ChunkSeries { return s.at }

type maskedChunkSeries struct {
	storage.ChunkSeries
	intervals tombstones.Intervals
}

// Iterator implements storage.ChunkSeries.
func (s maskedChunkSeries) Iterator(chunks.Iterator) chunks.Iterator {
	return &chunkIterator{labels: s.Labels(), in: s.ChunkSeries.Iterator(nil), intervals: s.intervals}
}

// chunkIterator leaves out the chunks that are hidden and encodes those anew of which a
// part is.
type chunkIterator struct {
	labels    labels.Labels
	in        chunks.Iterator
	intervals tombstones.Intervals
	parts     chunks.Iterator // of a chunk that was encoded anew; nil: none
	at        chunks.Meta
	err       error
}

// Next implements chunks.Iterator.
func (c *chunkIterator) Next() bool {
	for c.err == nil {
		if c.parts != nil {
			if c.parts.Next() {
				c.at = c.parts.At()
				return true
			}
			c.err, c.parts = c.parts.Err(), nil
			continue
		}
		if !c.in.Next() {
			c.err = c.in.Err()
			return false
		}
		c.at = c.in.At()
		if c.at.Chunk == nil || !overlaps(c.intervals, c.at) {
			return true
		}
		if (tombstones.Interval{Mint: c.at.MinTime, Maxt: c.at.MaxTime}).IsSubrange(c.intervals) {
			continue
		}
		whole := c.at.Chunk
		c.parts = storage.NewSeriesToChunkEncoder(&storage.SeriesEntry{
			Lset:             c.labels,
			SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator { return without(whole.Iterator(nil), c.intervals) },
		}).Iterator(nil)
	}
	return false
}

// At implements chunks.Iterator.
func (c *chunkIterator) At() chunks.Meta { return c.at }

// Err implements chunks.Iterator.
func (c *chunkIterator) Err() error { return c.err }

func overlaps(intervals tombstones.Intervals, chunk chunks.Meta) bool {
	for _, interval := range intervals {
		if chunk.OverlapsClosedInterval(interval.Mint, interval.Maxt) {
			return true
		}
	}
	return false
}
