package mask

import (
	"context"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// Block returns block without the samples that filters hide: they are among its
// tombstones. Closing what it gives closes what block gives.
func Block(block tsdb.BlockReader, filters ...Filter) tsdb.BlockReader {
	if len(filters) == 0 {
		return block
	}
	return masked{BlockReader: block, filters: filters}
}

type masked struct {
	tsdb.BlockReader
	filters []Filter
}

// Tombstones implements tsdb.BlockReader.
func (m masked) Tombstones() (tombstones.Reader, error) {
	stones, err := m.BlockReader.Tombstones()
	if err != nil {
		return nil, err
	}
	series, err := m.Index()
	if err != nil {
		_ = stones.Close() // the other error says what is wrong
		return nil, err
	}
	return &stonesOf{Reader: stones, index: series, filters: m.filters}, nil
}

// stonesOf are the tombstones of a block, and for each series what filters hide of it.
type stonesOf struct {
	tombstones.Reader
	index   tsdb.IndexReader
	filters []Filter
}

// Get implements tombstones.Reader.
func (s *stonesOf) Get(ref storage.SeriesRef) (tombstones.Intervals, error) {
	own, err := s.Reader.Get(ref)
	if err != nil {
		return nil, err
	}
	var builder labels.ScratchBuilder
	if err := s.index.Series(ref, &builder, nil); err != nil {
		return nil, fmt.Errorf("labels of a series that may be hidden: %w", err)
	}
	return hidden(own, s.filters, builder.Labels()), nil
}

// Iter implements tombstones.Reader. It reads the labels of all series.
func (s *stonesOf) Iter(each func(storage.SeriesRef, tombstones.Intervals) error) error {
	name, value := index.AllPostingsKey()
	all, err := s.index.Postings(context.Background(), name, value)
	if err != nil {
		return err
	}
	for all.Next() {
		intervals, err := s.Get(all.At())
		if err != nil {
			return err
		}
		if len(intervals) == 0 {
			continue
		}
		if err := each(all.At(), intervals); err != nil {
			return err
		}
	}
	return all.Err()
}

// Total implements tombstones.Reader: the number of intervals.
func (s *stonesOf) Total() uint64 {
	total := uint64(0)
	err := s.Iter(func(_ storage.SeriesRef, intervals tombstones.Intervals) error {
		total += uint64(len(intervals))
		return nil
	})
	if err != nil {
		return max(1, total) // it is only used to tell some from none
	}
	return total
}

// Close implements tombstones.Reader.
func (s *stonesOf) Close() error {
	err := s.Reader.Close()
	if closeErr := s.index.Close(); err == nil {
		err = closeErr
	}
	return err
}
