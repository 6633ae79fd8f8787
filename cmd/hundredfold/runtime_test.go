package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

func TestTheCollectorRunsEarlierWhereHeadsAre(t *testing.T) {
	require.Equal(t, gcPercentOfIngester, gcPercent(allRoles()))
	require.Equal(t, gcPercentOfIngester, gcPercent([]cluster.Role{cluster.RoleIngester}))
	require.Equal(t, gcPercentOfOthers, gcPercent([]cluster.Role{cluster.RoleDistributor, cluster.RoleQuerier}))
}
