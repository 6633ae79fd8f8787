package querier

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// twin is the engine of Prometheus's suite. Besides, it evaluates each range query as the
// querier does, as a whole and piece by piece, and fails the test unless both give the same, bit by bit.
type twin struct {
	*promql.Engine
	t      *testing.T
	pieces *engines
	cut    int // how many queries were evaluated piece by piece to the end
}

func newTwin(t *testing.T, width func(step time.Duration) time.Duration) *twin {
	e := newEngines(func(tenant.ID) tenant.Limits { return tenant.DefaultLimits() }, slog.New(slog.DiscardHandler))
	e.width = func(step, _ time.Duration) int64 { return width(step).Milliseconds() }
	return &twin{Engine: promqltest.NewTestEngine(t, true, 0, promqltest.DefaultMaxSamplesPerQuery), t: t, pieces: e}
}

func (w *twin) NewRangeQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, qs string, start, end time.Time, step time.Duration) (promql.Query, error) {
	limits := queryLimitsOf(tenant.DefaultLimits())
	plain := w.pieces.of(limits)
	query, err := plain.NewRangeQuery(ctx, sorted{q}, opts, qs, start, end, step)
	if err != nil {
		return w.Engine.NewRangeQuery(ctx, q, opts, qs, start, end, step)
	}
	split, ok := w.pieces.split(&limitedQuery{Query: query, tenant: alice, limits: limits, account: w.pieces.account(alice)}, q, opts).(*splitQuery)
	if !ok {
		return w.Engine.NewRangeQuery(ctx, q, opts, qs, start, end, step)
	}
	whole, err := plain.NewRangeQuery(ctx, sorted{q}, opts, qs, start, end, step)
	require.NoError(w.t, err)
	want, got := textOf(qs, whole.Exec(ctx)), textOf(qs, split.Exec(ctx))
	where := fmt.Sprintf("%s from %d to %d step %s", qs, start.UnixMilli(), end.UnixMilli(), step)
	if anyOrder(split.expr) {
		split.Close() // the whole differs from run to run, in the last bits
		return w.Engine.NewRangeQuery(ctx, q, opts, qs, start, end, step)
	}
	if strings.HasPrefix(want, "error") {
		require.Regexp(w.t, "^error", got, where)
	} else {
		require.Equal(w.t, want, got, where)
	}
	if split.cut.Load() {
		w.cut++
		if !strings.HasPrefix(want, "error") {
			wantStats, gotStats := whole.Stats().Samples, split.Stats().Samples
			require.Equal(w.t, wantStats.TotalSamples, gotStats.TotalSamples, where)
			require.Equal(w.t, wantStats.TotalSamplesPerStep, gotStats.TotalSamplesPerStep, where)
			require.GreaterOrEqual(w.t, gotStats.SamplesRead, wantStats.SamplesRead, where)
		}
	}
	split.Close()
	return w.Engine.NewRangeQuery(ctx, q, opts, qs, start, end, step)
}

// anyOrder reports whether an aggregation gets its series in the order of a Go map.
func anyOrder(expr parser.Node) bool {
	found := false
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		aggregated := slices.ContainsFunc(path, func(n parser.Node) bool { _, ok := n.(*parser.AggregateExpr); return ok })
		switch n := node.(type) {
		case *parser.BinaryExpr:
			found = found || aggregated
		case *parser.Call:
			found = found || aggregated && len(n.Args) > 0 && n.Args[0].Type() != parser.ValueTypeMatrix
		case *parser.AggregateExpr:
			found = found || aggregated && slices.Contains([]parser.ItemType{parser.TOPK, parser.BOTTOMK, parser.COUNT_VALUES}, n.Op)
		}
		return nil
	})
	return found
}

// sorted is a storage that gives series in the order of labels, as one does that merges.
type sorted struct{ storage.Queryable }

func (s sorted) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := s.Queryable.Querier(mint, maxt)
	return sortedQuerier{q}, err
}

type sortedQuerier struct{ storage.Querier }

func (q sortedQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	return q.Querier.Select(ctx, true, hints, matchers...)
}

