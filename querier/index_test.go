package querier

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const aliceIndex = "~index/alice.json.gz"

// index writes an index of all blocks that alice has in the bucket, or of those of them
// that are named.
func (r *rig) index(generation uint64, only ...ulid.ULID) {
	r.t.Helper()
	blocks, _, err := r.store.Blocks(context.Background(), alice)
	require.NoError(r.t, err)
	if len(only) > 0 {
		maps.DeleteFunc(blocks, func(id ulid.ULID, _ blockstore.Block) bool { return !slices.Contains(only, id) })
	}
	index := blockstore.Index{Generation: generation, Writer: "test", Listed: time.Now(), Blocks: blocks}
	require.NoError(r.t, r.store.WriteIndex(context.Background(), alice, index))
}

// listings counts how often the blocks of a tenant were listed.
func (r *rig) listings() float64 { return testutil.ToFloat64(r.metrics.listings) }

func (r *rig) without(fault string) float64 {
	return testutil.ToFloat64(r.metrics.tenantsListed.WithLabelValues(fault))
}

func (r *rig) requireSamples(want int, args ...any) {
	r.t.Helper()
	n, err := count(r.t, as(alice), r.Queryable(), "x", 0, 100*hour)
	require.NoError(r.t, err, args...)
	require.Equal(r.t, want, n, args...)
}

func (r *rig) uploadHour(n int64) ulid.ULID {
	r.t.Helper()
	return r.upload(alice, n*hour, (n+1)*hour, blocktest.Floats("x", n*hour, (n+1)*hour, minute))
}

func TestAnIndexSparesListings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		block := r.uploadHour(0)
		r.index(1)
		stop := r.running()
		defer stop()
		synctest.Wait()
		require.True(t, r.Visible(alice, block))
		require.InDelta(t, 1, r.listings(), 0, "what an index says is verified after a start")

		reads := testutil.ToFloat64(r.metrics.indexReads)
		<-time.After(verifyAfter - time.Minute)
		synctest.Wait()
		require.InDelta(t, 1, r.listings(), 0)
		require.InDelta(t, reads, testutil.ToFloat64(r.metrics.indexReads), 0, "it has not changed")
		second := r.uploadHour(1)
		r.index(2)
		<-time.After(time.Duration(r.cfg.RefreshInterval))
		synctest.Wait()
		require.True(t, r.Visible(alice, second))
		require.InDelta(t, 1, r.listings(), 0)
		r.requireSamples(120)

		<-time.After(2 * verifyAfter)
		synctest.Wait()
		require.InDelta(t, 2, r.listings(), 0, "it is verified now and then")
	})
}

func TestABlockIsReadAtOnceAfterAnUploadNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{})
		r.uploadHour(0)
		r.index(1)
		stop := r.running()
		defer stop()
		synctest.Wait()
		listed := r.listings()

		block := r.uploadHour(1)
		r.BlockUploaded(alice, block)
		synctest.Wait()
		require.True(t, r.Visible(alice, block), "no time has passed")
		r.requireSamples(120)
		r.index(2, slices.Collect(maps.Keys(r.views.known(alice).index.Blocks))...) // of before the upload
		<-time.After(time.Duration(r.cfg.RefreshInterval))
		synctest.Wait()
		require.True(t, r.Visible(alice, block), "an index that is older than the notice takes nothing away")
		require.InDelta(t, listed, r.listings(), 0)

		// Whoever tells of blocks that there are none of does no harm.
		r.BlockUploaded(alice, ulid.MustNew(1, noEntropy{}))
		r.BlockUploaded("nobody", ulid.MustNew(1, noEntropy{}))
		synctest.Wait()
		r.requireSamples(120)
	})
}

