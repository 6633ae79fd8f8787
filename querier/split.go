package querier

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/prometheus/prometheus/util/stats"

	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// splitQuery is a range query that is evaluated piece by piece (timesplit), several of them
// at a time on as many cores, each with the plain engine. What is found meanwhile to
// make the pieces differ from the whole has the whole evaluated instead.
type splitQuery struct {
	*limitedQuery // the whole

	engines   *engines
	queryable storage.Queryable
	opts      promql.QueryOpts
	expr      parser.Expr // preprocessed; not evaluated
	normal    string      // as it was parsed, printed
	lookback  time.Duration
	steps     timesplit.Range // all of them
	step      int64           // ms
	width     int64           // ms, of pieces

	timers  *stats.QueryTimers
	samples *stats.QuerySamples
	cut     atomic.Bool // the result is of pieces
	cancel  atomic.Pointer[context.CancelFunc]
}

// errWhole says that pieces would not be equal to the whole.
var errWhole = errors.New("the query must be evaluated as a whole")

// split returns query as one that is evaluated piece by piece, or as it is.
func (e *engines) split(query *limitedQuery, q storage.Queryable, opts promql.QueryOpts) promql.Query {
	stmt, ok := query.Statement().(*parser.EvalStmt)
	if !ok {
		return query
	}
	raw, err := newParser().ParseExpr(query.String())
	if err != nil || timesplit.Check(raw) != nil {
		return query
	}
	if opts == nil {
		opts = promql.NewPrometheusQueryOpts(false, 0)
	}
	s := &splitQuery{
		limitedQuery: query, engines: e, queryable: q, opts: opts, expr: stmt.Expr, normal: raw.String(), lookback: stmt.LookbackDelta,
		steps: timesplit.Range{Start: stmt.Start.UnixMilli(), End: stmt.End.UnixMilli()}, step: stmt.Interval.Milliseconds(),
		timers: stats.NewQueryTimers(), samples: stats.NewQuerySamples(opts.EnablePerStepStats()),
	}
	if s.step <= 0 || s.steps.End <= s.steps.Start {
		return query
	}
	s.steps.End -= (s.steps.End - s.steps.Start) % s.step
	s.width = e.width(stmt.Interval, timesplit.Window(s.expr, s.lookback))
	return s
}

// Exec implements promql.Query.
func (s *splitQuery) Exec(ctx context.Context) *promql.Result {
	pieces := timesplit.Cut(s.steps, s.step, s.width)
	own, ok := s.queryable.(queryable)
	uses := ok && own.q.results != nil && s.steps.Start < time.Now().Add(-recentSpan).UnixMilli()
	if len(pieces) < 2 && !uses {
		return s.limitedQuery.Exec(ctx)
	}
	ctx = s.accounted(ctx)
	accountOf(ctx).steps.Add(int64(s.steps.Steps(s.step)))
	within, cancel := context.WithTimeout(ctx, s.limits.duration)
	defer cancel()
	s.cancel.Store(&cancel)
	s.cut.Store(true)
	timer, within := s.timers.GetSpanTimer(within, stats.ExecTotalTime)
	result, warnings, err := s.evaluate(within, pieces)
	timer.Finish()
	if errors.Is(err, errWhole) {
		s.cut.Store(false)
		return s.limitedQuery.Exec(ctx)
	}
	if err != nil {
		return &promql.Result{Err: s.explain(ctx, err), Warnings: warnings}
	}
	return &promql.Result{Value: result, Warnings: warnings}
}

