package ingester

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	evictionMetrics
	appended            prometheus.Counter
	refused             *prometheus.CounterVec
	duplicates          prometheus.Counter
	compared            prometheus.Counter
	uncompared          prometheus.Counter
	cuts                prometheus.Counter
	cutSeconds          prometheus.Histogram
	uploads             prometheus.Counter
	uploadFailures      prometheus.Counter
	maintenanceFailures *prometheus.CounterVec
	walFailures         prometheus.Counter
	unknown             prometheus.Counter
	sentBytes           prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, i *Ingester) *metrics {
	f := promauto.With(reg)
	registerActiveSeries(reg, i)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_series",
		Help: "Series in memory, of all tenants.",
	}, func() float64 { return float64(i.caps.series.Load()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_series_limit",
		Help: "Cap on the series in memory, of all tenants; 0 if there is none.",
	}, func() float64 { return float64(i.caps.maxSeries) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_tenants",
		Help: "Tenants with data on this ingester.",
	}, func() float64 { return float64(len(i.all())) })
	for _, c := range i.ceilings {
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: c.usedMetric,
			Help: "How many " + c.what + " the process has; from 90% of its limit on no new tenants are taken. 0: not known.",
		}, func() float64 { return float64(c.used()) })
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: c.limitMetric,
			Help: "How many " + c.what + " the operating system lets the process have; 0: not known.",
		}, func() float64 { return float64(c.limit()) })
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_writes_refused_by_disk",
		Help: "1 while writes are refused because the data directory is full or read-only.",
	}, func() float64 {
		if i.disk.check(0, i.caps.series.Load()) != nil {
			return 1
		}
		return 0
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_draining",
		Help: "1 while no writes are taken because the ingester is emptied into the bucket, and afterwards.",
	}, func() float64 {
		if i.draining.Load() {
			return 1
		}
		return 0
	})
	return &metrics{
		evictionMetrics: newEvictionMetrics(f),
		unknown: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_unknown_series_total",
			Help: "Series that distributors sent by their identity alone and had to send again with their labels.",
		}),
		sentBytes: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_select_sent_bytes_total",
			Help: "Bytes of series and chunks that were sent to queriers.",
		}),
		appended: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_appended_samples_total",
			Help: "Samples and histograms that were written or had been written before.",
		}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_ingester_refused_requests_total",
			Help: "Requests refused as a whole, by cause; senders try them again.",
		}, []string{"cause"}),
		duplicates: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_duplicate_samples_total",
			Help: "Samples that were stored already with the same value and therefore not appended.",
		}),
		compared: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_compared_samples_total",
			Help: "Samples not newer than their series' newest, which were compared with what is stored.",
		}),
		uncompared: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_uncompared_samples_total",
			Help: "Samples of those that could not be compared with a local block since its files are damaged; they are taken as if it were not there.",
		}),
		cuts: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_cuts_total",
			Help: "Times that blocks were cut from a tenant's head.",
		}),
		cutSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "hundredfold_ingester_cut_duration_seconds",
			Help:    "How long cutting blocks from one tenant's head took.",
			Buckets: prometheus.ExponentialBuckets(0.1, 3, 8),
		}),
		uploads: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_uploaded_blocks_total",
			Help: "Blocks uploaded to the bucket.",
		}),
		uploadFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_upload_failures_total",
			Help: "Uploads of a block that failed; they are tried again.",
		}),
		maintenanceFailures: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_ingester_maintenance_failures_total",
			Help: "Rounds of cutting, uploading and deleting that ended early, by tenant.",
		}, []string{"tenant"}),
		walFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_wal_failures_total",
			Help: "Commits that could not be written to the write-ahead log. The tenant refuses writes until its TSDB is opened anew.",
		}),
	}
}
