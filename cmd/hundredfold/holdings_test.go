package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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
	require.NoError(t, r.p.holdings.roles.Load().ingester.Flush(t.Context(), tenant.ID("a")))

	var s ui.Summary
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var ok bool
		var err error
		s, ok, err = r.p.holdings.summary()
		assert.NoError(c, err)
		assert.True(c, ok)
		assert.Equal(c, 1, s.BucketBlocks)
	}, 10*time.Second, 10*time.Millisecond, "the querier is told of the upload")
	require.Equal(t, 2, s.Tenants, "a tenant in the bucket and in memory is one tenant")
	require.GreaterOrEqual(t, s.Series, uint64(1))
	require.True(t, oldest.Equal(s.Oldest), "%s", s.Oldest)
	require.True(t, newest.Equal(s.Newest), "%s", s.Newest)
}

func TestHoldingsAreUnknownBeforeTheIngesterIsOpen(t *testing.T) {
	s, ok, err := (&holdings{}).summary()
	require.NoError(t, err)
	require.False(t, ok)
	require.Equal(t, ui.Summary{}, s)
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
