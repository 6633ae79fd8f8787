package querier

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hundredfold/hundredfold/internal/frame"
)

// answeredLabels, answeredSamples and answeredChunks are readers of what was gathered
// for one call. They answer that call, whatever they are asked.
type answeredLabels struct{ *answer }

func (a answeredLabels) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return a.values, a.warnings, nil
}

func (a answeredLabels) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return a.values, a.warnings, nil
}

func (answeredLabels) Close() error { return nil }

type answeredSamples struct{ answeredLabels }

func (a answeredSamples) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.SeriesSet {
	if a.wider {
		return narrowSet{sampleSet{newReplicaSet(a.answer)}}
	}
	return sampleSet{newReplicaSet(a.answer)}
}

type answeredChunks struct{ answeredLabels }

func (a answeredChunks) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	return chunkSet{newReplicaSet(a.answer)}
}

// sampleSet and chunkSet are the two ways to look at a replicaSet.
type sampleSet struct{ *replicaSet }

func (s sampleSet) At() storage.Series { return s.at }

// narrowSet leaves out the series that have no chunk within the time range.
type narrowSet struct{ sampleSet }

func (s narrowSet) Next() bool {
	within := s.answer.within
	for s.sampleSet.Next() {
		if slices.ContainsFunc(s.at.chunks, func(c frame.Chunk) bool { return c.MinTime <= within.maxt && c.MaxTime >= within.mint }) {
			return true
		}
	}
	return false
}

type chunkSet struct{ *replicaSet }

func (s chunkSet) At() storage.ChunkSeries { return (*replicatedChunks)(s.at) }

// replicaSet merges the series of replicas, sorted by their labels. Chunks that several
// have with the same bytes are kept once, so that in the normal case nothing is
// decoded twice. Everything aliases the frames, which nobody writes to.
type replicaSet struct {
	answer  *answer
	streams streamHeap
	opened  bool
	at      *replicatedSeries
	err     error

	merging []frame.Chunk // of the series at hand
	having  []*stream     // those that have it
	chunks  arena[frame.Chunk]
	series  arena[replicatedSeries]
}

func newReplicaSet(a *answer) *replicaSet { return &replicaSet{answer: a} }

func (s *replicaSet) Next() bool {
	if s.err != nil {
		return false
	}
	if !s.opened {
		s.opened = true
		for _, frames := range s.answer.streams {
			s.streams = append(s.streams, &stream{frames: frames, reader: frame.NewSelectReader(nil)})
		}
		s.streams = slices.DeleteFunc(s.streams, func(st *stream) bool { return !s.advance(st) })
		heap.Init(&s.streams)
	}
	if s.err != nil || len(s.streams) == 0 {
		return false
	}
	first := s.streams[0]
	key, ls := first.key(), first.series()
	s.merging, s.having = s.merging[:0], s.having[:0]
	for len(s.streams) > 0 && bytes.Equal(s.streams[0].key(), key) {
		st := heap.Pop(&s.streams).(*stream) //nolint:forcetypeassert // nothing else is in there
		s.merging = append(s.merging, st.reader.Chunks()...)
		s.having = append(s.having, st)
	}
	// All of them step on before they are compared again: most are at one series
	// then, which is seen without making labels.
	for _, st := range s.having {
		if s.advance(st) {
			heap.Push(&s.streams, st)
		}
	}
	if s.err != nil {
		return false
	}
	s.at = s.series.one()
	*s.at = replicatedSeries{labels: ls, within: s.answer.within, chunks: s.deduplicate()}
	return true
}

// advance steps st to its next series.
func (s *replicaSet) advance(st *stream) bool {
	ok, err := st.next()
	if err != nil {
		s.err = fmt.Errorf("read what an ingester sent: %w", err)
	}
	return ok
}

// deduplicate returns the chunks of the series at hand by time, those with the same
// bytes once.
func (s *replicaSet) deduplicate() []frame.Chunk {
	all := s.merging
	slices.SortStableFunc(all, func(a, b frame.Chunk) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime))
	})
	kept := all[:0]
	for _, c := range all {
		if !hasChunk(kept, c) {
			kept = append(kept, c)
		}
	}
	if dropped := len(all) - len(kept); dropped > 0 {
		s.answer.dropped(dropped)
	}
	return s.chunks.copyOf(kept)
}

// hasChunk reports whether there is a chunk with the bytes of c in kept, which is sorted.
func hasChunk(kept []frame.Chunk, c frame.Chunk) bool {
	for i := len(kept) - 1; i >= 0 && kept[i].MinTime == c.MinTime && kept[i].MaxTime == c.MaxTime; i-- {
		if kept[i].Encoding == c.Encoding && bytes.Equal(kept[i].Data, c.Data) {
			return true
		}
	}
	return false
}

func (s *replicaSet) Err() error { return s.err }

func (s *replicaSet) Warnings() annotations.Annotations { return s.answer.warnings }

// arena hands out values in slabs, which is far cheaper than one by one. What it hands
// out lives as long as the slab.
type arena[T any] struct{ free []T }

const slab = 512

func (a *arena[T]) one() *T {
	if len(a.free) == 0 {
		a.free = make([]T, slab)
	}
	v := &a.free[0]
	a.free = a.free[1:]
	return v
}

func (a *arena[T]) copyOf(values []T) []T {
	if len(values) > len(a.free) {
		if len(values) > slab/4 {
			return slices.Clone(values)
		}
		a.free = make([]T, slab)
	}
	out := a.free[:len(values):len(values)]
	a.free = a.free[len(values):]
	copy(out, values)
	return out
}

// stream is what one ingester sent.
type stream struct {
	frames [][]byte
	reader *frame.SelectReader
	labels labels.Labels
	made   bool // labels are of the series at hand
}

// next steps to the next series; false is the end.
func (st *stream) next() (bool, error) {
	st.made = false
	for !st.reader.Next() {
		if err := st.reader.Err(); err != nil {
			return false, err
		}
		if len(st.frames) == 0 {
			return false, nil
		}
		st.reader.Reset(st.frames[0])
		st.frames = st.frames[1:]
	}
	return true, nil
}

// key is equal for equal labels; it is good as long as the frames.
func (st *stream) key() []byte { return st.reader.LabelBytes() }

// series returns the labels of the series at hand. They are made when somebody needs
// them, which of most replicas nobody does.
func (st *stream) series() labels.Labels {
	if !st.made {
		st.labels, st.made = st.reader.Labels(), true
	}
	return st.labels
}

// streamHeap has the stream with the lowest labels first.
type streamHeap []*stream

func (h streamHeap) Len() int      { return len(h) }
func (h streamHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h streamHeap) Less(i, j int) bool {
	if bytes.Equal(h[i].key(), h[j].key()) {
		return false
	}
	return labels.Compare(h[i].series(), h[j].series()) < 0
}

func (h *streamHeap) Push(st any) {
	*h = append(*h, st.(*stream)) //nolint:forcetypeassert // nothing else is pushed
}

func (h *streamHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// replicatedSeries is a series as its replicas have it. Its chunks are sorted by time;
// they overlap where replicas differ.
type replicatedSeries struct {
	labels labels.Labels
	within timeRange
	chunks []frame.Chunk
}

func (s *replicatedSeries) Labels() labels.Labels { return s.labels }

func (s *replicatedSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	reused, ok := it.(*replicaIterator)
	if !ok {
		reused = &replicaIterator{}
	}
	reused.reset(s.chunks, s.within)
	return reused
}
