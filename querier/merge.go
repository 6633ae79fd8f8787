package querier

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/util/annotations"
)

// labelled is a storage.Series or a storage.ChunkSeries.
type labelled interface{ Labels() labels.Labels }

// seriesSet is a storage.SeriesSet or a storage.ChunkSeriesSet.
type seriesSet[T labelled] interface {
	Next() bool
	At() T
	Err() error
	Warnings() annotations.Annotations
}

// span is a range of times in ms, the end exclusive.
type span struct{ mint, maxt int64 }

// seriesSource is a set of series that is merged with others: of a block, or recent samples.
type seriesSource[T labelled] struct {
	set seriesSet[T]
	// span has all samples of the set, if it is of a block.
	span
	recent bool
	order  int // among sources: the order of their spans
	// doubles says that the set may have series with equal labels, one after the other: of
	// a block with external labels, when some of its series have these themselves.
	doubles bool
	fail    func(err error) error // makes an error of the set that of the query

	ahead  []T // series that were read ahead
	at     T
	labels labels.Labels
}

// drain reads up to n series ahead.
func (s *seriesSource[T]) drain(n int) error {
	for len(s.ahead) < n {
		if !s.set.Next() {
			return s.err()
		}
		s.ahead = append(s.ahead, s.set.At())
	}
	return nil
}

func (s *seriesSource[T]) next() bool {
	if len(s.ahead) > 0 {
		s.at, s.ahead = s.ahead[0], s.ahead[1:]
	} else if s.set.Next() {
		s.at = s.set.At()
	} else {
		return false
	}
	s.labels = s.at.Labels()
	return true
}

func (s *seriesSource[T]) err() error {
	err := s.set.Err()
	if err != nil && s.fail != nil {
		err = s.fail(err)
	}
	return err
}

// fragment is a series as one source has it.
type fragment[T labelled] struct {
	span
	recent bool
	series T
	fail   func(err error) error
}

// mergedSet merges sources, which are sorted, by labels. One goroutine.
type mergedSet[T labelled] struct {
	merge func([]fragment[T]) T
	limit int // of series; 0: none

	heap    []*seriesSource[T] // by labels, and then by order
	current []*seriesSource[T] // whose series is at
	all     []*seriesSource[T]
	pieces  []fragment[T]
	at      T
	count   int
	err     error
}

func newMergedSet[T labelled](sources []*seriesSource[T], limit int, merge func([]fragment[T]) T) *mergedSet[T] {
	return &mergedSet[T]{merge: merge, limit: limit, all: sources, current: slices.Clone(sources)}
}

func (m *mergedSet[T]) Next() bool {
	if m.err != nil || m.limit > 0 && m.count >= m.limit {
		return false
	}
	for _, s := range m.current {
		if s.next() {
			m.push(s)
		} else if m.err = s.err(); m.err != nil {
			return false
		}
	}
	m.current, m.pieces = m.current[:0], nil
	if len(m.heap) == 0 {
		return false
	}
	first := m.heap[0].labels
	for len(m.heap) > 0 && labels.Equal(m.heap[0].labels, first) {
		s := m.pop()
		m.pieces = append(m.pieces, fragment[T]{span: s.span, recent: s.recent, series: s.at, fail: s.fail})
		switch {
		case !s.doubles:
			m.current = append(m.current, s)
		case s.next():
			m.push(s)
		default:
			if m.err = s.err(); m.err != nil {
				return false
			}
		}
	}
	m.at = m.merge(m.pieces)
	m.count++
	return true
}

func (m *mergedSet[T]) At() T { return m.at }

func (m *mergedSet[T]) Err() error { return m.err }

func (m *mergedSet[T]) Warnings() annotations.Annotations {
	var all annotations.Annotations
	for _, s := range m.all {
		all.Merge(s.set.Warnings())
	}
	return all
}

func (s *seriesSource[T]) before(other *seriesSource[T]) bool {
	if c := labels.Compare(s.labels, other.labels); c != 0 {
		return c < 0
	}
	return s.order < other.order
}

func (m *mergedSet[T]) push(s *seriesSource[T]) {
	m.heap = append(m.heap, s)
	for i := len(m.heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if !m.heap[i].before(m.heap[parent]) {
			break
		}
		m.heap[i], m.heap[parent] = m.heap[parent], m.heap[i]
		i = parent
	}
}

func (m *mergedSet[T]) pop() *seriesSource[T] {
	top, last := m.heap[0], len(m.heap)-1
	m.heap[0] = m.heap[last]
	m.heap[last] = nil
	m.heap = m.heap[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if m.heap[child].before(m.heap[least]) {
				least = child
			}
		}
		if least == i {
			return top
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}

// spans groups pieces, which are in order of mint, so that pieces of different groups do
// not overlap in time. Recent samples, of which nothing is known, are no group.
func spans[T labelled](pieces []fragment[T]) (groups [][]fragment[T], recent []fragment[T]) {
	end := int64(0)
	for _, p := range pieces {
		switch {
		case p.recent:
			recent = append(recent, p)
		case len(groups) == 0 || p.mint >= end:
			groups = append(groups, []fragment[T]{p})
			end = p.maxt
		default:
			last := len(groups) - 1
			groups[last] = append(groups[last], p)
			end = max(end, p.maxt)
		}
	}
	return groups, recent
}
