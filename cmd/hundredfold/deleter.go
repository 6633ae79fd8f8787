package main

import (
	"context"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// newDeleter returns who has deletions carried out: by the ingester and the querier of this
// process, or by all of the cluster. ing and q may be nil in a cluster.
func (p *process) newDeleter(ing *ingester.Ingester, q *querier.Querier) *querier.Deleter {
	if p.member != nil {
		return querier.NewClusterDeleter(p.store, p.member.node, p.member.pool)
	}
	apply := func(ctx context.Context, id tenant.ID) (map[ulid.ULID][]ulid.ULID, error) {
		done, err := ing.ApplyDeletions(ctx, id)
		blocks := make(map[ulid.ULID][]ulid.ULID, len(done))
		for _, d := range done {
			blocks[d.ID] = d.Blocks
		}
		return blocks, err
	}
	return querier.NewDeleter(p.store, apply, q)
}
