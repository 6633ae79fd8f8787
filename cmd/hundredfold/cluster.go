package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	sockaddr "github.com/hashicorp/go-sockaddr"

	"github.com/hundredfold/hundredfold/distributor"
	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/rpc"
	"github.com/hundredfold/hundredfold/internal/server"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/ui"
	"github.com/hundredfold/hundredfold/internal/write"
	"github.com/hundredfold/hundredfold/querier"
)

// membership is what makes a process a member of a cluster: the gRPC server, the
// connections to the others, and the node that knows who they are.
type membership struct {
	p      *process
	secret []byte
	grpc   *rpc.Server
	pool   *rpc.Pool
	// announcer tells queriers of uploads; nil without the ingester.
	announcer *ingester.Announcer
	node      *cluster.Node // nil until join

	// For the pages, which are served before the process has joined.
	joined atomic.Pointer[cluster.Node]
	life   atomic.Pointer[life]
}

// status is what /cluster shows.
func (m *membership) status() cluster.Status {
	if node := m.joined.Load(); node != nil {
		return node.Status()
	}
	return cluster.Status{}
}

// checkCluster reports whether c may take part in a cluster as it is protected.
func checkCluster(c config) error {
	if !c.Cluster.Enabled {
		return nil
	}
	secret, err := c.Cluster.Secret()
	if err != nil {
		return err
	}
	return errors.Join(c.Cluster.Check(), rpc.Check(c.GRPC, secret, c.Cluster.Mode == cluster.ModeNone))
}

// openMembership listens for the other processes, which wait until serve.
func openMembership(p *process) (*membership, error) {
	m := &membership{p: p}
	var err error
	if m.secret, err = p.cfg.Cluster.Secret(); err != nil {
		return nil, err
	}
	security, err := rpc.NewSecurity(p.cfg.GRPC, m.secret)
	if err != nil {
		return nil, err
	}
	logger := p.logger.With("component", "grpc")
	if m.grpc, err = rpc.NewServer(p.cfg.GRPC, security, p.cfg.Cluster.Name, logger, p.registry); err != nil {
		return nil, err
	}
	m.pool = rpc.NewPool(security, p.cfg.Cluster.Name, logger, p.registry)
	return m, nil
}

// Close ends listening, if nothing serves, and all connections.
func (m *membership) Close() error { return errors.Join(m.grpc.Close(), m.pool.Close()) }

// addRoutes adds what a member serves from the first moment on.
func (m *membership) addRoutes(s *server.Server, pages *ui.UI) {
	page := pages.Cluster()
	s.Handle("GET /cluster", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.joined.Load() != nil {
			page.ServeHTTP(w, r)
			return
		}
		http.Error(w, "this process has not joined the cluster yet", http.StatusServiceUnavailable)
	}))
	if !m.p.has(cluster.RoleIngester) {
		s.Handle("/ingester/", elsewhere(cluster.RoleIngester))
		return
	}
	// A page of another origin that a browser shows must not drain anything.
	guard := http.NewCrossOriginProtection()
	for pattern, serve := range map[string]func(*life, http.ResponseWriter, *http.Request){
		"/ingester/drain":        (*life).serveDrain,
		"POST /ingester/restart": (*life).serveRestart,
	} {
		s.Handle(pattern, m.p.audited(nil, guard.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if life := m.life.Load(); life != nil {
				serve(life, w, r)
				return
			}
			http.Error(w, "the ingester is still starting", http.StatusServiceUnavailable)
		}))))
	}
}

// join agrees with the cluster on the seed of identities and becomes a node.
func (m *membership) join(ctx context.Context, s *starter, c *components) error {
	m.p.readiness.Wait("cluster", "joining")
	seed, err := m.identitySeed(ctx)
	if err != nil {
		return err
	}
	write.SetSeed(seed)
	cfg := m.p.cfg
	node, err := cluster.Open(ctx, cfg.Cluster, cluster.Deps{
		ID:         m.p.data.ID,
		Generation: m.p.data.Generation,
		Roles:      m.p.roles,
		GRPC:       reachable(m.grpc.Address(), cfg.Cluster),
		HTTP:       reachable(m.p.server.Address(), cfg.Cluster),
		Dir:        cfg.DataDir,
		Secret:     m.secret,
		Conns:      m.pool,
		Logger:     m.p.logger.With("component", "cluster"),
		Registerer: m.p.registry,
	})
	if err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	m.node = node
	m.joined.Store(node)
	node.Register(m.grpc.Registrar())
	c.node = s.start("cluster", node.Run)
	m.p.readiness.Ready("cluster")
	return nil
}

