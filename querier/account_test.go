package querier

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestAnAccountRefusesWhatIsMoreThanTheLimitAndSaysTheNumbers(t *testing.T) {
	a := newAccount(alice, tenant.Limits{MaxQueryBytes: 100, MaxQueryFetchedBytes: 50})
	require.NoError(t, a.Fetch(50))
	require.NoError(t, a.Hold(60))
	part := a.part()
	require.NoError(t, part.Hold(40))
	require.EqualValues(t, 100, a.peak.Load())

	var limit *limitError
	err := part.Hold(1)
	require.ErrorAs(t, err, &limit)
	require.Equal(t, http.StatusUnprocessableEntity, limit.status)
	requireLimit(t, err.Error(), "max_query_bytes", "100")
	require.ErrorContains(t, err, "it held 100 bytes and needs 1 more, and had fetched 50 bytes")
	err = part.Fetch(7)
	require.ErrorAs(t, err, &limit)
	requireLimit(t, err.Error(), "max_query_fetched_bytes", "50")
	require.ErrorContains(t, err, "it has fetched 57 bytes")

	part.release()
	require.EqualValues(t, 60, a.held.Load(), "what a part holds ends with it")
	require.NoError(t, a.Hold(40))
	unlimited := newAccount(alice, tenant.Limits{})
	require.NoError(t, unlimited.Hold(1<<60))
	require.NoError(t, unlimited.Fetch(1<<60))
}

func TestAQueryThatHoldsTooMuchMemoryIsRefused(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	for _, path := range []string{
		"/api/v1/query_range?" + url.Values{"query": {"x"}, "start": {"0"}, "end": {"3600"}, "step": {"1"}}.Encode(),
		"/api/v1/query_range?" + url.Values{"query": {"x"}, "start": {"0"}, "end": {"360000"}, "step": {"60"}}.Encode(), // in pieces
	} {
		got := r.get(alice, path+"&nocache=1&stats=all")
		require.Equal(t, 200, got.Code, got.Body)
		require.Contains(t, string(got.Data), `"account":{"peakBytes":`)
		r.limits.MaxQueryBytes = 3_000
		got = r.get(alice, path+"&nocache=1")
		require.Equal(t, 422, got.Code, got.Body)
		require.Equal(t, "execution", got.ErrorType)
		requireLimit(t, got.Error, "max_query_bytes", "3000")
		r.limits.MaxQueryBytes = 0
		require.Equal(t, 200, r.get(alice, path+"&nocache=1").Code)
	}
	require.Equal(t, 1, testutil.CollectAndCount(r.metrics.heldBytes))
}
