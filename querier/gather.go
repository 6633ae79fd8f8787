package querier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
	"github.com/hundredfold/hundredfold/querier/coverage"
)

const (
	// placementsNamed is for how long ingesters surely name a placement after its last
	// use; in fact they do for an hour longer, and samples are at most ten minutes ahead
	// of their time.
	placementsNamed = 5 * time.Hour
	// maxViewAge is how old the view of the bucket may be when samples are needed that
	// ingesters have dropped: they drop a block an hour after its upload or later.
	maxViewAge = 30 * time.Minute
)

var errStalled = fmt.Errorf("it has been silent for %s", stalledAfter)

// asking asks one ingester. It calls heard whenever a part of the answer has arrived.
type asking[T any] func(ctx context.Context, client queryv1.RecentServiceClient, heard func()) (wire.Holding, T, error)

// reply is the answer of one ingester.
type reply[T any] struct {
	instance string
	holding  wire.Holding
	value    T
	err      error
}

// gathered are answers that together are complete, or doubtful with a warning.
type gathered[T any] struct {
	replies  []reply[T] // by instance
	covered  covered
	warnings annotations.Annotations
	// copies is how many of the replies have the same sample, on average.
	copies float64
}

// gather asks ingesters until their answers hold every sample of a tenant that was
// acknowledged before. Some are spared; those that fail or are slow are replaced at
// once. If all asks all who are alive, and waits for them unless they are slow.
func gather[T any](ctx context.Context, c *ClusterIngester, id tenant.ID, all bool, ask asking[T]) (*gathered[T], error) {
	ctx, cancel := context.WithCancel(ctx)
	g := &gatherer[T]{c: c, id: id, all: all, ask: ask, attempts: map[string]*attempt[T]{}, replies: make(chan reply[T], 16)}
	defer g.running.Wait()
	defer cancel()
	g.recall()
	outcome, missing, err := g.run(ctx)
	if err == nil && outcome == coverage.Incomplete {
		err = g.incomplete(missing)
	}
	c.metrics.observe(outcome, err, g.spared(), g.hedges)
	if err != nil {
		return nil, err
	}
	return g.result(outcome, missing), nil
}

// gatherer is one gather. One goroutine; attempts send to replies.
type gatherer[T any] struct {
	c       *ClusterIngester
	id      tenant.ID
	all     bool
	ask     asking[T]
	replies chan reply[T]
	running sync.WaitGroup

	view *cluster.View
	// under is the current placement when the query began. unheard are ingesters who
	// may name placements that are not among placements; see memory.recall.
	under      wire.PlacementRef
	unheard    map[string]struct{}
	placements map[wire.PlacementRef]struct{}
	plan       *coverage.Plan
	attempts   map[string]*attempt[T] // by instance
	hedges     int
}

// attempt is one ingester's being asked.
type attempt[T any] struct {
	generation uint64 // of its record, and then of its answer
	begun      time.Time
	heard      atomic.Int64 // when there was something new, in ns since begun
	cancel     context.CancelCauseFunc
	slow       bool
	done       bool
	reply      reply[T]
}

// run returns once enough have answered or nobody is left who might.
func (g *gatherer[T]) run(ctx context.Context) (coverage.Outcome, []coverage.Replica, error) {
	if err := g.replan(); err != nil {
		return coverage.Incomplete, nil, err
	}
	if len(g.plan.Replicas()) == 0 {
		return coverage.Incomplete, nil, unavailable(errNoIngester)
	}
	g.askMore(ctx)
	timer := time.NewTimer(stalledAfter)
	defer timer.Stop()
	waited, heard := false, false
	for {
		outcome, missing := g.plan.Decide(g.counts)
		pending, hopeful := g.pending()
		switch {
		case outcome == coverage.Complete && (!g.all || hopeful == 0):
			return outcome, nil, nil
		case pending == 0 && !waited && g.awaitView(ctx, missing):
			waited = true
			continue
		case pending == 0 && !heard && g.awaitRecords(ctx, missing):
			heard = true
			if err := g.replan(); err != nil {
				return coverage.Incomplete, nil, err
			}
			g.askMore(ctx)
			continue
		case pending == 0:
			return outcome, missing, nil
		}
		timer.Reset(g.patience())
		select {
		case r := <-g.replies:
			if err := g.take(ctx, r); err != nil {
				return coverage.Incomplete, nil, err
			}
		case <-timer.C:
			g.hedge(ctx)
		case <-ctx.Done():
			return coverage.Incomplete, nil, context.Cause(ctx)
		}
	}
}