// reachable returns where others reach what listens on address. If that is on all
// addresses of the machine, they use the one of gossip, or without gossip, whose
// listen address then means nothing, the one that is advertised.
func reachable(address string, cfg cluster.Config) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !net.ParseIP(host).IsUnspecified() {
		return address
	}
	known := []string{cfg.Gossip.AdvertiseAddress}
	if len(cfg.Peers) == 0 {
		known = append(known, cfg.Gossip.ListenAddress)
	}
	for _, other := range known {
		if host, _, err := net.SplitHostPort(other); err == nil && host != "" && !net.ParseIP(host).IsUnspecified() {
			return net.JoinHostPort(host, port)
		}
	}
	if private, err := sockaddr.GetPrivateIP(); err == nil && private != "" {
		return net.JoinHostPort(private, port)
	}
	return address
}

// seedRetry is how long a process waits for a bucket that does not answer before it
// tries again to learn the seed.
const seedRetry = 2 * time.Second

// identitySeed returns the seed that the bucket keeps. Once it is known, a start needs
// no bucket; a bucket with another seed is another cluster's.
func (m *membership) identitySeed(ctx context.Context) (uint64, error) {
	for {
		seed, err := m.p.store.IdentitySeed(ctx, m.p.cfg.Cluster.Name)
		known := m.p.data.Seed
		switch {
		case err == nil && known != nil && *known != seed:
			return 0, fmt.Errorf("the bucket belongs to another cluster than the data directory %s, whose series have other identities: choose the bucket or the data directory that belongs here", m.p.cfg.DataDir)
		case err == nil && known != nil:
			return seed, nil
		case err == nil:
			return seed, m.p.data.remember(seed)
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case !m.p.store.Retryable(err):
			return 0, err
		case known != nil:
			m.p.logger.Warn("The bucket does not answer; starting with the seed that it gave before", "err", err)
			return *known, nil
		}
		m.p.readiness.Wait("cluster", "the bucket does not answer: "+err.Error())
		m.p.logger.Warn("The bucket does not answer, and the seed of identities in it is not known yet; trying again", "err", err)
		select {
		case <-time.After(seedRetry):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// edges returns the ingesters of the cluster, to push to and to read from.
func (m *membership) edges(s *starter, c *components) (distributor.Ingester, querier.Edge, error) {
	p := m.p
	replicator, err := distributor.NewReplicator(distributor.DefaultReplicatorConfig(), m.node, m.pool, p.reloader.limits.of,
		p.logger.With("component", "replicator"), p.registry)
	if err != nil {
		return nil, nil, fmt.Errorf("start the distributor: %w", err)
	}
	c.replicator = s.start("replicator", replicator.Run)
	if p.has(cluster.RoleDistributor) {
		p.readiness.Check("distributor", func() string { return text(replicator.Ready()) })
	}
	recent := querier.NewClusterIngester(m.node, m.pool, p.reloader.limits.of, p.logger.With("component", "recent"), p.registry)
	return replicator, recent, nil
}

// serve answers the other processes from now on. An ingester becomes active, or goes on
// with a drain; ing and q may be nil.
func (m *membership) serve(ctx context.Context, ing *ingester.Ingester, q *querier.Querier, s *starter, c *components) error {
	if ing != nil {
		ing.Register(m.grpc.Registrar(), m.self())
	}
	if q != nil {
		q.RegisterBlocks(m.grpc.Registrar())
	}
	c.grpc = s.start("grpc", m.grpc.Run)
	if ing == nil {
		return nil
	}
	if m.node.Rejoined() {
		m.p.readiness.Wait("ingester", "uploading what it holds, because it had left the cluster")
	}
	life := newLife(m.node, ing, m.announcer, m.p.logger.With("component", "life"))
	if err := life.begin(ctx); err != nil {
		return err
	}
	m.life.Store(life)
	c.life = s.start("life", life.run)
	return nil
}

func (m *membership) self() ingester.Member {
	return ingester.Member{
		Instance: m.p.data.ID, Generation: m.p.data.Generation,
		Current: func() *cluster.Placement { return m.node.View().Placement },
	}
}

// owns reports whether this process compacts the tenant.
func (m *membership) owns(id tenant.ID) bool {
	owner, ok := m.node.View().Owner(cluster.RoleCompactor, string(id))
	return ok && owner.ID == m.p.data.ID
}

// text returns what err says, or nothing.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
