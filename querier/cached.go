package querier

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/resultcache"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// recentSpan is for how long samples surely are with ingesters alone: a block is cut when its two hours
// are over. A query that begins later has no use for kept results.
const recentSpan = 2 * time.Hour

// pin is what the bucket had, and ingesters had not, at one moment: all samples of a tenant before
// oldest are read with view from the bucket, and no others are there.
type pin struct {
	view   *tenantView
	oldest int64 // ms
}

// pinned returns what the pieces of one query have in common. It asks the ingesters once, so that
// pieces that lie before what they hold need not.
func (q *Querier) pinned(ctx context.Context, id tenant.ID) (*pin, error) {
	oldest, err := q.edge.oldest(ctx, id)
	if err != nil {
		return nil, err
	}
	// The view is loaded after the ingesters were asked: see session.holders.
	view, err := q.views.of(id)
	if err != nil {
		return nil, err
	}
	return &pin{view: view, oldest: oldest(view)}, nil
}

// nothingRecent stands for ingesters that hold nothing of what is asked.
type nothingRecent struct{}

func (nothingRecent) begin(context.Context, request) func() (storage.Querier, covered, error) {
	return func() (storage.Querier, covered, error) {
		return storage.NoopQuerier(), covered{snapshot: true}, nil
	}
}

func (nothingRecent) close() error { return nil }

// uncachedKey is of the value in a context that says that no kept result is to be used, and none kept.
type uncachedKey struct{}

// withoutCache returns the context of a request that may ask for that.
func withoutCache(ctx context.Context, r *http.Request) context.Context {
	if r.URL.Query().Get("nocache") != "1" && !strings.Contains(r.Header.Get("Cache-Control"), "no-store") {
		return ctx
	}
	return context.WithValue(ctx, uncachedKey{}, true)
}

// origin is where a splitQuery finds results and samples, as long as it runs.
type origin struct {
	queryable storage.Queryable
	pin       *pin               // nil: nothing is known
	cache     *resultcache.Cache // nil: none
	key       string
}

// origin prepares what all pieces need. A fault of the ingesters is left to them to report.
func (s *splitQuery) origin(ctx context.Context) origin {
	own, ok := s.queryable.(queryable)
	if !ok || partialOf(ctx) != nil {
		return origin{queryable: s.queryable}
	}
	pin, err := own.q.pinned(ctx, s.tenant)
	if err != nil {
		return origin{queryable: s.queryable}
	}
	own.pin = pin
	src := origin{queryable: own, pin: pin, cache: own.q.results}
	if ctx.Value(uncachedKey{}) != nil {
		src.cache = nil
	}
	src.key = s.key()
	return src
}

// key names all that results depend on but the range and the data.
func (s *splitQuery) key() string {
	phase := (s.steps.Start%s.step + s.step) % s.step
	return fmt.Sprintf("%s\x00%s\x00step %d phase %d width %d lookback %d", s.tenant, s.normal, s.step, phase, s.width, s.lookback.Milliseconds())
}

// keepable returns those of some steps whose results may be kept: all samples that they read are
// in the bucket, and ingesters have none of that time. ok is false if there are none.
func (s *splitQuery) keepable(p *pin, steps timesplit.Range) (kept timesplit.Range, ok bool) {
	_, after := timesplit.Reads(s.expr, timesplit.Range{}, s.lookback)
	if p == nil || p.oldest == math.MinInt64 {
		return kept, false
	}
	last := p.oldest - 1 - max(after, -(1<<60))
	if p.oldest == math.MaxInt64 {
		last = math.MaxInt64
	}
	if last < steps.Start {
		return kept, false
	}
	steps.End = steps.Start + (min(last, steps.End)-steps.Start)/s.step*s.step
	return steps, true
}

// version is a fingerprint of the data that the results at some steps depend on.
func (s *splitQuery) version(p *pin, steps timesplit.Range) uint64 {
	return p.view.version(timesplit.Reads(s.expr, steps, s.lookback))
}

