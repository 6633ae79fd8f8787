package querier

import (
	"context"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// watch is a storage for pieces. It gives series in the order of their labels, and notes
// whether there is anything that pieces cannot be evaluated of: see timesplit.Check.
type watch struct {
	storage.Queryable
	whole atomic.Bool
}

// Querier implements storage.Queryable.
func (w *watch) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := w.Queryable.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return &watchedQuerier{q, w}, nil
}

type watchedQuerier struct {
	storage.Querier
	watch *watch
}

// Select implements storage.Querier.
func (q *watchedQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	return &watchedSet{SeriesSet: q.Querier.Select(ctx, true, hints, matchers...), watch: q.watch}
}

type watchedSet struct {
	storage.SeriesSet
	watch *watch
	at    storage.Series
}

// Next implements storage.SeriesSet.
func (s *watchedSet) Next() bool {
	if !s.SeriesSet.Next() {
		return false
	}
	s.at = s.SeriesSet.At()
	if ls := s.at.Labels(); ls.Has("__type__") || ls.Has("__unit__") {
		s.watch.whole.Store(true)
	}
	return !s.watch.whole.Load()
}

// At implements storage.SeriesSet.
func (s *watchedSet) At() storage.Series { return &watchedSeries{s.at, s.watch} }

// Err implements storage.SeriesSet.
func (s *watchedSet) Err() error {
	if s.watch.whole.Load() {
		return errWhole
	}
	return s.SeriesSet.Err()
}

type watchedSeries struct {
	storage.Series
	watch *watch
}

// Iterator implements storage.Series.
func (s *watchedSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	if w, ok := it.(*watchedIterator); ok {
		w.Iterator, w.watch = s.Series.Iterator(w.Iterator), s.watch
		return w
	}
	return &watchedIterator{s.Series.Iterator(nil), s.watch}
}

// watchedIterator ends at the first histogram.
type watchedIterator struct {
	chunkenc.Iterator
	watch *watch
}

func (w *watchedIterator) float(kind chunkenc.ValueType) chunkenc.ValueType {
	if kind > chunkenc.ValFloat {
		w.watch.whole.Store(true)
		return chunkenc.ValNone
	}
	return kind
}

// Next implements chunkenc.Iterator.
func (w *watchedIterator) Next() chunkenc.ValueType { return w.float(w.Iterator.Next()) }

// Seek implements chunkenc.Iterator.
func (w *watchedIterator) Seek(t milliseconds) chunkenc.ValueType { return w.float(w.Iterator.Seek(t)) }

// Err implements chunkenc.Iterator.
func (w *watchedIterator) Err() error {
	if w.watch.whole.Load() {
		return errWhole
	}
	return w.Iterator.Err()
}
