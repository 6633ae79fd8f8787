package selfmonitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pushed is what one Push received, copied, by the series' labels.
type pushed struct {
	at       time.Time
	floats   map[string]float64
	native   map[string]write.Histogram
	metadata map[string]write.Metadata
}

// store is a Pusher that remembers, and answers as it is told.
type store struct {
	t      testing.TB
	pushes []pushed
	answer func(push int) (write.Result, error)
}

func (s *store) Push(_ context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	require.Equal(s.t, tenant.Self, id)
	p := pushed{at: time.Now(), floats: map[string]float64{}, native: map[string]write.Histogram{}, metadata: map[string]write.Metadata{}}
	scratch, hasher := labels.NewScratchBuilder(8), write.NewHasher()
	for i, series := range b.Series {
		ls, identity, err := b.Resolve(i, tenant.DefaultLimits(), &scratch, hasher)
		require.NoError(s.t, err)
		require.Equal(s.t, series.ID, identity, "labels are sent in canonical form")
		for _, sample := range b.Samples[series.Samples.Off:series.Samples.End()] {
			require.NotContains(s.t, p.floats, ls.String())
			require.Equal(s.t, time.Now().UnixMilli(), sample.T)
			p.floats[ls.String()] = sample.V
		}
		for _, h := range b.Histograms[series.Histograms.Off:series.Histograms.End()] {
			p.native[ls.String()] = h
		}
	}
	for _, md := range b.Metadata {
		p.metadata[md.Metric] = md
	}
	s.pushes = append(s.pushes, p)
	if s.answer == nil {
		return write.Result{Written: b.Counts()}, nil
	}
	return s.answer(len(s.pushes))
}

// run lets a Monitor run for d and then stops it.
func run(t *testing.T, s *store, d time.Duration, reg *prometheus.Registry) *Monitor {
	t.Helper()
	m, err := New(Config{Tenant: tenant.Self, Instance: "127.0.0.1:9009"}, reg, s, nil, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	require.NoError(t, m.Run(ctx))
	return m
}

const upLabels = `{__name__="up", instance="127.0.0.1:9009", job="hundredfold"}`

func named(name, rest string) string {
	return fmt.Sprintf(`{__name__=%q, instance="127.0.0.1:9009", job="hundredfold"%s}`, name, rest)
}

func isStale(v float64) bool { return value.IsStaleNaN(v) }

func TestMetricsArePushedAtOnceAndThenEvery15Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		begin := time.Now()
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "age_seconds", Help: "Age."},
			func() float64 { return time.Since(begin).Seconds() }))
		s := &store{t: t}
		run(t, s, 40*time.Second, reg)

		require.Len(t, s.pushes, 4, "at 0 s, 15 s, 30 s, and the end at 40 s")
		for i, p := range s.pushes[:3] {
			require.Equal(t, begin.Add(time.Duration(i)*15*time.Second), p.at)
			require.Equal(t, map[string]float64{named("age_seconds", ""): float64(15 * i), upLabels: 1}, p.floats)
		}
		require.Len(t, s.pushes[3].floats, 2)
		for name, v := range s.pushes[3].floats {
			require.True(t, isStale(v), "%s must end with the process", name)
		}
	})
}

func TestPushedSeriesAreThoseOfAScrapeOfMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewBuildInfoCollector())
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "requests_total", Help: "Requests."}, []string{"code", "empty"})
	classic := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "latency_seconds", Help: "Latency.", Buckets: []float64{.005, 1, 10, 1e6, 1e9}})
	summary := prometheus.NewSummary(prometheus.SummaryOpts{Name: "size_bytes", Help: "Size.", Objectives: map[float64]float64{0: 0, .5: .1, 1: 0}})
	untyped := prometheus.NewUntypedFunc(prometheus.UntypedOpts{Name: "odd", Help: "Odd."}, func() float64 { return math.Inf(-1) })
	reg.MustRegister(counter, classic, summary, untyped)
	counter.WithLabelValues("200", "").Add(3)
	counter.WithLabelValues(`a"b\c`, "").Add(4)
	for _, v := range []float64{.001, .5, 7, 2e6} {
		classic.Observe(v)
		summary.Observe(v)
	}

	synctest.Test(t, func(t *testing.T) {
		s := &store{t: t}
		run(t, s, time.Second, reg)
		require.Equal(t, scrape(t, reg), s.pushes[0].floats)
		require.Equal(t, write.Metadata{Metric: "latency_seconds"}.Metric, s.pushes[0].metadata["latency_seconds"].Metric)
		require.Equal(t, model.MetricTypeHistogram, s.pushes[0].metadata["latency_seconds"].Type)
		require.Equal(t, "Latency.", s.pushes[0].metadata["latency_seconds"].Help)
		require.Equal(t, model.MetricTypeCounter, s.pushes[0].metadata["requests_total"].Type)
	})
}

