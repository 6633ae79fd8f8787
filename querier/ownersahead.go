package querier

import (
	"context"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/timesplit"
)

// ownersAhead is ahead for the blocks of others: it has their owners fetch what the pieces
// of a query need before they are asked for it. Nothing is sent, so it takes no memory here.
type ownersAhead struct {
	run   *splitRun
	begin sync.Once
	work  sync.WaitGroup
}

// consider begins if it is worth while: once something had to be fetched, here or by owners.
func (a *ownersAhead) consider(ctx context.Context) {
	own, ok := a.run.origin.queryable.(queryable)
	if !ok || own.q.owners == nil || a.run.origin.pin == nil || accountOf(ctx).fetched.Load() == 0 {
		return
	}
	a.begin.Do(func() { a.work.Go(func() { a.fetch(ctx, own.q.owners) }) })
}

// fetch asks for the blocks of the pieces that nobody evaluates yet, in the order of time, and
// returns when all are fetched or ctx ends. Errors are left to those who need the blocks.
func (a *ownersAhead) fetch(ctx context.Context, o *owners) {
	s := a.run.query
	var blocks []blockstore.Block
	var peers [][]cluster.Peer
	for block := range a.run.coming() {
		if of := o.of(s.tenant, block.Meta.ULID); len(of) > 0 {
			blocks, peers = append(blocks, block), append(peers, of)
		}
	}
	mint, maxt := timesplit.Reads(s.expr, s.steps, s.lookback)
	for _, matchers := range parser.ExtractSelectors(s.expr) {
		a.work.Go(func() { askForPages(ctx, o, s.tenant, timeRange{mint, maxt}, matchers, blocks, peers) })
	}
}

// askForPages has owners fetch what a selector needs of blocks.
func askForPages(ctx context.Context, o *owners, id tenant.ID, within timeRange, matchers []*labels.Matcher, blocks []blockstore.Block, peers [][]cluster.Peer) {
	in := newInquiry(ctx, o, id, request{timeRange: within, kind: fetchPages, matchers: matchers})
	for i := range blocks {
		in.add(&blocks[i], peers[i])
	}
	stop := in.begin(ctx)
	defer stop()
	for _, a := range in.order {
		<-a.settled
	}
}
