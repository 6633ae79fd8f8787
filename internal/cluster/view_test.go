package cluster

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAViewFindsPeersByIDAndRole(t *testing.T) {
	v := &View{Peers: []Peer{{ID: "a", Roles: []Role{RoleIngester}}, {ID: "b", Roles: []Role{RoleQuerier, RoleIngester}}, {ID: "c", Roles: []Role{RoleCompactor}}}}
	p, ok := v.Peer("b")
	require.True(t, ok)
	require.True(t, p.Runs(RoleQuerier))
	_, ok = v.Peer("x")
	require.False(t, ok)
	require.Len(t, v.Running(RoleIngester), 2)
	require.Empty(t, v.Running(RoleDistributor))
	_, ok = v.Owner(RoleDistributor, "key")
	require.False(t, ok)
}

func TestAPeerThatGoesMovesOnlyItsOwnKeys(t *testing.T) {
	var v View
	for i := range 5 {
		v.Peers = append(v.Peers, Peer{ID: fmt.Sprint(i), Roles: []Role{RoleCompactor}})
	}
	less := View{Peers: slices.Delete(slices.Clone(v.Peers), 2, 3)}
	keys := map[string]int{}
	for i := range 1000 {
		key := fmt.Sprintf("tenant-%d", i)
		owner, ok := v.Owner(RoleCompactor, key)
		require.True(t, ok)
		keys[owner.ID]++
		if again, _ := less.Owner(RoleCompactor, key); owner.ID != "2" {
			require.Equal(t, owner.ID, again.ID)
		}
	}
	for id, n := range keys {
		require.InDelta(t, 200, n, 60, id)
	}
}
