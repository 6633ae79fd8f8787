package pagefile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requested   prometheus.Counter
	fetched     prometheus.Counter
	requests    *prometheus.CounterVec
	duration    prometheus.Histogram
	inFlight    prometheus.Gauge
	hedges      prometheus.Counter
	hedgesWon   prometheus.Counter
	retries     prometheus.Counter
	evictions   prometheus.Counter
	used        prometheus.Gauge
	overBudget  prometheus.Counter
	disbelieved prometheus.Counter
	unrecorded  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "hundredfold_page_cache_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "hundredfold_page_cache_" + name, Help: help})
	}
	return &metrics{
		requested: counter("requested_bytes_total",
			"Bytes of pages that queries asked to have at hand; those that were not at hand are in hundredfold_page_cache_fetched_bytes_total."),
		fetched: counter("fetched_bytes_total",
			"Bytes that came from the object store, with those in gaps and of requests made a second time."),
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_page_cache_requests_total",
			Help: "Requests to the object store by how they ended: ok, error, cancelled.",
		}, []string{"result"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name:                            "hundredfold_page_cache_fetch_duration_seconds",
			Help:                            "How long requests to the object store took that succeeded.",
			Buckets:                         []float64{.005, .01, .02, .05, .1, .2, .5, 1, 5},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}),
		inFlight: gauge("requests_in_flight", "Requests to the object store that are under way."),
		hedges: counter("hedges_total",
			"Requests that were made a second time since the first took longer than most."),
		hedgesWon: counter("hedges_won_total", "Second requests that were answered before the first."),
		retries:   counter("retries_total", "Requests that were made again after an error that may pass."),
		evictions: counter("evictions_total", "Files of pages that were removed to make room for others."),
		used:      gauge("used_bytes", "Disk space that the pages take."),
		overBudget: counter("over_budget_total",
			"How often pages were fetched beyond the disk budget since all files were in use."),
		disbelieved: counter("damaged_pages_total",
			"Pages that an earlier process left whose bytes did not have their checksum, and which were fetched again."),
		unrecorded: counter("unrecorded_pages_total",
			"Pages whose checksum could not be written, which a later process will fetch again."),
	}
}
