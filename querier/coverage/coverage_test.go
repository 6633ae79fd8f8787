package coverage

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
)

// placed returns n members in so many zones, the first of them named by first.
func placed(first, n, zones int) []cluster.Placed {
	members := make([]cluster.Placed, n)
	for i := range members {
		id := first + i
		zone := ""
		if zones > 0 {
			zone = string(rune('a' + id%zones))
		}
		members[i] = cluster.Placed{
			Member:     hashring.Member{ID: fmt.Sprintf("i%02d", id), Zone: zone, Rank: id / max(zones, 1)},
			Generation: uint64(id),
		}
	}
	return members
}

// version is a placement as one tenant sees it.
type version struct {
	placement *cluster.Placement
	tenant    uint64
	shard     int
}

func planOf(t testing.TB, versions ...version) *Plan {
	t.Helper()
	var sets [][]Set
	for _, v := range versions {
		of, err := SetsOf(v.placement, v.tenant, v.shard)
		require.NoError(t, err)
		sets = append(sets, of)
	}
	return NewPlan(sets...)
}

// twin decides slot by slot, by the definition: whoever may have accepted a sample of
// the slot has a quorum; can all of them be missing?
func twin(t testing.TB, versions []version, counts func(Replica) bool) Outcome {
	t.Helper()
	worst := Complete
	for _, v := range versions {
		ring, err := v.placement.Ring(v.tenant, v.shard)
		require.NoError(t, err)
		generation := map[string]uint64{}
		for _, m := range v.placement.Members() {
			generation[m.ID] = m.Generation
		}
		w := cluster.Quorum(v.placement.RF())
		for slot := range hashring.Slots {
			missing := 0
			for _, at := range ring.Owners(hashring.Slot(slot)) {
				id := ring.Members()[at].ID
				if !counts(Replica{ID: id, Generation: generation[id]}) {
					missing++
				}
			}
			switch {
			case missing < w:
			case missing <= v.placement.RF()-w:
				worst = max(worst, Doubtful)
			default:
				worst = Incomplete
			}
		}
	}
	return worst
}

func randomVersions(rng *rand.Rand) []version {
	var versions []version
	rf := 1 + rng.IntN(hashring.MaxRF)
	for range 1 + rng.IntN(2) {
		if rng.IntN(5) == 0 {
			rf = 1 + rng.IntN(hashring.MaxRF)
		}
		shard := 0
		if rng.IntN(2) == 0 {
			shard = 1 + rng.IntN(6)
		}
		versions = append(versions, version{
			placement: cluster.NewPlacement(rf, placed(rng.IntN(3), 1+rng.IntN(9), rng.IntN(4))),
			tenant:    rng.Uint64(),
			shard:     shard,
		})
	}
	return versions
}

func TestDecideAgreesWithADumbTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	seen := map[Outcome]int{}
	for range 150 {
		versions := randomVersions(rng)
		plan := planOf(t, versions...)
		for range 4 {
			answered := map[Replica]bool{}
			for _, m := range plan.Replicas() {
				answered[m.Replica] = rng.IntN(4) > 0
			}
			counts := func(r Replica) bool { return answered[r] }
			got, missing := plan.Decide(counts)
			require.Equal(t, twin(t, versions, counts), got)
			seen[got]++
			for _, r := range missing {
				require.False(t, answered[r])
			}
			if got == Complete {
				require.Empty(t, missing)
				continue
			}
			require.NotEmpty(t, missing)
			for _, r := range missing {
				answered[r] = true
			}
			better, _ := plan.Decide(counts)
			require.Less(t, better, got, "with those that are named it is better")
		}
	}
	require.Len(t, seen, 3, "the test has what it is about: %v", seen)
}

func TestChoiceIsEnoughAndHasNoneTooMany(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	for range 3000 {
		plan := planOf(t, randomVersions(rng)...)
		standings := map[Replica]Standing{}
		for _, m := range plan.Replicas() {
			standings[m.Replica] = []Standing{Available, Available, Available, Available, Counted, Absent}[rng.IntN(6)]
		}
		ask, enough := plan.Choose(func(r Replica) Standing { return standings[r] }, rng)
		counts := func(r Replica) bool { return standings[r] == Counted || slices.Contains(ask, r) }
		all := func(r Replica) bool { return standings[r] != Absent }
		for _, r := range ask {
			require.Equal(t, Available, standings[r])
		}
		possible, _ := plan.Decide(all)
		require.Equal(t, possible == Complete, enough)
		got, _ := plan.Decide(counts)
		require.Equal(t, possible, got, "nothing is spared that makes a difference")
		if !enough {
			continue
		}
		for _, r := range ask {
			without, _ := plan.Decide(func(other Replica) bool { return other != r && counts(other) })
			require.NotEqual(t, Complete, without, "%s could be spared", r.ID)
		}
	}
}

