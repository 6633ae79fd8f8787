package querier

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func TestSamplesOfChunksThatOverlapInAForeignBlockCountOnce(t *testing.T) {
	r := newRig(t, rigOption{})
	whole := blocktest.Floats("x", 0, 2*hour, 15_000)
	n := len(whole.Samples)
	first, second := whole, whole
	first.Samples, second.Samples = whole.Samples[:3*n/4], whole.Samples[n/4:]
	r.uploadDir(alice, blocktest.WriteOverlapping(t, t.TempDir(), 0, 2*hour, []blocktest.Series{first}, []blocktest.Series{second}))
	r.refresh()
	counted, err := count(t, as(alice), r.Queryable(), "x", 0, 2*hour)
	require.NoError(t, err)
	require.Equal(t, n, counted)
	answer := r.get(alice, "/api/v1/query?query=resets(x[2h])&time=7199")
	require.Contains(t, answer.Body, `"0"]`, "time never goes back")
}
