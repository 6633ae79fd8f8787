package ingester

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// confirmAll says that queries read all blocks.
func confirmAll(_ context.Context, _ tenant.ID, blocks []ulid.ULID) ([]ulid.ULID, error) {
	return blocks, nil
}

// flakyBucket fails uploads while it is told to.
type flakyBucket struct {
	objstore.Bucket
	broken atomic.Bool
}

var errFlaky = errors.New("the bucket is away")

func (b *flakyBucket) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	if b.broken.Load() {
		return errFlaky
	}
	return b.Bucket.Upload(ctx, name, r, opts...)
}

func TestDrainEmptiesTheIngesterUnderLoad(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.seeAll = false
	f.advance(10 * time.Hour)
	want := map[tenant.ID][]string{}
	for _, id := range []tenant.ID{"one", "two"} {
		want[id] = f.pushHours(id, 8*time.Hour)
		f.push(id, sample{"a", 8*time.Hour - time.Minute, 5}) // out of order
	}
	f.round("one")

	var writers sync.WaitGroup
	acknowledged := map[tenant.ID]*int{"one": new(int), "two": new(int)}
	started := make(chan struct{}, 2)
	for id, count := range acknowledged {
		writers.Go(func() {
			for n := 1; ; n++ {
				at := 8*time.Hour + time.Duration(n)*time.Second
				_, err := f.Push(context.Background(), id, batch(sample{"load", at, 1}))
				if err != nil {
					if !errors.Is(err, errDraining) {
						t.Error(err)
					}
					return
				}
				if *count = n; n == 3 {
					started <- struct{}{}
				}
			}
		})
	}
	<-started
	<-started

	var steps []DrainProgress
	asked := map[tenant.ID]int{}
	confirm := func(_ context.Context, id tenant.ID, blocks []ulid.ULID) ([]ulid.ULID, error) {
		asked[id]++
		require.Len(t, f.stored(id)["a"], 50, "reads go on")
		switch asked[id] {
		case 1:
			return nil, errors.New("no querier answers")
		case 2:
			return blocks[:1], nil
		default:
			return blocks, nil
		}
	}
	require.NoError(t, f.Drain(context.Background(), confirm, func(p DrainProgress) { steps = append(steps, p) }))
	writers.Wait()
	for id, count := range acknowledged {
		inBucket := f.inBucket(id)
		require.Len(t, inBucket["load"], *count, "all that was acknowledged, once")
		require.Len(t, inBucket["a"], 50)
		require.Subset(t, inBucket["a"], want[id])
		_, err := f.Push(context.Background(), id, batch(sample{"load", 9 * time.Hour, 1}))
		var unavailable *wire.UnavailableError
		require.ErrorAs(t, err, &unavailable)
		require.ErrorIs(t, err, errDraining)
	}
	last := steps[len(steps)-1]
	require.Equal(t, DrainDone, last.Phase)
	require.Equal(t, 2, last.TenantsUploaded)
	require.Equal(t, len(f.LocalBlocks("one"))+len(f.LocalBlocks("two")), last.Uploaded)
	require.Equal(t, last.Uploaded, last.Confirmed)
	require.Empty(t, last.Problem)
	require.True(t, slices.ContainsFunc(steps, func(p DrainProgress) bool {
		return p.Phase == DrainConfirming && strings.Contains(p.Problem, "no querier answers")
	}))

	uploads := len(f.uploads)
	require.NoError(t, f.Drain(context.Background(), confirmAll, func(DrainProgress) {}), "once more")
	require.Len(t, f.uploads, uploads)
}

func TestDrainGoesOnAfterACrash(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	flaky := &flakyBucket{Bucket: f.bucket}
	require.NoError(t, f.close())
	f.bucket = flaky
	f.open()
	f.advance(10 * time.Hour)
	want := f.pushHours("one", 8*time.Hour)
	f.pushHours("two", 8*time.Hour)
	f.round("one")
	flaky.broken.Store(true)

	ctx, cancel := context.WithCancel(context.Background())
	err := f.Drain(ctx, confirmAll, func(p DrainProgress) {
		if strings.Contains(p.Problem, errFlaky.Error()) {
			cancel()
		}
	})
	require.ErrorIs(t, err, context.Canceled)

	// What a killed process leaves is what its files hold at this moment.
	crashed := newFixture(t, withCluster(i0, time.Hour))
	require.NoError(t, crashed.close())
	require.NoError(t, os.RemoveAll(crashed.dir))
	require.NoError(t, os.CopyFS(crashed.dir, os.DirFS(f.dir)))
	crashed.bucket, crashed.now = f.bucket, f.now
	flaky.broken.Store(false)
	crashed.open()
	require.NoError(t, crashed.Drain(context.Background(), confirmAll, func(DrainProgress) {}))
	for _, id := range []tenant.ID{"one", "two"} {
		require.Equal(t, want, crashed.inBucket(id)["a"])
	}
}