func TestAnIndexThatCannotBeUsedDegradesToListings(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	r := newRig(t, rigOption{bucket: bucket})
	r.uploadHour(0)
	r.index(5)
	var good bytes.Buffer
	object, err := bucket.Get(t.Context(), aliceIndex)
	require.NoError(t, err)
	_, err = io.Copy(&good, object)
	require.NoError(t, err)
	r.refresh()
	require.Zero(t, r.listings())
	require.NoError(t, r.views.relistTenants(t.Context(), []tenant.ID{alice})) // verified
	r.requireSamples(60)

	want := 60
	for i, harm := range []struct {
		fault string
		do    func()
	}{
		{faultMissing, func() { require.NoError(t, bucket.Delete(t.Context(), aliceIndex)) }},
		{faultUnreadable, func() { require.NoError(t, bucket.Upload(t.Context(), aliceIndex, bytes.NewReader(nil))) }},
		{faultUnreadable, func() {
			require.NoError(t, bucket.Upload(t.Context(), aliceIndex, bytes.NewReader(good.Bytes()[:good.Len()-1])))
		}},
		{faultUnreadable, func() {
			require.NoError(t, bucket.Upload(t.Context(), aliceIndex, bytes.NewReader(append([]byte{0}, good.Bytes()...))))
		}},
		{faultRefused, func() { require.NoError(t, bucket.Upload(t.Context(), aliceIndex, bytes.NewReader(good.Bytes()))) }}, // an old one is put back
	} {
		harm.do()
		r.uploadHour(int64(i) + 1)
		want += 60
		before := r.listings()
		r.refresh()
		require.InDelta(t, before+1, r.listings(), 0, "case %d", i)
		require.InDelta(t, 1, r.without(harm.fault), 0, "case %d", i)
		r.requireSamples(want, "case %d", i)
		r.refresh()
		require.InDelta(t, before+2, r.listings(), 0, "case %d: one for each refresh", i)

		r.index(uint64(10 + i))
		r.refresh()
		require.Zero(t, r.without(harm.fault), "case %d", i)
		require.InDelta(t, before+2, r.listings(), 0, "case %d: it is used again", i)
		r.requireSamples(want, "case %d", i)
	}
}

func TestAnIndexThatLosesABlockIsRefused(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	r := newRig(t, rigOption{bucket: bucket})
	first, second := r.uploadHour(0), r.uploadHour(1)
	r.index(1)
	r.refresh()
	r.index(2, first)
	r.refresh()
	r.requireSamples(120, "the bucket has it still")
	r.refresh()
	require.InDelta(t, 1, r.without(faultRefused), 0)
	require.InDelta(t, 1, testutil.ToFloat64(r.metrics.indexesRefused.WithLabelValues("drops_blocks")), 0)
	require.InDelta(t, 2, r.listings(), 0)

	// The bucket is the truth: if it has lost the block, too, the index is right.
	require.NoError(t, r.store.Delete(t.Context(), alice, second))
	r.refresh()
	r.requireSamples(60)
	require.Zero(t, r.without(faultRefused))
	require.EqualValues(t, 2, r.views.known(alice).index.Generation)

	// One that is older than the last is refused as well, whatever is in it.
	r.index(1)
	r.refresh()
	require.InDelta(t, 1, r.without(faultRefused), 0)
	require.InDelta(t, 1, testutil.ToFloat64(r.metrics.indexesRefused.WithLabelValues("older")), 0)
	r.requireSamples(60)
}

func TestAnIndexThatLacksABlockForLongIsStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{bucket: objstore.NewInMemBucket()})
		r.uploadHour(0)
		r.index(1)
		stop := r.running()
		defer stop()
		synctest.Wait()
		block := r.uploadHour(1) // nobody tells of it, and no compactor writes an index
		<-time.After(2*verifyAfter + verifyTick)
		synctest.Wait()
		require.True(t, r.Visible(alice, block))
		require.Zero(t, r.without(faultStale))
		<-time.After(staleAfter + time.Minute)
		synctest.Wait()
		require.InDelta(t, 1, r.without(faultStale), 0)
		block = r.uploadHour(2)
		<-time.After(time.Duration(r.cfg.RefreshInterval))
		synctest.Wait()
		require.True(t, r.Visible(alice, block), "it is listed in each refresh now")

		r.index(2)
		<-time.After(time.Duration(r.cfg.RefreshInterval))
		synctest.Wait()
		require.Zero(t, r.without(faultStale))
	})
}

