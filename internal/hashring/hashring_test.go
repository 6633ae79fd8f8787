package hashring

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fleet returns n members spread evenly over zones, as StatefulSets per zone make them.
func fleet(n int, zones ...string) []Member {
	if len(zones) == 0 {
		zones = []string{""}
	}
	members := make([]Member, n)
	for i := range members {
		zone := zones[i%len(zones)]
		members[i] = Member{ID: fmt.Sprintf("ingester-%s%d", zone, i/len(zones)), Zone: zone, Rank: i / len(zones)}
	}
	return members
}

func mustNew(t testing.TB, members []Member, rf int) *Ring {
	t.Helper()
	r, err := New(members, rf)
	require.NoError(t, err)
	return r
}

// dumbOwners is the definition of placement, slot by slot, without any shortcut.
func dumbOwners(members []Member, rf int, slot Slot) []string {
	circle := slices.Clone(members)
	slices.SortFunc(circle, func(a, b Member) int {
		if a.Rank != b.Rank {
			return a.Rank - b.Rank
		}
		return strings.Compare(a.Zone, b.Zone)
	})
	best := 0
	for i, m := range circle {
		if score(slot, TenantHash(m.ID)) > score(slot, TenantHash(circle[best].ID)) {
			best = i
		}
	}
	owners := []string{circle[best].ID}
	zones := map[string]bool{circle[best].Zone: true}
	for pass := range 2 {
		for step := 1; step < len(circle) && len(owners) < rf; step++ {
			m := circle[(best+step)%len(circle)]
			if slices.Contains(owners, m.ID) || (pass == 0 && zones[m.Zone]) {
				continue
			}
			owners, zones[m.Zone] = append(owners, m.ID), true
		}
	}
	return owners
}

func ownerIDs(r *Ring, slot Slot) []string {
	var ids []string
	for _, i := range r.Owners(slot) {
		ids = append(ids, r.Members()[i].ID)
	}
	return ids
}

func TestPlacementIsItsDefinition(t *testing.T) {
	for _, members := range [][]Member{fleet(1), fleet(2, "a"), fleet(4), fleet(7, "a", "b", "c"), fleet(9, "a", "b"), fleet(12, "a", "b", "c", "d")} {
		for rf := 1; rf <= MaxRF; rf++ {
			r := mustNew(t, members, rf)
			for slot := 0; slot < Slots; slot += 61 {
				require.Equal(t, dumbOwners(members, rf, Slot(slot)), ownerIDs(r, Slot(slot)), "slot %d, rf %d, %v", slot, rf, members)
			}
		}
	}
}

func TestReplicasAreInDifferentZonesWhileThereAreEnough(t *testing.T) {
	for n := 3; n <= 30; n++ {
		r := mustNew(t, fleet(n, "a", "b", "c"), 3)
		for _, set := range r.sets {
			zones := map[string]bool{}
			for _, i := range set {
				zones[r.Members()[i].Zone] = true
			}
			require.Len(t, zones, 3)
		}
	}
	r := mustNew(t, fleet(6, "a", "b"), 3)
	for _, set := range r.sets {
		require.Len(t, set, 3, "two zones still hold three replicas")
	}
}

func TestThereAreAtMostAsManyReplicaSetsAsMembers(t *testing.T) {
	r := mustNew(t, fleet(30, "a", "b", "c"), 3)
	sets := map[string]bool{}
	for slot := range Slots {
		owners := slices.Clone(r.Owners(Slot(slot)))
		slices.Sort(owners)
		sets[fmt.Sprint(owners)] = true
	}
	require.LessOrEqual(t, len(sets), 30)
}

