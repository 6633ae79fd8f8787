package hashring

import (
	"cmp"
	"slices"
)

// Shard returns the members that serve one tenant of those given: the shuffle
// shard. It is made of whole ranks, chosen by rendezvous of the tenant and the
// rank, as few as hold at least size members; with size 0 it is all of them. So
// a shard has as many zones as the whole, tenants share few members, and a rank
// that comes or goes changes a shard by one rank at most.
func Shard(members []Member, tenant uint64, size int) []Member {
	if size <= 0 || size >= len(members) {
		return members
	}
	byRank := map[int][]Member{}
	for _, m := range members {
		byRank[m.Rank] = append(byRank[m.Rank], m)
	}
	ranks := make([]int, 0, len(byRank))
	for rank := range byRank {
		ranks = append(ranks, rank)
	}
	slices.SortFunc(ranks, func(a, b int) int {
		return cmp.Or(cmp.Compare(rankScore(b, tenant), rankScore(a, tenant)), cmp.Compare(a, b))
	})
	var shard []Member
	for _, rank := range ranks {
		if len(shard) >= size {
			break
		}
		shard = append(shard, byRank[rank]...)
	}
	return shard
}

func rankScore(rank int, tenant uint64) uint64 {
	return score(Slot(rank), tenant^uint64(rank)<<32)
}

// FreeRank returns the rank that an ingester of a zone claims when it joins for
// the first time: the lowest that no member of the zone has. Members that have
// left have given theirs up.
func FreeRank(members []Member, zone string) int {
	taken := map[int]bool{}
	for _, m := range members {
		if m.Zone == zone {
			taken[m.Rank] = true
		}
	}
	rank := 0
	for taken[rank] {
		rank++
	}
	return rank
}
