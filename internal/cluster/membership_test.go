package cluster

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestAPartitionMovesNothingAndHeals(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b, c := w.ingester(1, "a", "z1").start(), w.ingester(2, "b", "z2").start(), w.ingester(3, "c", "z3").start()
		for _, n := range []*testNode{a, b, c} {
			n.until("all agree", agreed(3))
			n.until("all are active", in(Active, "a", "b", "c"))
		}
		placement := a.node.View().Placement
		w.cut(c.ip)
		a.until("c is out of reach", alive("a", "b"))
		c.until("c is alone", alive("c"))
		// Longer than memberlist remembers the dead.
		pass(10 * time.Minute)
		require.Same(t, placement, a.node.View().Placement)
		require.Equal(t, placement.Hash(), c.node.View().Placement.Hash())
		require.NoError(t, b.node.SetState(t.Context(), Draining))
		a.until("b drains", in(Draining, "b"))
		w.cut()
		c.until("all are there again", alive("a", "b", "c"))
		c.until("what happened meanwhile is known", in(Draining, "b"))
		a.until("all agree", agreed(3))
		for _, n := range []*testNode{a, b, c} {
			n.stop()
		}
	})
}

func TestNodesOfOtherClustersAreRefusedAndLogged(t *testing.T) {
	for name, change := range map[string]func(*testNode){
		"another name":   func(n *testNode) { n.cfg.Name = "other" },
		"another secret": func(n *testNode) { n.deps.Secret = []byte("another secret of thirty bytes") },
		"no secret":      func(n *testNode) { n.deps.Secret = nil },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *network) {
				a, b := w.ingester(1, "a", "z"), w.ingester(2, "b", "z")
				a.deps.Secret = []byte("the secret of the first cluster")
				b.deps.Secret = a.deps.Secret
				change(b)
				a.start()
				b.start()
				pass(time.Minute)
				require.True(t, alive("a")(a.node.View()))
				require.True(t, alive("b")(b.node.View()))
				require.Equal(t, State(0), a.state("b"))
				require.Positive(t, testutil.ToFloat64(a.node.metrics.bad.WithLabelValues(badForeign)))
				require.Equal(t, 1, strings.Count(a.log.String(), "another cluster name or secret"), "once per source")
				require.Contains(t, b.log.String(), "No other node can be reached")
				b.stop()
				a.stop()
			})
		})
	}
}

func TestTheDeadAreForgottenByRuleAndJoinAnewWhenTheyReturn(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		ids := []string{"a", "b", "c", "d", "e"}
		var nodes []*testNode
		for i, id := range ids {
			n := w.ingester(i+1, id, "z")
			n.tune.forgetEvery, n.tune.forgetAfter = 10*time.Second, 5*time.Minute
			nodes = append(nodes, n.start())
		}
		a, d, e := nodes[0], nodes[3], nodes[4]
		a.until("all are active", in(Active, ids...))
		pass(saveEvery * 2)
		d.kill()
		w.cut(e.ip)
		a.until("d and e are away", alive("a", "b", "c"))
		pass(4 * time.Minute)
		require.Equal(t, Active, a.state("d"))
		require.InDelta(t, 240, a.node.Status().Members[3].AbsentFor, 20)
		a.until("they are forgotten", in(Left, "d", "e"))
		require.Len(t, a.node.View().Placement.Members(), 3)
		require.Equal(t, Active, e.state("a"), "one that is cut off forgets nobody")

		// One that lives answers when it hears of it, and joins again.
		w.cut()
		a.until("e is back", in(Active, "e"))
		require.True(t, e.node.Rejoined())
		require.NotContains(t, e.log.String(), "level=ERROR msg=\"The own record")

		// One that starts again is told that it has to.
		require.NoError(t, d.open())
		require.True(t, d.node.Rejoined())
		require.Equal(t, Joining, d.state("d"))
		require.NoError(t, d.node.SetState(t.Context(), Active))
		a.until("d is back", in(Active, "d"))
		require.False(t, a.node.Rejoined())
		for _, n := range nodes {
			n.stop()
		}
	})
}

