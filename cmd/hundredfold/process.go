package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/hundredfold/hundredfold/compactor"
	"github.com/hundredfold/hundredfold/distributor"
	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockupload"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/selfmonitor"
	"github.com/hundredfold/hundredfold/internal/server"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/ui"
	"github.com/hundredfold/hundredfold/querier"
)

// process is one Hundredfold process. open makes what stands before the roles:
// the data directory, the bucket and the listeners; run starts the roles.
type process struct {
	cfg       config
	roles     []cluster.Role
	flags     map[string]string
	logger    *slog.Logger
	registry  *prometheus.Registry
	readiness *server.Readiness
	reloader  *reloader
	data      *dataDir
	store     *blockstore.Store
	server    *server.Server
	api       *server.Gate
	opening   *ingester.Opening // of the ingester, if it is one
	holdings  holdings
	// member is nil in a process that is alone.
	member *membership
	// compactor is for its pages, which are served before it has started.
	compactor atomic.Pointer[compactor.Compactor]
}

func (p *process) has(role cluster.Role) bool { return slices.Contains(p.roles, role) }

// open opens a process. The caller must run it.
func open(opts options, logger *slog.Logger) (p *process, err error) {
	cfg, err := opts.load()
	if err != nil {
		return nil, err
	}
	p = &process{cfg: cfg, roles: opts.roles, flags: opts.values, logger: logger, registry: newRegistry(), readiness: server.NewReadiness()}
	p.reloader = newReloader(cfg, opts.load, logger.With("component", "config"), p.registry)
	// What is refused for good is refused before anything is touched.
	if err := errors.Join(server.Check(cfg.HTTP, cfg.Auth), checkCluster(cfg)); err != nil {
		return nil, err
	}
	var opened closers
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.Close())
		}
	}()
	if p.data, err = openDataDir(cfg.DataDir, opts.instanceID); err != nil {
		return nil, err
	}
	opened.add(p.data)
	if p.store, err = blockstore.Open(cfg.Bucket, logger.With("component", "bucket"), p.registry); err != nil {
		return nil, fmt.Errorf("open the bucket: %w", err)
	}
	opened.add(p.store)
	p.server, err = server.Open(cfg.HTTP, cfg.Auth, p.readiness, logger.With("component", "http"), p.registry)
	if err != nil {
		return nil, err
	}
	opened.add(p.server)
	p.opening = ingester.NewOpening(time.Now)
	p.api = server.NewGate(p.readiness, p.opening.Left)
	if cfg.Cluster.Enabled {
		if p.member, err = openMembership(p); err != nil {
			return nil, err
		}
		opened.add(p.member)
	}
	return p, p.addRoutes()
}

// closers are what was opened, to be closed in reverse if the next step fails.
type closers []io.Closer

func (c *closers) add(opened io.Closer) { *c = append(*c, opened) }

