package ingester

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	writeMetrics
	blockMetrics
	evictionMetrics
	sentBytes prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, i *Ingester) *metrics {
	f := promauto.With(reg)
	registerActiveSeries(reg, i)
	registerLimits(f, i)
	registerStates(f, i)
	return &metrics{
		writeMetrics:    newWriteMetrics(f),
		blockMetrics:    newBlockMetrics(f),
		evictionMetrics: newEvictionMetrics(f),
		sentBytes: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_select_sent_bytes_total",
			Help: "Bytes of series and chunks that were sent to queriers.",
		}),
	}
}

// writeMetrics are what pushes count.
type writeMetrics struct {
	appended    prometheus.Counter
	refused     *prometheus.CounterVec
	unknown     prometheus.Counter
	duplicates  prometheus.Counter
	compared    prometheus.Counter
	uncompared  prometheus.Counter
	walFailures prometheus.Counter
}

func newWriteMetrics(f promauto.Factory) writeMetrics {
	return writeMetrics{
		appended: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_appended_samples_total",
			Help: "Samples and histograms that were written or had been written before.",
		}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_ingester_refused_requests_total",
			Help: "Requests refused as a whole, by cause; senders try them again.",
		}, []string{"cause"}),
		unknown: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_unknown_series_total",
			Help: "Series that distributors sent by their identity alone and had to send again with their labels.",
		}),
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
		walFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_ingester_wal_failures_total",
			Help: "Commits that could not be written to the write-ahead log. The tenant refuses writes until its TSDB is opened anew.",
		}),
	}
}

// blockMetrics are what cutting, uploading and deleting blocks count.
type blockMetrics struct {
	cuts                prometheus.Counter
	cutSeconds          prometheus.Histogram
	uploads             prometheus.Counter
	uploadFailures      prometheus.Counter
	maintenanceFailures *prometheus.CounterVec
}

func newBlockMetrics(f promauto.Factory) blockMetrics {
	return blockMetrics{
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
	}
}

// registerLimits registers how much the process has of what is limited, beside the limits.
func registerLimits(f promauto.Factory, i *Ingester) {
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
}

// registerStates registers whether writes are refused, and why.
func registerStates(f promauto.Factory, i *Ingester) {
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
}
