package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

func active(id, zone string, rank int) Record {
	return Record{ID: id, Zone: zone, Rank: rank, Address: id + ":9095", State: Active, Epoch: 1, Incarnation: 1}
}

func merged(t testing.TB, records ...Record) Registry {
	t.Helper()
	r, _, err := Registry{}.Merge(records...)
	require.NoError(t, err)
	return r
}

func TestAnInstanceGoesThroughItsLife(t *testing.T) {
	for _, c := range []struct {
		from, to State
		ok       bool
	}{
		{Joining, Active, true},
		{Active, Restarting, true},
		{Restarting, Active, true},
		{Active, Draining, true},
		{Draining, Left, true},
		{Draining, Active, false},
		{Left, Joining, false},
		{Active, Left, false},
		{Restarting, Draining, false},
	} {
		rec := Record{ID: "a", State: c.from, Epoch: 7}
		next, err := rec.Next(c.to)
		if !c.ok {
			require.ErrorIs(t, err, errStep, "%s to %s", c.from, c.to)
			continue
		}
		require.NoError(t, err)
		require.EqualValues(t, 8, next.Epoch)
		require.Positive(t, next.Compare(rec))
	}
}

// However changes travel, all nodes end with the same registry.
func TestNodesAgreeInWhateverOrderTheyHearOfChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var history []Record
		for range 30 {
			history = append(history, Record{
				ID:    fmt.Sprintf("i%d", rng.IntN(5)),
				Zone:  fmt.Sprintf("z%d", rng.IntN(2)),
				Rank:  rng.IntN(3),
				State: State(1 + rng.IntN(5)), Epoch: 1 + rng.Uint64N(4), Incarnation: rng.Uint64N(2),
			})
		}
		want := merged(t, history...)
		for range 5 {
			rng.Shuffle(len(history), func(i, j int) { history[i], history[j] = history[j], history[i] })
			got := Registry{}
			for part := range slices.Chunk(history, 1+rng.IntN(7)) {
				var err error
				// Some of it is heard twice, and some from a node that knows it all.
				got, _, err = got.Merge(append(slices.Clone(part), part[0])...)
				require.NoError(t, err)
				if rng.IntN(4) == 0 {
					got, _, err = merged(t, part...).Merge(got.Records()...)
					require.NoError(t, err)
				}
			}
			require.Equal(t, want, got)
			require.Equal(t, want.Hash(), got.Hash())
		}
	}
}

func TestMergeTellsWhatIsNews(t *testing.T) {
	r := merged(t, active("a", "z", 0), active("b", "z", 1))
	draining, err := active("a", "z", 0).Next(Draining)
	require.NoError(t, err)
	left, err := draining.Next(Left)
	require.NoError(t, err)
	next, news, err := r.Merge(active("b", "z", 1), draining, left, active("c", "z", 2))
	require.NoError(t, err)
	require.Equal(t, []Record{left, active("c", "z", 2)}, news)
	again, news, err := next.Merge(draining)
	require.NoError(t, err)
	require.Empty(t, news, "an older version is none")
	require.Equal(t, next, again)
	require.Equal(t, merged(t, active("a", "z", 0), active("b", "z", 1)), r, "a registry does not change")
}

func TestInvalidRecordsAreLeftOut(t *testing.T) {
	good := active("a", "z", 0)
	for _, bad := range []Record{
		{},
		{ID: "x", State: Active},
		{ID: "x", State: 9, Epoch: 1},
		{ID: "x", State: Active, Epoch: 1, Rank: -1},
		{ID: string(make([]byte, 101)), State: Active, Epoch: 1},
	} {
		r, news, err := Registry{}.Merge(bad, good)
		require.ErrorIs(t, err, errRecord)
		require.Equal(t, []Record{good}, news)
		require.Len(t, r.Records(), 1)
	}
}

func TestPlacementFollowsStatesAndNothingElse(t *testing.T) {
	var records []Record
	for i, s := range []State{Joining, Active, Restarting, Draining, Left} {
		rec := active(s.String(), "z", i)
		rec.State = s
		records = append(records, rec)
	}
	r := merged(t, records...)
	require.Equal(t, []Placed{
		{Member: hashring.Member{ID: "ACTIVE", Zone: "z", Rank: 1}},
		{Member: hashring.Member{ID: "RESTARTING", Zone: "z", Rank: 2}},
	}, r.Placement(1).Members())
	var ids []string
	for _, rec := range r.Readable() {
		ids = append(ids, rec.ID)
	}
	require.Equal(t, []string{"ACTIVE", "DRAINING", "JOINING", "RESTARTING"}, ids)
	require.Equal(t, 4, r.FreeRank("z"), "who has left has given up its place")
	require.Equal(t, 0, r.FreeRank("other"))
}

