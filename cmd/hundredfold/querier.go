package main

import (
	"fmt"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// newQuerier wires the querier: it reads recent samples from the ingester of this
// process by plain calls, and the blocks in the bucket.
func (p *process) newQuerier(ing querier.Ingester) (*querier.Querier, error) {
	cfg := p.cfg.Querier
	cfg.Version = version()
	cfg.Flags = p.flags
	if p.cfg.Multitenancy.Enabled {
		cfg.Operator = tenant.Self
	}
	cfg.ConfigText = func() string {
		c := p.reloader.current()
		return c.text()
	}
	q, err := querier.New(cfg, querier.Direct(ing), p.store, p.reloader.limits.of, p.logger.With("component", "querier"), p.registry)
	if err != nil {
		return nil, fmt.Errorf("start the querier: %w", err)
	}
	p.readiness.Check("querier", func() string {
		if err := q.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	return q, nil
}