func TestDrainedIngesterRestartsWithNothingToDo(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.push(acme, sample{"a", 0, 1})
	require.NoError(t, f.Drain(context.Background(), confirmAll, func(DrainProgress) {}))
	uploads := len(f.uploads)
	require.Equal(t, 1, uploads)
	f.restart()
	var last DrainProgress
	require.NoError(t, f.Drain(context.Background(), confirmAll, func(p DrainProgress) { last = p }))
	require.Equal(t, DrainProgress{Phase: DrainDone, Tenants: 1, TenantsUploaded: 1, Uploaded: 1, Confirmed: 1}, last)
	require.Len(t, f.uploads, uploads)
}

func TestUploadsAreToldByBlock(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.push(acme, sample{"a", 0, 1})
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Equal(t, []string{fmt.Sprintf("acme/%s", f.LocalBlocks(acme)[0])}, f.uploads)
}

func TestWipedIngesterHasUploadedAllAndBeginsAnew(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.seeAll = false
	f.advance(5 * time.Hour)
	f.push(acme, sample{"a", 0, 1}, sample{"a", -time.Minute, 2})
	f.push("other", sample{"a", 5 * time.Hour, 1})
	require.NoError(t, f.Wipe(context.Background()))
	require.Equal(t, []string{"-1m0s 2", "0s 1"}, f.inBucket(acme)["a"])
	require.NoDirExists(t, f.file(""))
	require.Empty(t, f.all())
	require.Empty(t, f.stored(acme))
	require.Greater(t, f.Holding(acme).HeldFrom, noon.Add(5*time.Hour).UnixMilli())
	require.Empty(t, f.Holding(acme).Placements)

	anew := Member{Instance: i0.Instance, Generation: 8}
	f.become(anew)
	f.push(acme, sample{"a", time.Second, 3})
	require.EqualValues(t, 8, f.Holding(acme).Generation)
	require.Equal(t, []wire.PlacementRef{anew.alone().ref()}, f.Holding(acme).Placements)
	require.Equal(t, []string{"1s 3"}, f.stored(acme)["a"])
}

func TestDrainThatWaitsForAWipeTakesNoWritesAfterIt(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	flaky := &flakyBucket{Bucket: f.bucket}
	require.NoError(t, f.close())
	f.bucket = flaky
	f.open()
	f.push(acme, sample{"a", 0, 1})
	flaky.broken.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	wiped, drained := make(chan error, 1), make(chan error, 1)
	go func() { wiped <- f.Wipe(ctx) }()
	require.Eventually(t, f.draining.Load, 10*time.Second, time.Millisecond)
	var taken error
	go func() {
		drained <- f.Drain(context.Background(), confirmAll, func(p DrainProgress) {
			if p.Phase == DrainUploading {
				taken = f.takesWrites()
				flaky.broken.Store(false)
			}
		})
	}()
	cancel()
	require.ErrorIs(t, <-wiped, context.Canceled)
	require.NoError(t, <-drained)
	require.ErrorIs(t, taken, errDraining)
	require.ErrorIs(t, f.takesWrites(), errDraining)
}

// BenchmarkDrain drains an ingester with 100,000 series of half an hour into a bucket
// in a folder.
func BenchmarkDrain(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		files, err := blockstore.OpenFilesystem(filepath.Join(b.TempDir(), "bucket"))
		require.NoError(b, err)
		f := newFixture(b, withCluster(i0, time.Hour), func(f *fixture) { f.bucket = files })
		f.advance(time.Hour)
		batches := benchBatches()
		for age := time.Duration(0); age < 30*time.Minute; age += 15 * time.Second {
			for _, each := range batches {
				f.offer(acme, at(each, noon.Add(age)))
			}
		}
		b.StartTimer()
		require.NoError(b, f.Drain(context.Background(), confirmAll, func(DrainProgress) {}))
	}
}