// plan is what is to be done for a query: kept are results that are there, and missing are steps to
// be evaluated, none of them on both sides of the end of what may be kept.
type plan struct {
	kept    []extent
	missing []timesplit.Range
	known   map[int64]extent // of the cache, by bucket, whole, if it holds still
}

// plan looks for results of all pieces.
func (s *splitQuery) plan(src origin, pieces []timesplit.Range) plan {
	p := plan{known: map[int64]extent{}}
	entry := resultcache.Entry{}
	if src.cache != nil {
		entry = src.cache.Get(src.key)
	}
	for _, x := range entry.Extents {
		steps := timesplit.Range{Start: x.Start, End: x.End}
		if kept, ok := s.keepable(src.pin, steps); ok && x.Version == s.version(src.pin, steps) {
			known := extentOf(x)
			p.known[timesplit.Bucket(x.Start, s.width)] = known.within(kept)
		}
	}
	for _, piece := range pieces {
		known, ok := p.known[timesplit.Bucket(piece.Start, s.width)]
		if !ok || known.End < piece.Start || piece.End < known.Start {
			p.missing = append(p.missing, s.cutAtRecent(src.pin, piece)...)
			continue
		}
		common := timesplit.Range{Start: max(known.Start, piece.Start), End: min(known.End, piece.End)}
		p.kept = append(p.kept, known.within(common))
		if piece.Start < common.Start {
			p.missing = append(p.missing, timesplit.Range{Start: piece.Start, End: common.Start - s.step})
		}
		if common.End < piece.End {
			p.missing = append(p.missing, s.cutAtRecent(src.pin, timesplit.Range{Start: common.End + s.step, End: piece.End})...)
		}
	}
	return p
}

// cutAtRecent cuts steps where results can no longer be kept.
func (s *splitQuery) cutAtRecent(p *pin, steps timesplit.Range) []timesplit.Range {
	kept, ok := s.keepable(p, steps)
	if !ok || kept.End == steps.End {
		return []timesplit.Range{steps}
	}
	return []timesplit.Range{kept, {Start: kept.End + s.step, End: steps.End}}
}

// missingKeepable counts the steps that have to be evaluated and can then be kept.
func (s *splitQuery) missingKeepable(src origin, missing []timesplit.Range) int {
	n := 0
	for _, m := range missing {
		if _, ok := s.keepable(src.pin, m); ok {
			n += m.Steps(s.step)
		}
	}
	return n
}

// keep adds what was evaluated to what is known. Results with warnings are not kept.
func (s *splitQuery) keep(src origin, known map[int64]extent, done []piece) error {
	changed := false
	for i := range done {
		steps, ok := s.keepable(src.pin, done[i].Range)
		if !ok || steps != done[i].Range || len(done[i].warnings) > 0 {
			continue
		}
		bucket := timesplit.Bucket(steps.Start, s.width)
		have, ok := known[bucket]
		switch {
		case !ok || steps.Steps(s.step) > have.Steps(s.step) && !have.touches(steps, s.step):
			known[bucket] = done[i].extent
		case have.touches(steps, s.step):
			known[bucket] = have.join(done[i].extent)
		default:
			continue // there is a gap between them
		}
		changed = true
	}
	if !changed {
		return nil
	}
	entry := resultcache.Entry{Key: src.key, Step: s.step}
	for _, x := range known {
		kept := resultcache.Extent{Start: x.Start, End: x.End, Version: s.version(src.pin, x.Range)}
		for _, series := range x.series {
			kept.Series = append(kept.Series, resultcache.Series{Labels: series.labels, Points: series.points})
		}
		entry.Extents = append(entry.Extents, kept)
	}
	slices.SortFunc(entry.Extents, func(a, b resultcache.Extent) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	return src.cache.Put(entry)
}

func extentOf(x resultcache.Extent) extent {
	out := extent{Range: timesplit.Range{Start: x.Start, End: x.End}, series: make([]extentSeries, len(x.Series))}
	for i, series := range x.Series {
		out.series[i] = extentSeries{labels: series.Labels, points: series.Points}
	}
	return out
}
