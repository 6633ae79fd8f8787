package loadgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
)

// sender sends its share of the series in the order of the plan, one request
// after the other. One goroutine.
type sender struct {
	g     *Generator
	index int
	runs  []run
	pods  map[int]*podState
	enc   encoder
	// perSecond is the sender's share of the rate; 0: no bound.
	perSecond float64
	started   time.Time
	// stop is when the run ends; zero: not by the clock.
	stop time.Time

	// The request that is being assembled.
	pending    Range
	samples    int
	histograms int
	tenant     string

	sent int64
	n    native
}

type podState struct {
	in         *instance
	generation int64
}

// errStopped says that the run's time is over.
var errStopped = errors.New("the duration of the run is over")

func newSender(g *Generator, index int, started time.Time) *sender {
	s := &sender{g: g, index: index, runs: g.plan.senders[index], pods: map[int]*podState{}, started: started}
	s.enc = newEncoder(g.world, g.cfg.Protocol)
	series := 0
	for _, r := range s.runs {
		for _, pod := range r.pods {
			s.pods[pod] = &podState{}
			series += g.world.podSeries(pod)
		}
	}
	s.perSecond = g.cfg.Rate * float64(series) / float64(g.world.Series)
	if g.cfg.Duration > 0 {
		s.stop = started.Add(g.cfg.Duration)
	}
	return s
}

// run sends until the plan, the run's time or ctx ends. It returns an error only
// if samples were left behind.
func (s *sender) run(ctx context.Context, pace *pace) error {
	defer pace.leave(s.index)
	if err := s.announce(ctx); err != nil {
		return err
	}
	live := s.g.cfg.Span == 0
	for k := s.g.plan.ticks.from; k < s.g.plan.ticks.to; k++ {
		if err := pace.enter(ctx, s.index, k); err != nil {
			return err
		}
		for i := range s.runs {
			r := &s.runs[i]
			if s.samples+s.histograms > 0 && (live || r.tenant != s.tenant || k-s.pending.From.Tick >= requestSpan) {
				if err := s.flush(ctx); err != nil {
					return err
				}
			}
			due := time.Time{}
			if live {
				due = time.UnixMilli(k*s.g.world.interval + r.due)
			}
			if err := s.wait(ctx, due); err != nil {
				return s.finish(ctx, err)
			}
			s.tenant = r.tenant
			for _, pod := range r.pods {
				if err := s.scrape(ctx, pod, k); err != nil {
					return s.finish(ctx, err)
				}
			}
		}
	}
	return s.flush(ctx)
}

// finish sends what is left if the run's time is over, and passes other errors on.
func (s *sender) finish(ctx context.Context, err error) error {
	if errors.Is(err, errStopped) {
		return s.flush(ctx)
	}
	return err
}