// Two instances that join at the same moment, each before it hears of the other,
// claim the same rank.
func TestOfTwoInstancesThatClaimOnePlaceOneClaimsAgain(t *testing.T) {
	r := merged(t, active("a", "z", 0), active("b", "z", 0), active("c", "y", 0))
	require.False(t, r.Displaced("a"))
	require.True(t, r.Displaced("b"))
	require.False(t, r.Displaced("c"))
	_, err := r.Placement(3).Ring(0, 0)
	require.NoError(t, err, "placement never has one place twice")
	require.Len(t, r.Placement(3).Members(), 2)
	require.Equal(t, 1, r.FreeRank("z"))
}

func TestForgettingIsGuarded(t *testing.T) {
	r := merged(t, active("a0", "a", 0), active("a1", "a", 1), active("b0", "b", 0), active("b1", "b", 1), active("b2", "b", 2))
	for _, c := range []struct {
		name   string
		absent Absence
		want   string
	}{
		{"all are there", nil, ""},
		{"one, not long enough", Absence{"a0": 59 * time.Minute}, ""},
		{"one, long enough", Absence{"a0": time.Hour}, "a0"},
		{"two: the longest absent first, one at a time", Absence{"a0": 2 * time.Hour, "b0": 3 * time.Hour}, "b0"},
		{"most of them", Absence{"a0": 2 * time.Hour, "b0": 3 * time.Hour, "b1": 4 * time.Hour}, ""},
		{"a whole zone", Absence{"a0": 5 * time.Hour, "a1": time.Minute}, ""},
		{"a whole zone and one more", Absence{"a0": 5 * time.Hour, "a1": 5 * time.Hour, "b0": 5 * time.Hour}, ""},
	} {
		got, ok := r.Forget(c.absent)
		require.Equal(t, c.want != "", ok, c.name)
		require.Equal(t, c.want, got.ID, c.name)
	}
	forgotten, _ := r.Get("a0")
	next, news, err := r.Merge(forgotten.Forgotten())
	require.NoError(t, err)
	require.Len(t, news, 1)
	require.Zero(t, news[0].Generation, "its samples are not known to be in the bucket")
	_, ok := next.Forget(Absence{"a0": 5 * time.Hour})
	require.False(t, ok, "it is forgotten already")
	_, known := next.Without("a0").Get("a0")
	require.False(t, known)
}

func TestAnInstanceThatNeverJoinedStopsNoForgetting(t *testing.T) {
	joins := active("c0", "c", 0)
	joins.State = Joining
	r := merged(t, active("a0", "a", 0), active("b0", "b", 0), active("b1", "b", 1), joins)
	got, ok := r.Forget(Absence{"b1": time.Hour, "c0": 2 * time.Hour})
	require.True(t, ok)
	require.Equal(t, "c0", got.ID)
	got, ok = r.Forget(Absence{"b1": time.Hour, "c0": time.Minute})
	require.True(t, ok)
	require.Equal(t, "b1", got.ID)
}

func TestAStartGoesOnWhereTheInstanceWas(t *testing.T) {
	self := Record{Address: "new:9095", Incarnation: 8, Generation: 9}
	for from, to := range map[State]State{Joining: Joining, Active: Restarting, Restarting: Restarting, Draining: Draining, Left: Joining} {
		was := active("a", "z", 4)
		was.State = from
		is := was.Started(self)
		require.Equal(t, Record{ID: "a", Zone: "z", Rank: 4, Address: "new:9095", State: to, Epoch: 2, Incarnation: 8, Generation: 9}, is)
		require.Positive(t, is.Compare(was))
	}
	forgotten := active("a", "z", 4).Forgotten()
	require.Positive(t, forgotten.Revived(Joining).Compare(forgotten))
	require.Equal(t, 5, forgotten.Moved(5).Rank)
	require.Positive(t, forgotten.Moved(5).Compare(forgotten))
}

func TestWhoJoinsTakesNobodysPlace(t *testing.T) {
	joins := active("a", "z", 0)
	joins.State = Joining
	r := merged(t, joins, active("b", "z", 0))
	require.True(t, r.Displaced("a"), "although its id is lower")
	require.False(t, r.Displaced("b"))
}

func TestTombstonesDoNotCountInTheHash(t *testing.T) {
	r := merged(t, active("a", "z", 0))
	with := merged(t, active("a", "z", 0), active("b", "z", 1).Forgotten())
	require.Equal(t, r.Hash(), with.Hash())
	require.NotEqual(t, r.Hash(), merged(t, active("a", "z", 0), active("b", "z", 1)).Hash())
}

func TestAnInstanceThatComesBackLosesAgainstItsForgetting(t *testing.T) {
	was := active("a", "z", 0)
	back, err := was.Next(Restarting)
	require.NoError(t, err)
	r := merged(t, back, was.Forgotten())
	rec, _ := r.Get("a")
	require.Equal(t, Left, rec.State, "it has to upload what it has and join anew")
}