// An ingester of the same process may have moved blocks to the bucket before the process
// was started anew, after the index was written.
func TestAfterAStartAnIndexAloneIsNotEnoughForTheOnlyProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{bucket: objstore.NewInMemBucket()})
		first := r.uploadHour(0)
		r.index(1, first)
		r.uploadHour(1)
		r.refresh() // and no verification yet
		require.True(t, r.views.known(alice).listed.IsZero())
		_, err := count(t, as(alice), r.Queryable(), "x", 0, 100*hour)
		require.ErrorIs(t, err, errNotListed, "nobody lists the bucket")

		stop := r.running()
		defer stop()
		r.requireSamples(120, "the query waits for the listing")
	})
}

func TestAListingThatBeganEarlyKeepsWhatANewerIndexHasShown(t *testing.T) {
	block := func(n byte) blockstore.Block {
		return blockstore.Block{Meta: tsdb.BlockMeta{ULID: ulid.ULID{15: n}, MaxTime: 1}}
	}
	blocks := func(of ...byte) map[ulid.ULID]blockstore.Block {
		m := map[ulid.ULID]blockstore.Block{}
		for _, n := range of {
			m[ulid.ULID{15: n}] = block(n)
		}
		return m
	}
	begun := time.Unix(1000, 0)
	for _, noticed := range []bool{true, false} {
		view := newTenantView(blocks(1, 2), begun.Add(-time.Minute))
		if noticed {
			view = view.uploaded([]blockstore.Block{block(3)}, begun.Add(time.Second))
		}
		view, err := view.reindexed(blockstore.Index{Generation: 1, Blocks: blocks(1, 2, 3)}, begun.Add(2*time.Second))
		require.NoError(t, err)
		view = view.relisted(blocks(1), begun)
		require.True(t, view.reads(ulid.ULID{15: 3}), "it was uploaded while the listing went on")
		require.False(t, view.reads(ulid.ULID{15: 2}), "it was known before: it is gone")
		view = view.relisted(blocks(1), begun.Add(time.Minute))
		require.False(t, view.reads(ulid.ULID{15: 3}), "now it is gone, too")
	}
}

// Views follow the bucket through whatever happens to it: a block that is there and was
// seen is never lost, whichever index comes, and in whichever order.
func TestNoIndexTakesABlockFromAViewThatTheBucketHas(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // it need not be a secret
		w := newBlockWorld(rng)
		view := &tenantView{}
		now := time.Unix(1000, 0)
		// A listing shows what there was when it began, and ends some time later.
		began, listing := now, maps.Clone(w.bucket)
		for step := range 60 {
			now = now.Add(time.Second)
			w.happen()
			switch rng.IntN(5) {
			case 0:
				view = view.relisted(listing, began)
				began, listing = now, maps.Clone(w.bucket)
			case 1: // any index that was ever written may come
				if len(w.indexes) > 0 {
					if next, err := view.reindexed(w.indexes[rng.IntN(len(w.indexes))], now); err == nil {
						view = next
					}
				}
			case 2:
				if len(w.indexes) > 0 {
					if next, err := view.reindexed(w.indexes[len(w.indexes)-1], now); err == nil {
						view = next
					}
				}
			case 3:
				if id, ok := w.any(); ok {
					view = view.uploaded([]blockstore.Block{w.bucket[id]}, now)
					w.seen[id] = struct{}{}
				}
			case 4:
				view = view.relisted(maps.Clone(w.bucket), now)
			}
			for id := range view.all {
				w.seen[id] = struct{}{}
			}
			// Every level-1 block that was seen and whose samples the bucket has can be read.
			for id := range w.seen {
				for _, source := range blockstore.Sources(w.ever[id].Meta) {
					if _, lost := w.expired[source]; !lost {
						require.True(t, w.readable(view, source), "seed %d, step %d: samples of %s are lost", seed, step, source)
					}
				}
			}
		}
	}
}

