package querier

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/querier/coverage"
)

const (
	// viewPatience is how long a query waits for a listing of the bucket that must have
	// begun after an ingester left.
	viewPatience = 5 * time.Second
	// gossipPatience is how long a query waits to hear of ingesters that others have
	// named, which takes less unless gossip is broken.
	gossipPatience = 2 * time.Second
)

// recall looks up what is known of the tenant. Whoever may know more, and is alive, is
// asked and waited for.
func (g *gatherer[T]) recall() {
	g.view = g.c.src.View()
	if p := g.view.Placement; p != nil {
		g.c.memory.define(p)
		g.under = wire.PlacementRef{Hash: p.Hash(), Shard: g.c.limits(g.id).ShardSize}
	}
	g.placements, g.unheard = g.c.memory.recall(g.id, g.under, g.view.Registry.Readable())
	for instance := range g.unheard {
		rec, ok := g.view.Registry.Get(instance)
		g.all = g.all || ok && g.answers(rec)
	}
}

// awaitView waits for a listing of the bucket that tells what ingesters uploaded before
// they left, if any of them is missing. It reports whether there is one.
func (g *gatherer[T]) awaitView(ctx context.Context, missing []coverage.Replica) bool {
	var since time.Time
	for _, r := range missing {
		rec, ok := g.view.Registry.Get(r.ID)
		if ok && rec.Generation == r.Generation && rec.State == cluster.Left {
			if left := g.c.memory.leftSince(rec); left.After(since) {
				since = left
			}
		}
	}
	if since.IsZero() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, viewPatience)
	defer cancel()
	return g.c.views.listedSince(ctx, g.id, since)
}

// awaitRecords waits until the registry has a record of an ingester that is missing
// because there is none: others, who named it, have heard of it sooner. It reports
// whether there is one now.
func (g *gatherer[T]) awaitRecords(ctx context.Context, missing []coverage.Replica) bool {
	unknown := slices.DeleteFunc(slices.Clone(missing), func(r coverage.Replica) bool {
		_, ok := g.view.Registry.Get(r.ID)
		return ok
	})
	if len(unknown) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, gossipPatience)
	defer cancel()
	for {
		changed := g.c.src.Changed()
		registry := g.c.src.View().Registry
		if slices.ContainsFunc(unknown, func(r coverage.Replica) bool { _, ok := registry.Get(r.ID); return ok }) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// planned reports whether samples may have been placed on an instance, as far as is known.
func (g *gatherer[T]) planned(instance string) bool {
	return slices.ContainsFunc(g.plan.Replicas(), func(m coverage.Member) bool { return m.ID == instance })
}

// heardAll reports whether all members of the plan have answered that have a record.
func (g *gatherer[T]) heardAll() bool {
	for _, m := range g.plan.Replicas() {
		rec, ok := g.view.Registry.Get(m.ID)
		if a := g.attempts[m.ID]; ok && rec.State.Reads() && (a == nil || !a.done || a.reply.err != nil) {
			return false
		}
	}
	return true
}

// stillUnheard returns those of the unheard who have not answered, and have not left.
func (g *gatherer[T]) stillUnheard() map[string]struct{} {
	still := map[string]struct{}{}
	for instance := range g.unheard {
		rec, ok := g.view.Registry.Get(instance)
		if a := g.attempts[instance]; ok && rec.State.Reads() && (a == nil || !a.done || a.reply.err != nil) {
			still[instance] = struct{}{}
		}
	}
	return still
}

// blindSpot returns the unheard if they are so many that they could be a quorum of a
// set whose placement nobody else names: in as many zones, if sets are spread over them.
func (g *gatherer[T]) blindSpot() []string {
	still := slices.Sorted(maps.Keys(g.stillUnheard()))
	if len(still) == 0 || g.view.Placement == nil {
		return nil
	}
	all, unheard := map[string]struct{}{}, map[string]struct{}{}
	for _, rec := range g.view.Registry.Readable() {
		all[rec.Zone] = struct{}{}
		if slices.Contains(still, rec.ID) {
			unheard[rec.Zone] = struct{}{}
		}
	}
	rf, places := g.view.Placement.RF(), len(still)
	if len(all) >= rf {
		places = len(unheard)
	}
	if places < cluster.Quorum(rf) {
		return nil
	}
	return still
}
