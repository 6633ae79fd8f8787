package compactor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const indexObject = "~index/acme.json.gz"

// requireIndexed requires that the index of acme lists just these blocks, with their files.
func requireIndexed(t *testing.T, store *blockstore.Store, want map[ulid.ULID]blockstore.Block) blockstore.Index {
	t.Helper()
	index, found, err := store.ReadIndex(t.Context(), acme)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, sorted(want), sorted(index.Blocks))
	for id, got := range index.Blocks {
		block := want[id]
		files, err := store.Files(t.Context(), acme, id)
		require.NoError(t, err)
		require.Equal(t, files, got.Files)
		block.Files, block.Meta.Compaction.Parents, block.HasSidecar = files, nil, false
		require.Equal(t, block, got)
	}
	return index
}

func (f *fixture) requireIndexed(t *testing.T) blockstore.Index {
	t.Helper()
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return requireIndexed(t, f.store, blocks)
}

func TestEachChangeOfATenantsBlocksIsInItsIndex(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
	require.NoError(t, f.RunOnce(t.Context()))
	require.NoError(t, f.RunOnce(t.Context())) // the marks are listed
	compacted := f.requireIndexed(t)
	require.Len(t, compacted.Blocks, 3)
	require.Len(t, visibleOf(compacted.Blocks), 1)

	written := testutil.ToFloat64(f.metrics.indexesWritten)
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
		require.NoError(t, f.index.round(t.Context()))
	}
	require.InDelta(t, written, testutil.ToFloat64(f.metrics.indexesWritten), 0, "nothing has changed")

	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	require.NoError(t, f.RunOnce(t.Context()))
	deleted := f.requireIndexed(t)
	require.Len(t, deleted.Blocks, 1)
	require.Greater(t, deleted.Generation, compacted.Generation)
}

func TestNewBlocksAreIndexedWhileACompactionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fixtureOver(t, blockstore.New(objstore.NewInMemBucket(), nil))
		f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.index.run(ctx) }() // the compactor makes no pass
		synctest.Wait()
		first := f.requireIndexed(t)

		f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
		<-time.After(2*indexInterval + time.Second)
		synctest.Wait()
		require.Greater(t, f.requireIndexed(t).Generation, first.Generation)
		cancel()
		<-done
	})
}

func TestAnIndexThatIsNotWhatWasWrittenIsWrittenAnew(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	f := fixtureOver(t, blockstore.New(bucket, nil))
	f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, f.index.round(t.Context()))
	before := f.requireIndexed(t)
	object, err := bucket.Get(t.Context(), indexObject)
	require.NoError(t, err)
	var old bytes.Buffer
	_, err = old.ReadFrom(object)
	require.NoError(t, err)
	f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
	require.NoError(t, f.RunOnce(t.Context()))
	require.NoError(t, f.RunOnce(t.Context())) // the marks are listed
	f.requireIndexed(t)

	for what, harm := range map[string]func() error{
		"deleted":   func() error { return bucket.Delete(t.Context(), indexObject) },
		"truncated": func() error { return bucket.Upload(t.Context(), indexObject, bytes.NewReader(old.Bytes()[:50])) },
		"empty":     func() error { return bucket.Upload(t.Context(), indexObject, bytes.NewReader(nil)) },
		"old":       func() error { return bucket.Upload(t.Context(), indexObject, bytes.NewReader(old.Bytes())) },
	} {
		require.NoError(t, harm(), what)
		require.NoError(t, f.index.round(t.Context()), what)
		after := f.requireIndexed(t)
		require.Greater(t, after.Generation, before.Generation, what)
		before = after
	}

	// Another compactor, which has seen nothing, keeps what is right, and what is not it
	// writes with a generation that was not there before.
	other := fixtureOver(t, f.store)
	require.NoError(t, other.index.round(t.Context()))
	require.Equal(t, before, f.requireIndexed(t))
	require.NoError(t, bucket.Delete(t.Context(), indexObject))
	other = fixtureOver(t, f.store)
	require.NoError(t, other.index.round(t.Context()))
	require.Greater(t, f.requireIndexed(t).Generation+1000, before.Generation, "it may lag by as many as were written in less than a millisecond each")
}

