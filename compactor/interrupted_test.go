package compactor

import (
	"crypto/rand"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
)

func TestAPassInterruptedAtAnyStepIsCompletedByTheNext(t *testing.T) {
	first := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step), blocktest.Floats("b", 0, 2*hour, step))
	late := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", step/2, 2*hour, step))
	next := blocktest.Write(t, t.TempDir(), 2*hour, 4*hour, everyKind(2*hour, 4*hour)...)
	for name, c := range map[string]struct {
		blocks  []string
		results int
	}{
		"merging":          {[]string{first, late, next}, 1},
		"splitting":        {append(shardsOf(t, next, 2), first, late), 2},
		"merging shards":   {append(shardsOf(t, next, 2), shardsOf(t, first, 2)...), 2},
		"splitting shards": {append(shardsOf(t, next, 4), shardsOf(t, first, 2)...), 4},
	} {
		for how, fault := range map[string]struct {
			fail   func(*blocktest.Faulty, int64)
			stride int64
		}{
			"a crash":       {(*blocktest.Faulty).FailFrom, 1},
			"a short fault": {(*blocktest.Faulty).FailOnly, 4}, // it leaves less behind than a crash
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				want := blocktest.Samples(t, c.blocks...)
				n := int64(1)
				for interrupted(t, c.blocks, c.results, want, func(bucket *blocktest.Faulty) { fault.fail(bucket, n) }) >= n {
					n += fault.stride * everyCall()
				}
				require.Greater(t, n, int64(40), "there are at least that many calls to fail")
			})
		}
	}
}

// everyCall returns how many calls of the bucket the next failing one is further: make
// chaos lets each call fail, other runs a selection.
func everyCall() int64 {
	switch {
	case os.Getenv("HUNDREDFOLD_CHAOS_ROUNDS") != "":
		return 1
	case testing.Short():
		return 19
	}
	return 7
}

// shardsOf cuts a block into n shards, as an ingester does: each is a source of its own.
func shardsOf(t *testing.T, dir string, n uint64) (dirs []string) {
	t.Helper()
	block, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, block.Close()) }()
	var specs []blockwriter.Spec
	for i := range n {
		meta := block.Meta()
		meta.ULID = ulid.MustNew(ulid.Now(), rand.Reader)
		meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{meta.ULID}}
		specs = append(specs, blockwriter.Spec{Meta: meta, Extension: blockstore.Extension{Shard: &blockstore.Shard{Index: i, Count: n}}})
	}
	pending, err := blockwriter.Write(t.Context(), blockwriter.Config{Parent: t.TempDir(), KeepEmpty: true}, []tsdb.BlockReader{block}, specs)
	require.NoError(t, err)
	for _, p := range pending {
		dir, err := p.Commit()
		require.NoError(t, err)
		dirs = append(dirs, dir)
	}
	return dirs
}

// interrupted lets a pass fail, looks at what it left, and lets further passes
// complete the work. It returns how many calls the pass made.
func interrupted(t *testing.T, blocks []string, results int, want map[string][]string, fail func(*blocktest.Faulty)) (calls int64) {
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
	if index, found, err := f.store.ReadIndex(t.Context(), acme); found {
		require.NoError(t, err)
		require.Equal(t, want, f.samplesOf(t, index.Blocks), "by the index after the fault")
	}
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
	require.Len(t, blocksLeft, results)
	for id, block := range blocksLeft {
		require.Equal(t, uint64(results), block.Shard().Count, "block %s", id)
	}
	require.Empty(t, partial)
	require.NoError(t, f.index.round(t.Context()))
	requireIndexed(t, f.store, blocksLeft)
	return calls
}