// replan makes the plan of all placements that are known.
func (g *gatherer[T]) replan() error {
	g.view = g.c.src.View()
	shard := g.c.limits(g.id).ShardSize
	var placements [][]coverage.Set
	add := func(p *cluster.Placement, shard int) error {
		sets, err := g.c.memory.sets(g.id, p, shard)
		placements = append(placements, sets)
		return err
	}
	for _, p := range current(g.view) {
		g.c.memory.define(p)
		if err := add(p, shard); err != nil {
			return err
		}
	}
	for ref := range g.placements {
		p := g.c.memory.placement(ref.Hash)
		if p == nil {
			return unavailable(fmt.Errorf("the definition of placement %016x has been let go", ref.Hash))
		}
		if err := add(p, ref.Shard); err != nil {
			return err
		}
	}
	g.plan = coverage.NewPlan(placements...)
	return nil
}

// current returns the placements under which samples may be written now: that of the
// view, and that with those who are about to join, of which others may have heard
// sooner.
func current(view *cluster.View) []*cluster.Placement {
	if view.Placement == nil {
		return nil
	}
	placements := []*cluster.Placement{view.Placement}
	var joined []cluster.Record
	for _, rec := range view.Registry.Records() {
		if _, alive := view.Peer(rec.ID); rec.State != cluster.Joining || !alive {
			continue
		}
		if next, err := rec.Next(cluster.Active); err == nil {
			joined = append(joined, next)
		}
	}
	if len(joined) > 0 {
		if registry, _, err := view.Registry.Merge(joined...); err == nil {
			placements = append(placements, registry.Placement(view.Placement.RF()))
		}
	}
	return placements
}

// released reports whether all that an instance had can be read from the bucket: it
// has left, and the bucket was listed since. A record by which others gave it up has
// another generation than its samples (cluster.Record.Forgotten).
func (g *gatherer[T]) released(rec cluster.Record) bool {
	if rec.State != cluster.Left {
		return false
	}
	view, err := g.c.views.of(g.id)
	return err == nil && !view.listed.Before(g.c.memory.leftSince(rec))
}

// answers reports whether an ingester is expected to answer: it is alive as far as is
// known, and neither about to stop nor still reading its log.
func (g *gatherer[T]) answers(rec cluster.Record) bool {
	_, alive := g.view.Peer(rec.ID)
	return alive && rec.State.Reads() && rec.State != cluster.Restarting
}

// standing says what is to be expected of a replica. Those who are not expected to
// answer can be asked only if suspects.
func (g *gatherer[T]) standing(suspects bool) func(coverage.Replica) coverage.Standing {
	return func(r coverage.Replica) coverage.Standing {
		if a := g.attempts[r.ID]; a != nil {
			if a.generation == r.Generation && a.reply.err == nil && (a.done || !a.slow) {
				return coverage.Counted
			}
			return coverage.Absent
		}
		rec, ok := g.view.Registry.Get(r.ID)
		if !ok || rec.Generation != r.Generation {
			return coverage.Absent
		}
		if !rec.State.Reads() {
			if g.released(rec) {
				return coverage.Counted
			}
			return coverage.Absent
		}
		if suspects || g.answers(rec) {
			return coverage.Available
		}
		return coverage.Absent
	}
}

// answered reports whether a replica has answered.
func (g *gatherer[T]) answered(r coverage.Replica) bool {
	a := g.attempts[r.ID]
	return a != nil && a.done && a.reply.err == nil && a.generation == r.Generation
}

// counts reports whether nothing of a replica is lacking.
func (g *gatherer[T]) counts(r coverage.Replica) bool {
	if g.answered(r) {
		return true
	}
	rec, ok := g.view.Registry.Get(r.ID)
	return ok && rec.Generation == r.Generation && g.released(rec)
}

// askMore asks so many more that those who have been asked and are neither slow nor
// failed are enough.
func (g *gatherer[T]) askMore(ctx context.Context) {
	for instance := range g.unheard {
		if rec, ok := g.view.Registry.Get(instance); ok && g.answers(rec) {
			g.start(ctx, instance)
		}
	}
	if g.all {
		standing := g.standing(false)
		for _, m := range g.plan.Replicas() {
			if standing(m.Replica) == coverage.Available {
				g.start(ctx, m.ID)
			}
		}
	}
	//nolint:gosec // it spreads load
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	ask, enough := g.plan.Choose(g.standing(false), rng)
	if !enough {
		ask, _ = g.plan.Choose(g.standing(true), rng)
	}
	for _, r := range ask {
		g.start(ctx, r.ID)
	}
}

