package querier

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/hundredfold/hundredfold/querier/timesplit"
)

const (
	// lotBlocks is how many blocks a lot has at least, if there are as many.
	lotBlocks = 24
	// lotShare is which part a lot may have of what a query holds of owners' answers. Three may
	// be held at a time, the one that ends, the one that begins and the next, and pieces may need
	// to ask for themselves.
	lotShare = 4
)

// lots are the pieces of a range query in groups. The owners of blocks are asked for what all
// pieces of a lot need at once, while those of the lot before are evaluated: so there are few
// requests, and no piece waits for the way there and back. What they send of a lot is held
// until its last piece is done; what of it would be too much is asked by each piece for itself.
type lots struct {
	run    *splitRun
	owners *owners // nil: nobody is asked ahead
	all    []*lot
	of     []*lot      // by piece
	off    atomic.Bool // a lot was too much, and the others would be
}

// lot is one of them.
type lot struct {
	next    *lot // nil: it is the last one
	steps   timesplit.Range
	left    atomic.Int64 // of its pieces
	account *account     // of what is held

	asked     sync.Once
	within    timeRange           // of samples
	inquiries map[string]*inquiry // by selector; set once asked
	stops     []func()
}

type lotKey struct{}

// newLots groups the pieces of a run. It asks nobody.
func newLots(ctx context.Context, run *splitRun) *lots {
	l := &lots{run: run}
	own, ok := run.origin.queryable.(queryable)
	if !ok || own.q.owners == nil || run.origin.pin == nil || len(run.pieces) < 2 {
		return l
	}
	l.owners = own.q.owners
	var last *lot
	blocks := lotBlocks // of the last one
	for _, steps := range run.pieces {
		// What lies between pieces is in the results cache: nothing is asked for it.
		if blocks >= lotBlocks || steps.Start > last.steps.End+run.query.step {
			next := &lot{steps: steps, account: accountOf(ctx).part()}
			next.account.maxOwned = next.account.ownedLimit() / lotShare
			if last != nil {
				last.next = next
			}
			last = next
			l.all = append(l.all, last)
		}
		last.steps.End = steps.End
		last.left.Add(1)
		l.of = append(l.of, last)
		blocks = len(run.origin.pin.view.overlapping(timesplit.Reads(run.query.expr, last.steps, run.query.lookback)))
	}
	return l
}

// enter asks for what the lot of a piece needs, and the next lot, unless that was done before. The
// piece finds the answers in the context that is returned. leave follows.
func (l *lots) enter(ctx, asking context.Context, piece int) context.Context {
	if l.owners == nil {
		return ctx
	}
	of := l.of[piece]
	of.ask(asking, l)
	if of.tooLarge() {
		l.off.Store(true)
	}
	if of.next != nil {
		of.next.ask(asking, l)
	}
	return context.WithValue(ctx, lotKey{}, of)
}

// leave says that a piece is done.
func (l *lots) leave(piece int) {
	if l.owners != nil && l.of[piece].left.Add(-1) == 0 {
		l.of[piece].close()
	}
}

// close gives back what is held still, when no piece is evaluated any more.
func (l *lots) close() {
	for _, of := range l.all {
		of.close()
	}
}

// ask asks the owners of blocks that the lot needs. The streams end with ctx.
func (of *lot) ask(ctx context.Context, l *lots) {
	of.asked.Do(func() {
		if l.off.Load() {
			return
		}
		s := l.run.query
		of.within.mint, of.within.maxt = timesplit.Reads(s.expr, of.steps, s.lookback)
		blocks := l.run.origin.pin.view.overlapping(of.within.mint, of.within.maxt)
		of.inquiries = map[string]*inquiry{}
		for _, matchers := range parser.ExtractSelectors(s.expr) {
			key := selectorKey(matchers)
			if of.inquiries[key] != nil {
				continue
			}
			in := newInquiry(withAccount(ctx, of.account), l.owners, s.tenant, request{timeRange: of.within, matchers: matchers})
			for i := range blocks {
				if peers := l.owners.of(s.tenant, blocks[i].Meta.ULID); len(peers) > 0 {
					in.add(&blocks[i], peers)
				}
			}
			of.inquiries[key] = in
			of.stops = append(of.stops, in.begin(ctx))
		}
	})
}

// close ends what is still asked, and lets go of what is held.
func (of *lot) close() {
	for _, stop := range of.stops {
		stop()
	}
	of.inquiries, of.stops = nil, nil
	of.account.release()
}

// tooLarge reports whether the answers for the lot were more than may be held.
func (of *lot) tooLarge() bool {
	for _, in := range of.inquiries {
		if slices.ContainsFunc(in.order, (*ownedAnswer).isTooLarge) {
			return true
		}
	}
	return false
}

// askedAhead returns what was asked ahead in which the answers to a call are, for more than its time;
// nil: nothing.
func askedAhead(ctx context.Context, ask request) *inquiry {
	of, ok := ctx.Value(lotKey{}).(*lot)
	if !ok || ask.kind != selectSeries || ask.mint < of.within.mint || ask.maxt > of.within.maxt {
		return nil
	}
	if h := ask.hints; h != nil && (h.Func == seriesFunc || h.Limit > 0 || h.ShardCount > 0) {
		return nil
	}
	return of.inquiries[selectorKey(ask.matchers)]
}

// selectorKey is the same for the same matchers in any order.
func selectorKey(matchers []*labels.Matcher) string {
	texts := make([]string, len(matchers))
	for i, m := range matchers {
		texts[i] = m.String()
	}
	slices.Sort(texts)
	return strings.Join(texts, ",")
}
