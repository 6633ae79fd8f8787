package main

import (
	"context"
	"fmt"

	"github.com/hundredfold/hundredfold/compactor"
	"github.com/hundredfold/hundredfold/internal/backlog"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/querier"
)

// startCompactor wires and starts the compactor, if the process has the role. It works
// on the bucket alone, on the tenants that are its own among the compactors. It also
// brings over what lies in a previous bucket.
func (p *process) startCompactor(deleter *querier.Deleter, s *starter, c *components) error {
	if !p.has(cluster.RoleCompactor) {
		return nil
	}
	deps := compactor.Deps{
		Store:      p.store,
		Limits:     p.reloader.limits.of,
		Settle:     deleter.Settle,
		Instance:   p.data.ID,
		Logger:     p.logger.With("component", "compactor"),
		Registerer: p.registry,
	}
	if p.member != nil {
		deps.Owns = p.member.owns
	}
	comp, err := compactor.New(p.cfg.Compactor, deps)
	if err != nil {
		return fmt.Errorf("start the compactor: %w", err)
	}
	p.compactor.Store(comp)
	c.compactor = s.start("compactor", comp.Run)
	c.copying = s.start("copy of the previous bucket", func(ctx context.Context) error { return p.store.RunCopy(ctx, deps.Owns) })
	return nil
}

// compactorStatus is a ui.Deps.Compactor.
func (p *process) compactorStatus() (backlog.Status, bool) {
	comp := p.compactor.Load()
	if comp == nil {
		return backlog.Status{}, false
	}
	return comp.Status(), true
}
