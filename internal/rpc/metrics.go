package rpc

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type serverMetrics struct {
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	inFlight   prometheus.Gauge
	panics     prometheus.Counter
	foreign    prometheus.Counter
	handshakes prometheus.Counter
}

// newServerMetrics registers the metrics of a server. Methods are those of registered
// services only, so their number is bounded.
func newServerMetrics(reg prometheus.Registerer, certificates *files) *serverMetrics {
	f := promauto.With(reg)
	if certificates != nil {
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hundredfold_grpc_certificate_expiry_timestamp_seconds",
			Help: "When this node's certificate of grpc.tls ends, as Unix time. From then on peers refuse it.",
		}, func() float64 { return float64(certificates.expiry().Unix()) })
	}
	return &serverMetrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_grpc_requests_total",
			Help: "Calls from other nodes answered, by method and gRPC code. A stream counts when it ends.",
		}, []string{"method", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "hundredfold_grpc_request_duration_seconds",
			Help:    "Time to answer calls from other nodes, by method. Streams on which the caller sends are left out: they last as long as it likes.",
			Buckets: []float64{.001, .005, .025, .1, .25, 1, 2.5, 10, 30, 120},
		}, []string{"method"}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_grpc_requests_in_flight",
			Help: "Calls from other nodes that run, streams included.",
		}),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_grpc_panics_total",
			Help: "Calls that panicked. Each is a bug; its stack is in the log.",
		}),
		foreign: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_grpc_foreign_calls_total",
			Help: "Calls refused because they came from a node of another cluster, by its name.",
		}),
		handshakes: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_grpc_handshake_failures_total",
			Help: "Connections refused because the other side could not prove that it is a peer, or was no gRPC client.",
		}),
	}
}

type clientMetrics struct {
	calls *prometheus.CounterVec
	peers prometheus.Gauge
}

func newClientMetrics(reg prometheus.Registerer) *clientMetrics {
	f := promauto.With(reg)
	return &clientMetrics{
		calls: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_grpc_client_calls_total",
			Help: "Calls to other nodes, by method and gRPC code. A stream counts when it begins, with whether it could.",
		}, []string{"method", "code"}),
		peers: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_grpc_client_peers",
			Help: "Addresses of other nodes that calls went to lately.",
		}),
	}
}