// wait waits until due, or returns errStopped if the run's time is over by then.
func (s *sender) wait(ctx context.Context, due time.Time) error {
	now := time.Now()
	if !s.stop.IsZero() && (due.After(s.stop) || now.After(s.stop)) {
		return errStopped
	}
	return pause(ctx, due.Sub(now))
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scrape adds the samples of all series of the pod at tick k. If the pod has been
// replaced since the tick before, stale markers end the series of the old one, unless the
// run has none.
func (s *sender) scrape(ctx context.Context, pod int, k int64) error {
	w, state := s.g.world, s.pods[pod]
	var ended *instance
	if generation := w.generation(pod, k); state.in == nil || state.generation != generation {
		if !s.g.cfg.Unmarked {
			ended = state.in
		}
		state.in, state.generation = w.instance(pod, generation), generation
	}
	at := Cursor{Tick: k, Position: s.g.plan.places[pod].position}
	timestamp := k*w.interval + w.offset(pod)
	need := 1
	if ended != nil {
		need = 2
	}
	for slot := range w.podSeries(pod) {
		if s.samples+s.histograms+need > s.g.cfg.SamplesPerRequest {
			if err := s.flush(ctx); err != nil {
				return err
			}
			if err := s.wait(ctx, time.Time{}); err != nil {
				return err
			}
		}
		if s.samples+s.histograms == 0 {
			s.pending.From = at
		}
		s.add(w.template(pod, slot), state.in, ended, timestamp, k)
		at.Position++
		s.pending.To = at
	}
	return nil
}

func (s *sender) add(t *template, in, ended *instance, timestamp, k int64) {
	if t.kind != kindNative {
		if ended != nil {
			s.enc.float(ended, t, timestamp, math.Float64frombits(value.StaleNaN))
			s.samples++
		}
		s.enc.float(in, t, timestamp, s.g.world.value(t, in, k))
		s.samples++
		return
	}
	if ended != nil {
		s.enc.histogram(ended, t, timestamp, nil)
		s.histograms++
	}
	s.g.world.native(&s.n, t, in, k)
	s.enc.histogram(in, t, timestamp, &s.n)
	s.histograms++
}

// flush sends what has been added, again and again until it is accepted or
// refused. Its error is that of ctx.
func (s *sender) flush(ctx context.Context) error {
	total := s.samples + s.histograms
	if total == 0 {
		return nil
	}
	if s.perSecond > 0 {
		due := s.started.Add(time.Duration(float64(s.sent) / s.perSecond * float64(time.Second)))
		if err := pause(ctx, time.Until(due)); err != nil {
			return err
		}
	}
	accepted, err := s.deliver(ctx, request{
		body: s.enc.body(), contentType: s.enc.contentType(), tenant: s.tenant,
		samples: s.samples, histograms: s.histograms,
	})
	if err != nil {
		return err
	}
	s.sent += int64(total)
	s.samples, s.histograms = 0, 0
	s.g.counters.settle(total, accepted)

	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.mu.acked.Sent[s.index].advance(s.pending, accepted)
	return nil
}

// announce sends the types of the metrics to the tenants whose first pod is this
// sender's. Remote write 2.0 has them beside the samples.
func (s *sender) announce(ctx context.Context) error {
	if s.g.cfg.Protocol != ProtocolV1 {
		return nil
	}
	req := prompb.WriteRequest{}
	seen := map[string]bool{}
	for _, list := range [][]template{s.g.world.floats, s.g.world.natives} {
		for i := range list {
			if t := &list[i]; !seen[t.family] {
				seen[t.family] = true
				req.Metadata = append(req.Metadata, prompb.MetricMetadata{
					MetricFamilyName: t.family, Type: t.metricType, Help: "Synthetic: " + strings.ReplaceAll(t.family, "_", " ") + ".",
				})
			}
		}
	}
	raw, err := req.Marshal()
	if err != nil {
		return fmt.Errorf("encode the metadata: %w", err)
	}
	for pod := range max(1, s.g.world.Tenants) {
		if s.pods[pod] == nil {
			continue
		}
		enc := encoderV1{raw: raw}
		r := request{body: enc.body(), contentType: enc.contentType(), tenant: s.g.world.tenant(pod)}
		if _, err := s.deliver(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

type request struct {
	body                []byte
	contentType, tenant string
	samples, histograms int
}

// Waits between attempts: these are Prometheus's defaults.
const (
	minBackoff = 30 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// deliver sends r until it is accepted or refused. Its error is that of ctx.
func (s *sender) deliver(ctx context.Context, r request) (accepted bool, err error) {
	backoff := minBackoff
	for attempt := 0; ; attempt++ {
		a := s.attempt(ctx, r, attempt)
		if ctx.Err() != nil && a.status == 0 {
			return false, ctx.Err()
		}
		s.g.counters.record(a, len(r.body))
		switch {
		case a.status >= 200 && a.status < 300:
			return a.problem == "", nil
		case a.status != 0 && a.status < 500:
			return false, nil
		}
		wait := backoff
		if a.retryAfter > 0 {
			wait = a.retryAfter
		}
		backoff = min(2*backoff, maxBackoff)
		if err := pause(ctx, wait); err != nil {
			return false, err
		}
	}
}

// answer is what came of one attempt.
type answer struct {
	status     int    // 0: there was no answer
	problem    string // what went wrong; "" if nothing did
	retryAfter time.Duration
	took       time.Duration
}

func (s *sender) attempt(ctx context.Context, r request, attempt int) answer {
	started := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.g.cfg.URL, bytes.NewReader(r.body))
	if err != nil {
		return answer{problem: err.Error()}
	}
	req.Header.Set("Content-Type", r.contentType)
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("User-Agent", "hundredfold-loadgen")
	req.Header.Set("X-Prometheus-Remote-Write-Version", map[Protocol]string{ProtocolV1: "0.1.0", ProtocolV2: "2.0.0"}[s.g.cfg.Protocol])
	if r.tenant != "" {
		req.Header.Set(tenantHeader, r.tenant)
	}
	if attempt > 0 {
		req.Header.Set("Retry-Attempt", strconv.Itoa(attempt))
	}
	resp, err := s.g.client.Do(req)
	if err != nil {
		return answer{problem: err.Error(), took: time.Since(started)}
	}
	defer resp.Body.Close()
	const enough = 4 << 10
	body, _ := io.ReadAll(io.LimitReader(resp.Body, enough)) // what can be read of an error is enough
	a := answer{status: resp.StatusCode, took: time.Since(started), retryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	switch {
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		a.problem = fmt.Sprintf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	case s.g.cfg.Protocol == ProtocolV2:
		a.problem = missing(resp, r)
	}
	return a
}

// missing says which samples a successful answer to remote write 2.0 does not
// claim to have written, "" if none. Without the headers it claims nothing.
func missing(resp *http.Response, r request) string {
	for _, c := range []struct {
		kind string
		want int
	}{{"Samples", r.samples}, {"Histograms", r.histograms}} {
		name := "X-Prometheus-Remote-Write-" + c.kind + "-Written"
		if got := resp.Header.Get(name); got != strconv.Itoa(c.want) && (got != "" || c.want > 0) {
			return fmt.Sprintf("%s, but %s is %q instead of %d", resp.Status, name, got, c.want)
		}
	}
	return ""
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(header string) time.Duration {
	if seconds, err := strconv.Atoi(header); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(header); err == nil {
		return max(0, time.Until(date))
	}
	return 0
}
