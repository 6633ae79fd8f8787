package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/selfmonitor"
	"github.com/hundredfold/hundredfold/internal/server"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/ui"
)

// process is one Hundredfold process. open makes what stands before the roles:
// the data directory, the bucket and the listener; run starts the roles.
type process struct {
	cfg       config
	flags     map[string]string
	logger    *slog.Logger
	registry  *prometheus.Registry
	readiness *server.Readiness
	reloader  *reloader
	data      *dataDir
	store     *blockstore.Store
	server    *server.Server
	api       *server.Gate
	holdings  holdings
}

// open opens a process. The caller must run it.
func open(opts options, logger *slog.Logger) (p *process, err error) {
	cfg, err := opts.load()
	if err != nil {
		return nil, err
	}
	p = &process{cfg: cfg, flags: opts.values, logger: logger, registry: newRegistry(), readiness: server.NewReadiness()}
	p.reloader = newReloader(cfg, opts.load, logger.With("component", "config"), p.registry)
	// What is refused for good is refused before anything is touched.
	if err := server.Check(cfg.HTTP, cfg.Auth); err != nil {
		return nil, err
	}
	if p.data, err = openDataDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if p.store, err = blockstore.Open(cfg.Bucket, logger.With("component", "bucket"), p.registry); err != nil {
		return nil, errors.Join(fmt.Errorf("open the bucket: %w", err), p.data.Close())
	}
	p.server, err = server.Open(cfg.HTTP, cfg.Auth, p.readiness, logger.With("component", "http"), p.registry)
	if err != nil {
		return nil, errors.Join(err, p.store.Close(), p.data.Close())
	}
	p.api = server.NewGate(p.readiness)
	if err := p.addRoutes(); err != nil {
		return nil, errors.Join(err, p.server.Close(), p.store.Close(), p.data.Close())
	}
	return p, nil
}

func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "hundredfold_build_info",
		Help:        "1, with the version in a label.",
		ConstLabels: prometheus.Labels{"version": version()},
	})
	build.Set(1)
	reg.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// components are what runs, so that run can stop them in its order.
type components struct {
	http, reload, querier, ingester, compactor, selfMonitoring *component
}

// run starts the roles, waits until ctx ends or one of them does, and stops all.
func (p *process) run(ctx context.Context) error {
	p.logger.Info("Hundredfold is starting.", "version", version(), "data_dir", p.cfg.DataDir,
		"instance", p.data.instanceID, "address", p.server.Address())
	s := newStarter(ctx)
	c, err := p.start(ctx, s)
	if err == nil {
		err = s.wait(ctx)
	}
	p.logger.Info("Hundredfold is stopping.")
	err = errors.Join(err, c.stop(), p.store.Close(), p.data.Close())
	if err == nil {
		p.logger.Info("Hundredfold has stopped.")
	}
	return err
}

// start starts everything. It returns what runs even with an error.
func (p *process) start(ctx context.Context, s *starter) (*components, error) {
	c := &components{}
	// HTTP comes first, so that /ready tells what the start waits for.
	p.readiness.Wait("ingester", "opening")
	c.http = s.start("http", p.server.Run)
	c.reload = s.start("reload", p.reloader.Run)

	coverage := &coverage{}
	ing, err := p.openIngester(ctx, coverage)
	if err != nil {
		if ctx.Err() != nil {
			return c, nil // asked to stop while opening
		}
		return c, err
	}
	c.ingester = s.start("ingester", ing.Run)

	q, err := p.newQuerier(ing)
	if err != nil {
		return c, err
	}
	coverage.set(q)
	c.querier = s.start("querier", q.Run)

	comp, err := p.newCompactor()
	if err != nil {
		return c, err
	}
	c.compactor = s.start("compactor", comp.Run)

	dist, err := p.newDistributor(ing)
	if err != nil {
		return c, err
	}
	p.holdings.attach(ing, q)
	p.api.Open(apiRoutes(dist, q))
	p.readiness.Ready("ingester")

	if p.cfg.SelfMonitoring.Enabled {
		monitor, err := p.newSelfMonitoring(dist)
		if err != nil {
			return c, err
		}
		c.selfMonitoring = s.start("self-monitoring", monitor.Run)
	}
	p.logger.Info("Hundredfold takes writes, and queries as soon as it has listed the bucket.", "open", "http://"+p.server.Address())
	return c, nil
}

// stop ends the components one after another, each when nothing needs it any more.
func (c *components) stop() error {
	return errors.Join(
		// No new requests; those that run are finished while all else still stands.
		c.http.stop(),
		c.reload.stop(),
		// Its last push says that the process's series end. It needs the ingester.
		c.selfMonitoring.stop(),
		// Nobody needs it. A compaction that runs is given up and begun again later.
		c.compactor.stop(),
		// Nothing is appended any more, so the TSDBs close cleanly. It asks the querier
		// which blocks are visible, so it goes first.
		c.ingester.stop(),
		c.querier.stop(),
	)
}

// addRoutes adds what is served from the first moment on. The API is behind a
// gate until the roles are there.
func (p *process) addRoutes() error {
	pages, err := ui.New(ui.Config{
		Version:        version(),
		Role:           roleAll,
		MultiTenant:    p.cfg.Multitenancy.Enabled,
		SelfMonitoring: p.cfg.SelfMonitoring.Enabled,
		Started:        time.Now(),
	}, ui.Deps{Summary: p.holdings.summary, Waiting: p.readiness.Reason, Logger: p.logger.With("component", "ui")})
	if err != nil {
		return err
	}
	p.server.Handle("GET /{$}", pages.Home())
	p.server.Handle("GET /graph", pages.Graph())
	p.server.Handle("GET /ui/", pages.Static("/ui/"))
	// A page of another origin that a browser shows must not reload anything.
	p.server.Handle("/-/reload", http.NewCrossOriginProtection().Handler(p.reloader))

	api := tenant.Middleware(p.cfg.Multitenancy.Enabled, refuse, p.api)
	for _, pattern := range append(writePatterns(), queryPatterns()...) {
		p.server.Handle(pattern, api)
	}
	return nil
}

func (p *process) newSelfMonitoring(push selfmonitor.Pusher) (*selfmonitor.Monitor, error) {
	cfg := selfmonitor.Config{Tenant: tenant.Default, Instance: p.server.Address()}
	if p.cfg.Multitenancy.Enabled {
		cfg.Tenant = tenant.Self
	}
	return selfmonitor.New(cfg, p.registry, push, p.logger.With("component", "self-monitoring"), p.registry)
}
