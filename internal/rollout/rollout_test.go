package rollout

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

// answers is a Deps.Status that always says the same.
func answers(status cluster.Status) func(context.Context) (cluster.Status, error) {
	return func(context.Context) (cluster.Status, error) { return status, nil }
}

// fakeCluster has three ingesters in each of three zones. A restart takes it a while.
type fakeCluster struct {
	takes  time.Duration
	refuse string // an ingester that does not restart
	stuck  string // one that does not come back

	mu      sync.Mutex
	members map[string]cluster.MemberStatus
	order   []string // who was restarted, in order

	worst   int    // zones down at once, at most
	foreign string // the registry of another release, for good
	deaf    bool   // it does not answer
}

func newFakeCluster() *fakeCluster {
	c := &fakeCluster{takes: 10 * time.Second, members: map[string]cluster.MemberStatus{}}
	for _, zone := range []string{"a", "b", "c"} {
		for rank, id := range []string{zone + "-0", zone + "-1", zone + "-2"} {
			c.members[id] = member(id, zone, rank, "ACTIVE", 2)
		}
	}
	return c
}

func (c *fakeCluster) status(context.Context) (cluster.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf {
		return cluster.Status{}, errors.New("connection refused")
	}
	s := cluster.Status{Cluster: "test", ReplicationFactor: 3, Agree: true, Sets: cluster.SetsStatus{Total: 9}}
	for _, m := range c.members {
		s.Members = append(s.Members, m)
		if !m.Alive {
			s.Sets.AtRisk++
		}
	}
	s.Registry = "one"
	s.Peers = []cluster.PeerStatus{{ID: "unheard"}, {ID: "same", Registry: "one"}}
	if c.foreign != "" {
		s.Peers = append(s.Peers, cluster.PeerStatus{ID: "old", Registry: c.foreign})
	}
	slices.SortFunc(s.Members, func(a, b cluster.MemberStatus) int { return strings.Compare(a.ID, b.ID) })
	return s, nil
}

func (c *fakeCluster) restart(_ context.Context, m Member) error {
	if m.ID == c.refuse {
		return errors.New("ssh: no route to host")
	}
	c.change(m.ID, func(s *cluster.MemberStatus) { s.Alive, s.State, s.Epoch = false, "RESTARTING", s.Epoch+1 })
	c.mu.Lock()
	c.order = append(c.order, m.ID)
	zones := map[string]bool{}
	for _, s := range c.members {
		if !s.Alive {
			zones[s.Zone] = true
		}
	}
	c.worst = max(c.worst, len(zones))
	c.mu.Unlock()
	if m.ID != c.stuck {
		time.AfterFunc(c.takes, func() {
			c.change(m.ID, func(s *cluster.MemberStatus) { s.Alive, s.State, s.Epoch = true, "ACTIVE", s.Epoch+1 })
		})
	}
	return nil
}

func (c *fakeCluster) change(id string, change func(*cluster.MemberStatus)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.members[id]
	change(&m)
	c.members[id] = m
}

// rollout plans and runs one on c.
func (c *fakeCluster) rollout(ctx context.Context, cfg Config, journal Journal) (output string, saved Journal, err error) {
	var out bytes.Buffer
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	cfg.Interval = time.Second
	r := New(cfg, Deps{
		Status:  c.status,
		Restart: c.restart,
		Save:    func(j Journal) error { saved = j; return nil },
		Out:     &out,
	})
	_, journal, err = r.Plan(ctx, journal)
	if err != nil {
		return out.String(), journal, err
	}
	err = r.Run(ctx, journal)
	return out.String(), saved, err
}

func TestZonesRestartOneAfterAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		output, _, err := c.rollout(t.Context(), Config{}, Journal{})
		require.NoError(t, err, output)
		require.Equal(t, 1, c.worst, "zones that were down at once")
		require.Len(t, c.order, 9)
		for i, id := range c.order {
			require.Equal(t, "abc"[i/3], id[0], "%v", c.order)
		}
		require.Contains(t, output, "step 3 of 3: done")
		synctest.Wait()
	})
}

func TestARolloutStopsWhenARestartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.refuse = "b-1"
		_, _, err := c.rollout(t.Context(), Config{}, Journal{})
		require.ErrorIs(t, err, errRestart)
		require.ErrorContains(t, err, "b-1: ssh: no route to host")
		require.NotContains(t, c.order, "c-0")
		time.Sleep(c.takes) //nolint:forbidigo // lets the others come back, in the bubble's time
		synctest.Wait()
	})
}

func TestARolloutThatWaitsTooLongSaysForWhat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.stuck = "a-2"
		began := time.Now()
		_, _, err := c.rollout(t.Context(), Config{Timeout: 5 * time.Minute}, Journal{})
		require.ErrorIs(t, err, errTimeout)
		require.ErrorContains(t, err, "a-2 is not back yet")
		require.ErrorContains(t, err, "a-2 (RESTARTING) is not alive")
		require.Less(t, time.Since(began), 6*time.Minute)
		for _, id := range c.order {
			require.Equal(t, "a", id[:1])
		}
	})
}

func TestABrokenOffRolloutGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // zone b is down then
		defer cancel()
		_, journal, err := c.rollout(ctx, Config{}, Journal{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Len(t, c.order, 6)

		output, _, err := c.rollout(t.Context(), Config{}, journal)
		require.NoError(t, err)
		require.Equal(t, 1, c.worst, "it waits for zone b before it goes on")
		require.Len(t, c.order, 9, "nobody restarts twice")
		require.Contains(t, output, "restarted already: a-0, a-1, a-2, b-0, b-1, b-2\n")
		synctest.Wait()
	})
}

// The process that is asked may be among those that restart.
func TestARolloutEnduresSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		silence := func(deaf bool) func() {
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.deaf = deaf
			}
		}
		time.AfterFunc(5*time.Second, silence(true))
		time.AfterFunc(30*time.Second, silence(false))
		output, _, err := c.rollout(t.Context(), Config{}, Journal{})
		require.NoError(t, err)
		require.Contains(t, output, "no answer: connection refused")
		require.Equal(t, 1, c.worst)
		synctest.Wait()
	})
}

// What the views of two releases have in common may be none of their hashes.
func TestARolloutGoesOnWithoutAgreementAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.foreign = "another"
		began := time.Now()
		output, _, err := c.rollout(t.Context(), Config{Timeout: 3 * time.Minute}, Journal{})
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(began), 4*patience, "once before, and after each of three steps")
		require.Contains(t, output, "processes that know the cluster otherwise yet: 1")
		require.Contains(t, output, "going on; processes that know the cluster otherwise: 1")
		synctest.Wait()
	})
}

func TestARolloutDoesNotBeginOnABrokenCluster(t *testing.T) {
	c := newFakeCluster()
	c.change("b-0", func(m *cluster.MemberStatus) { m.Alive = false })
	_, _, err := c.rollout(t.Context(), Config{}, Journal{})
	require.ErrorIs(t, err, errNotWhole)
	require.ErrorContains(t, err, "b-0 (ACTIVE) is not alive")
	require.Empty(t, c.order)
}

// An ingester that is alive and active, but was not restarted, is not back.
func TestOnlyARestartCountsAsRestarted(t *testing.T) {
	status, err := newFakeCluster().status(t.Context())
	require.NoError(t, err)
	journal := begin(status)
	require.False(t, journal.restarted(status, "a-0"))
	status.Members[0].Epoch++
	require.True(t, journal.restarted(status, "a-0"))
	status.Members[0].State = "RESTARTING"
	require.False(t, journal.restarted(status, "a-0"))
	require.False(t, journal.restarted(status, "unheard-of"))
}