// Close implements io.Closer.
func (c *closers) Close() error {
	var errs []error
	for _, opened := range slices.Backward(*c) {
		errs = append(errs, opened.Close())
	}
	return errors.Join(errs...)
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

// components are what runs, so that run can stop them in its order. What the
// process's roles do not need is nil.
type components struct {
	http, reload, querier, ingester, compactor, copying, uploads, selfMonitoring *component
	// In a cluster only.
	node, grpc, replicator, life, announcer *component
}

// run starts the roles, waits until ctx ends or one of them does, and stops all.
func (p *process) run(ctx context.Context) error {
	p.logger.Info("Hundredfold is starting.", "version", version(), "role", roleNames(p.roles), "data_dir", p.cfg.DataDir,
		"instance", p.data.ID, "address", p.server.Address())
	s := newStarter(ctx)
	c, err := p.start(ctx, s)
	if err == nil {
		err = s.wait(ctx)
	} else if ctx.Err() != nil {
		err = nil // asked to stop while starting
	}
	p.logger.Info("Hundredfold is stopping.")
	err = errors.Join(err, c.stop())
	if p.member != nil {
		err = errors.Join(err, p.member.Close())
	}
	err = errors.Join(err, p.store.Close(), p.data.Close())
	if err == nil {
		p.logger.Info("Hundredfold has stopped.")
	}
	return err
}

// start starts everything. It returns what runs even with an error.
func (p *process) start(ctx context.Context, s *starter) (*components, error) {
	c := &components{}
	// HTTP comes first, so that /ready tells what the start waits for.
	p.readiness.Wait("start", "starting")
	c.http = s.start("http", p.server.Run)
	c.reload = s.start("reload", p.reloader.Run)
	if p.member != nil {
		if err := p.member.join(ctx, s, c); err != nil {
			return c, err
		}
	}

	coverage := p.newCoverage(s, c)
	var ing *ingester.Ingester
	if p.has(cluster.RoleIngester) {
		var err error
		if ing, err = p.openIngester(ctx, coverage); err != nil {
			return c, err
		}
		c.ingester = s.start("ingester", ing.Run)
	}
	to, from, err := p.edges(ing, s, c)
	if err != nil {
		return c, err
	}
	q, err := p.startQuerier(from, coverage, s, c)
	if err != nil {
		return c, err
	}
	deleter := p.newDeleter(ing, q)
	if err := p.startCompactor(deleter, s, c); err != nil {
		return c, err
	}
	dist, err := p.newDistributor(to)
	if err != nil {
		return c, err
	}
	if p.member != nil {
		if err := p.member.serve(ctx, ing, q, s, c); err != nil {
			return c, err
		}
	}
	p.holdings.attach(ing, q)
	p.api.Open(p.apiRoutes(dist, q, deleter, p.startUploads(coverage, s, c)))
	if ing != nil {
		p.readiness.Ready("ingester")
	}
	p.readiness.Ready("start")

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

// edges returns where samples are pushed to and recent ones read from: the ingester
// of this process, or those of the cluster.
func (p *process) edges(ing *ingester.Ingester, s *starter, c *components) (distributor.Ingester, querier.Edge, error) {
	if p.member == nil {
		return ing, querier.Direct(ing), nil
	}
	return p.member.edges(s, c)
}

// stop ends the components one after another, each when nothing needs it any more.
func (c *components) stop() error {
	return errors.Join(
		// First the others learn that this ingester goes away for a while.
		c.life.stop(),
		// No new requests; those that run are finished while all else still stands.
		c.http.stop(),
		c.reload.stop(),
		// Its last push says that the process's series end. It needs the ingesters.
		c.selfMonitoring.stop(),
		c.replicator.stop(),
		// Nobody needs them. What they were doing is given up and begun again later.
		c.compactor.stop(),
		c.copying.stop(),
		c.uploads.stop(),
		c.grpc.stop(),
		// Nothing is appended any more, so the TSDBs close cleanly. It asks the querier
		// which blocks are visible, so it goes first.
		c.ingester.stop(),
		c.announcer.stop(),
		c.querier.stop(),
		c.node.stop(),
	)
}

// addRoutes adds what is served from the first moment on. The API is behind a
// gate until the roles are there.
func (p *process) addRoutes() error {
	deps := ui.Deps{Summary: p.holdings.summary, Waiting: p.readiness.Reason, Logger: p.logger.With("component", "ui")}
	if p.member != nil {
		deps.Cluster = p.member.status
	}
	if p.has(cluster.RoleCompactor) {
		deps.Compactor = p.compactorStatus
	}
	pages, err := ui.New(ui.Config{
		Version:        version(),
		Role:           roleNames(p.roles),
		MultiTenant:    p.cfg.Multitenancy.Enabled,
		SelfMonitoring: p.cfg.SelfMonitoring.Enabled,
		Started:        time.Now(),
	}, deps)
	if err != nil {
		return err
	}
	p.server.Handle("GET /{$}", pages.Home())
	p.server.Handle("GET /graph", pages.Graph())
	p.server.Handle("GET /compactor", pages.Compactor())
	p.server.Handle("GET /ui/", pages.Static("/ui/"))
	// A page of another origin that a browser shows must not reload anything.
	p.server.Handle("/-/reload", p.audited(nil, http.NewCrossOriginProtection().Handler(p.reloader)))

	if p.member != nil {
		p.member.addRoutes(p.server, pages)
	}
	p.server.Handle("GET /compactor/retention", http.HandlerFunc(p.servePreview))
	api := tenant.Middleware(p.cfg.Multitenancy.Enabled, refuse, p.api)
	for _, pattern := range append(writePatterns(), queryPatterns()...) {
		p.server.Handle(pattern, api)
	}
	administration := p.audited(p.askedTenant, api)
	p.server.Handle(routeAdmin, administration)
	p.server.Handle(blockupload.Prefix, administration)
	p.server.Handle(blockupload.Prefix+"{block}/files", api) // one act has many of them
	return nil
}

func (p *process) newSelfMonitoring(push selfmonitor.Pusher) (*selfmonitor.Monitor, error) {
	cfg := selfmonitor.Config{Tenant: tenant.Default, Instance: p.server.Address()}
	if p.member != nil {
		// All that listen on all addresses would be one instance.
		cfg.Instance = reachable(cfg.Instance, p.cfg.Cluster)
	}
	if p.cfg.Multitenancy.Enabled {
		cfg.Tenant = tenant.Self
	}
	return selfmonitor.New(cfg, p.registry, push, p.logger.With("component", "self-monitoring"), p.registry)
}
