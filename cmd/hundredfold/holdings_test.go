package main

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/ui"
)

func TestHoldingsCountTheBucketAndTheIngester(t *testing.T) {
	r := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}\nmultitenancy: {enabled: true}")
	newest := time.Now().Truncate(time.Millisecond)
	oldest := newest.Add(-time.Minute)
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "a", "x", oldest, 1))
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "b", "x", newest, 1))
	require.NoError(t, r.p.holdings.mu.ingester.Flush(t.Context(), tenant.ID("a")))

	s, ok, err := r.p.holdings.summary(t.Context())
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, 2, s.Tenants, "a tenant in the bucket and in memory is one tenant")
	require.Equal(t, 1, s.BucketBlocks)
	require.GreaterOrEqual(t, s.Series, uint64(1))
	require.True(t, oldest.Equal(s.Oldest), "%s", s.Oldest)
	require.True(t, newest.Equal(s.Newest), "%s", s.Newest)
}

func TestHoldingsAreUnknownBeforeTheIngesterIsOpen(t *testing.T) {
	s, ok, err := newHoldings(nil).summary(t.Context())
	require.NoError(t, err)
	require.False(t, ok)
	require.Equal(t, ui.Summary{}, s)
}

func TestWaitingForAnotherListingEndsWithTheRequest(t *testing.T) {
	h := newHoldings(nil)
	h.listing <- struct{}{} // another request lists
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.inBucket(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestTimeSpanCoversAllThatHasSamples(t *testing.T) {
	var s timeSpan
	s.add(10, 5) // none
	require.False(t, s.known)
	s.add(-3, 0)
	s.add(7, 7)
	s.add(10, 5)
	require.Equal(t, timeSpan{oldest: -3, newest: 7, known: true}, s)
}
