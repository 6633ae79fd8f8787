package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// limits are the limits in force. Safe for concurrent use.
type limits struct{ current atomic.Pointer[config] }

// of is a tenant.LimitsFunc.
func (l *limits) of(id tenant.ID) tenant.Limits { return l.current.Load().limitsOf(id) }

// reloader brings changes of the file into force without a restart: those of
// limits and tenants; of other changes it says that they need one. Safe for
// concurrent use.
type reloader struct {
	load    func() (config, error)
	limits  *limits
	logger  *slog.Logger
	metrics reloadMetrics

	mu      sync.Mutex // one reload at a time
	started config     // what the process was started with
}

type reloadMetrics struct {
	successful prometheus.Gauge
	succeeded  prometheus.Gauge
}

func newReloader(started config, load func() (config, error), logger *slog.Logger, reg prometheus.Registerer) *reloader {
	f := promauto.With(reg)
	r := &reloader{
		load:    load,
		limits:  &limits{},
		logger:  logger,
		started: started,
		metrics: reloadMetrics{
			successful: f.NewGauge(prometheus.GaugeOpts{
				Name: "hundredfold_config_last_reload_successful",
				Help: "1 if the newest attempt to load the configuration succeeded; with 0 the limits before it hold.",
			}),
			succeeded: f.NewGauge(prometheus.GaugeOpts{
				Name: "hundredfold_config_last_reload_success_timestamp_seconds",
				Help: "When the configuration was last loaded with success.",
			}),
		},
	}
	r.force(started)
	return r
}

// force puts the limits of c into force.
func (r *reloader) force(c config) {
	r.limits.current.Store(&c)
	r.metrics.successful.Set(1)
	r.metrics.succeeded.SetToCurrentTime()
}

// reload loads the file again. After an error the limits are as before.
func (r *reloader) reload() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.load()
	if err != nil {
		r.metrics.successful.Set(0)
		return err
	}
	r.force(c)
	r.logger.Info("The configuration was reloaded; limits and tenants are in force.", "tenants_with_own_limits", len(c.Tenants))
	var restart []string
	for _, key := range changed(r.started, c) {
		if key != "tenants" && !strings.HasPrefix(key, "limits.") {
			restart = append(restart, key)
		}
	}
	if len(restart) > 0 {
		r.logger.Warn("Some changed settings take effect with the next start only.", "keys", strings.Join(restart, ", "))
	}
	return nil
}

// current is the configuration in force: what the process was started with, and
// the limits of the newest reload.
func (r *reloader) current() config {
	newest := r.limits.current.Load()
	c := r.started
	c.Limits, c.Tenants = newest.Limits, newest.Tenants
	return c
}

// Run reloads on SIGHUP until ctx ends.
func (r *reloader) Run(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-hangup:
			if err := r.reload(); err != nil {
				r.logger.Error("The configuration was not reloaded; the limits before it hold. Repair the file and try again.", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// ServeHTTP is POST /-/reload.
func (r *reloader) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "reload with POST", http.StatusMethodNotAllowed)
		return
	}
	if err := r.reload(); err != nil {
		http.Error(w, "the configuration was not reloaded; the limits before it hold:\n"+err.Error(), http.StatusBadRequest)
	}
}
