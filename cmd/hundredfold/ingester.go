package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// keepUploaded is how long uploaded blocks stay in an ingester of a cluster: longer than
// a querier may do without a fresh look at the bucket.
const keepUploaded = time.Hour

// openIngester wires the ingester and replays what it has on disk.
func (p *process) openIngester(ctx context.Context, c *coverage) (*ingester.Ingester, error) {
	p.readiness.Check("ingester", p.opening.String)
	cfg := p.cfg.Ingester
	cfg.InstanceID = p.data.ID
	var err error
	if cfg.Adopted, err = p.adopt(); err != nil {
		return nil, err
	}
	deps := ingester.Deps{
		Store:      p.store,
		Limits:     p.reloader.limits.of,
		Visible:    c.visible,
		Uploaded:   c.uploaded,
		Opening:    p.opening,
		Logger:     p.logger,
		Registerer: p.registry,
	}
	if p.member != nil {
		self := p.member.self()
		deps.Cluster, deps.KeepUploaded = &self, keepUploaded
	}
	ing, err := ingester.Open(ctx, cfg, deps)
	if err != nil {
		return nil, fmt.Errorf("open the ingester: %w", err)
	}
	return ing, nil
}

// coverage is what the ingester asks and tells those who query. In a process that is
// alone that is its querier, which is made of the ingester, so it comes later; until
// then no block is visible, and so none is dropped. In a cluster the queriers are told,
// and uploaded blocks stay long enough for them to see (ingester.Deps.KeepUploaded).
// Safe for concurrent use.
type coverage struct {
	querier   atomic.Pointer[querier.Querier]
	announcer *ingester.Announcer
}

// newCoverage starts the announcer if the process's ingester is one of many.
func (p *process) newCoverage(s *starter, c *components) *coverage {
	covers := &coverage{}
	if p.member != nil && p.has(cluster.RoleIngester) {
		covers.announcer = ingester.NewAnnouncer(p.member.node, p.member.pool, p.logger.With("component", "announcer"))
		p.member.announcer = covers.announcer
		c.announcer = s.start("announcer", covers.announcer.Run)
	}
	return covers
}

func (c *coverage) set(q *querier.Querier) { c.querier.Store(q) }

func (c *coverage) visible(id tenant.ID, block ulid.ULID) bool {
	if c.announcer != nil {
		return true
	}
	q := c.querier.Load()
	return q != nil && q.Visible(id, block)
}

func (c *coverage) uploaded(id tenant.ID, block ulid.ULID) {
	if c.announcer != nil {
		c.announcer.Uploaded(id, block)
		return
	}
	if q := c.querier.Load(); q != nil {
		q.BlockUploaded(id, block)
	}
}
