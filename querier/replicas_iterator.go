package querier

import (
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/frame"
)

// segment returns the end of the chunks that begin at start and overlap one another,
// and the time of their last sample.
func segment(all []frame.Chunk, start int) (end int, maxt int64) {
	end, maxt = start+1, all[start].MaxTime
	for end < len(all) && all[end].MinTime <= maxt {
		maxt = max(maxt, all[end].MaxTime)
		end++
	}
	return end, maxt
}

// replicaIterator iterates over the samples of a series: segment by segment, of which
// one that is a single chunk is just decoded. Of samples with one timestamp one counts.
// The first histogram of a chunk never says whether counters were reset since the one
// before it, so that it does not matter which replica that is of.
type replicaIterator struct {
	chunks []frame.Chunk
	within timeRange

	at    chunkenc.Iterator // of the segment at hand; nil before the first and after the last
	kind  chunkenc.ValueType
	next  int               // the first chunk after the segment at hand
	plain chunkenc.Iterator // reused for segments of one chunk
	err   error
}

func (it *replicaIterator) reset(all []frame.Chunk, within timeRange) {
	*it = replicaIterator{chunks: all, within: within, plain: it.plain}
	for it.next < len(all) && all[it.next].MaxTime < within.mint {
		it.next++
	}
}

// open opens the next segment that has samples at or after t.
func (it *replicaIterator) open(t int64) bool {
	it.at = nil
	for it.next < len(it.chunks) {
		start := it.next
		end, maxt := segment(it.chunks, start)
		if it.chunks[start].MinTime > it.within.maxt {
			break
		}
		it.next = end
		if maxt < t {
			continue
		}
		it.at, it.err = it.iterator(it.chunks[start:end])
		return it.err == nil
	}
	it.next = len(it.chunks)
	return false
}

func (it *replicaIterator) iterator(segment []frame.Chunk) (chunkenc.Iterator, error) {
	if len(segment) == 1 {
		chunk, err := chunkenc.FromData(segment[0].Encoding, segment[0].Data)
		if err != nil {
			return nil, fmt.Errorf("a chunk that an ingester sent: %w", err)
		}
		it.plain = chunk.Iterator(it.plain)
		return it.plain, nil
	}
	iterators := make([]chunkenc.Iterator, len(segment))
	for i := range segment {
		chunk, err := chunkenc.FromData(segment[i].Encoding, segment[i].Data)
		if err != nil {
			return nil, fmt.Errorf("a chunk that an ingester sent: %w", err)
		}
		iterators[i] = chunk.Iterator(nil)
	}
	return storage.ChainSampleIteratorFromIterators(nil, iterators), nil
}

func (it *replicaIterator) Next() chunkenc.ValueType {
	if it.at == nil {
		return it.enter(it.within.mint)
	}
	if it.kind = it.at.Next(); it.kind != chunkenc.ValNone {
		return it.clip()
	}
	if it.err = it.at.Err(); it.err != nil {
		return it.end()
	}
	return it.enter(math.MinInt64)
}

// milliseconds is a time as chunkenc has it. With the plain type, vet would take Seek for
// io.Seeker's.
type milliseconds = int64

func (it *replicaIterator) Seek(t milliseconds) chunkenc.ValueType {
	t = max(t, it.within.mint)
	if it.at == nil {
		return it.enter(t)
	}
	if it.kind != chunkenc.ValNone && it.at.AtT() >= t {
		return it.kind
	}
	if it.kind = it.at.Seek(t); it.kind != chunkenc.ValNone {
		return it.clip()
	}
	if it.err = it.at.Err(); it.err != nil {
		return it.end()
	}
	return it.enter(t)
}

// enter steps to the first sample at or after t of those segments that follow.
func (it *replicaIterator) enter(t int64) chunkenc.ValueType {
	for it.err == nil && it.open(t) {
		if t == math.MinInt64 {
			it.kind = it.at.Next()
		} else {
			it.kind = it.at.Seek(t)
		}
		if it.kind != chunkenc.ValNone {
			return it.clip()
		}
		it.err = it.at.Err()
	}
	return it.end()
}

// clip ends the iteration at the end of the time range.
func (it *replicaIterator) clip() chunkenc.ValueType {
	if it.at.AtT() > it.within.maxt {
		return it.end()
	}
	return it.kind
}

func (it *replicaIterator) end() chunkenc.ValueType {
	it.at, it.next, it.kind = nil, len(it.chunks), chunkenc.ValNone
	return chunkenc.ValNone
}

func (it *replicaIterator) At() (int64, float64) { return it.at.At() }
func (it *replicaIterator) AtT() int64           { return it.at.AtT() }
func (it *replicaIterator) AtST() int64          { return it.at.AtST() }
func (it *replicaIterator) Err() error           { return it.err }

func (it *replicaIterator) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	return it.at.AtHistogram(h)
}

func (it *replicaIterator) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	return it.at.AtFloatHistogram(h)
}

// replicatedChunks is a replicatedSeries as chunks that do not overlap.
type replicatedChunks replicatedSeries

func (s *replicatedChunks) Labels() labels.Labels { return s.labels }

func (s *replicatedChunks) Iterator(chunks.Iterator) chunks.Iterator {
	return &segmentIterator{series: (*replicatedSeries)(s)}
}

// segmentIterator iterates over the chunks of a series. One that nothing overlaps is
// passed on as it is; others, and those that reach out of the time range, are encoded
// anew.
type segmentIterator struct {
	series *replicatedSeries
	next   int
	anew   chunks.Iterator // of the segment at hand; nil: it is passed on
	at     chunks.Meta
	err    error
}

func (it *segmentIterator) Next() bool {
	all, within := it.series.chunks, it.series.within
	for it.err == nil {
		if it.anew != nil {
			if it.anew.Next() {
				it.at = it.anew.At()
				return true
			}
			it.err, it.anew = it.anew.Err(), nil
			continue
		}
		if it.next >= len(all) || all[it.next].MinTime > within.maxt {
			return false
		}
		start := it.next
		end, maxt := segment(all, start)
		it.next = end
		if maxt < within.mint {
			continue
		}
		if end-start == 1 && all[start].MinTime >= within.mint && maxt <= within.maxt {
			if it.at, it.err = all[start].Meta(); it.err != nil {
				return false
			}
			return true
		}
		it.anew = storage.NewSeriesToChunkEncoder(&replicatedSeries{
			labels: it.series.labels, within: within, chunks: all[start:end],
		}).Iterator(nil)
	}
	return false
}

func (it *segmentIterator) At() chunks.Meta { return it.at }
func (it *segmentIterator) Err() error      { return it.err }
