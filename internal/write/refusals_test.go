package write

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestRefusalsAreRememberedWithinBounds(t *testing.T) {
	var r Refusals
	soFar := &Result{}
	soFar.Reject(&SeriesError{Reason: ReasonLabelTooLong}, 1)
	r.Under(tenant.DefaultLimits())
	id := func(i int) Identity { return Identity{Hi: uint64(i), Lo: uint64(i) * 0x9e3779b97f4a7c15} }
	for i := 1; i < 100_000; i++ {
		require.Nil(t, r.Find(id(i), soFar))
		r.Note(id(i), &SeriesError{Reason: ReasonLabelTooLong})
		require.NotNil(t, r.Find(id(i), soFar))
		require.Nil(t, r.Find(id(i), &Result{}), "the first of a request is looked at")
	}
	require.LessOrEqual(t, len(r.places), maxRefusals)
	r.Note(id(-1), &SeriesError{Reason: ReasonTenantSeriesLimit})
	soFar.Reject(&SeriesError{Reason: ReasonTenantSeriesLimit}, 1)
	require.Nil(t, r.Find(id(-1), soFar), "there may be room next time")

	changed := tenant.DefaultLimits()
	changed.MaxLabelValueBytes++
	last := id(99_999)
	r.Under(tenant.DefaultLimits())
	require.NotNil(t, r.Find(last, soFar))
	r.Under(changed)
	require.Nil(t, r.Find(last, soFar))
}
