package cluster

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNodesConvergeOnOneRegistryAndOnePlacement(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		nodes := []*testNode{w.ingester(1, "a", "z1"), w.ingester(2, "b", "z2"), w.ingester(3, "c", "z3"), w.ingester(4, "d", "z1"), w.ingester(5, "e", "z2")}
		for _, n := range nodes {
			begin := time.Now()
			n.start()
			if n != nodes[0] {
				require.Less(t, time.Since(begin), 5*time.Second, "from the start to ACTIVE")
			}
		}
		for _, n := range nodes {
			n.until("all agree", agreed(5))
			n.until("all are active", in(Active, "a", "b", "c", "d", "e"))
			require.Equal(t, nodes[0].node.View().Placement.Hash(), n.node.View().Placement.Hash())
			s := n.node.Status()
			require.True(t, s.Agree)
			require.Equal(t, SetsStatus{Total: 5, Broken: []SetStatus{}}, s.Sets)
		}
		for _, n := range nodes {
			n.stop()
		}
	})
}

func TestACrashMovesNothing(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b, c := w.ingester(1, "a", "z1").start(), w.ingester(2, "b", "z2").start(), w.ingester(3, "c", "z3").start()
		a.until("all agree", agreed(3))
		placement := a.node.View().Placement
		c.kill()
		a.until("c is noticed to be dead", alive("a", "b"))
		require.Same(t, placement, a.node.View().Placement)
		s := a.node.Status()
		require.Equal(t, 3, s.Sets.AtRisk)
		require.Zero(t, s.Sets.LostQuorum)
		b.kill()
		a.until("b is noticed to be dead", alive("a"))
		require.Equal(t, 3, a.node.Status().Sets.LostQuorum)
		require.Same(t, placement, a.node.View().Placement)
		a.stop()
	})
}

func TestARestartKeepsThePlace(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start()
		a.until("both are active", in(Active, "a", "b"))
		was, _ := a.node.registry().Get("b")
		placement := a.node.View().Placement
		b.stop()
		a.until("b says that it restarts", in(Restarting, "b"))
		a.until("b is away", alive("a"))
		require.Same(t, placement, a.node.View().Placement)
		require.NoError(t, b.open())
		a.until("b is there", alive("a", "b"))
		require.Equal(t, Restarting, a.state("b"), "until it says that it is ready")
		require.NoError(t, b.node.SetState(t.Context(), Active))
		a.until("b is active", in(Active, "b"))
		is, _ := a.node.registry().Get("b")
		require.NotEqual(t, was.Incarnation, is.Incarnation)
		require.Equal(t, was.Rank, is.Rank)
		require.Same(t, placement, a.node.View().Placement)

		// A crashed predecessor still counts as alive for a moment, and blocks nobody.
		b.kill()
		_, counts := a.node.View().Peer("b")
		require.True(t, counts)
		b.start()
		a.until("b is active again", func(v *View) bool {
			rec, _ := v.Registry.Get("b")
			return rec.State == Active && rec.Incarnation == b.node.self.Incarnation
		})
		require.Same(t, placement, a.node.View().Placement)

		// A disk that was lost: the place stays, and all see that the samples are gone.
		b.kill()
		require.NoError(t, os.RemoveAll(b.deps.Dir))
		b.deps.Generation = 99
		b.start()
		a.until("b is active with an empty disk", func(v *View) bool {
			rec, _ := v.Registry.Get("b")
			return rec.State == Active && rec.Generation == 99
		})
		require.NotEqual(t, placement.Hash(), a.node.View().Placement.Hash())
		is, _ = a.node.registry().Get("b")
		require.Equal(t, was.Rank, is.Rank)
		b.stop()
		a.stop()
	})
}

func TestAfterATotalOutageNodesStartInAnyOrder(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b, c := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start(), w.ingester(3, "c", "z").start()
		for _, n := range []*testNode{a, b, c} {
			n.until("all agree", agreed(3))
			n.until("all are active", in(Active, "a", "b", "c"))
		}
		placement := a.node.View().Placement.Hash()
		pass(2 * saveEvery) // what was learned reaches the disk
		a.kill()
		b.kill()
		c.kill()
		// The one that all join by comes last.
		c.start()
		require.Equal(t, placement, c.node.View().Placement.Hash(), "from the disk")
		b.start()
		a.start()
		for _, n := range []*testNode{a, b, c} {
			n.until("all agree", agreed(3))
			n.until("all are active", in(Active, "a", "b", "c"))
			require.Equal(t, placement, n.node.View().Placement.Hash())
		}
		for _, n := range []*testNode{a, b, c} {
			n.stop()
		}
	})
}

func TestAProcessUnderAnIDThatIsTakenRefusesToStart(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a, b := w.ingester(1, "a", "z").start(), w.ingester(2, "b", "z").start()
		twin := w.ingester(3, "b", "z")
		err := twin.open()
		require.ErrorIs(t, err, ErrIdentity)
		require.ErrorContains(t, err, "10.0.0.2:9095")
		a.until("the first goes on", in(Active, "a", "b"))
		b.stop()
		a.stop()
	})
}

func TestOfTwoProcessesThatStartUnderOneIDAtOnceOneEnds(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a := w.ingester(1, "a", "z").start()
		first, second := w.ingester(2, "b", "z"), w.ingester(3, "b", "z")
		opened := make(chan error, 2)
		for _, n := range []*testNode{first, second} {
			go func() { opened <- n.open() }()
		}
		errs := []error{<-opened, <-opened}
		var lost int
		for _, err := range errs {
			if err != nil {
				require.ErrorIs(t, err, ErrIdentity)
				lost++
			}
		}
		if lost == 0 {
			// They met only after they had claimed.
			select {
			case err := <-first.ended:
				require.ErrorIs(t, err, ErrIdentity)
				first = second
			case err := <-second.ended:
				require.ErrorIs(t, err, ErrIdentity)
			}
			lost++
		} else if first.node == nil {
			first = second
		}
		require.Equal(t, 1, lost)
		require.NoError(t, first.node.SetState(context.Background(), Active))
		a.until("one is active", func(v *View) bool {
			rec, _ := v.Registry.Get("b")
			return rec.State == Active && rec.Incarnation == first.node.self.Incarnation
		})
		first.stop()
		a.stop()
	})
}

// Nobody knows of the others when it claims its rank.
func TestInstancesThatJoinAtOnceEndInDifferentPlaces(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		const n = 12
		var nodes []*testNode
		for i := range n {
			nodes = append(nodes, w.ingester(i+1, string(rune('a'+i)), "z"))
		}
		errs := make(chan error, n)
		for _, node := range nodes {
			go func() {
				err := node.open()
				if err == nil {
					err = node.node.SetState(context.Background(), Active)
				}
				errs <- err
			}()
		}
		for range nodes {
			require.NoError(t, <-errs)
		}
		for _, node := range nodes {
			node.until("all have slots", func(v *View) bool { return len(v.Placement.Members()) == n })
			node.until("all agree", agreed(n))
			require.Equal(t, n, node.node.registry().FreeRank("z"), "no rank is left out")
			require.Equal(t, nodes[0].node.View().Placement.Hash(), node.node.View().Placement.Hash())
		}
		for _, node := range nodes {
			node.stop()
		}
	})
}