// scrape parses reg's text exposition with Prometheus's own parser.
func scrape(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	p, err := textparse.New(w.Body.Bytes(), w.Header().Get("Content-Type"), labels.NewSymbolTable(), textparse.ParserOptions{})
	require.NoError(t, err)
	series := map[string]float64{upLabels: 1}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return series
		}
		require.NoError(t, err)
		if entry != textparse.EntrySeries {
			continue
		}
		var ls labels.Labels
		_, _, v := p.Series()
		p.Labels(&ls)
		b := labels.NewBuilder(ls)
		b.Set(model.JobLabel, job).Set(model.InstanceLabel, "127.0.0.1:9009")
		series[b.Labels().WithoutEmpty().String()] = v
	}
}

func TestNativeHistogramsArePushedAndEndAsHistograms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		both := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "both", Help: "Both.", Buckets: []float64{1}, NativeHistogramBucketFactor: 1.1})
		empty := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "empty", Help: "Empty.", NativeHistogramBucketFactor: 1.1})
		reg.MustRegister(both, empty)
		for _, v := range []float64{-3, 0, .5, 2, 2.01, 900} {
			both.Observe(v)
		}
		s := &store{t: t}
		run(t, s, time.Second, reg)

		first, last := s.pushes[0], s.pushes[1]
		h := first.native[named("both", "")].Int
		require.NotNil(t, h)
		require.NoError(t, h.Validate())
		require.EqualValues(t, 6, h.Count)
		require.EqualValues(t, 1, h.ZeroCount)
		require.InDelta(t, 901.51, h.Sum, 1e-9)
		require.NoError(t, first.native[named("empty", "")].Int.Validate())
		require.EqualValues(t, 3, first.floats[named("both_bucket", `, le="1.0"`)], "classic buckets stand beside the native ones")
		require.NotContains(t, first.floats, named("empty_count", ""), "there are no classic series without classic buckets")
		require.True(t, isStale(last.native[named("both", "")].Int.Sum))
		require.NotContains(t, last.floats, named("both", ""))
	})
}

func TestSeriesThatVanishGetOneStaleMarker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "g", Help: "G."}, []string{"k"})
		reg.MustRegister(g)
		g.WithLabelValues("stays").Set(1)
		g.WithLabelValues("goes").Set(1)
		time.AfterFunc(time.Second, func() { g.DeleteLabelValues("goes") })
		s := &store{t: t}
		run(t, s, 40*time.Second, reg)

		goes := named("g", `, k="goes"`)
		require.EqualValues(t, 1, s.pushes[0].floats[goes])
		require.True(t, isStale(s.pushes[1].floats[goes]))
		require.NotContains(t, s.pushes[2].floats, goes)
		require.NotContains(t, s.pushes[3].floats, goes, "at the end, it has ended already")
		require.True(t, isStale(s.pushes[3].floats[named("g", `, k="stays"`)]))
	})
}

func TestStaleMarkerOfAFailedPushComesWithTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "g", Help: "G."}, []string{"k"})
		reg.MustRegister(g)
		g.WithLabelValues("goes").Set(1)
		time.AfterFunc(time.Second, func() { g.DeleteLabelValues("goes") })
		s := &store{t: t, answer: func(push int) (write.Result, error) {
			if push == 2 {
				return write.Result{}, errors.New("under pressure")
			}
			return write.Result{}, nil
		}}
		m := run(t, s, 40*time.Second, reg)

		require.True(t, isStale(s.pushes[2].floats[named("g", `, k="goes"`)]))
		require.Len(t, s.pushes, 4, "the failed push was not tried again")
		require.EqualValues(t, 1, testutil.ToFloat64(m.metrics.pushes.WithLabelValues(outcomeFailed)))
		require.EqualValues(t, 3, testutil.ToFloat64(m.metrics.pushes.WithLabelValues(outcomeStored)))
	})
}

