package distributor

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/write"
)

// The outcomes of a request to an ingester.
const (
	outcomeAccepted    = "accepted"    // all of it is stored
	outcomeRejected    = "rejected"    // it found fault with some samples
	outcomeUnknown     = "unknown"     // some series have to be sent with labels
	outcomeFailed      = "failed"      // it could not, or the stream broke
	outcomeUnreachable = "unreachable" // it was not sent: there is no stream
	outcomeQueueFull   = "queue_full"  // it was not sent: too much waits already
)

type replicaMetrics struct {
	pushes       *prometheus.CounterVec
	duration     prometheus.Histogram
	requests     *prometheus.CounterVec
	hits, misses prometheus.Counter

	// By ingester.
	bytes, up, lessons            *prometheus.GaugeVec
	unknownSeries, resent, putOff *prometheus.CounterVec

	labelled, labelBytes labelCounters
}

// labelCounters count labels that are sent, by why they are.
type labelCounters struct {
	fresh   prometheus.Counter // the series was not remembered
	doubted prometheus.Counter // it was, but not that its ingesters know it
	checked prometheus.Counter // they are to compare
	unknown prometheus.Counter // an ingester asked for them
}

func newLabelCounters(v *prometheus.CounterVec) labelCounters {
	return labelCounters{
		fresh: v.WithLabelValues("new"), doubted: v.WithLabelValues("unacknowledged"),
		checked: v.WithLabelValues("check"), unknown: v.WithLabelValues("unknown"),
	}
}

// of returns the counter for a series that was remembered with this mark before it was
// sent with its labels.
func (c *labelCounters) of(mark sightingMark) prometheus.Counter {
	switch {
	case mark&sighted == 0:
		return c.fresh
	case mark&acknowledged == 0:
		return c.doubted
	default:
		return c.checked
	}
}

func newReplicaMetrics(reg prometheus.Registerer, s *sightings) *replicaMetrics {
	const prefix = "hundredfold_distributor_replica_"
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: prefix + "cache_series",
		Help: "Series that are remembered, so that they need not be checked and placed again.",
	}, func() float64 { n, _ := s.size(); return float64(n) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: prefix + "cache_bytes",
		Help: "Memory of the series that are remembered.",
	}, func() float64 { _, n := s.size(); return float64(n) })
	lookups := f.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "cache_lookups_total",
		Help: "Series received, by whether they were remembered: hit or miss.",
	}, []string{"result"})
	return &replicaMetrics{
		hits:   lookups.WithLabelValues("hit"),
		misses: lookups.WithLabelValues("miss"),
		pushes: f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "pushes_total",
			Help: "Requests to be stored, by outcome: written, rejected (some samples were) or unavailable (some samples got no quorum).",
		}, []string{"outcome"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name:                        prefix + "quorum_duration_seconds",
			Help:                        "Time until a quorum of all replica sets of a request has decided.",
			Buckets:                     []float64{.001, .005, .025, .1, .5, 2.5, 10},
			NativeHistogramBucketFactor: 1.1,
		}),
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "requests_total",
			Help: "Parts of requests for one ingester, by outcome: accepted, rejected, unknown, failed, unreachable or queue_full.",
		}, []string{"instance", "outcome"}),
		bytes: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "queue_bytes",
			Help: "What an ingester was sent, or is to be sent, and has not answered.",
		}, []string{"instance"}),
		up: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "connected",
			Help: "1 if there is a stream to the ingester.",
		}, []string{"instance"}),
		lessons: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "resending_bytes",
			Help: "Series with their labels that are under way to an ingester because it did not know them: 8 MiB at most, unless one series is larger.",
		}, []string{"instance"}),
		unknownSeries: f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "unknown_series_total",
			Help: "Series that an ingester said it does not know.",
		}, []string{"instance"}),
		resent: f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "resent_series_total",
			Help: "Series sent to an ingester once more, with labels, because it did not know them.",
		}, []string{"instance"}),
		putOff: f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "put_off_series_total",
			Help: "Series that an ingester did not know and was not told at once, since enough of them were under way to it; it misses these samples, which a quorum of the others has.",
		}, []string{"instance"}),
		labelled: newLabelCounters(f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "labelled_series_total",
			Help: "Series that were sent with their labels, by reason: new (it was not remembered), unacknowledged (it was not known that its ingesters know it), check (they compare) or unknown (an ingester did not know it).",
		}, []string{"reason"})),
		labelBytes: newLabelCounters(f.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "label_bytes_total",
			Help: "Labels that were sent, in bytes, all replicas together, by reason: new, unacknowledged, check or unknown.",
		}, []string{"reason"})),
	}
}

// pushed counts what became of a request, and returns err.
func (m *replicaMetrics) pushed(start time.Time, result write.Result, err error) error {
	m.duration.Observe(time.Since(start).Seconds())
	outcome := "written"
	switch {
	case err != nil:
		outcome = "unavailable"
	case len(result.Rejected) > 0:
		outcome = "rejected"
	}
	m.pushes.WithLabelValues(outcome).Inc()
	return err
}

// skipped counts a part that was not sent since there is no way to the ingester.
func (m *replicaMetrics) skipped(instance string) {
	m.requests.WithLabelValues(instance, outcomeUnreachable).Inc()
}

// forget drops the metrics of an ingester that has left.
func (m *replicaMetrics) forget(instance string) {
	of := prometheus.Labels{"instance": instance}
	m.bytes.DeletePartialMatch(of)
	m.up.DeletePartialMatch(of)
	m.requests.DeletePartialMatch(of)
	m.lessons.DeletePartialMatch(of)
	m.unknownSeries.DeletePartialMatch(of)
	m.resent.DeletePartialMatch(of)
	m.putOff.DeletePartialMatch(of)
}

// linkMetrics are those of the link to one ingester.
type linkMetrics struct {
	bytes, up, lessons  prometheus.Gauge
	unknownSeries       prometheus.Counter
	resent, putOff      prometheus.Counter
	accepted, faulty    prometheus.Counter
	unknown, failed     prometheus.Counter
	unreachable, queued prometheus.Counter
}

func (m *replicaMetrics) link(instance string) *linkMetrics {
	outcome := func(o string) prometheus.Counter { return m.requests.WithLabelValues(instance, o) }
	return &linkMetrics{
		bytes: m.bytes.WithLabelValues(instance), up: m.up.WithLabelValues(instance),
		lessons: m.lessons.WithLabelValues(instance), unknownSeries: m.unknownSeries.WithLabelValues(instance),
		resent: m.resent.WithLabelValues(instance), putOff: m.putOff.WithLabelValues(instance),
		accepted: outcome(outcomeAccepted), faulty: outcome(outcomeRejected),
		unknown: outcome(outcomeUnknown), failed: outcome(outcomeFailed),
		unreachable: outcome(outcomeUnreachable), queued: outcome(outcomeQueueFull),
	}
}

// judged counts an answer that is more than "all is stored".
func (m *linkMetrics) judged(result write.Result, err error) {
	switch {
	case err != nil:
		m.failed.Inc()
	case len(result.Unknown) > 0:
		m.unknown.Inc()
	case len(result.Rejected) > 0:
		m.faulty.Inc()
	default:
		m.accepted.Inc()
	}
}

// refused counts a part that the link did not take.
func (m *linkMetrics) refused(err error) {
	var full queueFullError
	if errors.As(err, &full) {
		m.queued.Inc()
		return
	}
	m.unreachable.Inc()
}