func TestLoadIsEven(t *testing.T) {
	for _, c := range []struct {
		members []Member
		rf      int
	}{
		{fleet(3, "a", "b", "c"), 3}, {fleet(9, "a", "b", "c"), 3}, {fleet(30, "a", "b", "c"), 3}, {fleet(10), 1}, {fleet(10), 3}, {fleet(12, "a", "b"), 2},
	} {
		r := mustNew(t, c.members, c.rf)
		fair := float64(Slots*c.rf) / float64(len(c.members))
		for i, load := range r.Load() {
			require.InDelta(t, fair, load, 0.12*fair, "member %s of %d, rf %d", r.Members()[i].ID, len(c.members), c.rf)
		}
	}
}

// A member that joins takes slots as a primary from everybody, and changes sets
// only around its place in the circle.
func TestJoinAndLeaveMoveLittle(t *testing.T) {
	before := fleet(30, "a", "b", "c")
	joined := append(slices.Clone(before), Member{ID: "ingester-a10", Zone: "a", Rank: 10})
	old, grown := mustNew(t, before, 3), mustNew(t, joined, 3)
	movedPrimaries, movedCopies := 0, 0
	for slot := range Slots {
		was, is := ownerIDs(old, Slot(slot)), ownerIDs(grown, Slot(slot))
		if was[0] != is[0] {
			movedPrimaries++
			require.Equal(t, "ingester-a10", is[0], "slots move to the new member only")
		}
		for _, id := range is {
			if !slices.Contains(was, id) {
				movedCopies++
			}
		}
	}
	require.InDelta(t, Slots/31, movedPrimaries, Slots/31*0.15)
	require.Less(t, movedCopies, 5*Slots*3/31, "about RF times a fair share of the copies, and what its neighbours' sets change")

	shrunk, err := grown.Next(before)
	require.NoError(t, err)
	require.Equal(t, old.primary, shrunk.primary, "leaving undoes joining")
}

func TestNextIsNew(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	zones := []string{"a", "b", "c"}
	var members []Member
	r := mustNew(t, nil, 3)
	for step := range 60 {
		switch {
		case len(members) > 0 && rng.IntN(3) == 0:
			members = slices.Delete(slices.Clone(members), 0, 1+rng.IntN(min(2, len(members))))
		default:
			zone := zones[rng.IntN(3)]
			members = append(slices.Clone(members), Member{ID: fmt.Sprintf("m%d", step), Zone: zone, Rank: FreeRank(members, zone)})
		}
		next, err := r.Next(members)
		require.NoError(t, err)
		fresh := mustNew(t, members, 3)
		require.Equal(t, fresh, next)
		rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		require.Equal(t, fresh, mustNew(t, members, 3), "the order of the list does not matter")
		r = next
	}
}

func TestWithoutMembersNobodyOwnsASlot(t *testing.T) {
	require.Nil(t, mustNew(t, nil, 3).Owners(7))
}

func TestListsThatNoRegistryMayHoldAreRefused(t *testing.T) {
	for _, c := range []struct {
		members []Member
		rf      int
		want    error
	}{
		{fleet(1), 0, errRF},
		{fleet(1), 4, errRF},
		{[]Member{{Zone: "a"}}, 1, errNoID},
		{[]Member{{ID: "x", Rank: 1}, {ID: "x", Rank: 2}}, 1, errDuplicateID},
		{[]Member{{ID: "x", Zone: "a"}, {ID: "y", Zone: "a"}}, 1, errPlaceTaken},
	} {
		_, err := New(c.members, c.rf)
		require.ErrorIs(t, err, c.want)
	}
}

