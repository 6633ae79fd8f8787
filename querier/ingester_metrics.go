package querier

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/querier/coverage"
)

type ingesterMetrics struct {
	requests   *prometheus.CounterVec
	reads      *prometheus.CounterVec
	hedges     prometheus.Counter
	spared     prometheus.Counter
	bytes      prometheus.Counter
	duplicates prometheus.Counter
}

func newIngesterMetrics(reg prometheus.Registerer) *ingesterMetrics {
	f := promauto.With(reg)
	m := &ingesterMetrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_ingester_requests_total",
			Help: "Requests to single ingesters that were answered or failed, by outcome (ok, error). Those that were given up, since others had answered, do not count.",
		}, []string{"outcome"}),
		reads: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_ingester_reads_total",
			Help: "Reads of recent samples, by outcome: complete, doubtful (one of two replicas answered), incomplete (too few replicas answered, which failed the query), refused (a limit or an invalid request), canceled.",
		}, []string{"outcome"}),
		hedges: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_ingester_hedges_total",
			Help: "Requests to ingesters in the place of others that were slow.",
		}),
		spared: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_ingester_spared_total",
			Help: "Ingesters that could have been asked and did not need to be.",
		}),
		bytes: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_ingester_received_bytes_total",
			Help: "Bytes of series, chunks and labels that ingesters have sent.",
		}),
		duplicates: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_ingester_duplicate_chunks_total",
			Help: "Chunks that another replica had sent with the same bytes, so that they were dropped before decoding.",
		}),
	}
	for _, outcome := range []string{"ok", "error"} {
		m.requests.WithLabelValues(outcome)
	}
	for _, outcome := range []string{"complete", "doubtful", "incomplete", "refused", "canceled"} {
		m.reads.WithLabelValues(outcome)
	}
	return m
}

// observe counts one read.
func (m *ingesterMetrics) observe(outcome coverage.Outcome, err error, spared, hedges int) {
	m.hedges.Add(float64(hedges))
	m.spared.Add(float64(spared))
	var later *wire.UnavailableError
	text := "complete"
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		text = "canceled"
	case errors.As(err, &later):
		text = "incomplete"
	case err != nil:
		text = "refused"
	case outcome == coverage.Doubtful:
		text = "doubtful"
	}
	m.reads.WithLabelValues(text).Inc()
}
