package timesplit

import (
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// Check returns nil if the results of an expression at the pieces of a range, put together,
// are those at the whole range, bit by bit. The expression MUST be as it was parsed: the
// engine's preprocessing hides what depends on the range.
//
// It relies on three things of those who evaluate. Native histograms are not among
// the samples: their counter reset hints depend on where reading begins. No series has a
// label __type__ or __unit__, which functions drop like the name. And series are read in
// the order of their labels.
//
// Where the engine's own results differ from run to run, since it has walked through a Go
// map, "those at the whole range" are all that it may give at a step.
func Check(expr parser.Expr) error {
	got, err := check(expr)
	if err != nil {
		return err
	}
	if !got.selects {
		return reason("no series is read")
	}
	return nil
}

// shape is what is known of the series that an expression gives.
type shape struct {
	selects bool // series are read for it

	// uniform says that all series that it ever gives have the same metric name, which is
	// name; "" is none. Then no two become equal when the name is dropped. The engine
	// refuses equal series in a range, some even if no step has both of them, so that whether
	// it does could depend on where the range is cut.
	uniform bool
	name    string // unknown if it is not clear which

	order order
}

// order is in which order the engine has the series.
type order int

const (
	// stable: that of the labels of the series that were read, or there is one series. Series that have no
	// sample in a piece leave a gap, and the others stay in order.
	stable order = iota
	// shifting: groups, by the first series of each. In a piece this may be another one
	// than in the whole, and so another order.
	shifting
	// random: that of a Go map, another one each time.
	random
)

// unknown is no name of a metric.
const unknown = "\xff"

// sameName reports whether the series of both have one name.
func sameName(a, b shape) bool {
	return a.uniform && b.uniform && a.name == b.name && a.name != unknown
}

func check(expr parser.Expr) (shape, error) {
	switch n := expr.(type) {
	case nil, *parser.NumberLiteral, *parser.StringLiteral:
		return shape{uniform: true}, nil
	case *parser.ParenExpr:
		return check(n.Expr)
	case *parser.StepInvariantExpr:
		// It is evaluated once and repeated; in each piece again, with the same result.
		return check(n.Expr)
	case *parser.UnaryExpr:
		return checkUnary(n)
	case *parser.VectorSelector:
		return checkSelector(n)
	case *parser.MatrixSelector:
		if err := checkDuration(n.RangeExpr); err != nil {
			return shape{}, err
		}
		return check(n.VectorSelector)
	case *parser.SubqueryExpr:
		return checkSubquery(n)
	case *parser.Call:
		return checkCall(n)
	case *parser.BinaryExpr:
		return checkBinary(n)
	case *parser.AggregateExpr:
		return checkAggregate(n)
	}
	return shape{}, reasonf("it has a part that is not known here, %T", expr)
}

// checkUnary: a sign changes each value by itself, and drops names.
func checkUnary(n *parser.UnaryExpr) (shape, error) {
	got, err := check(n.Expr)
	if err == nil && !got.uniform && n.Op == parser.SUB {
		err = reason("a sign drops names of metrics that may differ")
	}
	if n.Op == parser.SUB {
		got.name = ""
	}
	return got, err
}

// checkSelector: which sample a series has at a step depends on the step's time, the lookback and the offset
// alone. A fixed time (@) would be read for each piece again, and start() and end()
// are those of the whole; these are rare, and read little.
func checkSelector(n *parser.VectorSelector) (shape, error) {
	if n.Timestamp != nil || n.StartOrEnd != 0 {
		return shape{}, reason("a selector is at a fixed time (@)")
	}
	if n.Anchored || n.Smoothed {
		return shape{}, reason("a selector is anchored or smoothed, which is experimental")
	}
	if err := checkDuration(n.OriginalOffsetExpr); err != nil {
		return shape{}, err
	}
	got := shape{selects: true}
	for _, m := range n.LabelMatchers {
		if m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual {
			got.uniform, got.name = true, m.Value
		}
	}
	return got, nil
}

// checkSubquery: its steps are at multiples of its own step, whatever the query's, and each
// step of the query takes those in its window.
func checkSubquery(n *parser.SubqueryExpr) (shape, error) {
	if n.Timestamp != nil || n.StartOrEnd != 0 {
		return shape{}, reason("a subquery is at a fixed time (@)")
	}
	for _, d := range []*parser.DurationExpr{n.RangeExpr, n.StepExpr, n.OriginalOffsetExpr} {
		if err := checkDuration(d); err != nil {
			return shape{}, err
		}
	}
	return check(n.Expr)
}

// checkDuration: a computed duration may depend on the step, which is that of
// the pieces as well, and on the range, which is not.
func checkDuration(expr parser.Expr) error {
	d, ok := expr.(*parser.DurationExpr)
	if !ok || d == nil {
		return nil
	}
	if d.Op == parser.RANGE {
		return reason("a duration depends on the range of the query")
	}
	if err := checkDuration(d.LHS); err != nil {
		return err
	}
	return checkDuration(d.RHS)
}

// perStep are the functions whose result at a step depends on the values of their arguments
// at that step, or for range vectors on the samples in its window. All drop the name of
// the metric but those in keepsName. What is not here is experimental, or special:
// sort warns if the range has more than one step, info reads what it is not told here.
//
//nolint:gochecknoglobals // it is never changed
var perStep = []string{
	"abs", "absent", "absent_over_time", "acos", "acosh", "asin", "asinh", "atan", "atanh", "avg_over_time", "ceil", "changes",
	"clamp", "clamp_max", "clamp_min", "cos", "cosh", "count_over_time", "days_in_month", "day_of_month", "day_of_week",
	"day_of_year", "deg", "delta", "deriv", "exp", "first_over_time", "floor", "histogram_avg", "histogram_count",
	"histogram_sum", "histogram_stddev", "histogram_stdvar", "histogram_fraction", "histogram_quantile", "hour", "idelta",
	"increase", "irate", "label_replace", "label_join", "last_over_time", "ln", "log10", "log2", "max_over_time",
	"min_over_time", "minute", "month", "pi", "predict_linear", "present_over_time", "quantile_over_time", "rad", "rate",
	"resets", "round", "scalar", "sgn", "sin", "sinh", "sqrt", "stddev_over_time", "stdvar_over_time", "sum_over_time",
	"tan", "tanh", "time", "timestamp", "vector", "year",
}

//nolint:gochecknoglobals // it is never changed
var keepsName = []string{"first_over_time", "last_over_time", "label_replace", "label_join"}

func checkCall(n *parser.Call) (shape, error) {
	name := n.Func.Name
	if !slices.Contains(perStep, name) || n.Func.Experimental {
		return shape{}, reasonf("the function %s is experimental, or depends on the range", name)
	}
	got, ofRange := shape{uniform: true}, false
	for _, arg := range n.Args {
		in, err := check(arg)
		if err != nil {
			return shape{}, err
		}
		switch arg.Type() {
		case parser.ValueTypeMatrix:
			ofRange = true
			got.uniform, got.name, got.order = in.uniform, in.name, in.order
		case parser.ValueTypeVector:
			got.uniform, got.name, got.order = in.uniform, in.name, in.order
		}
		got.selects = got.selects || in.selects
	}
	switch {
	case ofRange && !got.uniform:
		// Equal series are refused if the range has both, be it at other steps.
		return shape{}, reasonf("%s drops names of metrics that may differ", name)
	case name == "label_replace", name == "label_join":
		// Series that become equal are merged if they have no step in common, and refused
		// if they have, for each step alike.
		got.uniform, got.order = got.uniform && !isMetadata(destination(n)), random
	case ofRange:
	default:
		got.order = random
	}
	if !slices.Contains(keepsName, name) {
		got.name = ""
		got.uniform = got.uniform || n.Type() == parser.ValueTypeScalar
	}
	return got, nil
}

// destination returns the label that label_replace or label_join writes, and the name of
// the metric if that is not known.
func destination(n *parser.Call) string {
	if len(n.Args) > 1 {
		if s, ok := unparen(n.Args[1]).(*parser.StringLiteral); ok {
			return s.Val
		}
	}
	return model.MetricNameLabel
}

// isMetadata reports whether functions drop a label together with the metric's name.
func isMetadata(label string) bool {
	return label == model.MetricNameLabel || label == "__type__" || label == "__unit__"
}

func unparen(expr parser.Expr) parser.Expr {
	for {
		p, ok := expr.(*parser.ParenExpr)
		if !ok {
			return expr
		}
		expr = p.Expr
	}
}

//nolint:gochecknoglobals // it is never changed
var arithmetic = []parser.ItemType{parser.ADD, parser.SUB, parser.MUL, parser.DIV, parser.MOD, parser.POW, parser.ATAN2}

// checkBinary: operators match the series of each step by themselves, and so do
// their errors.
func checkBinary(n *parser.BinaryExpr) (shape, error) {
	lhs, err := check(n.LHS)
	if err != nil {
		return shape{}, err
	}
	rhs, err := check(n.RHS)
	if err != nil {
		return shape{}, err
	}
	got := shape{selects: lhs.selects || rhs.selects, order: random}
	matching := n.VectorMatching
	if matching != nil {
		if slices.ContainsFunc(matching.Include, isMetadata) {
			return shape{}, reason("an operator copies the name of a metric")
		}
		if matching.FillValues.LHS != nil || matching.FillValues.RHS != nil {
			return shape{}, reason("an operator fills in values, which is experimental")
		}
	}
	switch {
	case n.Type() == parser.ValueTypeScalar:
		got.uniform, got.order = true, stable
	case n.LHS.Type() == parser.ValueTypeScalar:
		got.uniform, got.name = rhs.uniform, unknown
	case n.RHS.Type() == parser.ValueTypeScalar:
		got.uniform, got.name = lhs.uniform, unknown
	case n.Op == parser.LAND, n.Op == parser.LUNLESS:
		got.uniform, got.name = lhs.uniform, lhs.name
	case n.Op == parser.LOR:
		got.uniform, got.name = sameName(lhs, rhs), lhs.name
	default:
		got.uniform, got.name = lhs.uniform && rhs.uniform, unknown
	}
	if slices.Contains(arithmetic, n.Op) || n.ReturnBool {
		got.uniform, got.name = true, "" // they drop it
	}
	return got, nil
}

// checkAggregate: an aggregation takes the values of each step by themselves. The result
// may depend on their order, in the last bit of a sum, in the sign of a zero, or in which of equal values
// topk takes.
func checkAggregate(n *parser.AggregateExpr) (shape, error) {
	in, err := check(n.Expr)
	if err != nil {
		return shape{}, err
	}
	if n.Param != nil {
		// The engine judges the parameter by its values in the whole range.
		switch unparen(n.Param).(type) {
		case *parser.NumberLiteral, *parser.StringLiteral:
		default:
			return shape{}, reasonf("the parameter of %s is computed", n.Op)
		}
	}
	out := shape{selects: in.selects, uniform: true, order: shifting}
	if in.order == random {
		out.order = random
	}
	if !n.Without && slices.ContainsFunc(n.Grouping, isMetadata) {
		out.uniform, out.name = in.uniform, in.name
	}
	switch n.Op {
	case parser.COUNT, parser.GROUP:
	case parser.COUNT_VALUES:
		out.order = random
		if label, ok := unparen(n.Param).(*parser.StringLiteral); !ok || isMetadata(label.Val) {
			out.uniform = false
		}
	case parser.SUM, parser.AVG, parser.MIN, parser.MAX, parser.STDDEV, parser.STDVAR, parser.QUANTILE:
		if in.order == shifting {
			return shape{}, reasonf("%s depends on the order of groups", n.Op)
		}
	case parser.TOPK, parser.BOTTOMK:
		// Which of equal values it takes is the same at all steps of the whole range.
		if in.order != stable {
			return shape{}, reasonf("%s depends on the order of its series", n.Op)
		}
		out.uniform, out.name, out.order = in.uniform, in.name, random
	default:
		return shape{}, reasonf("the aggregation %s is experimental", n.Op)
	}
	if !n.Without && len(n.Grouping) == 0 && n.Op != parser.TOPK && n.Op != parser.BOTTOMK && n.Op != parser.COUNT_VALUES {
		out.order = stable // there is one series
	}
	return out, nil
}
