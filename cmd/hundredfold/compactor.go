package main

import (
	"fmt"

	"github.com/hundredfold/hundredfold/compactor"
)

// newCompactor wires the compactor. It works on the bucket alone.
func (p *process) newCompactor() (*compactor.Compactor, error) {
	c, err := compactor.New(p.cfg.Compactor, p.store, p.reloader.limits.of, p.logger.With("component", "compactor"), p.registry)
	if err != nil {
		return nil, fmt.Errorf("start the compactor: %w", err)
	}
	return c, nil
}
