package querier

import (
	"context"
	"fmt"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// ExemplarQueryable returns the exemplars, which are in the ingesters only: blocks
// have none. The tenant is that of the context.
func (q *Querier) ExemplarQueryable() storage.ExemplarQueryable { return exemplarQueryable{q.edge} }

type exemplarQueryable struct{ edge Edge }

func (e exemplarQueryable) ExemplarQuerier(ctx context.Context) (storage.ExemplarQuerier, error) {
	id, err := tenant.FromContext(ctx)
	if err != nil {
		return nil, err
	}
	inner, err := e.edge.exemplars(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read exemplars: %w", reported(ctx, err))
	}
	return exemplarQuerier{ctx, inner}, nil
}

type exemplarQuerier struct {
	ctx context.Context //nolint:containedctx // storage.ExemplarQueryable has it so
	storage.ExemplarQuerier
}

// Select never returns nil without an error: it becomes the JSON of an answer, and
// clients expect a list there.
func (e exemplarQuerier) Select(start, end int64, matchers ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	found, err := e.ExemplarQuerier.Select(start, end, matchers...)
	if found == nil && err == nil {
		found = []exemplar.QueryResult{}
	}
	return found, reported(e.ctx, err)
}
