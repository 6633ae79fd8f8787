package ingester

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// A querier may hear of a change of the registry later than a distributor and this
// ingester.
func TestAnswersNameThePlacementThatComesNext(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour), withLimits(func(l *tenant.Limits) { l.ShardSize = 2 }))
	f.push(acme, sample{"a", 0, 1})
	before := f.Holding(acme)
	require.Len(t, before.Placements, 1, "taken alone")

	now := placedAmong("i1", "i2").Placement
	self := i0
	self.Current = func() *cluster.Placement { return now }
	conn := f.dialAs(self)
	for _, id := range []tenant.ID{acme, "stranger"} {
		got := f.selectFrom(conn, everything(id)).holding
		want := f.Holding(id)
		want.Placements = append(want.Placements, wire.PlacementRef{Hash: now.Hash(), Shard: 2})
		require.Equal(t, want, got)
		labels, err := queryv1.NewRecentServiceClient(conn).Labels(context.Background(), &queryv1.LabelsRequest{Tenant: string(id), MaxMs: 1})
		require.NoError(t, err)
		answered, err := wire.HoldingFromProto(labels.GetHolding())
		require.NoError(t, err)
		require.Equal(t, want, answered)
	}

	// What was named is defined, also when the next change has come meanwhile.
	named := now
	for i := range namedKept - 1 {
		now = placedAmong(fmt.Sprintf("j%d", i)).Placement
		f.selectFrom(conn, everything(acme))
	}
	defined, err := queryv1.NewRecentServiceClient(conn).Placements(context.Background(), &queryv1.PlacementsRequest{Hashes: []uint64{named.Hash(), now.Hash()}})
	require.NoError(t, err)
	require.Equal(t, [][]byte{named.Encode(nil), now.Encode(nil)}, defined.GetDefinitions())
}
