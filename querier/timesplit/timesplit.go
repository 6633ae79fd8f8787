// Package timesplit decides whether a PromQL expression can be evaluated over a range of
// time piece by piece, and where to cut.
//
// Prometheus's engine evaluates an expression at all steps of a range at once and holds
// what that needs in memory. For most expressions the value at a step depends on that step
// alone, so that the steps of a day can be evaluated by themselves, with the memory of a
// day, beside other days on other cores, and be kept for the next time that somebody asks.
// Check says for which expressions this holds, bit by bit, and why; for all others the
// answer is a reason. It is a pure function of the expression and errs to the safe side: what it does
// not know is not cut.
//
// The package evaluates nothing.
package timesplit

import (
	"fmt"
	"math"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	// narrowest is the least width of a piece. A day is a multiple of it.
	narrowest = 6 * time.Hour
	// widest bounds the width, so that it can be computed with.
	widest = narrowest << 18
	// minSteps is how many steps a piece has at least, if it is whole: each has to parse the
	// expression and to find its series again.
	minSteps = 16
	// minWindows is how many times the time that a single step looks at is in a piece at
	// least. The samples before the first step of a piece are read twice, so this bounds
	// the work in vain to a quarter.
	minWindows = 4
)

// Range is some steps of a query: those at Start, Start + step, and so on until End, which
// is a step as well. In milliseconds.
type Range struct{ Start, End int64 }

// Steps returns how many there are.
func (r Range) Steps(step int64) int { return int((r.End-r.Start)/step) + 1 }

// Width returns how wide pieces are, in milliseconds. It depends on nothing but the
// step and the window, the time that a single step looks at, so that all queries that differ
// in their range alone are cut at the same places.
func Width(step, window time.Duration) int64 {
	width := narrowest
	for width < widest && (width/minSteps < step || width/minWindows < window) {
		width *= 2
	}
	return width.Milliseconds()
}

// Cut returns the pieces of a range, in the order of time: no piece lies on both sides of a
// multiple of width. step and width are above 0.
func Cut(whole Range, step, width int64) []Range {
	var pieces []Range
	for start := whole.Start; start <= whole.End; {
		next := (floorDiv(start, width) + 1) * width
		end := start + (min(next-1, whole.End)-start)/step*step
		pieces = append(pieces, Range{start, end})
		start = end + step
	}
	return pieces
}

// Bucket returns the number of the piece that a step is in: the same for each query.
func Bucket(at, width int64) int64 { return floorDiv(at, width) }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Reads returns the time range of the samples that an expression reads at steps within r,
// both ends inclusive, in milliseconds. The expression MUST have been preprocessed by the engine,
// which computes its durations.
func Reads(expr parser.Expr, r Range, lookback time.Duration) (mint, maxt int64) {
	return promql.FindMinMaxTime(&parser.EvalStmt{
		Expr: expr, Start: time.UnixMilli(r.Start), End: time.UnixMilli(r.End), LookbackDelta: lookback,
	})
}

// Window returns the time that the expression looks at for one step, whatever the offset.
func Window(expr parser.Expr, lookback time.Duration) time.Duration {
	mint, maxt := Reads(expr, Range{}, lookback)
	if maxt-mint > math.MaxInt64/int64(time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(maxt-mint) * time.Millisecond
}

// reason says why an expression is not cut.
type reason string

func (r reason) Error() string { return string(r) }

func reasonf(format string, args ...any) error { return reason(fmt.Sprintf(format, args...)) }
