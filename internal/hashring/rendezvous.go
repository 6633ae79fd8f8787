package hashring

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Rendezvous returns the n of members that a key belongs to, the first one first; fewer
// if there are fewer members. It depends on neither their order nor on who else there is:
// one who comes or goes moves only its own share of the keys, and who was second for
// a key is first when the first has gone. Members have different names.
//
// It is for what can be made again, as caches, so that it may follow who is alive.
func Rendezvous(key string, members []string, n int) []string {
	type scored struct {
		member string
		score  uint64
	}
	best := make([]scored, 0, n+1)
	for _, member := range members {
		s := scored{member: member, score: xxhash.Sum64String(member + "\x00" + key)}
		at, _ := slices.BinarySearchFunc(best, s, func(a, b scored) int {
			return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.member, b.member))
		})
		if at >= n {
			continue
		}
		best = slices.Insert(best, at, s)
		best = best[:min(len(best), n)]
	}
	names := make([]string, len(best))
	for i := range best {
		names[i] = best[i].member
	}
	return names
}
