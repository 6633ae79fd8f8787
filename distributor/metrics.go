package distributor

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

type metrics struct {
	receivedSamples *prometheus.CounterVec
	writtenSamples  *prometheus.CounterVec
	rejectedSamples *prometheus.CounterVec
	duration        *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, b *budget) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_distributor_inflight_bytes",
		Help: "Memory reserved for requests that are being received.",
	}, func() float64 { return float64(b.inUse()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_distributor_inflight_bytes_limit",
		Help: "What hundredfold_distributor_inflight_bytes may reach before requests are answered 503: max_inflight_bytes.",
	}, func() float64 { return float64(b.total) })
	return &metrics{
		receivedSamples: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_distributor_received_samples_total",
			Help: "Samples received, by type: float, histogram or exemplar. Samples that are sent again are counted again.",
		}, []string{"tenant", "type"}),
		writtenSamples: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_distributor_written_samples_total",
			Help: "Samples stored, or found stored already, by type: float, histogram or exemplar.",
		}, []string{"tenant", "type"}),
		rejectedSamples: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_distributor_rejected_samples_total",
			Help: "Samples of all types that were not stored, by reason.",
		}, []string{"tenant", "reason"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "hundredfold_distributor_request_duration_seconds",
			Help:                        "Time from the header of a request to its answer, by protocol and HTTP status.",
			Buckets:                     []float64{.001, .005, .025, .1, .5, 2.5, 10},
			NativeHistogramBucketFactor: 1.1,
		}, []string{"protocol", "code"}),
	}
}

// received counts what a request brought: what is in its batch, and what was
// refused on the way there.
func (m *metrics) received(id tenant.ID, in write.Counts, refused write.Result) {
	for _, r := range refused.Rejected {
		switch r.Reason {
		case write.ReasonInvalidHistogram:
			in.Histograms += r.Count
		case write.ReasonInvalidExemplar:
			in.Exemplars += r.Count
		case write.ReasonNoSamples: // A series is at fault that brought nothing.
		default:
			in.Samples += r.Count
		}
	}
	addCounts(m.receivedSamples, id, in)
}

// stored counts what became of a request.
func (m *metrics) stored(id tenant.ID, r write.Result) {
	addCounts(m.writtenSamples, id, r.Written)
	for _, rej := range r.Rejected {
		m.rejectedSamples.WithLabelValues(string(id), string(rej.Reason)).Add(float64(rej.Count))
	}
}

func addCounts(c *prometheus.CounterVec, id tenant.ID, n write.Counts) {
	for _, x := range []struct {
		kind string
		n    int
	}{{"float", n.Samples}, {"histogram", n.Histograms}, {"exemplar", n.Exemplars}} {
		if x.n > 0 {
			c.WithLabelValues(string(id), x.kind).Add(float64(x.n))
		}
	}
}

func (m *metrics) answered(protocol string, code int, start time.Time) {
	m.duration.WithLabelValues(protocol, strconv.Itoa(code)).Observe(time.Since(start).Seconds())
}