// blockWorld is a bucket in which blocks are uploaded, merged, marked, deleted and indexed,
// in any order that the rules of the compactor allow.
type blockWorld struct {
	rng     *rand.Rand
	next    byte
	bucket  map[ulid.ULID]blockstore.Block
	ever    map[ulid.ULID]blockstore.Block
	expired map[ulid.ULID]struct{} // sources whose samples are gone for good
	seen    map[ulid.ULID]struct{}
	indexes []blockstore.Index
}

func newBlockWorld(rng *rand.Rand) *blockWorld {
	return &blockWorld{
		rng: rng, bucket: map[ulid.ULID]blockstore.Block{}, ever: map[ulid.ULID]blockstore.Block{},
		expired: map[ulid.ULID]struct{}{}, seen: map[ulid.ULID]struct{}{},
	}
}

func (w *blockWorld) any() (ulid.ULID, bool) {
	ids := slices.SortedFunc(maps.Keys(w.bucket), ulid.ULID.Compare)
	if len(ids) == 0 {
		return ulid.ULID{}, false
	}
	return ids[w.rng.IntN(len(ids))], true
}

func (w *blockWorld) add(level int, sources ...ulid.ULID) {
	w.next++
	id := ulid.ULID{15: w.next}
	if level == 1 {
		sources = []ulid.ULID{id}
	}
	meta := tsdb.BlockMeta{Version: 1, ULID: id, MaxTime: 1}
	meta.Compaction.Level, meta.Compaction.Sources = level, sources
	w.bucket[id] = blockstore.Block{Meta: meta}
	w.ever[id] = w.bucket[id]
}

func (w *blockWorld) happen() {
	superseded := blockstore.Superseded(w.bucket)
	id, ok := w.any()
	block := w.bucket[id]
	_, covered := superseded[id]
	switch w.rng.IntN(6) {
	case 0:
		w.add(1)
	case 1: // two that stay become one
		other, _ := w.any()
		if _, alsoCovered := superseded[other]; ok && other != id && !covered && !alsoCovered && block.Deletion == nil && w.bucket[other].Deletion == nil {
			w.add(max(block.Meta.Compaction.Level, w.bucket[other].Meta.Compaction.Level)+1,
				append(slices.Clone(blockstore.Sources(block.Meta)), blockstore.Sources(w.bucket[other].Meta)...)...)
		}
	case 2:
		if ok && covered && block.Deletion == nil {
			block.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionCompacted}
			w.bucket[id] = block
		}
	case 3:
		if ok && covered && block.Deletion != nil {
			delete(w.bucket, id)
		}
	case 4: // retention marks one that stays; what it was made of is as old
		if ok && !covered && w.rng.IntN(4) == 0 {
			block.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionRetention}
			w.bucket[id] = block
			for _, source := range blockstore.Sources(block.Meta) {
				w.expired[source] = struct{}{}
			}
		}
	case 5:
		w.indexes = append(w.indexes, blockstore.Index{Generation: uint64(len(w.indexes) + 1), Blocks: maps.Clone(w.bucket)})
	}
}

// readable reports whether a view reads the samples of a source from a block that the
// bucket had when it was last seen, or has.
func (*blockWorld) readable(view *tenantView, source ulid.ULID) bool {
	return slices.ContainsFunc(view.overlapping(math.MinInt64, math.MaxInt64), func(b blockstore.Block) bool {
		return slices.Contains(blockstore.Sources(b.Meta), source)
	})
}

// delayed is a bucket with a round trip of 20 ms, as an object store has.
type delayed struct{ objstore.Bucket }

const roundTrip = 20 * time.Millisecond

func (d delayed) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	<-time.After(roundTrip)
	return d.Bucket.Get(ctx, name)
}

