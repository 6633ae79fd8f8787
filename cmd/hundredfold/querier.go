package main

import (
	"fmt"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// startQuerier wires and starts the querier, which reads recent samples from an edge
// and the others from the blocks in the bucket. It returns nil if the process has no
// such role.
func (p *process) startQuerier(from querier.Edge, covers *coverage, s *starter, c *components) (*querier.Querier, error) {
	if !p.has(cluster.RoleQuerier) {
		return nil, nil
	}
	q, err := p.newQuerier(from)
	if err != nil {
		return nil, err
	}
	covers.set(q)
	c.querier = s.start("querier", q.Run)
	return q, nil
}

func (p *process) newQuerier(from querier.Edge) (*querier.Querier, error) {
	cfg := p.cfg.Querier
	cfg.Version = version()
	cfg.Flags = p.flags
	cfg.AdminAPI = p.cfg.AdminAPI.Enabled
	if p.cfg.Multitenancy.Enabled {
		cfg.Operator = tenant.Self
	}
	cfg.ConfigText = func() string {
		c := p.reloader.current()
		return c.text()
	}
	q, err := querier.New(cfg, from, p.store, p.reloader.limits.of, p.logger.With("component", "querier"), p.registry)
	if err != nil {
		return nil, fmt.Errorf("start the querier: %w", err)
	}
	if p.member != nil {
		q.Share(p.member.node, p.member.pool, p.registry)
	}
	p.readiness.Check("querier", func() string {
		if err := q.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	return q, nil
}