func (s *splitQuery) evaluate(ctx context.Context, pieces []timesplit.Range) (promql.Matrix, annotations.Annotations, error) {
	timer, ctx := s.timers.GetSpanTimer(ctx, stats.EvalTotalTime)
	defer timer.Finish()
	account := accountOf(ctx)
	src := s.origin(ctx)
	plan := s.plan(src, pieces)
	missing := 0
	if src.cache != nil {
		if missing = s.missingKeepable(src, plan.missing); missing > 0 {
			// Who asks the same at the same time waits, and finds it in the cache.
			unlock, err := src.cache.Lock(ctx, src.key)
			if err != nil {
				return nil, nil, err
			}
			defer unlock()
			plan = s.plan(src, pieces)
			missing = s.missingKeepable(src, plan.missing)
		}
	}
	kept := 0
	for i := range plan.kept {
		kept += plan.kept[i].Steps(s.step)
		if err := account.Hold(int64(plan.kept[i].points()) * bytesPerPoint); err != nil {
			return nil, nil, err
		}
	}
	run := &splitRun{query: s, origin: src, pieces: plan.missing, done: make([]piece, len(plan.missing))}
	if err := run.all(ctx); err != nil {
		return nil, run.warnings(), err
	}
	s.addStats(run.done)
	if src.cache != nil {
		account.stepsFromCache.Add(int64(kept))
		src.cache.Count(kept, missing)
		if err := s.keep(src, plan.known, run.done); err != nil {
			s.engines.logger.Warn("The results of a query could not be kept; it is evaluated again the next time", "err", err)
		}
	}
	extents := plan.kept
	for _, p := range run.done {
		extents = append(extents, p.extent)
	}
	result, err := assemble(account, extents)
	return result, run.warnings(), err
}

// addStats adds what pieces have read. Steps and samples in them are counted as those of
// the whole are; the samples that are read twice, before the first step of each piece,
// count among those that were read, and the peak is that of the pieces that took most,
// if all of them were at work at once.
func (s *splitQuery) addStats(pieces []piece) {
	s.samples.InitStepTracking(s.steps.Start, s.steps.End, s.step)
	var peaks []int
	for _, p := range pieces {
		s.samples.TotalSamples += p.stats.TotalSamples
		s.samples.SamplesRead += p.stats.SamplesRead
		peaks = append(peaks, p.stats.PeakSamples)
		if s.samples.EnablePerStepStats {
			first := (p.Start - s.steps.Start) / s.step
			copy(s.samples.TotalSamplesPerStep[first:], p.stats.TotalSamplesPerStep)
			copy(s.samples.SamplesReadPerStep[first:], p.stats.SamplesReadPerStep)
		}
		s.samples.PeakSamples += p.points()
	}
	slices.Sort(peaks)
	for _, peak := range peaks[max(0, len(peaks)-cap(s.engines.slots)):] {
		s.samples.PeakSamples += peak
	}
}

// Stats implements promql.Query.
func (s *splitQuery) Stats() *stats.Statistics {
	if !s.cut.Load() {
		return s.limitedQuery.Stats()
	}
	return &stats.Statistics{Timers: s.timers, Samples: s.samples}
}

// Cancel implements promql.Query.
func (s *splitQuery) Cancel() {
	if cancel := s.cancel.Load(); cancel != nil {
		(*cancel)()
	}
	s.limitedQuery.Cancel()
}

// piece is what was evaluated of some steps.
type piece struct {
	extent
	warnings annotations.Annotations
	stats    stats.QuerySamples
	err      error
}

// splitRun evaluates the pieces of one query.
type splitRun struct {
	query  *splitQuery
	origin origin
	pieces []timesplit.Range
	done   []piece // each by its worker

	next   atomic.Int64
	stop   atomic.Bool
	points atomic.Int64 // of all results so far

	// alone makes a piece that needs more than its share of the samples wait until no
	// other is evaluated.
	alone sync.RWMutex
}

// all evaluates all pieces, in the order of time as far as one can speak of it. Of several
// errors it returns that of the first piece, so that it is always the same.
func (r *splitRun) all(ctx context.Context) error {
	aheadCtx, done := context.WithCancel(ctx)
	ahead, owners := ahead{run: r}, ownersAhead{run: r}
	defer ahead.work.Wait()
	defer owners.work.Wait()
	defer done()
	lots := newLots(ctx, r)
	defer lots.close()
	var workers sync.WaitGroup
	for range min(cap(r.query.engines.slots), len(r.pieces)) {
		workers.Go(func() {
			for !r.stop.Load() {
				ahead.consider(aheadCtx)
				owners.consider(aheadCtx)
				i := int(r.next.Add(1)) - 1
				if i >= len(r.pieces) {
					return
				}
				r.done[i] = r.one(lots.enter(ctx, aheadCtx, i), r.pieces[i])
				lots.leave(i)
				if r.done[i].err != nil {
					r.stop.Store(true)
				}
			}
		})
	}
	workers.Wait()
	var first error
	for _, p := range r.done {
		if errors.Is(p.err, errWhole) {
			return p.err
		}
		if first == nil {
			first = p.err
		}
	}
	return first
}

