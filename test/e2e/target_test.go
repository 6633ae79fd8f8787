package e2e

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

// target is something to scrape. Its metrics move with every scrape.
type target struct {
	address string
	scrapes atomic.Int64

	requests    *prometheus.CounterVec
	flapping    atomic.Int64
	temperature prometheus.Gauge
	brief       *prometheus.GaugeVec
	duration    prometheus.Histogram
	native      prometheus.Histogram
	size        prometheus.Summary
}

func newTarget(t testing.TB) *target {
	t.Helper()
	reg := prometheus.NewRegistry()
	factory := promauto.With(reg)
	g := &target{
		requests:    factory.NewCounterVec(prometheus.CounterOpts{Name: "app_requests_total", Help: "Requests."}, []string{"code"}),
		temperature: factory.NewGauge(prometheus.GaugeOpts{Name: "app_temperature_celsius", Help: "A gauge \"with\" a\nlong \\ help."}),
		brief:       factory.NewGaugeVec(prometheus.GaugeOpts{Name: "app_brief", Help: "Comes and goes."}, []string{"phase"}),
		duration:    factory.NewHistogram(prometheus.HistogramOpts{Name: "app_duration_seconds", Help: "A classic histogram.", Buckets: []float64{0.1, 0.5, 1}}),
		native:      factory.NewHistogram(prometheus.HistogramOpts{Name: "app_native_seconds", Help: "A native histogram.", NativeHistogramBucketFactor: 1.1}),
		size:        factory.NewSummary(prometheus.SummaryOpts{Name: "app_size_bytes", Help: "A summary.", Objectives: map[float64]float64{0.5: 0.05}}),
	}
	factory.NewCounterFunc(prometheus.CounterOpts{Name: "app_flapping_total", Help: "Often starts again."}, func() float64 { return float64(g.flapping.Load()) })
	factory.NewGaugeVec(prometheus.GaugeOpts{Name: "app_info", Help: "A version."}, []string{"version"}).WithLabelValues("1.2.3-ä").Set(1)
	special := factory.NewGaugeVec(prometheus.GaugeOpts{Name: "app_special", Help: "Not every float is a number."}, []string{"kind"})
	for kind, value := range map[string]float64{"nan": math.NaN(), "inf": math.Inf(1), "-inf": math.Inf(-1), "small": 5e-324} {
		special.WithLabelValues(kind).Set(value)
	}

	metrics := promhttp.HandlerFor(reg, promhttp.HandlerOpts{EnableOpenMetrics: true})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.move(g.scrapes.Add(1))
		metrics.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	g.address = strings.TrimPrefix(server.URL, "http://")
	return g
}

// move moves all metrics to where they are at the n-th scrape.
func (g *target) move(n int64) {
	exemplar := prometheus.Labels{"trace_id": fmt.Sprintf("%016x", n*7919)}
	for code, every := range map[string]int64{"200": 1, "404": 3, "500": 5} {
		if n%every == 0 {
			g.requests.WithLabelValues(code).(prometheus.ExemplarAdder).AddWithExemplar(float64(1+n%4), exemplar)
		}
	}
	g.flapping.Store(n % 7 * 3)
	g.temperature.Set(20 + 10*math.Sin(float64(n)))
	if n%16 < 8 {
		g.brief.WithLabelValues(fmt.Sprint(n / 16)).Set(float64(n))
	} else {
		g.brief.Reset()
	}
	v := math.Abs(math.Sin(float64(n)*1.7)) * 1.5
	g.duration.(prometheus.ExemplarObserver).ObserveWithExemplar(v, exemplar)
	g.native.(prometheus.ExemplarObserver).ObserveWithExemplar(v, exemplar)
	g.size.Observe(float64(n * 100))
}

// awaitScrapes waits until the target has been scraped that often.
func (g *target) awaitScrapes(t testing.TB, n int64) {
	t.Helper()
	testcluster.Eventually(t, 2*time.Minute, func(context.Context) error {
		if got := g.scrapes.Load(); got < n {
			return fmt.Errorf("the target was scraped %d times, not %d: %w", got, n, errNotYet)
		}
		return nil
	})
}
