package compactor

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func TestAPassInterruptedAtAnyStepIsCompletedByTheNext(t *testing.T) {
	for name, fail := range map[string]func(*blocktest.Faulty, int64){
		"a crash":       (*blocktest.Faulty).FailFrom,
		"a short fault": (*blocktest.Faulty).FailOnly,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			blocks := []string{
				blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step)),
				blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", step/2, 2*hour, step)),
				blocktest.Write(t, t.TempDir(), 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step)),
			}
			want := blocktest.Samples(t, blocks...)
			n := int64(1)
			for interrupted(t, blocks, want, func(bucket *blocktest.Faulty) { fail(bucket, n) }) >= n {
				n++
				if testing.Short() {
					n += 9
				}
			}
			require.Greater(t, n, int64(40), "there are at least that many calls to fail")
		})
	}
}

// interrupted lets a pass fail, looks at what it left, and lets further passes
// complete the work. It returns how many calls the pass made.
func interrupted(t *testing.T, blocks []string, want map[string][]string, fail func(*blocktest.Faulty)) (calls int64) {
	t.Helper()
	// In memory, because there are many calls to fail; what a filesystem adds to this
	// is tested where it is.
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	f := fixtureOver(t, blockstore.New(bucket, nil))
	for _, dir := range blocks {
		require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	}
	// A compaction, and then the deletion of its sources, in one sequence of calls.
	pass := func() error {
		return errors.Join(f.RunOnce(t.Context()), func() error {
			f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
			return f.RunOnce(t.Context())
		}())
	}
	fail(bucket)
	err := pass()
	calls = bucket.Calls()
	bucket.Heal()
	require.Equal(t, want, f.samples(t), "after the fault")
	require.InDelta(t, 0, testutil.ToFloat64(f.metrics.quarantined), 0, "a bucket that is away is not a damaged block")
	if err != nil {
		require.ErrorIs(t, err, blocktest.ErrBucketDown)
	}

	f.clock = time.Now().Add(2 * partialAge) // partial blocks go by the time that the bucket gives them
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
		f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	}
	require.Equal(t, want, f.samples(t), "after recovery")
	blocksLeft, partial, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, blocksLeft, 1)
	require.Empty(t, partial)
	return calls
}
