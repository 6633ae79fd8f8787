package querier

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// moved is a cluster that grew from 3 to 9 ingesters, and a tenant whose shard of three is
// none of the first three any more.
func moved(t *testing.T, write func(*clusterRig, tenant.ID)) (*clusterRig, tenant.ID) {
	t.Helper()
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.limits.ShardSize = 3
	first := c.View().Placement
	for i := range 6 {
		c.join(t, 3+i, cluster.Active)
	}
	for i := range 1000 {
		id := tenant.ID(fmt.Sprintf("moved-%d", i))
		owners := c.owners(t, id, labels.FromStrings("__name__", "x"))
		if slices.ContainsFunc(owners, func(r *replica) bool {
			return slices.ContainsFunc(first.Members(), func(m cluster.Placed) bool { return m.ID == r.rec.ID })
		}) {
			continue
		}
		after := c.View()
		c.mu.view = &cluster.View{Registry: after.Registry, Placement: first, Peers: after.Peers}
		write(c, id)
		c.mu.view = after
		return c, id
	}
	t.Fatal("BUG: there is no such tenant")
	return nil, ""
}

func TestSamplesOfAShardThatMovedAwayAreFound(t *testing.T) {
	c, id := moved(t, func(c *clusterRig, id tenant.ID) { c.write(t, id, "x", 5, 0, hour) })
	for range 3 {
		n, err := count(t, as(id), c.Queryable(), "x", 0, hour)
		require.NoError(t, err)
		require.Equal(t, 300, n)
	}
}

// The samples come after the tenant's first query, and before the next.
func TestSamplesOfAShardThatMovedAwayAreFoundByAQuerierThatKnewTheTenant(t *testing.T) {
	c, id := moved(t, func(c *clusterRig, id tenant.ID) {
		n, err := count(t, as(id), c.Queryable(), "x", 0, hour)
		require.NoError(t, err)
		require.Zero(t, n)
		c.write(t, id, "x", 5, 0, hour)
	})
	n, err := count(t, as(id), c.Queryable(), "x", 0, hour)
	require.NoError(t, err)
	require.Equal(t, 300, n)
}

func TestAnIngesterThatReturnsIsAskedWhatItKnows(t *testing.T) {
	c, id := moved(t, func(c *clusterRig, id tenant.ID) { c.write(t, id, "x", 5, 0, hour) })
	for _, r := range c.replicas[:3] {
		r.answers(func(context.Context) error { return errBroken })
	}
	c.update(t, dead("i0", "i1", "i2"))
	url := "/api/v1/query?query=x&time=600"
	got := c.get(id, url)
	require.Equal(t, 200, got.Code, "nobody knows of them")
	require.Len(t, got.Warnings, 1)
	require.Contains(t, got.Warnings[0], "have not answered since the members of the cluster changed or this querier was started: i0, i1, i2")

	for _, r := range c.replicas[:3] {
		r.answers(nil)
	}
	c.update(t, dead("i0", "i1"))
	n, err := count(t, as(id), c.Queryable(), "x", 0, hour)
	require.NoError(t, err, "i2 names the others, which are asked though they seem dead")
	require.Equal(t, 300, n)
	require.Empty(t, c.get(id, url).Warnings)
}

func TestOneZoneThatIsNotHeardLacksNothing(t *testing.T) {
	c := newClusterRig(t, 3, 9)
	c.refresh()
	c.limits.ShardSize = 3
	c.write(t, alice, "x", 5, 0, hour)
	c.update(t, dead("i0", "i3", "i6"))
	got := c.get(alice, "/api/v1/query?query=x&time=600")
	require.Equal(t, 200, got.Code)
	require.Empty(t, got.Warnings)
	c.update(t, dead())
	_, err := c.samples("x")
	require.NoError(t, err)
	require.Equal(t, 1, c.replicas[3].timesAsked()+c.replicas[6].timesAsked()-c.replicas[0].timesAsked(), "each is asked once")
}