// start asks one ingester.
func (g *gatherer[T]) start(ctx context.Context, instance string) {
	if g.attempts[instance] != nil {
		return // of another generation
	}
	rec, _ := g.view.Registry.Get(instance)
	address := rec.Address
	if peer, ok := g.view.Peer(instance); ok && peer.GRPC != "" {
		address = peer.GRPC
	}
	attemptCtx, cancel := context.WithCancelCause(ctx)
	a := &attempt[T]{generation: rec.Generation, begun: time.Now(), cancel: cancel}
	g.attempts[instance] = a
	g.running.Go(func() {
		defer cancel(nil)
		r := reply[T]{instance: instance}
		r.holding, r.value, r.err = g.call(attemptCtx, a, instance, address)
		if cause := context.Cause(attemptCtx); r.err != nil && errors.Is(cause, errStalled) {
			r.err = cause
		}
		select {
		case g.replies <- r:
		case <-ctx.Done():
		}
	})
}

func (g *gatherer[T]) call(ctx context.Context, a *attempt[T], instance, address string) (holding wire.Holding, value T, err error) {
	conn, err := g.c.conns.Conn(address)
	if err != nil {
		return holding, value, err
	}
	client := queryv1.NewRecentServiceClient(conn)
	first := true
	holding, value, err = g.ask(ctx, client, func() {
		since := time.Since(a.begun)
		a.heard.Store(int64(since))
		if first {
			first = false
			g.c.pace.observe(since)
		}
	})
	if err != nil {
		return holding, value, wire.FromGRPC(err)
	}
	if holding.Instance != instance {
		return holding, value, fmt.Errorf("at its address %s another ingester answers: %s", address, holding.Instance)
	}
	return holding, value, g.c.learnPlacements(ctx, client, holding.Placements)
}