func TestTheIndexOfATenantThatIsGoneGoesToo(t *testing.T) {
	f := newFixture(t)
	block := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, f.index.round(t.Context()))
	f.requireIndexed(t)
	require.NoError(t, f.store.Delete(t.Context(), acme, block))
	require.NoError(t, f.index.round(t.Context()))
	indexes, err := f.store.Indexes(t.Context())
	require.NoError(t, err)
	require.Empty(t, indexes)
}

func TestBlocksOfAPreviousBucketAreNotIndexed(t *testing.T) {
	previous, bucket := objstore.NewInMemBucket(), objstore.NewInMemBucket()
	f := fixtureOver(t, blockstore.New(previous, nil))
	f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	f = fixtureOver(t, blockstore.NewFollowing(bucket, previous, nil, nil))
	block := f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
	require.NoError(t, f.RunOnce(t.Context()))
	index, _, err := f.store.ReadIndex(t.Context(), acme)
	require.NoError(t, err)
	require.Equal(t, []ulid.ULID{block}, sorted(index.Blocks))
}

// pausing is a bucket whose uploads of the index wait, as those of a process do that stands
// still for a while.
type pausing struct {
	objstore.Bucket
	before func(name string)
}

func (p pausing) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	if name == indexObject {
		p.before(name)
	}
	return p.Bucket.Upload(ctx, name, r, options...)
}

// The slow one of two compactors writes what it listed before the other one did.
func TestTwoCompactorsAtOnceEndWithAnIndexOfAllBlocks(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	fast := fixtureOver(t, blockstore.New(bucket, nil))
	fast.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	var slow *fixture
	paused := false
	slow = fixtureOver(t, blockstore.New(pausing{bucket, func(string) {
		if paused {
			return
		}
		paused = true
		fast.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
		require.NoError(t, fast.index.round(t.Context()))
		fast.requireIndexed(t)
	}}, nil))
	require.NoError(t, slow.index.round(t.Context()))
	stale, _, err := fast.store.ReadIndex(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, stale.Blocks, 1, "the slow one has written last")

	// Whoever comes first puts it right.
	require.NoError(t, fast.index.round(t.Context()))
	fast.requireIndexed(t)
	require.NoError(t, slow.index.round(t.Context()))
	fast.requireIndexed(t)
}

// Whatever compactors do, and whoever uploads, an index never lacks for long a block that
// is in the bucket: after each has had its turn it is the listing.
func TestCompactorsThatShareATenantConvergeWhateverTheirOrder(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // it need not be a secret
			bucket := objstore.NewInMemBucket()
			compactors := []*fixture{}
			for range 3 {
				compactors = append(compactors, fixtureOver(t, blockstore.New(bucket, nil)))
			}
			type listing struct {
				blocks map[ulid.ULID]blockstore.Block
				begun  time.Time
			}
			held := map[int]listing{}
			start := int64(0)
			for range 40 {
				n := rng.IntN(len(compactors))
				c := compactors[n]
				switch rng.IntN(5) {
				case 0:
					c.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, hour/4))
					start += 2 * hour
				case 1:
					begun := time.Now()
					blocks, _, err := c.store.Blocks(t.Context(), acme)
					require.NoError(t, err)
					held[n] = listing{blocks, begun}
				case 2:
					if l, ok := held[n]; ok {
						c.index.offer(t.Context(), acme, l.blocks, l.begun)
					}
				case 3:
					require.NoError(t, c.index.round(t.Context()))
				case 4:
					require.NoError(t, c.RunOnce(t.Context()))
					c.clock = c.clock.Add(time.Hour)
				}
			}
			for _, c := range compactors {
				require.NoError(t, c.index.round(t.Context()))
			}
			blocks, _, err := compactors[0].store.Blocks(t.Context(), acme)
			require.NoError(t, err)
			if index, found, err := compactors[0].store.ReadIndex(t.Context(), acme); found {
				require.NoError(t, err)
				require.Empty(t, blockstore.Dropped(blocks, index.Blocks))
			}
			for _, c := range compactors {
				c.index.mu.tenants = map[tenant.ID]*indexedTenant{} // as after a restart
				require.NoError(t, c.index.round(t.Context()))
				if len(blocks) > 0 {
					c.requireIndexed(t)
				}
			}
		})
	}
}
