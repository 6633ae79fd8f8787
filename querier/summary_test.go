package querier

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func TestSummariesDescribeTheViewOfTheBucket(t *testing.T) {
	r := newRig(t, rigOption{})
	require.Empty(t, r.Summaries(), "nothing is known before the first listing")
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.upload(alice, hour, 2*hour, blocktest.Floats("x", hour, 2*hour, minute))
	r.upload(bob, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	require.ElementsMatch(t, []Summary{
		{Tenant: alice, Blocks: 2, MinTime: 0, MaxTime: 2*hour - 1},
		{Tenant: bob, Blocks: 1, MinTime: 0, MaxTime: hour - 1},
	}, r.Summaries())
}
