// Package selfmonitor writes the metrics of the process into the process: what
// /metrics would show a scraper, every 15 seconds, so that there is something to
// query right after the first start and no second Prometheus is needed to see
// how Hundredfold fares.
//
// It is a well-behaved guest: it pushes through the same door as every sender,
// takes a bounded number of series, and drops what is refused rather than trying
// again, because a store under pressure has better things to do.
package selfmonitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	// interval is the one that Prometheus's own example configuration scrapes at.
	interval = 15 * time.Second
	// pushTimeout keeps a stuck push from delaying the next gather or the stop.
	pushTimeout = 5 * time.Second
	// maxSeries bounds what the process adds to its own load. A process with all
	// roles has some hundreds of series; only metrics by tenant can grow.
	maxSeries = 2000

	job = "hundredfold"
)

// Pusher takes what a gather yields. It MUST NOT keep the batch after it returned.
type Pusher interface {
	Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error)
}

// Config says where the metrics go and who they are from.
type Config struct {
	Tenant   tenant.ID
	Instance string // the label instance: the HTTP address of the process
}

// Monitor gathers and pushes. One goroutine.
type Monitor struct {
	cfg      Config
	gatherer prometheus.Gatherer
	pusher   Pusher
	logger   *slog.Logger
	metrics  *metrics

	hasher *write.Hasher
	batch  write.Batch
	// live are the series whose newest sample in storage is not a stale marker.
	live map[write.Identity]series
	// described are the families whose metadata is in storage.
	described map[string]struct{}
	lastTime  int64 // of the newest push, in ms
	warned    bool
}

type metrics struct {
	series  prometheus.Gauge
	dropped prometheus.Counter
	pushes  *prometheus.CounterVec
}

// New returns a Monitor of what gatherer yields.
func New(cfg Config, gatherer prometheus.Gatherer, pusher Pusher, logger *slog.Logger, reg prometheus.Registerer) (*Monitor, error) {
	if cfg.Tenant == "" || cfg.Instance == "" {
		return nil, errors.New("self-monitoring needs a tenant and an instance")
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := promauto.With(reg)
	m := &Monitor{
		cfg:      cfg,
		gatherer: gatherer,
		pusher:   pusher,
		logger:   logger,
		metrics: &metrics{
			series: f.NewGauge(prometheus.GaugeOpts{
				Name: "hundredfold_self_monitoring_series",
				Help: "Series of the process itself in the newest push.",
			}),
			dropped: f.NewCounter(prometheus.CounterOpts{
				Name: "hundredfold_self_monitoring_dropped_series_total",
				Help: "Series that were left out of a push because a push has room for 2000.",
			}),
			pushes: f.NewCounterVec(prometheus.CounterOpts{
				Name: "hundredfold_self_monitoring_pushes_total",
				Help: "Pushes of the process's own metrics, by outcome: stored, rejected (some samples were refused) or failed. None is tried again.",
			}, []string{"outcome"}),
		},
		hasher:    write.NewHasher(),
		live:      map[write.Identity]series{},
		described: map[string]struct{}{},
	}
	for _, outcome := range []string{outcomeStored, outcomeRejected, outcomeFailed} {
		m.metrics.pushes.WithLabelValues(outcome)
	}
	return m, nil
}

// Run pushes at once and then every 15 seconds until ctx ends. The last push says
// that all series end, so that queries do not show a stopped process as running.
func (m *Monitor) Run(ctx context.Context) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		m.pushMetrics(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			m.pushEnd(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func (m *Monitor) pushMetrics(ctx context.Context) {
	// A gatherer returns what it could gather beside its error.
	families, err := m.gatherer.Gather()
	if err != nil {
		m.logger.Warn("Some of the process's own metrics are missing from self-monitoring.", "err", err)
	}
	c := &collector{now: m.now(), instance: m.cfg.Instance, hasher: m.hasher, batch: &m.batch, seen: make(map[write.Identity]series, len(m.live)), described: m.described}
	m.batch.Reset()
	c.addUp()
	for _, family := range families {
		c.addFamily(family)
	}
	for id, s := range m.live {
		if _, ok := c.seen[id]; !ok {
			s.addStale(c)
		}
	}
	m.metrics.series.Set(float64(len(c.seen)))
	if c.dropped > 0 {
		m.metrics.dropped.Add(float64(c.dropped))
		if !m.warned {
			m.warned = true
			m.logger.Warn("The process has more metrics than self-monitoring stores; the rest is only at /metrics. Scrape that to keep all of them.",
				"limit", maxSeries, "left_out", c.dropped)
		}
	}
	if m.push(ctx) {
		m.live = c.seen
		for _, md := range m.batch.Metadata {
			m.described[md.Metric] = struct{}{}
		}
	}
	// After a failed push the old series stay live: those that are gone get their
	// stale marker with the next push that succeeds.
}

func (m *Monitor) pushEnd(ctx context.Context) {
	c := &collector{now: m.now(), hasher: m.hasher, batch: &m.batch}
	m.batch.Reset()
	for _, s := range m.live {
		s.addStale(c)
	}
	if len(m.batch.Series) > 0 {
		m.push(ctx)
	}
}

// now returns the time of a push: later than that of any push before, whatever
// the clock does, because a sample needs a time of its own.
func (m *Monitor) now() int64 {
	m.lastTime = max(time.Now().UnixMilli(), m.lastTime+1)
	return m.lastTime
}

const (
	outcomeStored   = "stored"
	outcomeRejected = "rejected"
	outcomeFailed   = "failed"
)

// push reports whether the batch was taken, at least in part.
func (m *Monitor) push(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	result, err := m.pusher.Push(ctx, m.cfg.Tenant, &m.batch)
	var rejected *write.RejectedError
	switch {
	case err == nil && len(result.Rejected) == 0:
		m.metrics.pushes.WithLabelValues(outcomeStored).Inc()
		return true
	case err == nil || errors.As(err, &rejected):
		if err == nil {
			err = result.Err()
		}
		m.metrics.pushes.WithLabelValues(outcomeRejected).Inc()
		m.logger.Debug("Some of the process's own samples were refused and are dropped.", "err", err)
		return true
	default:
		m.metrics.pushes.WithLabelValues(outcomeFailed).Inc()
		m.logger.Debug("The process's own samples could not be stored and are dropped.", "err", fmt.Errorf("push to tenant %s: %w", m.cfg.Tenant, err))
		return false
	}
}