func TestAZoneThatIsAwayIsNotForgotten(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		var nodes []*testNode
		for i, zone := range []string{"z1", "z2", "z3"} {
			n := w.ingester(i+1, zone, zone)
			n.tune.forgetEvery, n.tune.forgetAfter = 10*time.Second, time.Minute
			nodes = append(nodes, n.start())
		}
		nodes[0].until("all are active", in(Active, "z1", "z2", "z3"))
		pass(saveEvery * 2)
		nodes[2].kill()
		pass(10 * time.Minute)
		require.Equal(t, Active, nodes[0].state("z3"))
		nodes[0].stop()
		nodes[1].stop()
	})
}

func TestTombstonesAreDroppedAndDoNotComeBack(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		var nodes []*testNode
		for i, id := range []string{"a", "b", "c"} {
			n := w.ingester(i+1, id, "z")
			// They drop it at different times.
			n.tune.forgetEvery, n.tune.keepLeft = 10*time.Second, time.Duration(2+i)*time.Minute
			nodes = append(nodes, n.start())
		}
		a, b, c := nodes[0], nodes[1], nodes[2]
		require.NoError(t, c.node.SetState(t.Context(), Draining))
		require.NoError(t, c.node.SetState(t.Context(), Left))
		a.until("c has left", in(Left, "c"))
		b.until("c has left", in(Left, "c"))
		c.stop()
		pass(10 * time.Minute)
		require.Equal(t, State(0), a.state("c"))
		require.Equal(t, State(0), b.state("c"))

		// It joins anew although its own disk still knows that it left.
		c.start()
		require.True(t, c.node.Rejoined())
		a.until("c is back", in(Active, "c"))
		// Also with an empty disk, as one that nobody knows.
		require.NoError(t, c.node.SetState(t.Context(), Draining))
		require.NoError(t, c.node.SetState(t.Context(), Left))
		c.stop()
		pass(3 * time.Minute)
		require.Equal(t, State(0), a.state("c"))
		require.NoError(t, os.RemoveAll(c.deps.Dir))
		c.cfg.Gossip.Join, c.tune.patience = []string{a.ip + ":7946"}, time.Second
		c.start()
		a.until("c is back again", in(Active, "c"))
		for _, n := range nodes {
			n.stop()
		}
	})
}

func TestADrainIsGoneOnWithAfterARestart(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start()
		require.NoError(t, b.node.SetState(t.Context(), Draining))
		a.until("b drains", in(Draining, "b"))
		require.Len(t, a.node.View().Placement.Members(), 1)
		b.kill()
		require.NoError(t, b.open())
		require.Equal(t, Draining, b.state("b"))
		require.ErrorIs(t, b.node.SetState(t.Context(), Active), errStep)
		require.NoError(t, b.node.SetState(t.Context(), Left))
		a.until("b has left", in(Left, "b"))
		pass(time.Minute)
		require.Equal(t, Left, b.state("b"), "nobody brings it back")
		b.stop()
		a.stop()
	})
}

func TestADrainIsGoneOnWithAlthoughOthersForgotTheInstance(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start()
		require.NoError(t, b.node.SetState(t.Context(), Draining))
		a.until("b drains", in(Draining, "b"))
		rec, _ := a.node.registry().Get("b")
		a.node.merge(rec.Forgotten())
		require.Equal(t, Left, a.state("b"))
		a.until("b drains again", in(Draining, "b"))
		require.NoError(t, b.node.SetState(t.Context(), Left))
		a.until("b has left", in(Left, "b"))
		b.stop()
		a.stop()
	})
}

// Two instances that start while neither can know of the other claim one rank.
func TestInstancesThatClaimedOnePlaceEndInDifferentOnes(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z"), w.ingester(2, "b", "z")
		a.cfg.Gossip.Join = nil
		b.tune.patience = time.Second
		w.cut(b.ip)
		a.start()
		b.start()
		require.Equal(t, a.node.registry().Records()[0].Rank, b.node.registry().Records()[0].Rank)
		w.cut()
		for _, n := range []*testNode{a, b} {
			n.until("both have slots", func(v *View) bool { return len(v.Placement.Members()) == 2 })
			rec, _ := n.node.registry().Get("b")
			require.Equal(t, 1, rec.Rank)
		}
		a.stop()
		b.stop()
	})
}

