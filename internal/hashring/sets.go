package hashring

import (
	"cmp"
	"slices"
)

// ReplicaSets returns the replica sets that New would place series on, each once in
// whatever order its members are: every slot's owners are one of them. It places no
// slot, so that it costs a small part of what New does.
func ReplicaSets(members []Member, rf int) ([][]Member, error) {
	r, err := prepare(members, rf)
	if err != nil {
		return nil, err
	}
	var (
		sets [][]Member
		seen = make(map[[MaxRF]int]bool, len(r.sets))
	)
	for _, set := range r.sets {
		key := [MaxRF]int{-1, -1, -1}
		copy(key[:], set)
		slices.Sort(key[:])
		if seen[key] {
			continue
		}
		seen[key] = true
		owners := make([]Member, len(set))
		for i, at := range set {
			owners[i] = r.members[at]
		}
		slices.SortFunc(owners, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
		sets = append(sets, owners)
	}
	return sets, nil
}
