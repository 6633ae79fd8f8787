package exporter

import (
	"context"
	"maps"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
)

// selected returns block with only the series that one of the selectors selects.
func selected(block tsdb.BlockReader, selectors [][]*labels.Matcher) tsdb.BlockReader {
	if len(selectors) == 0 {
		return block
	}
	return selectedBlock{block, selectors}
}

type selectedBlock struct {
	tsdb.BlockReader
	selectors [][]*labels.Matcher
}

// Index implements tsdb.BlockReader.
func (s selectedBlock) Index() (tsdb.IndexReader, error) {
	next, err := s.BlockReader.Index()
	if err != nil {
		return nil, err
	}
	return &selectedIndex{next, s.selectors}, nil
}

// selectedIndex is an index whose list of all series has the selected ones alone, which is
// what a writer of blocks reads.
type selectedIndex struct {
	tsdb.IndexReader
	selectors [][]*labels.Matcher
}

// Postings implements tsdb.IndexReader.
func (s *selectedIndex) Postings(ctx context.Context, name string, values ...string) (index.Postings, error) {
	if name != "" {
		return s.IndexReader.Postings(ctx, name, values...)
	}
	var all []index.Postings
	for _, matchers := range s.selectors {
		p, err := tsdb.PostingsForMatchers(ctx, s.IndexReader, slices.Clone(matchers)...)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return index.Merge(ctx, all...), nil
}

// Symbols implements tsdb.IndexReader: those of the series that are selected.
func (s *selectedIndex) Symbols() index.StringIter {
	needed, err := s.symbols(context.Background())
	if err != nil {
		return failed{err}
	}
	return index.NewStringListIter(needed)
}

func (s *selectedIndex) symbols(ctx context.Context) ([]string, error) {
	p, err := s.Postings(ctx, "", "")
	if err != nil {
		return nil, err
	}
	needed := make(map[string]struct{})
	var builder labels.ScratchBuilder
	for p.Next() {
		if err := s.Series(p.At(), &builder, nil); err != nil {
			return nil, err
		}
		builder.Labels().Range(func(l labels.Label) {
			needed[l.Name], needed[l.Value] = struct{}{}, struct{}{}
		})
	}
	return slices.Sorted(maps.Keys(needed)), p.Err()
}

// failed is a list of symbols that could not be made.
type failed struct{ err error }

// Next implements index.StringIter.
func (failed) Next() bool { return false }

// At implements index.StringIter.
func (failed) At() string { return "" }

// Err implements index.StringIter.
func (f failed) Err() error { return f.err }
