package externallabels

import (
	"context"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
)

// concerned tells whether a matcher is one of an external label.
func (r *indexReader) concerned(matchers []*labels.Matcher) bool {
	return slices.ContainsFunc(matchers, func(m *labels.Matcher) bool {
		_, ok := r.external[m.Name]
		return ok
	})
}

// SortedLabelValues implements tsdb.IndexReader.
func (r *indexReader) SortedLabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, error) {
	if _, ok := r.external[name]; !ok && !r.concerned(matchers) {
		return r.IndexReader.SortedLabelValues(ctx, name, hints, matchers...)
	}
	values, err := r.values(ctx, name, matchers)
	if err != nil {
		return nil, err
	}
	slices.Sort(values)
	return limited(values, hints), nil
}

// LabelValues implements tsdb.IndexReader.
func (r *indexReader) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, error) {
	if _, ok := r.external[name]; !ok && !r.concerned(matchers) {
		return r.IndexReader.LabelValues(ctx, name, hints, matchers...)
	}
	values, err := r.values(ctx, name, matchers)
	return limited(values, hints), err
}

func limited(values []string, hints *storage.LabelHints) []string {
	if hints != nil && hints.Limit > 0 && len(values) > hints.Limit {
		return values[:hints.Limit]
	}
	return values
}

// values returns those of a label that the series have which match.
func (r *indexReader) values(ctx context.Context, name string, matchers []*labels.Matcher) ([]string, error) {
	found, err := r.IndexReader.LabelValues(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	candidates := slices.Clone(found)
	if value, ok := r.external[name]; ok && !slices.Contains(candidates, value) {
		candidates = append(candidates, value)
	}
	if len(matchers) == 0 {
		matchers = []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "", "")} // all series
	}
	matching, err := tsdb.PostingsForMatchers(ctx, r, slices.Clone(matchers)...)
	if err != nil {
		return nil, err
	}
	postings := make([]index.Postings, len(candidates))
	for i, value := range candidates {
		if postings[i], err = r.Postings(ctx, name, value); err != nil {
			return nil, err
		}
	}
	indexes, err := index.FindIntersectingPostings(matching, postings)
	if err != nil {
		return nil, err
	}
	values := make([]string, 0, len(indexes))
	for _, i := range indexes {
		values = append(values, candidates[i])
	}
	return values, nil
}

// LabelNames implements tsdb.IndexReader.
func (r *indexReader) LabelNames(ctx context.Context, matchers ...*labels.Matcher) ([]string, error) {
	if !r.concerned(matchers) {
		names, err := r.IndexReader.LabelNames(ctx, matchers...)
		return r.withExternal(names), err
	}
	matching, err := tsdb.PostingsForMatchers(ctx, r, slices.Clone(matchers)...)
	if err != nil {
		return nil, err
	}
	return r.LabelNamesFor(ctx, matching)
}

// LabelNamesFor implements tsdb.IndexReader.
func (r *indexReader) LabelNamesFor(ctx context.Context, p index.Postings) ([]string, error) {
	names, err := r.IndexReader.LabelNamesFor(ctx, p)
	return r.withExternal(names), err
}

// withExternal adds the names of the external labels, if there are series at all.
func (r *indexReader) withExternal(names []string) []string {
	if len(names) == 0 {
		return nil
	}
	names = append(slices.Clone(names), r.names...)
	slices.Sort(names)
	return slices.Compact(names)
}