// The disk is lost, and those who know of the instance cannot be reached at its start.
func TestAnOwnRecordThatTurnsUpLateIsGoneOnFrom(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start()
		c := w.ingester(3, "c", "z").start()
		a.until("all are active", in(Active, "a", "b", "c"))
		was, _ := a.node.registry().Get("c")
		c.kill()
		require.NoError(t, os.RemoveAll(c.deps.Dir))
		w.cut(c.ip)
		c.deps.Generation, c.tune.patience = 77, time.Second
		require.NoError(t, c.open())
		require.Equal(t, Joining, c.state("c"))
		w.cut()
		c.until("it has its place again", in(Restarting, "c"))
		require.NoError(t, c.node.SetState(t.Context(), Active))
		a.until("it is active", func(v *View) bool {
			rec, _ := v.Registry.Get("c")
			return rec.State == Active && rec.Generation == 77 && rec.Rank == was.Rank && rec.Epoch > was.Epoch
		})
		for _, n := range []*testNode{a, b, c} {
			n.stop()
		}
	})
}

func TestAnInstanceDoesNotMoveToAnotherZone(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z1").start(), w.ingester(2, "b", "z2").start()
		b.stop()
		b.cfg.Zone = "z3"
		require.ErrorContains(t, b.open(), `belongs to zone "z2" and cannot move to "z3"`)
		a.stop()
	})
}

func TestProcessesWithoutAnIngesterHaveNoState(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, q := w.ingester(1, "a", "z").start(), w.ingester(2, "q", "z")
		q.deps.Roles, q.deps.Dir, q.cfg.ReplicationFactor = []Role{RoleQuerier, RoleDistributor}, "", 2
		q.start()
		require.ErrorIs(t, q.node.SetState(t.Context(), Active), ErrNoRecord)
		q.until("it knows the ingester", in(Active, "a"))
		a.until("it is known", func(v *View) bool { return len(v.Running(RoleQuerier)) == 1 })
		require.Equal(t, State(0), a.state("q"))
		require.False(t, a.node.Status().Agree, "it is configured otherwise")
		require.InDelta(t, 1, testutil.ToFloat64(a.node.metrics.disagreeing), 0)
		twin := w.ingester(3, "q", "z")
		twin.deps.Roles = q.deps.Roles
		require.ErrorIs(t, twin.open(), ErrIdentity)
		q.stop()
		a.until("it said good-bye", alive("a"))
		a.stop()
	})
}

func TestStaticPeersFindEachOtherWithoutGossip(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		peers := []string{"10.0.0.1:9095", "10.0.0.2:9095", "10.0.0.3:9095"}
		var nodes []*testNode
		for i, id := range []string{"a", "b", "c"} {
			n := w.ingester(i+1, id, "z")
			n.cfg.Gossip.Join, n.cfg.Peers = nil, peers
			n.tune.patience = time.Second
			nodes = append(nodes, n.start())
		}
		a, b, c := nodes[0], nodes[1], nodes[2]
		for _, n := range nodes {
			n.until("all agree", agreed(3))
			n.until("all are active, each in a place of its own", func(v *View) bool { return len(v.Placement.Members()) == 3 })
		}
		placement := a.node.View().Placement
		w.cut(c.ip)
		begin := time.Now()
		a.until("c is dead", alive("a", "b"))
		require.Less(t, time.Since(begin), 6*time.Second)
		require.Same(t, placement, a.node.View().Placement)
		w.cut()
		a.until("c is back", alive("a", "b", "c"))

		twin := w.ingester(4, "b", "z")
		twin.cfg = b.cfg
		require.ErrorIs(t, twin.open(), ErrIdentity)

		b.kill()
		b.start()
		a.until("b is back", agreed(3))
		for _, n := range nodes {
			n.stop()
		}
	})
}

func TestASettledInstanceIsKnownToAllLivePeers(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start()
		c := w.ingester(3, "c", "z")
		require.NoError(t, c.open())
		require.NoError(t, c.node.SetState(context.Background(), Active))
		for _, n := range []*testNode{a, b} {
			require.NotEqual(t, State(0), n.state("c"))
		}
		for _, n := range []*testNode{a, b, c} {
			n.stop()
		}
	})
}