func (r *splitRun) warnings() annotations.Annotations {
	var all annotations.Annotations
	for _, p := range r.done {
		all.Merge(p.warnings)
	}
	return all
}

// one evaluates a piece with its share of the samples that the query may have in
// memory, and, if that is not enough, with all of them while no other piece has any.
func (r *splitRun) one(ctx context.Context, steps timesplit.Range) piece {
	limits := r.query.limits
	limits.samples = max(1, limits.samples/cap(r.query.engines.slots))
	r.alone.RLock()
	p := r.query.evaluatePiece(ctx, r.origin.queryable, steps, limits)
	r.alone.RUnlock()
	var tooMany promql.ErrTooManySamples
	if errors.As(p.err, &tooMany) && limits.samples < r.query.limits.samples {
		r.alone.Lock()
		p = r.query.evaluatePiece(ctx, r.origin.queryable, steps, r.query.limits)
		r.alone.Unlock()
	}
	if p.err == nil && r.points.Add(int64(p.points())) > int64(r.query.limits.samples) {
		p.err = promql.ErrTooManySamples("query execution")
	}
	return p
}

// evaluatePiece has the plain engine evaluate some steps, when it is their turn among
// those of all queries.
func (s *splitQuery) evaluatePiece(ctx context.Context, from storage.Queryable, steps timesplit.Range, limits queryLimits) piece {
	select {
	case s.engines.slots <- struct{}{}:
		defer func() { <-s.engines.slots }()
	case <-ctx.Done():
		return piece{err: context.Cause(ctx)}
	}
	account := accountOf(ctx).part()
	defer account.release()
	whole := ctx
	ctx = withAccount(ctx, account)
	watch := &watch{Queryable: charged{from}}
	query, err := s.engines.of(limits).NewRangeQuery(ctx, watch, s.opts, s.String(), time.UnixMilli(steps.Start), time.UnixMilli(steps.End), time.Duration(s.step)*time.Millisecond)
	if err != nil {
		return piece{err: err}
	}
	defer query.Close() // its points are used again: what stays is a copy
	result := query.Exec(ctx)
	if watch.whole.Load() {
		return piece{err: errWhole}
	}
	if result.Err != nil {
		return piece{err: result.Err, warnings: result.Warnings}
	}
	matrix, err := result.Matrix()
	if err != nil {
		return piece{err: err}
	}
	points := int64(0)
	for i := range matrix {
		points += int64(len(matrix[i].Floats))
	}
	if err := accountOf(whole).Hold(points * bytesPerPoint); err != nil {
		return piece{err: err}
	}
	p := piece{extent: extent{Range: steps}, warnings: result.Warnings, stats: *query.Stats().Samples}
	if p.series, err = copySeries(matrix); err != nil {
		return piece{err: err}
	}
	return p
}

// copySeries returns the series of a result, sorted by labels as they are there, in memory of their own.
func copySeries(matrix promql.Matrix) ([]extentSeries, error) {
	total := 0
	for i := range matrix {
		if len(matrix[i].Histograms) > 0 {
			return nil, errWhole
		}
		total += len(matrix[i].Floats)
	}
	points := make([]promql.FPoint, 0, total)
	series := make([]extentSeries, len(matrix))
	for i := range matrix {
		first := len(points)
		points = append(points, matrix[i].Floats...)
		series[i] = extentSeries{labels: matrix[i].Metric, points: points[first:len(points):len(points)]}
	}
	return series, nil
}
