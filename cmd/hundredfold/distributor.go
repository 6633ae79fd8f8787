package main

import (
	"fmt"

	"github.com/hundredfold/hundredfold/distributor"
)

// newDistributor wires the distributor. Every process has one, for the metrics about
// itself; only those with the role serve it.
func (p *process) newDistributor(ing distributor.Ingester) (*distributor.Distributor, error) {
	d, err := distributor.New(p.cfg.Distributor, ing, p.logger.With("component", "distributor"), p.registry)
	if err != nil {
		return nil, fmt.Errorf("start the distributor: %w", err)
	}
	return d, nil
}