func TestShardsAreWholeRanksAndMoveByOne(t *testing.T) {
	members := fleet(30, "a", "b", "c")
	grown := append(slices.Clone(members), fleet(33, "a", "b", "c")[30:]...)
	use := map[string]int{}
	for i := range 300 {
		tenant := TenantHash(fmt.Sprintf("tenant-%d", i))
		shard := Shard(members, tenant, 6)
		require.Len(t, shard, 6)
		perRank := map[int]int{}
		for _, m := range shard {
			perRank[m.Rank]++
			use[m.ID]++
		}
		for _, n := range perRank {
			require.Equal(t, 3, n, "a rank comes with all its zones")
		}
		fresh := 0
		for _, m := range Shard(grown, tenant, 6) {
			if !slices.Contains(shard, m) {
				fresh++
			}
		}
		require.LessOrEqual(t, fresh, 3, "a new rank replaces one rank at most")
	}
	for id, n := range use {
		require.InDelta(t, 300*6/30, n, 30, id)
	}
	require.Equal(t, members, Shard(members, 1, 0))
	require.Equal(t, members, Shard(members, 1, 31))
}

func TestFreeRankFillsGaps(t *testing.T) {
	members := []Member{{ID: "1", Zone: "a", Rank: 0}, {ID: "2", Zone: "a", Rank: 2}, {ID: "3", Zone: "b", Rank: 1}}
	require.Equal(t, 1, FreeRank(members, "a"))
	require.Equal(t, 0, FreeRank(members, "b"))
	require.Equal(t, 0, FreeRank(members, "c"))
}

// TestGolden pins placement for ever: nodes of different releases must agree, and
// data lies where it was placed.
func TestGolden(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "tenant hash of \"default\": %d\n", TenantHash("default"))
	fmt.Fprintf(&b, "slot of series 1<<63+5 of \"default\": %d\n", SlotOf(1<<63+5, TenantHash("default")))
	for _, c := range []struct {
		members []Member
		rf      int
	}{{fleet(3, "a", "b", "c"), 3}, {fleet(7, "a", "b", "c"), 3}, {fleet(5, "a", "b"), 3}, {fleet(4), 2}} {
		r := mustNew(t, c.members, c.rf)
		fmt.Fprintf(&b, "\n%d members, rf %d, load %v\n", len(c.members), c.rf, r.Load())
		for i, set := range r.sets {
			fmt.Fprintf(&b, "  set led by %s (zone %q, rank %d):", r.Members()[i].ID, r.Members()[i].Zone, r.Members()[i].Rank)
			for _, k := range set[1:] {
				fmt.Fprintf(&b, " %s", r.Members()[k].ID)
			}
			b.WriteByte('\n')
		}
		for _, slot := range []Slot{0, 1, 2, 1000, 32768, 65535} {
			fmt.Fprintf(&b, "  slot %d: %s\n", slot, strings.Join(ownerIDs(r, slot), " "))
		}
		fmt.Fprintf(&b, "  shard of 3 for \"default\":")
		for _, m := range Shard(c.members, TenantHash("default"), 3) {
			fmt.Fprintf(&b, " %s", m.ID)
		}
		b.WriteByte('\n')
	}
	path := filepath.Join("testdata", "placement.txt")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

func BenchmarkNew300Members(b *testing.B) {
	members := fleet(300, "a", "b", "c")
	for b.Loop() {
		mustNew(b, members, 3)
	}
}

func BenchmarkNextWithOneMore(b *testing.B) {
	members := fleet(301, "a", "b", "c")
	r := mustNew(b, members[:300], 3)
	for b.Loop() {
		if _, err := r.Next(members); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNextWithOneLess(b *testing.B) {
	members := fleet(300, "a", "b", "c")
	r := mustNew(b, members, 3)
	for b.Loop() {
		if _, err := r.Next(members[1:]); err != nil {
			b.Fatal(err)
		}
	}
}

func TestASmallRingIsTheSameRing(t *testing.T) {
	for n := range 12 {
		members := fleet(n, "a", "b", "c")
		whole, err := New(members, 3)
		require.NoError(t, err)
		small, err := NewSmall(members, 3)
		require.NoError(t, err)
		require.Less(t, small.Bytes(), 3000)
		require.Equal(t, whole.Load(), small.Load())
		for slot := range Slots {
			require.Equal(t, whole.Owners(Slot(slot)), small.Owners(Slot(slot)))
		}
	}
}
