package querier

import (
	"cmp"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"

	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// extent is the result of a query at some steps. It is immutable.
type extent struct {
	timesplit.Range
	series []extentSeries // sorted by labels, each with a point or more
}

type extentSeries struct {
	labels labels.Labels
	points []promql.FPoint
}

// points returns how many there are.
func (e *extent) points() int {
	n := 0
	for i := range e.series {
		n += len(e.series[i].points)
	}
	return n
}

// within returns the part of e at some of its steps. It shares its points.
func (e *extent) within(steps timesplit.Range) extent {
	if steps == e.Range {
		return *e
	}
	out := extent{Range: steps}
	at := func(p promql.FPoint, t int64) int { return cmp.Compare(p.T, t) }
	for _, s := range e.series {
		first, _ := slices.BinarySearchFunc(s.points, steps.Start, at)
		end, _ := slices.BinarySearchFunc(s.points, steps.End+1, at)
		if first < end {
			out.series = append(out.series, extentSeries{s.labels, s.points[first:end:end]})
		}
	}
	return out
}

// touches reports whether e and other steps leave no step out between them, and have
// none in common.
func (e *extent) touches(steps timesplit.Range, step int64) bool {
	return e.End+step == steps.Start || steps.End+step == e.Start
}

// join returns one extent of two that touch.
func (e *extent) join(other extent) extent {
	parts := []extent{*e, other}
	slices.SortFunc(parts, func(a, b extent) int { return cmp.Compare(a.Start, b.Start) })
	out := extent{Range: timesplit.Range{Start: parts[0].Start, End: parts[1].End}}
	for _, s := range merged(parts) {
		out.series = append(out.series, extentSeries{s.Metric, s.Floats})
	}
	return out
}

// assemble returns the result that the extents are the parts of. They have no step in common. Nothing of the result is shared with them but labels.
func assemble(account *account, extents []extent) (promql.Matrix, error) {
	points := 0
	for i := range extents {
		points += extents[i].points()
	}
	if err := account.Hold(int64(points) * bytesPerPoint); err != nil {
		return nil, err
	}
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.Start, b.Start) })
	return merged(extents), nil
}

// merged returns the series of extents that are in the order of time.
func merged(extents []extent) promql.Matrix {
	all := promql.Matrix{}
	var lengths []int
	for _, e := range extents {
		all, lengths = addLengths(all, lengths, e.series)
	}
	for i := range all {
		all[i].Floats = make([]promql.FPoint, 0, lengths[i])
	}
	for _, e := range extents {
		i := 0
		for _, s := range e.series {
			for !labels.Equal(all[i].Metric, s.labels) {
				i++
			}
			all[i].Floats = append(all[i].Floats, s.points...)
		}
	}
	return all
}

// addLengths adds series to those that are known, and the number of their points to
// lengths; both are sorted.
func addLengths(all promql.Matrix, lengths []int, series []extentSeries) (promql.Matrix, []int) {
	i := 0
	var added promql.Matrix
	var addedLengths []int
	for _, s := range series {
		for i < len(all) && labels.Compare(all[i].Metric, s.labels) < 0 {
			i++
		}
		if i < len(all) && labels.Equal(all[i].Metric, s.labels) {
			lengths[i] += len(s.points)
			continue
		}
		added = append(added, promql.Series{Metric: s.labels})
		addedLengths = append(addedLengths, len(s.points))
	}
	if len(added) == 0 {
		return all, lengths
	}
	merged := make(promql.Matrix, 0, len(all)+len(added))
	mergedLengths := make([]int, 0, len(all)+len(added))
	for len(all) > 0 || len(added) > 0 {
		if len(added) == 0 || len(all) > 0 && labels.Compare(all[0].Metric, added[0].Metric) < 0 {
			merged, mergedLengths = append(merged, all[0]), append(mergedLengths, lengths[0])
			all, lengths = all[1:], lengths[1:]
			continue
		}
		merged, mergedLengths = append(merged, added[0]), append(mergedLengths, addedLengths[0])
		added, addedLengths = added[1:], addedLengths[1:]
	}
	return slices.Clip(merged), mergedLengths
}
