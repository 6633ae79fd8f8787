package hashring

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRendezvousNeverChanges holds that releases agree on who owns what.
func TestRendezvousNeverChanges(t *testing.T) {
	members := []string{"01K8ZQ4W0N8S5J2H7D6M3V9XTB", "01K8ZQ4W0N8S5J2H7D6M3V9XTC", "01K8ZQ4W0N8S5J2H7D6M3V9XTD", "querier-0", "querier-1"}
	var b strings.Builder
	for i := range 20 {
		key := fmt.Sprintf("tenant-%d/01K8ZQ4W0N8S5J2H7D6M3V9X%02d", i%3, i)
		fmt.Fprintf(&b, "%s: %s\n", key, strings.Join(Rendezvous(key, members, 2), " "))
	}
	golden := filepath.Join("testdata", "rendezvous.txt")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o666))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

func TestRendezvousOfFewMembers(t *testing.T) {
	require.Empty(t, Rendezvous("k", nil, 2))
	require.Equal(t, []string{"a"}, Rendezvous("k", []string{"a"}, 2))
	require.Empty(t, Rendezvous("k", []string{"a"}, 0))
	require.ElementsMatch(t, []string{"a", "b"}, Rendezvous("k", []string{"a", "b"}, 2))
}

func TestMemberThatGoesMovesItsOwnKeysOnlyAndTheSecondTakesOver(t *testing.T) {
	members := []string{"a", "b", "c", "d", "e"}
	load := map[string]int{}
	for i := range 2000 {
		key := fmt.Sprint("tenant/", i)
		owners := Rendezvous(key, members, 2)
		load[owners[0]]++
		shuffled := slices.Clone(members)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		require.Equal(t, owners, Rendezvous(key, shuffled, 2))
		for gone := range members {
			left := Rendezvous(key, slices.Delete(slices.Clone(members), gone, gone+1), 2)
			switch members[gone] {
			case owners[0]:
				require.Equal(t, owners[1], left[0])
			case owners[1]:
				require.Equal(t, owners[0], left[0])
			default:
				require.Equal(t, owners, left)
			}
		}
	}
	for member, n := range load {
		require.InDelta(t, 400, n, 80, "keys of %s", member)
	}
}
