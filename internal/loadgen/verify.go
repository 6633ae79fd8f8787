package loadgen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"
)

// VerifyReport is the outcome of a verification.
type VerifyReport struct {
	Elapsed time.Duration
	Queries int64
	// Acknowledged is how many samples must be there, stale markers not counted.
	Acknowledged int64
	// Extra is how many samples are there, with the right value, although they
	// were not acknowledged. That is no fault.
	Extra int64
	// Ended is how many series must have ended with a stale marker.
	Ended int64

	Lost       int64 // acknowledged, but not there
	Changed    int64 // there with another value
	Doubled    int64 // there more than once
	Unexpected int64 // there, but never sent
	NotEnded   int64 // series whose stale marker is lost
	// Examples are the first faults, in words.
	Examples []string
}

// Clean reports whether everything was found as it should be.
func (r VerifyReport) Clean() bool {
	return r.Lost == 0 && r.Changed == 0 && r.Doubled == 0 && r.Unexpected == 0 && r.NotEnded == 0
}

// Print writes r for people.
func (r VerifyReport) Print(w io.Writer) error {
	var b strings.Builder
	verdict := "verified     "
	if !r.Clean() {
		verdict = "FAULTY       "
	}
	fmt.Fprintf(&b, "%s %d acknowledged samples: %d lost, %d changed, %d doubled; %d never sent; %d not acknowledged but stored\n",
		verdict, r.Acknowledged, r.Lost, r.Changed, r.Doubled, r.Unexpected, r.Extra)
	if r.Ended > 0 {
		fmt.Fprintf(&b, "ended         %d series by a stale marker: %d markers lost\n", r.Ended, r.NotEnded)
	}
	fmt.Fprintf(&b, "took          %s, %d queries\n", r.Elapsed.Round(time.Millisecond), r.Queries)
	for _, example := range r.Examples {
		fmt.Fprintf(&b, "  %s\n", example)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *VerifyReport) add(other VerifyReport) {
	r.Queries += other.Queries
	r.Acknowledged += other.Acknowledged
	r.Extra += other.Extra
	r.Ended += other.Ended
	r.Lost += other.Lost
	r.Changed += other.Changed
	r.Doubled += other.Doubled
	r.Unexpected += other.Unexpected
	r.NotEnded += other.NotEnded
	if room := maxExamples - len(r.Examples); room > 0 {
		r.Examples = append(r.Examples, other.Examples[:min(room, len(other.Examples))]...)
	}
}

const (
	maxExamples = 20
	// samplesPerQuery bounds the answers that verification asks for.
	samplesPerQuery = 100_000
	// podsPerQuery bounds the length of queries.
	podsPerQuery    = 50
	verifyQueries   = 4 // at once
	verifyAttempts  = 6
	verifyQueryTime = 5 * time.Minute
)

// Verify reads back what the run sent and compares it with what was
// acknowledged. Its error says that the answers could not be had; what they say
// is in the report.
func (g *Generator) Verify(ctx context.Context) (VerifyReport, error) {
	return g.VerifyAt(ctx, g.cfg.queryURL())
}

// VerifyAt is Verify with another URL to ask than the configured one.
func (g *Generator) VerifyAt(ctx context.Context, url string) (VerifyReport, error) {
	started := time.Now()
	v := &verification{g: g, url: url, acked: g.Acknowledged(), apis: map[string]v1.API{}}
	v.ticks = g.plan.ticks
	reached := v.ticks.from
	for _, s := range v.acked.Sent {
		reached = max(reached, s.Before.Tick)
	}
	// Requests whose answers were not heard may have brought more than that.
	v.ticks.to = min(v.ticks.to, reached+requestSpan+1)

	for pod := range max(1, g.cfg.Tenants) {
		name := g.world.tenant(pod)
		client, err := v.newAPI(name)
		if err != nil {
			return VerifyReport{}, err
		}
		v.apis[name] = client
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(verifyQueries)
	for _, p := range v.stretches() {
		group.Go(func() error { return v.stretch(ctx, p) })
	}
	for _, e := range v.endings() {
		group.Go(func() error { return v.ending(ctx, e) })
	}
	err := group.Wait()
	v.mu.report.Elapsed = time.Since(started)
	return v.mu.report, err
}

// verification is one call of Verify.
type verification struct {
	g     *Generator
	url   string
	acked Acknowledged
	ticks tickRange
	apis  map[string]v1.API // by tenant

	mu struct {
		sync.Mutex
		report VerifyReport
	}
}

func (v *verification) newAPI(tenant string) (v1.API, error) {
	client, err := api.NewClient(api.Config{
		Address:      v.url,
		RoundTripper: tenantTripper{tenant: tenant, next: v.g.client.Transport},
	})
	if err != nil {
		return nil, fmt.Errorf("--query-url: %w", err)
	}
	return v1.NewAPI(client), nil
}

// tenantTripper adds the tenant to requests.
type tenantTripper struct {
	tenant string
	next   http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t tenantTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.tenant != "" {
		r = r.Clone(r.Context())
		r.Header.Set(tenantHeader, t.tenant)
	}
	return t.next.RoundTrip(r)
}

// stretch is what one query reads: some pods of one tenant over some ticks.
type stretch struct {
	pods  []int
	ticks tickRange
}

func (v *verification) stretches() []stretch {
	perPod := (v.ticks.to - v.ticks.from) * seriesPerPod
	podsAtOnce := max(1, min(podsPerQuery, samplesPerQuery/max(perPod, 1)))
	ticksAtOnce := max(1, int64(samplesPerQuery/seriesPerPod)/podsAtOnce)

	byTenant := map[string][]int{}
	for pod := range v.g.world.pods() {
		byTenant[v.g.world.tenant(pod)] = append(byTenant[v.g.world.tenant(pod)], pod)
	}
	var stretches []stretch
	for _, pods := range byTenant {
		for some := range slices.Chunk(pods, int(podsAtOnce)) {
			for from := v.ticks.from; from < v.ticks.to; from += ticksAtOnce {
				stretches = append(stretches, stretch{pods: some, ticks: tickRange{from, min(from+ticksAtOnce, v.ticks.to)}})
			}
		}
	}
	slices.SortFunc(stretches, func(a, b stretch) int {
		return cmp.Or(cmp.Compare(a.ticks.from, b.ticks.from), cmp.Compare(a.pods[0], b.pods[0]))
	})
	return stretches
}

// expected is a series that a query must return, with the ticks in which it lives.
type expected struct {
	in    *instance
	t     *template
	place place
	slot  int
	ticks tickRange
	found bool
}

func (v *verification) stretch(ctx context.Context, p stretch) error {
	w := v.g.world
	want := map[string]*expected{}
	var names []string
	for _, pod := range p.pods {
		for generation := w.generation(pod, p.ticks.from); generation <= w.generation(pod, p.ticks.to-1); generation++ {
			in := w.instance(pod, generation)
			names = append(names, in.name)
			for slot := range w.podSeries(pod) {
				t := w.template(pod, slot)
				want[seriesKey(w, t, in)] = &expected{
					in: in, t: t, place: v.g.plan.places[pod], slot: slot, ticks: w.alive(pod, generation, p.ticks),
				}
			}
		}
	}
	// A range selector is open on the left: this one covers exactly the ticks.
	query := fmt.Sprintf("{pod=~%q}[%dms]", strings.Join(names, "|"), (p.ticks.to-p.ticks.from)*w.interval)
	answer, err := v.query(ctx, w.tenant(p.pods[0]), query, p.ticks.to*w.interval-1)
	if err != nil {
		return err
	}
	matrix, ok := answer.(model.Matrix)
	if !ok {
		return fmt.Errorf("query %s: the answer is a %s, not a matrix", query, answer.Type())
	}
	r := VerifyReport{Queries: 1}
	for _, stream := range matrix {
		e := want[metricKey(stream.Metric)]
		switch {
		case e == nil:
			r.fault(&r.Unexpected, int64(len(stream.Values)+len(stream.Histograms)), "never sent: the series %s", stream.Metric)
		case e.found:
			r.fault(&r.Doubled, int64(len(stream.Values)+len(stream.Histograms)), "doubled: the series %s is there twice", stream.Metric)
		default:
			e.found = true
			v.compare(&r, e, stream)
		}
	}
	for _, e := range want {
		if !e.found {
			v.compare(&r, e, &model.SampleStream{})
		}
	}
	v.report(r)
	return nil
}

func (v *verification) report(r VerifyReport) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.report.add(r)
}

func (r *VerifyReport) fault(counter *int64, count int64, format string, args ...any) {
	*counter += count
	if len(r.Examples) < maxExamples {
		r.Examples = append(r.Examples, fmt.Sprintf(format, args...))
	}
}

// compare compares a series with what it must be.
func (v *verification) compare(r *VerifyReport, e *expected, got *model.SampleStream) {
	w := v.g.world
	offset := w.offset(e.in.pod)
	acked := &v.acked.Sent[e.place.sender]
	series := seriesText{w, e.t, e.in}

	samples := samplesOf(got)
	var n native
	next := 0
	for k := e.ticks.from; k < e.ticks.to; k++ {
		timestamp := k*w.interval + offset
		for ; next < len(samples) && samples[next].at < timestamp; next++ {
			r.fault(&r.Unexpected, 1, "never sent: %s of %s", samples[next], series)
		}
		must := acked.has(Cursor{Tick: k, Position: e.place.position + e.slot})
		if must {
			r.Acknowledged++
		}
		if next == len(samples) || samples[next].at != timestamp {
			if must {
				r.fault(&r.Lost, 1, "lost: the sample at %s of %s", at(timestamp), series)
			}
			continue
		}
		s := samples[next]
		next++
		if !must {
			r.Extra++
		}
		if fault := w.differs(&n, s, e, k); fault != "" {
			r.fault(&r.Changed, 1, "changed: %s of %s %s", s, series, fault)
		}
		for ; next < len(samples) && samples[next].at == timestamp; next++ {
			r.fault(&r.Doubled, 1, "doubled: %s of %s", samples[next], series)
		}
	}
	for ; next < len(samples); next++ {
		r.fault(&r.Unexpected, 1, "never sent: %s of %s", samples[next], series)
	}
}

// differs says how the sample differs from what was sent at tick k, "" if not.
func (w *world) differs(n *native, s sample, e *expected, k int64) string {
	if e.t.kind != kindNative {
		want := w.value(e.t, e.in, k)
		if s.histogram != nil {
			return fmt.Sprintf("is a histogram, but %v was sent", want)
		}
		if float64(s.value) != want {
			return fmt.Sprintf("should be %v", want)
		}
		return ""
	}
	if s.histogram == nil {
		return "is a float, but a histogram was sent"
	}
	w.native(n, e.t, e.in, k)
	if want := asJSON(n.histogram()); !want.Equal(s.histogram) {
		return fmt.Sprintf("should be %s", want)
	}
	return ""
}

// ending is a query that must not find what stale markers have ended.
type ending struct {
	pod        int
	generation int64 // that has ended
	tick       int64 // of the stale markers
}

func (v *verification) endings() []ending {
	w := v.g.world
	if w.lifetime == 0 || v.g.cfg.Unmarked {
		return nil
	}
	var all []ending
	for pod := range w.pods() {
		first := w.generation(pod, v.ticks.from)
		for generation := first; ; generation++ {
			end := (generation+1)*w.lifetime - w.phase(pod)
			if end >= v.ticks.to {
				break
			}
			all = append(all, ending{pod: pod, generation: generation, tick: end})
		}
	}
	return all
}

func (v *verification) ending(ctx context.Context, e ending) error {
	w := v.g.world
	in := w.instance(e.pod, e.generation)
	query := fmt.Sprintf("{pod=%q}", in.name)
	answer, err := v.query(ctx, w.tenant(e.pod), query, e.tick*w.interval+w.offset(e.pod))
	if err != nil {
		return err
	}
	vector, ok := answer.(model.Vector)
	if !ok {
		return fmt.Errorf("query %s: the answer is a %s, not a vector", query, answer.Type())
	}
	found := map[string]bool{}
	for _, s := range vector {
		found[metricKey(s.Metric)] = true
	}
	r := VerifyReport{Queries: 1}
	place := v.g.plan.places[e.pod]
	for slot := range w.podSeries(e.pod) {
		if !v.acked.Sent[place.sender].has(Cursor{Tick: e.tick, Position: place.position + slot}) {
			continue
		}
		r.Ended++
		if t := w.template(e.pod, slot); found[seriesKey(w, t, in)] {
			r.fault(&r.NotEnded, 1, "lost: the stale marker at %s of %s",
				at(e.tick*w.interval+w.offset(e.pod)), seriesText{w, t, in})
		}
	}
	v.report(r)
	return nil
}

// query asks again if the receiver cannot answer at the moment.
func (v *verification) query(ctx context.Context, tenant, query string, timestamp int64) (model.Value, error) {
	backoff := 100 * time.Millisecond
	for attempt := 1; ; attempt++ {
		queryCtx, cancel := context.WithTimeout(ctx, verifyQueryTime)
		answer, warnings, _, err := v.apis[tenant].Query(queryCtx, query, time.UnixMilli(timestamp))
		cancel()
		switch {
		case err == nil && len(warnings) > 0:
			return nil, fmt.Errorf("query %s at %s: the answer may be incomplete: %s", clip(query), at(timestamp), strings.Join(warnings, "; "))
		case err == nil:
			return answer, nil
		case attempt == verifyAttempts || ctx.Err() != nil || isBadQuery(err):
			return nil, fmt.Errorf("query %s at %s: %w", clip(query), at(timestamp), err)
		}
		if err := pause(ctx, backoff); err != nil {
			return nil, err
		}
		backoff *= 2
	}
}

func isBadQuery(err error) bool {
	var e *v1.Error
	return errors.As(err, &e) && (e.Type == v1.ErrBadData || e.Type == v1.ErrExec)
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