func TestAWholeZoneIsSparedAndEachInItsTurn(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	plan := planOf(t, version{placement: cluster.NewPlacement(3, placed(0, 12, 3))})
	spared := map[string]int{}
	const queries = 300
	for range queries {
		ask, enough := plan.Choose(func(Replica) Standing { return Available }, rng)
		require.True(t, enough)
		require.Len(t, ask, 8)
		zones := map[string]bool{}
		for _, m := range plan.Replicas() {
			if slices.Contains(ask, m.Replica) {
				zones[m.Zone] = true
			}
		}
		require.Len(t, zones, 2)
		for _, zone := range []string{"a", "b", "c"} {
			if !zones[zone] {
				spared[zone]++
			}
		}
	}
	for zone, n := range spared {
		require.InDelta(t, queries/3, n, queries/8, "zone %s", zone)
	}
}

func TestTheZoneOfADeadReplicaIsSpared(t *testing.T) {
	plan := planOf(t, version{placement: cluster.NewPlacement(3, placed(0, 9, 3))})
	ask, enough := plan.Choose(func(r Replica) Standing {
		if r.ID == "i04" { // in zone b
			return Absent
		}
		return Available
	}, rand.New(rand.NewPCG(1, 1)))
	require.True(t, enough)
	require.GreaterOrEqual(t, len(ask), 6)
	require.LessOrEqual(t, len(ask), 7)
}

func TestWhatIsCompleteFollowsFromTheReplicationFactor(t *testing.T) {
	for _, c := range []struct {
		rf, members, missing int
		want                 Outcome
	}{
		{1, 1, 0, Complete},
		{1, 1, 1, Incomplete},
		{2, 2, 0, Complete},
		{2, 2, 1, Doubtful},
		{2, 2, 2, Incomplete},
		{3, 3, 1, Complete},
		{3, 3, 2, Incomplete},
		{3, 2, 1, Complete},   // a write needed both
		{3, 2, 2, Incomplete}, // and they are gone
		{3, 1, 1, Complete},   // nothing was ever written with a quorum
	} {
		plan := planOf(t, version{placement: cluster.NewPlacement(c.rf, placed(0, c.members, 3))})
		missing := plan.Replicas()[:c.missing]
		got, _ := plan.Decide(func(r Replica) bool {
			return !slices.ContainsFunc(missing, func(m Member) bool { return m.Replica == r })
		})
		require.Equal(t, c.want, got, "%+v", c)
	}
}

func TestAnIngesterThatLostItsDiskIsAnotherReplica(t *testing.T) {
	before := placed(0, 3, 3)
	after := slices.Clone(before)
	after[1].Generation = 99
	plan := planOf(t, version{placement: cluster.NewPlacement(3, before)}, version{placement: cluster.NewPlacement(3, after)})
	require.Len(t, plan.Replicas(), 4)
	now := func(dead string) func(Replica) bool {
		return func(r Replica) bool { return r != Replica{"i01", 1} && r.ID != dead }
	}
	got, _ := plan.Decide(now(""))
	require.Equal(t, Complete, got)
	got, missing := plan.Decide(now("i00"))
	require.Equal(t, Incomplete, got, "of the older samples there is one copy left, which may lack some")
	require.Equal(t, []Replica{{"i00", 0}, {"i01", 1}}, missing)
}

func TestNobodyIsAskedWithoutPlacements(t *testing.T) {
	got, missing := NewPlan().Decide(func(Replica) bool { return false })
	require.Equal(t, Complete, got)
	require.Empty(t, missing)
}

func BenchmarkChoose300(b *testing.B) {
	sets, err := SetsOf(cluster.NewPlacement(3, placed(0, 300, 3)), 0, 0)
	require.NoError(b, err)
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		NewPlan(sets).Choose(func(Replica) Standing { return Available }, rng)
	}
}
