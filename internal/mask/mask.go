// Package mask hides samples at read: those that a deletion of series took away and that
// still lie in immutable blocks, and those that are older than the retention of their
// series. It decorates what Prometheus reads from, a tsdb.BlockReader or a set of series,
// so that queries and compactions leave out the same samples by the same code.
//
// A mask is decided by the labels of each series that is read, not looked up in the
// index: what a query does not select costs nothing, and no request to a bucket is made
// for it. Names and values of labels are not masked: as in Prometheus, those of series
// that were deleted are listed until the block is written anew.
package mask

import (
	"cmp"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// Filter says what is hidden. It MUST be safe for concurrent use.
type Filter interface {
	// Hidden returns the times, in ms and inclusive, at which samples of the series are
	// hidden, sorted and without overlaps. The labels may be reused after the call.
	Hidden(series labels.Labels) tombstones.Intervals
}

// Selection hides what a selector matches in a range of time.
type Selection struct {
	// Matchers all have to match; without any, all series do.
	Matchers []*labels.Matcher
	// Mint and Maxt are in ms, inclusive.
	Mint, Maxt int64
}

// Hidden implements Filter.
func (s Selection) Hidden(series labels.Labels) tombstones.Intervals {
	if s.Mint > s.Maxt || !Matches(s.Matchers, series) {
		return nil
	}
	return tombstones.Intervals{{Mint: s.Mint, Maxt: s.Maxt}}
}

// Age hides samples by their age, which depends on the series: the first of the classes
// that matches decides.
type Age []Class

// Class is a kind of series.
type Class struct {
	// Matchers all have to match; without any, all series do.
	Matchers []*labels.Matcher
	// Before is in ms: samples before it are hidden. math.MinInt64 hides none.
	Before int64
}

// Hidden implements Filter.
func (a Age) Hidden(series labels.Labels) tombstones.Intervals {
	for _, class := range a {
		if !Matches(class.Matchers, series) {
			continue
		}
		if class.Before == math.MinInt64 {
			return nil
		}
		return tombstones.Intervals{{Mint: math.MinInt64, Maxt: class.Before - 1}}
	}
	return nil
}

// Matches reports whether all matchers match the series.
func Matches(matchers []*labels.Matcher, series labels.Labels) bool {
	return !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(series.Get(m.Name)) })
}

// hidden adds what filters hide of a series to what is hidden already, which stays as it is.
func hidden(already tombstones.Intervals, filters []Filter, series labels.Labels) tombstones.Intervals {
	var more tombstones.Intervals
	for _, f := range filters {
		more = append(more, f.Hidden(series)...)
	}
	if len(more) == 0 {
		return already
	}
	return Union(append(more, already...))
}

// Union sorts intervals, in place, and joins those that overlap. It is not
// tombstones.Intervals.Add, which panics on an interval without an end if there are several
// before it.
func Union(in tombstones.Intervals) tombstones.Intervals {
	if len(in) == 0 {
		return nil
	}
	slices.SortFunc(in, func(a, b tombstones.Interval) int { return cmp.Compare(a.Mint, b.Mint) })
	out := in[:1]
	for _, next := range in[1:] {
		last := &out[len(out)-1]
		if next.Mint <= last.Maxt {
			last.Maxt = max(last.Maxt, next.Maxt)
		} else {
			out = append(out, next)
		}
	}
	return out
}
