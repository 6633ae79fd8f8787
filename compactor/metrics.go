package compactor

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/backlog"
)

type metrics struct {
	passes       prometheus.Counter
	passFailures prometheus.Counter
	passDuration prometheus.Histogram
	lastSuccess  prometheus.Gauge

	compactions        prometheus.Counter
	compactionFailures prometheus.Counter
	compactionDuration prometheus.Histogram

	blocksCompacted prometheus.Counter
	blocksMarked    *prometheus.CounterVec // by reason, of which there are five
	blocksUnmarked  prometheus.Counter
	blocksDeleted   prometheus.Counter
	partialDeleted  prometheus.Counter
	quarantined     prometheus.Counter
	yielded         prometheus.Counter
	samples         prometheus.Counter

	indexesWritten     prometheus.Counter
	indexFailures      prometheus.Counter
	rewrites           prometheus.Counter
	rewriteFailures    prometheus.Counter
	deletionsCompleted prometheus.Counter

	sidecarsAdded   prometheus.Counter
	sidecarFailures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, board *backlog.Board) *metrics {
	factory := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return factory.NewCounter(prometheus.CounterOpts{Name: "hundredfold_compactor_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return factory.NewGauge(prometheus.GaugeOpts{Name: "hundredfold_compactor_" + name, Help: help})
	}
	duration := func(name, help string) prometheus.Histogram {
		return factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "hundredfold_compactor_" + name,
			Help:    help,
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 9), // 0.1 s to about 2 h
		})
	}
	registerBacklog(factory, board)
	return &metrics{
		rewrites:           counter("rewrites_total", "Blocks that were written anew without what is deleted or, by a rule of retention, too old."),
		rewriteFailures:    counter("rewrite_failures_total", "Blocks that could not be written anew, which is tried again."),
		deletionsCompleted: counter("deletions_completed_total", "Deletions whose samples are in no block any more."),

		sidecarsAdded:   counter("sidecars_added_total", "Blocks that were in the bucket without a sidecar and got one, so that their first query is quick."),
		sidecarFailures: counter("sidecar_failures_total", "Blocks that were in the bucket without a sidecar and could not be given one: queries find their way without."),

		passes:       counter("passes_total", "Passes over all tenants."),
		passFailures: counter("pass_failures_total", "Passes in which something failed for at least one tenant."),
		passDuration: duration("pass_duration_seconds", "Duration of a pass over all tenants."),
		lastSuccess:  gauge("last_successful_pass_timestamp_seconds", "When the last pass without a failure ended, as Unix time."),

		compactions:        counter("compactions_total", "Compactions that were completed."),
		compactionFailures: counter("compaction_failures_total", "Compactions that failed and will be tried again."),
		compactionDuration: duration("compaction_duration_seconds", "Duration of a completed compaction with its transfers."),

		blocksCompacted: counter("blocks_compacted_total", "Blocks that went into completed compactions."),
		blocksMarked: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_compactor_blocks_marked_total",
			Help: "Blocks that were marked for deletion, by reason.",
		}, []string{"reason"}),
		blocksUnmarked: counter("blocks_unmarked_total", "Blocks whose mark for deletion was taken off because no other block holds their samples."),
		blocksDeleted:  counter("blocks_deleted_total", "Blocks that were deleted after they had been marked."),
		partialDeleted: counter("partial_blocks_deleted_total", "Remains of uploads and deletions that were never completed and have been deleted."),
		quarantined:    counter("blocks_quarantined_total", "Blocks found damaged, which are left alone from then on."),
		yielded:        counter("visits_yielded_total", "Times that a tenant was left to another compactor which works on it."),
		samples:        counter("samples_total", "Samples of blocks that were merged, also in compactions that failed later."),

		indexesWritten: counter("indexes_written_total", "Block indexes of tenants that were written."),
		indexFailures:  counter("index_failures_total", "Block indexes that could not be written, and will be tried again."),
	}
}

// registerBacklog registers what is planned.
func registerBacklog(factory promauto.Factory, board *backlog.Board) {
	show := func(name, help string, value func() float64) {
		factory.NewGaugeFunc(prometheus.GaugeOpts{Name: "hundredfold_compactor_" + name, Help: help}, value)
	}
	show("quarantined_blocks", "Blocks that are left alone: damaged, marked by hand, or with a meta.json that cannot be understood.", func() float64 {
		return float64(board.Totals().Quarantined)
	})
	show("backlog_compactions", "Compactions that are planned and not yet done.", func() float64 {
		return float64(board.Totals().Compactions)
	})
	show("backlog_samples", "Samples that planned compactions have yet to merge.", func() float64 {
		return float64(board.Totals().Samples)
	})
	show("backlog_samples_per_second", "Samples that are merged in a second of work; 0 as long as none were.", func() float64 {
		return board.Totals().Rate
	})
	show("backlog_eta_seconds", "Time until all that is planned now is done, at the rate of late; NaN as long as the rate is not known.", func() float64 {
		if eta := board.Totals().Seconds; eta >= 0 {
			return eta
		}
		return math.NaN()
	})
	show("job_progress_ratio", "How far the running compaction is, from 0 to 1; NaN if none runs.", func() float64 {
		if fraction, running := board.Fraction(); running {
			return fraction
		}
		return math.NaN()
	})
}