// Distributors and ingesters have heard that all series of a tenant are on ingesters which
// this querier has never heard of.
func TestIngestersThatOthersHaveHeardOfAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, id := moved(t, func(*clusterRig, tenant.ID) {})
		mint := time.Now().Add(-time.Hour).UnixMilli()
		c.write(t, id, "x", 5, mint, mint+hour)
		after := c.View()
		for _, r := range c.replicas[:3] {
			c.note(r) // by their registry
		}
		before := &cluster.View{}
		before.Registry, _, _ = before.Registry.Merge(after.Registry.Records()[:3]...)
		before.Placement, before.Peers = before.Registry.Placement(3), after.Peers[:3]
		c.mu.view = before

		_, err := count(t, as(id), c.Queryable(), "x", mint, mint+hour)
		require.ErrorContains(t, err, "it is not in the registry")
		go func() {
			<-time.After(gossipPatience / 2)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.mu.view = after
			close(c.mu.changed)
			c.mu.changed = make(chan struct{})
		}()
		n, err := count(t, as(id), c.Queryable(), "x", mint, mint+hour)
		require.NoError(t, err)
		require.Equal(t, 300, n)
	})
}

func TestAPlacementThatIsLetGoIsAskedForAgain(t *testing.T) {
	m := newMemory()
	p := cluster.NewPlacement(1, []cluster.Placed{{}})
	ref := wire.PlacementRef{Hash: p.Hash()}
	m.define(p)
	m.learn(alice, lesson{under: ref, named: map[wire.PlacementRef]struct{}{ref: {}}})
	readable := []cluster.Record{{ID: "i0"}}
	_, unheard := m.recall(alice, ref, readable)
	require.Empty(t, unheard)
	clear(m.mu.placements)
	for range 2 { // also if the first of them fails
		refs, unheard := m.recall(alice, ref, readable)
		require.Empty(t, refs)
		require.Contains(t, unheard, "i0")
	}
}

func TestPlacementsThatNobodyNamesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		ref := func(n uint64) wire.PlacementRef {
			p := cluster.NewPlacement(int(n), []cluster.Placed{{}})
			m.define(p)
			return wire.PlacementRef{Hash: p.Hash()}
		}
		set := func(refs ...wire.PlacementRef) map[wire.PlacementRef]struct{} {
			out := map[wire.PlacementRef]struct{}{}
			for _, r := range refs {
				out[r] = struct{}{}
			}
			return out
		}
		known := func(under wire.PlacementRef) map[wire.PlacementRef]struct{} {
			refs, _ := m.recall(alice, under, nil)
			return refs
		}
		before, under, named, young := ref(1), ref(2), ref(3), ref(4)
		m.learn(alice, lesson{under: before, named: set(named)})
		m.learn(alice, lesson{under: under, known: known(before), full: true})
		require.Equal(t, set(before, under, named), known(under), "a distributor may be late")

		<-time.After(placementsKept + time.Second)
		slow := known(under)
		m.learn(alice, lesson{under: under, named: set(named), known: known(under)})
		require.Equal(t, set(before, under, named), known(under), "not all have answered")
		m.learn(alice, lesson{under: under, named: set(named), known: known(under), full: true})
		require.Equal(t, set(under, named), known(under))

		m.learn(alice, lesson{under: under, named: set(young)})
		<-time.After(placementsKept + time.Second)
		m.learn(alice, lesson{under: under, known: slow, full: true})
		require.Equal(t, set(under, young), known(under), "a slow query knew nothing of it")
	})
}

// Ingesters do not name the placements of samples that old any more, so others than
// those who answered may have uploaded some.
func TestAnOldViewOfTheBucketDoesNotStandInForOldSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterRig(t, 3, 3)
		c.refresh()
		now := time.Now()
		c.write(t, alice, "x", 5, now.Add(-time.Hour).UnixMilli(), now.UnixMilli())
		<-time.After(maxViewAge + time.Second)
		_, err := count(t, as(alice), c.Queryable(), "x", time.Now().Add(-placementsNamed-time.Second).UnixMilli(), now.UnixMilli())
		require.ErrorContains(t, err, "were last listed 30m1s ago")
		n, err := count(t, as(alice), c.Queryable(), "x", time.Now().Add(-placementsNamed).UnixMilli(), now.UnixMilli())
		require.NoError(t, err)
		require.Equal(t, 300, n)
	})
}

// It is about to stop, or reads its log: it is not known to be dead, but does not answer.
func TestAnIngesterThatRestartsIsAskedOnlyIfNeeded(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	c.transition(t, c.replicas[0], cluster.Restarting)
	for range 5 {
		n, err := c.samples("x")
		require.NoError(t, err)
		require.Equal(t, 300, n)
	}
	require.Zero(t, c.replicas[0].timesAsked())

	c.replicas[1].answers(func(context.Context) error { return errBroken })
	n, err := c.samples("x")
	require.NoError(t, err)
	require.Equal(t, 300, n)
	c.replicas[1].answers(nil)
	asked := c.replicas[0].timesAsked()
	require.Positive(t, asked)
}
