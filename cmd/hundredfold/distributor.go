package main

import (
	"fmt"

	"github.com/hundredfold/hundredfold/distributor"
)

// newDistributor wires the distributor: it pushes into the ingester of this
// process, by a plain call.
func (p *process) newDistributor(ing distributor.Ingester) (*distributor.Distributor, error) {
	d, err := distributor.New(p.cfg.Distributor, ing, p.logger.With("component", "distributor"), p.registry)
	if err != nil {
		return nil, fmt.Errorf("start the distributor: %w", err)
	}
	return d, nil
}
