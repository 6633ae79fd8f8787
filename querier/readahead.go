package querier

import (
	"context"
	"errors"
	"iter"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// readAhead is how many blocks are fetched at once for pieces that are yet to be evaluated.
// Those that are evaluated wait for the round trips of few blocks at a time, and cores
// would stand idle while they do.
const readAhead = 32

// ahead fetches what the pieces of a query need of blocks in the object store, in the
// order of time, before it is their turn. It begins once the query has had to fetch
// something: with all on the local disk there is nothing to do.
type ahead struct {
	run   *splitRun
	begin sync.Once
	work  sync.WaitGroup
}

// consider begins if it is worth while.
func (a *ahead) consider(ctx context.Context) {
	if a.run.origin.pin == nil || accountOf(ctx).fetched.Load() == 0 {
		return
	}
	a.begin.Do(func() { a.work.Go(func() { a.fetch(ctx) }) })
}

// fetch goes through the blocks of the pieces that nobody evaluates yet, until ctx ends. Errors
// are left to those who need the blocks: they are told again there.
func (a *ahead) fetch(ctx context.Context) {
	s := a.run.query
	own, ok := a.run.origin.queryable.(queryable)
	if !ok {
		return
	}
	account := accountOf(ctx).part()
	defer account.release()
	selectors := parser.ExtractSelectors(s.expr)
	group, groupCtx := errgroup.WithContext(withAccount(ctx, account))
	group.SetLimit(readAhead)
	for block := range a.run.coming() {
		if groupCtx.Err() != nil {
			break
		}
		if len(own.q.owners.of(s.tenant, block.Meta.ULID)) == 0 { // others fetch what they own
			group.Go(func() error { return s.prefetch(groupCtx, own.q, block, selectors) })
		}
	}
	_ = group.Wait() // see above
}

// coming yields each block once that can be fetched for the pieces that nobody evaluates yet, in
// the order of time. Labels that a block gets when it is read are not in its index, so a block
// with such labels is left out.
func (r *splitRun) coming() iter.Seq[blockstore.Block] {
	return func(yield func(blockstore.Block) bool) {
		s := r.query
		seen := map[ulid.ULID]struct{}{}
		for i := int(r.next.Load()); i < len(r.pieces); i++ {
			mint, maxt := timesplit.Reads(s.expr, r.pieces[i], s.lookback)
			for _, block := range r.origin.pin.view.overlapping(mint, maxt) {
				_, before := seen[block.Meta.ULID]
				seen[block.Meta.ULID] = struct{}{}
				if !before && len(block.Extension.ExternalLabels) == 0 && !yield(block) {
					return
				}
			}
		}
	}
}

// prefetch fetches what selectors need of a block. An error ends the reading ahead.
func (s *splitQuery) prefetch(ctx context.Context, q *Querier, block blockstore.Block, selectors [][]*labels.Matcher) error {
	reader, err := q.blocks.Open(ctx, s.tenant, block, budgetOf(ctx))
	if err != nil {
		return err
	}
	var errs []error
	mint, maxt := timesplit.Reads(s.expr, s.steps, s.lookback)
	for _, matchers := range selectors {
		errs = append(errs, reader.Prefetch(ctx, mint, maxt, matchers...))
	}
	return errors.Join(append(errs, reader.Close())...)
}