func TestStuckPushIsGivenUpBeforeTheNextGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []time.Duration
		stuck := pusherFunc(func(ctx context.Context, _ tenant.ID, _ *write.Batch) (write.Result, error) {
			begin := time.Now()
			<-ctx.Done()
			waits = append(waits, time.Since(begin))
			return write.Result{}, ctx.Err()
		})
		m, err := New(Config{Tenant: tenant.Self, Instance: "i"}, prometheus.NewRegistry(), stuck, nil, nil)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 31*time.Second)
		defer cancel()
		require.NoError(t, m.Run(ctx))
		require.Equal(t, []time.Duration{pushTimeout, pushTimeout, time.Second}, waits)
	})
}

func TestAtMost2000SeriesArePushedAndTheRestIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "g", Help: "G."}, []string{"k"})
		reg.MustRegister(g)
		for i := range 2500 {
			g.WithLabelValues(fmt.Sprintf("%04d", i)).Set(1)
		}
		s := &store{t: t}
		m := run(t, s, 16*time.Second, reg)

		require.Len(t, s.pushes[0].floats, 2000)
		require.Equal(t, keys(s.pushes[0].floats), keys(s.pushes[1].floats), "it is always the same ones that are left out")
		require.EqualValues(t, 2*501, testutil.ToFloat64(m.metrics.dropped), "up takes one place")
		require.EqualValues(t, 2000, testutil.ToFloat64(m.metrics.series))
	})
}

func TestRejectedSamplesAreCountedAndDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rejected write.Result
		rejected.Reject(&write.SeriesError{Reason: write.ReasonTenantSeriesLimit, Detail: "over"}, 1)
		answers := []func() (write.Result, error){
			func() (write.Result, error) { return rejected, nil },
			func() (write.Result, error) { return write.Result{}, rejected.Err() },
			func() (write.Result, error) { return write.Result{}, nil },
		}
		s := &store{t: t, answer: func(push int) (write.Result, error) { return answers[push-1]() }}
		m := run(t, s, 16*time.Second, prometheus.NewRegistry())
		require.EqualValues(t, 2, testutil.ToFloat64(m.metrics.pushes.WithLabelValues(outcomeRejected)))
	})
}

func TestMetadataIsPushedOnceByFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "c_total", Help: "C."}))
		s := &store{t: t, answer: func(push int) (write.Result, error) {
			if push == 1 {
				return write.Result{}, errors.New("starting")
			}
			return write.Result{}, nil
		}}
		run(t, s, 31*time.Second, reg)
		require.Contains(t, s.pushes[0].metadata, "c_total")
		require.Contains(t, s.pushes[1].metadata, "c_total", "the first push failed")
		require.Empty(t, s.pushes[2].metadata)
	})
}

func TestLabelsOfTheTargetWinOverThoseOfAMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "g", Help: "G."}, []string{"job", "instance"})
		reg.MustRegister(g)
		g.WithLabelValues("compact", "x").Set(5)
		s := &store{t: t}
		run(t, s, time.Second, reg)
		require.Contains(t, s.pushes[0].floats,
			`{__name__="g", exported_instance="x", exported_job="compact", instance="127.0.0.1:9009", job="hundredfold"}`)
	})
}

func TestNewNeedsATenantAndAnInstance(t *testing.T) {
	_, err := New(Config{}, prometheus.NewRegistry(), nil, nil, nil)
	require.Error(t, err)
}

type pusherFunc func(context.Context, tenant.ID, *write.Batch) (write.Result, error)

func (f pusherFunc) Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	return f(ctx, id, b)
}

func keys(m map[string]float64) map[string]bool {
	out := map[string]bool{}
	for k := range maps.Keys(m) {
		out[k] = true
	}
	return out
}