// take takes an answer into account. It returns those errors that concern the query and
// not the ingester.
func (g *gatherer[T]) take(ctx context.Context, r reply[T]) error {
	a := g.attempts[r.instance]
	a.done = true
	a.reply = r
	if r.err != nil {
		var (
			limit   *limitError
			invalid *wire.InvalidError
		)
		if errors.As(r.err, &limit) || errors.As(r.err, &invalid) {
			return r.err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		g.c.complain(r.instance, r.err)
		g.c.metrics.requests.WithLabelValues("error").Inc()
		g.askMore(ctx)
		return nil
	}
	g.c.metrics.requests.WithLabelValues("ok").Inc()
	replan := a.generation != r.holding.Generation
	a.generation = r.holding.Generation
	for _, ref := range r.holding.Placements {
		if _, known := g.placements[ref]; !known {
			g.placements[ref] = struct{}{}
			replan = true
		}
	}
	if !replan {
		return nil
	}
	if err := g.replan(); err != nil {
		return err
	}
	g.askMore(ctx)
	return nil
}

// pending counts those who have not answered yet, and those of them who are not slow.
func (g *gatherer[T]) pending() (pending, hopeful int) {
	for _, a := range g.attempts {
		if !a.done {
			pending++
			if !a.slow {
				hopeful++
			}
		}
	}
	return pending, hopeful
}

// silentFor returns for how long nothing has been heard of an attempt.
func (a *attempt[T]) silentFor() time.Duration {
	return time.Since(a.begun) - time.Duration(a.heard.Load())
}

// patience returns how long to wait until somebody counts as slow or failed.
func (g *gatherer[T]) patience() time.Duration {
	hedgeAfter := g.c.pace.hedgeAfter()
	wait := time.Duration(math.MaxInt64)
	for _, a := range g.attempts {
		if a.done {
			continue
		}
		limit := hedgeAfter
		if a.slow {
			limit = stalledAfter
		}
		wait = min(wait, limit-a.silentFor())
	}
	return max(wait, time.Millisecond)
}

// hedge asks others in the place of those who are slow, whose answers still count, and
// gives up those who are silent for long.
func (g *gatherer[T]) hedge(ctx context.Context) {
	hedgeAfter := g.c.pace.hedgeAfter()
	before := len(g.attempts)
	for _, a := range g.attempts {
		if a.done {
			continue
		}
		silent := a.silentFor()
		a.slow = a.slow || silent >= hedgeAfter
		if silent >= stalledAfter {
			a.cancel(errStalled)
		}
	}
	g.askMore(ctx)
	g.hedges += len(g.attempts) - before
}

// incomplete says who is missing, and why.
func (g *gatherer[T]) incomplete(missing []coverage.Replica) error {
	reasons := make([]string, len(missing))
	for i, r := range missing {
		reasons[i] = fmt.Sprintf("ingester %s: %s", r.ID, g.reason(r))
	}
	return unavailable(fmt.Errorf("recent samples would be incomplete, since too few replicas answer: %s", strings.Join(reasons, "; ")))
}

func (g *gatherer[T]) reason(r coverage.Replica) string {
	rec, ok := g.view.Registry.Get(r.ID)
	a := g.attempts[r.ID]
	switch {
	case a != nil && a.reply.err != nil:
		return a.reply.err.Error()
	case !ok:
		return "it is not in the registry"
	case rec.State == cluster.Left && rec.Generation == 0:
		return "it was given up while it had samples that may not be in the bucket"
	case rec.Generation != r.Generation, a != nil && a.done && a.generation != r.Generation:
		return "it has lost the samples that it once had"
	case rec.State == cluster.Left:
		return "it has left, and the bucket could not be listed since"
	default:
		return "it does not answer"
	}
}

// spared returns how many could have been asked and were not.
func (g *gatherer[T]) spared() int {
	if g.plan == nil {
		return 0
	}
	n := 0
	standing := g.standing(false)
	for _, m := range g.plan.Replicas() {
		if standing(m.Replica) == coverage.Available {
			n++
		}
	}
	return n
}

// result puts together what was gathered, and remembers what it tells.
func (g *gatherer[T]) result(outcome coverage.Outcome, missing []coverage.Replica) *gathered[T] {
	out := &gathered[T]{}
	named := map[wire.PlacementRef]struct{}{}
	heldFrom := int64(math.MinInt64)
	generation, unknown := uint64(0), false
	var blocks []ulid.ULID
	for _, a := range g.attempts {
		if !a.done || a.reply.err != nil {
			continue
		}
		out.replies = append(out.replies, a.reply)
		if g.planned(a.reply.instance) {
			heldFrom = max(heldFrom, a.reply.holding.HeldFrom)
			generation = max(generation, a.reply.holding.IndexGeneration)
			unknown = unknown || a.reply.holding.IndexGeneration == 0
		}
		blocks = append(blocks, a.reply.holding.Blocks...)
		for _, ref := range a.reply.holding.Placements {
			named[ref] = struct{}{}
		}
	}
	slices.SortFunc(out.replies, func(a, b reply[T]) int { return cmp.Compare(a.instance, b.instance) })
	if outcome == coverage.Doubtful {
		names := make([]string, len(missing))
		for i, r := range missing {
			names[i] = r.ID
		}
		out.warnings = annotations.New().Add(fmt.Errorf("of two replicas only one answers, so recent samples that it failed to store may be lacking; missing: %s", strings.Join(names, ", ")))
	}
	if blind := g.blindSpot(); outcome == coverage.Complete && len(blind) > 0 {
		out.warnings = annotations.New().Add(fmt.Errorf("recent samples may be lacking that only these ingesters have, which have not answered since the members of the cluster changed or this querier was started: %s", strings.Join(blind, ", ")))
	}
	out.covered = g.covered(heldFrom, blocks)
	if !unknown {
		out.covered.generation = generation
	}
	out.copies = g.plan.Copies(g.answered)
	g.c.memory.learn(g.id, lesson{
		under: g.under, known: g.placements, named: named, full: g.heardAll(), unheard: g.stillUnheard(), cuts: blocks,
	})
	return out
}

// covered says which blocks need not be read beside the answers.
func (g *gatherer[T]) covered(heldFrom int64, blocks []ulid.ULID) covered {
	out := covered{blocks: blocks, from: max(heldFrom, time.Now().Add(-placementsNamed).UnixMilli())}
	// What an ingester had that has left is in the bucket, and perhaps nowhere else.
	if outcome, _ := g.plan.Decide(g.answered); outcome == coverage.Complete {
		out.cut = func(block ulid.ULID) bool { return g.c.memory.wasCut(g.id, block) }
	}
	return out
}

// viewCheck refuses a view of the bucket that is too old for samples before the time from
// which on the answers have all. generation is the least one of an index with all that the
// ingesters have dropped; 0: it is not known. Such an index is enough until the first
// listing after a start: what nobody names any more is in the answers then, since the
// first read asks all.
func viewCheck(mint, from int64, generation uint64) func(*tenantView) error {
	if mint >= from {
		return nil
	}
	return func(v *tenantView) error {
		if v.listed.IsZero() {
			if generation > 0 && v.index.Generation >= generation {
				return nil
			}
			return unavailable(errNotListed)
		}
		if age := time.Since(v.listed); age > maxViewAge {
			return unavailable(fmt.Errorf("the blocks in the bucket were last listed %s ago, so samples that ingesters have moved there since would be lacking", age.Round(time.Second)))
		}
		return nil
	}
}
