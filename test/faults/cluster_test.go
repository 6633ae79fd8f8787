package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/testcluster"
	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// outage is how long the object store is away, slow or failing. HUNDREDFOLD_OUTAGE
// makes it longer.
func outage(t testing.TB) time.Duration {
	t.Helper()
	text := os.Getenv("HUNDREDFOLD_OUTAGE")
	if text == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, "HUNDREDFOLD_OUTAGE")
	return d
}

// rounds is how often parts of the cluster die once more. HUNDREDFOLD_CHAOS_ROUNDS sets
// it; by default they do not.
func rounds(t testing.TB) int {
	t.Helper()
	text := os.Getenv("HUNDREDFOLD_CHAOS_ROUNDS")
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "HUNDREDFOLD_CHAOS_ROUNDS")
	return n
}

// One cluster lives through everything, under one load and one watch: so each fault
// meets what the ones before it left behind.
func TestAClusterSurvives(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{zones: []string{"a", "b", "c"}, compactors: 1})
	l := startLoad(t, b.url, nil)
	w := startWatch(t, b.url, l)
	after := func(name string, f func(t *testing.T)) {
		require.Truef(t, t.Run(name, f), "%s: what follows would tell nothing", name)
		l.goesOn(settled)
		w.clean()
	}

	deaths := func(*testing.T) {
		for _, role := range []string{"ingester", "distributor", "querier", "compactor"} {
			of := b.Members(role)
			m := of[rand.IntN(len(of))]
			b.kill(m)
			l.goesOn(settled)
			b.restart(m)
			l.goesOn(settled)
		}
	}
	after("the death of one process of each role, one after the other", deaths)
	after("two ingesters more, and two less again", func(t *testing.T) {
		for _, zone := range []string{"a", "b"} {
			_, err := b.Add(b.soon(), "ingester", zone)
			require.NoError(t, err)
			l.goesOn(settled)
		}
		for _, name := range []string{"ingester-a-2", "ingester-b-1"} {
			m := b.member(name)
			require.NoError(t, m.Drain(b.soon()))
			require.NoError(t, m.Stop())
			b.Remove(m)
			require.NoError(t, os.RemoveAll(m.DataDir))
			l.goesOn(settled)
		}
	})
	after("the death of all ingesters of a zone", func(t *testing.T) {
		more, err := b.Add(b.soon(), "ingester", "c")
		require.NoError(t, err)
		gone := []*fleet.Member{b.member("ingester-c-1"), more}
		b.kill(gone...)
		l.goesOn(settled)
		b.restart(gone...)
	})
	after("a rolling restart of everything", func(t *testing.T) {
		for _, m := range b.Members("") {
			require.NoError(t, m.Stop(), m.Name)
			b.restart(m)
			if m.Role == "ingester" {
				b.awaitWhole(t)
			}
		}
	})
	for name, c := range map[string]condition{"a slow object store": slow, "an object store of which half the requests fail": halfway} {
		after(name, func(t *testing.T) {
			b.store.become(c)
			l.goesOn(outage(t))
			b.store.become(well)
		})
	}
	after("an object store that is away", func(t *testing.T) {
		b.store.become(away)
		l.goesOn(outage(t))
		b.store.become(well)
	})
	for range rounds(t) {
		after("more deaths", deaths)
	}
	// From here on the samples of the last hours have two replicas left.
	after("the loss of an ingester's disk", func(t *testing.T) {
		m := b.member("ingester-b-2")
		b.kill(m)
		require.NoError(t, os.RemoveAll(m.DataDir))
		b.restart(m)
	})
	after("power off for all, and on again in any order", func(*testing.T) {
		w.during(func() {
			members := b.Members("")
			b.kill(members...)
			rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			b.restart(members...)
		})
	})
	l.verified()
	w.clean()
}

// awaitWhole waits until every member is alive, all agree, and no replica set is at risk.
func (b *bed) awaitWhole(t testing.TB) {
	t.Helper()
	testcluster.Eventually(t, readyTimeout, func(ctx context.Context) error {
		for _, m := range b.Members("") {
			status, err := statusOf(ctx, m)
			if err != nil {
				return err
			}
			if err := whole(status); err != nil {
				return err
			}
		}
		return nil
	})
}

func statusOf(ctx context.Context, m *fleet.Member) (cluster.Status, error) {
	text, err := m.Get(ctx, "/cluster?format=json")
	if err != nil {
		return cluster.Status{}, err
	}
	var status cluster.Status
	return status, json.Unmarshal([]byte(text), &status)
}

// whole returns an error if a cluster is not whole as one of its members sees it.
func whole(s cluster.Status) error {
	for _, m := range s.Members {
		if m.State != cluster.Active.String() && m.State != cluster.Left.String() || m.State == cluster.Active.String() && !m.Alive {
			return fmt.Errorf("%s sees %s as %s, alive: %t", s.ID, m.ID, m.State, m.Alive)
		}
	}
	if !s.Agree {
		return fmt.Errorf("%s does not agree with all others", s.ID)
	}
	if s.Sets.AtRisk+s.Sets.LostQuorum > 0 {
		return fmt.Errorf("%s sees replica sets at risk: %+v", s.ID, s.Sets)
	}
	return nil
}