// Iter implements objstore.Bucket: a page of 1,000 names costs a round trip.
func (d delayed) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	n := 0
	return d.Bucket.Iter(ctx, dir, func(name string) error {
		if n++; n%1000 == 1 {
			<-time.After(roundTrip)
		}
		return f(name)
	}, options...)
}

func (d delayed) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, options ...objstore.IterOption) error {
	<-time.After(roundTrip)
	return d.Bucket.IterWithAttributes(ctx, dir, f, options...)
}

// manyBlocks puts n blocks of some tenants into a bucket, without data, and their indexes.
func manyBlocks(t testing.TB, bucket objstore.Bucket, tenants, blocks int) {
	t.Helper()
	store := blockstore.New(bucket, nil)
	for i := range tenants {
		id := tenant.ID(fmt.Sprintf("tenant-%d", i))
		index := blockstore.Index{Generation: 1, Blocks: map[ulid.ULID]blockstore.Block{}}
		for j := range blocks / tenants {
			var name ulid.ULID
			require.NoError(t, name.SetTime(uint64(j)))
			name[15] = 1
			meta := tsdb.BlockMeta{Version: 1, ULID: name, MinTime: int64(j) * hour, MaxTime: int64(j+1) * hour}
			for k := range 12 {
				source := name
				source[15] = byte(2 + k)
				meta.Compaction.Sources = append(meta.Compaction.Sources, source)
			}
			index.Blocks[name] = blockstore.Block{Meta: meta, Files: []blockstore.File{{Name: "chunks/000001", Size: 1}, {Name: "index", Size: 1}}}
			for _, file := range []string{"chunks/000001", "index", "meta.json", "tombstones"} {
				// What is in them is not read.
				require.NoError(t, bucket.Upload(t.Context(), fmt.Sprintf("%s/%s/%s", id, name, file), bytes.NewReader([]byte("not read"))))
			}
		}
		require.NoError(t, store.WriteIndex(t.Context(), id, index))
	}
}

// The clock of the test counts the waiting for the bucket; what this machine needs comes on
// top, and is measured by BenchmarkStart.
func TestAQuerierStartsOnTenThousandBlocksWithoutReadingOne(t *testing.T) {
	for _, tenants := range []int{1, 100, 10_000} {
		t.Run(fmt.Sprintf("of %d tenants", tenants), func(t *testing.T) {
			if tenants > 1 && (testing.Short() || raceDetector) {
				t.Skip("it takes a while to write them")
			}
			bucket := objstore.NewInMemBucket()
			manyBlocks(t, bucket, tenants, 10_000)
			synctest.Test(t, func(t *testing.T) {
				faulty := blocktest.NewFaulty(delayed{bucket})
				r := newRig(t, rigOption{bucket: faulty})
				begun := time.Now()
				stop := r.running()
				defer stop()
				for r.Ready() != nil {
					<-time.After(10 * time.Millisecond)
				}
				require.Less(t, time.Since(begun), 5*time.Second)
				visible := 0
				for _, s := range r.Summaries() {
					visible += s.Blocks
				}
				require.Equal(t, 10_000, visible)
				t.Logf("ready after %s of waiting for the bucket", time.Since(begun))
				for slices.ContainsFunc(slices.Collect(maps.Values(r.views.current.Load().tenants)), func(v *tenantView) bool { return v.listed.IsZero() }) {
					<-time.After(10 * time.Millisecond)
				}
				t.Logf("verified after %s", time.Since(begun))
				require.InDelta(t, float64(tenants), r.listings(), 0)
				require.NoError(t, r.Ready(), "no meta.json was read: they say nothing")
			})
		})
	}
}

func BenchmarkStart(b *testing.B) {
	for _, tenants := range []int{1, 100} {
		b.Run(fmt.Sprintf("tenants=%d", tenants), func(b *testing.B) {
			bucket := objstore.NewInMemBucket()
			manyBlocks(b, bucket, tenants, 10_000)
			for b.Loop() {
				r := newRig(b, rigOption{bucket: delayed{bucket}})
				r.refresh()
			}
		})
	}
}