// textOf returns a result as text that is equal only if all bits are.
func textOf(query string, r *promql.Result) string {
	if r.Err != nil {
		return "error: " + r.Err.Error()
	}
	var b strings.Builder
	warnings, infos := r.Warnings.AsStrings(query, 0, 0)
	slices.Sort(warnings)
	slices.Sort(infos)
	// How many samples had to be mended for histogram_quantile: the engine's count doubles
	// from step to step until it is below 0.
	fmt.Fprintln(&b, warnings, regexp.MustCompile("over -?[0-9]+ samples").ReplaceAllString(fmt.Sprint(infos), "over some samples"))
	for _, s := range r.Value.(promql.Matrix) {
		fmt.Fprint(&b, s.Metric)
		for _, p := range s.Floats {
			fmt.Fprintf(&b, " %d:%x", p.T, math.Float64bits(p.F))
		}
		for _, p := range s.Histograms {
			fmt.Fprintf(&b, " %d:%s", p.T, p.H.TestExpression())
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

func TestPiecesOfPrometheussOwnSuiteAreEqualToTheWhole(t *testing.T) {
	for _, steps := range []time.Duration{1, 3} {
		if (testing.Short() || raceDetector) && steps == 1 {
			continue
		}
		w := newTwin(t, func(step time.Duration) time.Duration { return steps * step })
		promqltest.RunBuiltinTestsWithStorage(t, w, func(t testing.TB) storage.Storage {
			return teststorage.New(t, func(opt *tsdb.Options) { // as the suite's own
				opt.EnableSTStorage, opt.FloatChunkEncoding, opt.EnableHistogramSTEncoding = true, chunkenc.EncXOR2, true
			})
		})
		require.Greater(t, w.cut, 500)
	}
}

// churn fills a storage with a day and a half of what monitoring has: counters that reset, series that
// come and go, with stale markers and without, gaps, values that are not numbers, samples that are early
// or late, and in some time one native histogram.
func churn(t *testing.T, s storage.Storage, rng *rand.Rand) {
	app := s.AppenderV2(t.Context())
	add := func(ls labels.Labels, at int64, v float64) {
		_, err := app.Append(0, ls, 0, at, v, nil, nil, storage.AOptions{})
		require.NoError(t, err)
	}
	add(labels.FromStrings("__name__", "first"), 0, 1) // the TSDB takes nothing that is much older than its first sample
	for _, name := range []string{"requests_total", "temperature", "latency_bucket"} {
		for i := range 12 {
			ls := labels.FromStrings("__name__", name, "pod", fmt.Sprint(i%4), "zone", string(rune('a'+i/4)))
			if name == "latency_bucket" {
				ls = labels.FromStrings("__name__", name, "pod", fmt.Sprint(i%4), "le", []string{"0.1", "1", "+Inf"}[i/4])
			}
			v, alive := 0.0, rng.IntN(2) == 0
			for at := int64(0); at < 36*hour; at += minute {
				if rng.IntN(200) == 0 {
					if alive = !alive; !alive && rng.IntN(2) == 0 {
						add(ls, at, math.Float64frombits(value.StaleNaN))
						continue
					}
				}
				switch {
				case !alive, rng.IntN(50) == 0:
					continue
				case rng.IntN(300) == 0:
					v = 0
				case name == "temperature":
					v = rng.NormFloat64() * math.Pow(10, float64(rng.IntN(8)))
				default:
					v += rng.Float64() * float64(1+i/4)
				}
				add(ls, at+rng.Int64N(1000), v)
			}
		}
	}
	for at := 20 * hour; at < 21*hour; at += minute {
		_, err := app.Append(0, labels.FromStrings("__name__", "mixed"), 0, at, 0, nil, histogramAt(at), storage.AOptions{})
		require.NoError(t, err)
	}
	for at := int64(0); at < 20*hour; at += minute {
		add(labels.FromStrings("__name__", "typed", "__type__", "gauge"), at, 1)
		if at < 10*hour {
			add(labels.FromStrings("__name__", "typed", "__type__", "counter"), at, 1)
		}
	}
	require.NoError(t, app.Commit())
}

func histogramAt(at int64) *histogram.FloatHistogram {
	return tsdbutil.GenerateTestFloatHistogram(at / minute % 100)
}

// author writes random expressions.
type author struct{ *rand.Rand }

func (w author) of(texts ...string) string { return texts[w.IntN(len(texts))] }

func (w author) selector() string {
	return w.of("requests_total", "temperature", "latency_bucket", `requests_total{zone="a"}`, `temperature{pod=~"1|2"}`, "nothing",
		`{__name__="temperature",pod!="3"}`, `{pod="1"}`, "mixed", "typed")
}

func (w author) offset() string {
	return w.of("", "", "", "", " offset 7m", " offset -13m", " offset 5h")
}

func (w author) matrix(depth int) string {
	if depth > 0 && w.IntN(4) == 0 {
		return fmt.Sprintf("(%s)[%s:%s]%s", w.vector(depth-1), w.of("10m", "1h", "3h"), w.of("", "1m", "7m"), w.offset())
	}
	return w.selector() + "[" + w.of("90s", "5m", "1h", "4h") + "]" + w.offset()
}

func (w author) vector(depth int) string {
	if depth == 0 {
		return w.selector() + w.offset()
	}
	inner := func() string { return w.vector(depth - 1) }
	switch w.IntN(12) {
	case 0, 1, 2:
		return w.of("rate", "increase", "irate", "delta", "idelta", "avg_over_time", "sum_over_time", "max_over_time", "min_over_time", "changes", "resets",
			"last_over_time", "first_over_time", "count_over_time", "stddev_over_time", "deriv", "present_over_time", "absent_over_time") + "(" + w.matrix(depth-1) + ")"
	case 3, 4:
		by := w.of("", " by (pod)", " without (pod)", " by (zone, le)", " by (__name__)")
		return w.of("sum", "avg", "min", "max", "count", "group", "stddev", "stdvar") + by + " (" + inner() + ")"
	case 5:
		return w.of("topk(2, ", "bottomk(1, ", "quantile(0.3, ", `count_values("v", `) + inner() + ")"
	case 6:
		return inner() + w.of(" + ", " / ", " > ", " == bool ", " and ", " or ", " unless ", " * on (pod) ", " - ignoring (zone) ", " / on (pod) group_left () ") + inner()
	case 7:
		return w.of("abs(", "ceil(", "-(", "round(", "sgn(", "timestamp(", "absent(", "histogram_quantile(0.9, ", "clamp_max(3, ") + inner() + ")"
	case 8:
		return inner() + w.of(" * 2", " > 1", " % 7", " < bool 3", " ^ 2")
	case 9:
		return `label_replace(` + inner() + `, "` + w.of("pod", "zone", "x", "__name__") + `", "` + w.of("$1", "x$1", "y") + `", "pod", "(.)")`
	case 10:
		return w.of("vector(time())", "vector(scalar("+w.selector()+"))", "predict_linear("+w.matrix(depth-1)+", 600)", "quantile_over_time(0.7, "+w.matrix(depth-1)+")")
	default:
		return w.selector() + w.offset()
	}
}

func TestPiecesOfRandomQueriesAreEqualToTheWhole(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed is %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := teststorage.New(t)
	churn(t, s, rng)
	tw := newTwin(t, func(step time.Duration) time.Duration {
		return time.Duration(1+rng.IntN(40)) * max(step, 10*time.Minute)
	})
	count := 1500
	if testing.Short() || raceDetector {
		count = 200
	}
	texts := author{rng}
	for range count {
		start := rng.Int64N(30 * hour)
		step := []time.Duration{13 * time.Second, time.Minute, 7 * time.Minute, time.Hour, 97*time.Minute + time.Millisecond}[rng.IntN(5)]
		end := start + rng.Int64N(min(400*step.Milliseconds(), 40*hour-start))
		opts := promql.NewPrometheusQueryOpts(true, []time.Duration{0, time.Minute, time.Hour}[rng.IntN(3)])
		query, err := tw.NewRangeQuery(as(alice), s, opts, texts.vector(1+rng.IntN(3)), time.UnixMilli(start), time.UnixMilli(end), step)
		if err == nil { // else it is no valid query
			query.Close()
		}
	}
	require.Greater(t, tw.cut, count/5)
}

func TestPiecesMayHaveAllSamplesOfTheLimitOneAfterTheOther(t *testing.T) {
	s := teststorage.New(t)
	churn(t, s, rand.New(rand.NewPCG(1, 2)))
	limits := tenant.DefaultLimits()
	e := newEngines(func(tenant.ID) tenant.Limits { return limits }, slog.New(slog.DiscardHandler))
	run := func(text string) (*splitQuery, error) {
		query, err := e.NewRangeQuery(as(alice), s, nil, text, time.UnixMilli(0), time.UnixMilli(36*hour), time.Minute)
		require.NoError(t, err)
		defer query.Close()
		return query.(*splitQuery), query.Exec(as(alice)).Err
	}
	query, err := run("sum(requests_total)")
	require.NoError(t, err)
	require.True(t, query.cut.Load())
	most := 0
	for _, p := range timesplit.Cut(query.steps, query.step, query.width) {
		piece := query.evaluatePiece(query.accounted(as(alice)), s, p, query.limits)
		require.NoError(t, piece.err)
		most = max(most, piece.stats.PeakSamples)
	}

	limits.MaxQuerySamples = most // a piece at a time, and no share of it would do
	_, err = run("sum(requests_total)")
	require.NoError(t, err)
	limits.MaxQuerySamples = most - 1
	_, err = run("sum(requests_total)")
	requireLimit(t, err.Error(), "max_query_samples", fmt.Sprint(most-1))
	limits.MaxQuerySamples = 2 * most // the pieces fit, their results do not
	_, err = run("requests_total")
	requireLimit(t, err.Error(), "max_query_samples", fmt.Sprint(2*most))
}

func TestAPieceOfAQueryThatIsCanceledEndsIt(t *testing.T) {
	s := teststorage.New(t)
	churn(t, s, rand.New(rand.NewPCG(1, 2)))
	e := newEngines(func(tenant.ID) tenant.Limits { return tenant.DefaultLimits() }, slog.New(slog.DiscardHandler))
	for range cap(e.slots) {
		e.slots <- struct{}{} // others use all cores
	}
	ctx, cancel := context.WithCancel(as(alice))
	query, err := e.NewRangeQuery(ctx, s, nil, "requests_total", time.UnixMilli(0), time.UnixMilli(36*hour), time.Minute)
	require.NoError(t, err)
	time.AfterFunc(10*time.Millisecond, cancel)
	require.ErrorIs(t, query.Exec(ctx).Err, context.Canceled)
}
