package querier

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests        *prometheus.CounterVec
	duration        *prometheus.HistogramVec
	inFlight        prometheus.Gauge
	queueWait       prometheus.Histogram
	heldBytes       prometheus.Histogram
	fetchedBytes    prometheus.Histogram
	blocksVisible   prometheus.Gauge
	blocksOpen      prometheus.Gauge
	openFailures    prometheus.Counter
	refreshFailures prometheus.Counter
	indexReads      prometheus.Counter
	indexesRefused  *prometheus.CounterVec
	tenantsListed   *prometheus.GaugeVec
	listings        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_requests_total",
			Help: "Requests to the query API, by route and HTTP status.",
		}, []string{"route", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "hundredfold_querier_request_duration_seconds",
			Help:                            "How long requests to the query API took, waiting included, by route.",
			Buckets:                         []float64{.01, .1, .5, 1, 5, 15, 60, 120},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"route"}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_querier_requests_in_flight",
			Help: "Requests to the query API that run or wait now.",
		}),
		queueWait: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "hundredfold_querier_queue_wait_seconds",
			Help:    "How long queries waited for others of their tenant to end (limit max_concurrent_queries).",
			Buckets: []float64{.01, .1, 1, 5, 20},
		}),
		heldBytes: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "hundredfold_querier_query_peak_bytes",
			Help:    "Memory that a request to the query API held at most, by its account (limit max_query_bytes).",
			Buckets: prometheus.ExponentialBuckets(1<<16, 8, 7),
		}),
		fetchedBytes: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "hundredfold_querier_query_fetched_bytes",
			Help:    "Bytes that a request to the query API fetched from the object store (limit max_query_fetched_bytes).",
			Buckets: prometheus.ExponentialBuckets(1<<16, 8, 7),
		}),
		blocksVisible: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_querier_blocks_visible",
			Help: "Blocks in the bucket that queries read, of all tenants.",
		}),
		blocksOpen: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_querier_blocks_open",
			Help: "Blocks of the bucket that are open.",
		}),
		openFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_block_open_failures_total",
			Help: "How often a block that a query needed could not be opened, which failed the query.",
		}),
		refreshFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_refresh_failures_total",
			Help: "How often the blocks in the bucket could not be learned completely.",
		}),
		indexReads: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_index_reads_total",
			Help: "Block indexes of tenants that were read.",
		}),
		indexesRefused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_indexes_refused_total",
			Help: "Block indexes that were refused, by reason: older than one before, or without blocks that were there.",
		}, []string{"reason"}),
		tenantsListed: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hundredfold_querier_tenants_without_index",
			Help: "Tenants whose blocks are listed in each refresh because their block index cannot be used, by reason: missing, unreadable, refused, or stale, which lacks a block for 15 minutes.",
		}, []string{"reason"}),
		listings: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_tenant_listings_total",
			Help: "How often the blocks of a tenant were listed in the bucket.",
		}),
	}
}

// observeAccount counts what a request took.
func (m *metrics) observeAccount(a *account) {
	m.heldBytes.Observe(float64(a.peak.Load()))
	m.fetchedBytes.Observe(float64(a.fetched.Load()))
}

// observeView adds a metric of the age of the view of the bucket.
func (*metrics) observeView(reg prometheus.Registerer, age func() float64) {
	promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_querier_view_age_seconds",
		Help: "Time since the blocks of all tenants were last looked at in the bucket; 0 until then.",
	}, age)
}
