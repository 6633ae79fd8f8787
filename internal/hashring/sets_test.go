package hashring

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The twin looks at every slot.
func TestReplicaSetsAreTheOwnersOfAllSlots(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	for range 60 {
		var members []Member
		for i := range rng.IntN(13) {
			members = append(members, Member{ID: fmt.Sprintf("i%d", i), Zone: fmt.Sprintf("z%d", i%(1+rng.IntN(4))), Rank: i})
		}
		rf := 1 + rng.IntN(MaxRF)
		ring, err := New(members, rf)
		require.NoError(t, err)
		want := map[string]bool{}
		for slot := range Slots {
			if owners := ring.Owners(Slot(slot)); owners != nil {
				var set []Member
				for _, at := range owners {
					set = append(set, ring.Members()[at])
				}
				slices.SortFunc(set, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
				want[fmt.Sprint(set)] = true
			}
		}
		sets, err := ReplicaSets(members, rf)
		require.NoError(t, err)
		got := map[string]bool{}
		for _, set := range sets {
			got[fmt.Sprint(set)] = true
		}
		require.Equal(t, want, got)
		require.Len(t, sets, len(got), "each once")
	}
	_, err := ReplicaSets(nil, 4)
	require.ErrorIs(t, err, errRF)
}
