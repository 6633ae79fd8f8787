package compactor

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// sharer returns a compactor that shares a bucket with others and owns what owns says.
func sharer(t testing.TB, bucket objstore.Bucket, instance string, owns func(tenant.ID) bool) *Compactor {
	t.Helper()
	cfg := Default()
	cfg.Dir = filepath.Join(t.TempDir(), "work")
	c, err := New(cfg, Deps{
		Store:    blockstore.New(bucket, nil),
		Limits:   func(tenant.ID) tenant.Limits { return tenant.Limits{Retention: model.Duration(0)} },
		Owns:     owns,
		Instance: instance,
	})
	require.NoError(t, err)
	return c
}

func all(tenant.ID) bool { return true }

// overlapping puts blocks of acme into a bucket that are to be compacted, and returns
// their samples.
func overlapping(t testing.TB, bucket objstore.Bucket) map[string][]string {
	t.Helper()
	dirs := []string{
		blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step)),
		blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", step/2, 2*hour, step)),
		blocktest.Write(t, t.TempDir(), 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step)),
	}
	for _, dir := range dirs {
		require.NoError(t, blockstore.New(bucket, nil).Upload(t.Context(), acme, dir))
	}
	return blocktest.Samples(t, dirs...)
}

// compacted reports how many blocks of acme readers read.
func compacted(t testing.TB, bucket objstore.Bucket) int {
	t.Helper()
	blocks, _, err := blockstore.New(bucket, nil).Blocks(t.Context(), acme)
	require.NoError(t, err)
	return len(blocks) - len(blockstore.Superseded(blocks))
}

func TestACompactorLeavesTenantsOfOthersToThem(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	overlapping(t, bucket)
	c := sharer(t, bucket, "a", func(id tenant.ID) bool { return id != acme })
	require.NoError(t, c.RunOnce(t.Context()))
	require.Equal(t, 3, compacted(t, bucket))
	require.Zero(t, c.board.Totals().Compactions, "what others have to do is not counted twice")
	c.owns = all
	require.NoError(t, c.RunOnce(t.Context()))
	require.Equal(t, 1, compacted(t, bucket))
	_, found, err := c.store.Visit(t.Context(), acme)
	require.NoError(t, err)
	require.False(t, found, "the visit is over")
}

func TestACompactorThatLosesATenantStopsAfterTheJobAtHand(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	store := blockstore.New(bucket, nil)
	for _, day := range []int64{0, 24, 48} { // three jobs
		for _, start := range []int64{day * hour, (day + 2) * hour} {
			require.NoError(t, store.Upload(t.Context(), acme, blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))))
		}
	}
	c := sharer(t, bucket, "a", all)
	c.owns = func(tenant.ID) bool { return testutil.ToFloat64(c.metrics.compactions) == 0 }
	require.NoError(t, c.RunOnce(t.Context()))
	require.InDelta(t, 1, testutil.ToFloat64(c.metrics.compactions), 0)
}

func TestACompactorYieldsToOneThatWorksOnTheTenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := objstore.NewInMemBucket()
		first, second := sharer(t, bucket, "a", all), sharer(t, bucket, "b", all)
		visit, end, err := first.visits.begin(t.Context(), acme)
		require.NoError(t, err)
		for range 20 { // passes, a minute apart
			_, _, err := second.visits.begin(t.Context(), acme)
			require.ErrorIs(t, err, errVisited)
			<-time.After(time.Minute)
		}
		require.NoError(t, visit.Err())
		require.NoError(t, end())
		_, end, err = second.visits.begin(t.Context(), acme)
		require.NoError(t, err, "it is free at once")
		require.NoError(t, end())
	})
}

func TestAVisitThatStandsStillIsTakenOverWhateverTheClocksSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := objstore.NewInMemBucket()
		c := sharer(t, bucket, "b", all)
		c.now = func() time.Time { return time.Unix(0, 0) }
		require.NoError(t, c.store.PutVisit(t.Context(), acme, blockstore.Visit{Instance: "dead", Count: 9}))
		begun := time.Now()
		for {
			_, end, err := c.visits.begin(t.Context(), acme)
			if err == nil {
				require.NoError(t, end())
				break
			}
			require.ErrorIs(t, err, errVisited)
			<-time.After(10 * time.Second)
		}
		require.Equal(t, abandonedAfter, time.Since(begun))
	})
}

func TestACompactorTakesUpItsOwnVisitAfterARestart(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	require.NoError(t, blockstore.New(bucket, nil).PutVisit(t.Context(), acme, blockstore.Visit{Instance: "a", Incarnation: "before"}))
	_, end, err := sharer(t, bucket, "a", all).visits.begin(t.Context(), acme)
	require.NoError(t, err)
	require.NoError(t, end())
}

func TestOfTwoThatBeginAtOnceOneGivesUpAtTheNextHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := objstore.NewInMemBucket()
		first, second := sharer(t, bucket, "a", all), sharer(t, bucket, "b", all)
		// Both see that nobody is there.
		one, endOne, err := first.visits.begin(t.Context(), acme)
		require.NoError(t, err)
		require.NoError(t, first.store.RemoveVisit(t.Context(), acme))
		two, endTwo, err := second.visits.begin(t.Context(), acme)
		require.NoError(t, err)
		<-time.After(heartbeat + time.Second)
		synctest.Wait()
		require.ErrorIs(t, context.Cause(one), errVisited)
		require.NoError(t, two.Err())
		require.NoError(t, endOne())
		visit, found, err := first.store.Visit(t.Context(), acme)
		require.NoError(t, err)
		require.True(t, found, "the one that gives up leaves the visit of the other one alone")
		require.Equal(t, "b", visit.Instance)
		require.NoError(t, endTwo())
	})
}

func TestABucketThatIsAwayEndsNoVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
		c := sharer(t, bucket, "a", all)
		visit, end, err := c.visits.begin(t.Context(), acme)
		require.NoError(t, err)
		bucket.FailFrom(1)
		<-time.After(5 * heartbeat)
		require.NoError(t, visit.Err())
		require.ErrorIs(t, end(), blocktest.ErrBucketDown)
	})
}

// meeting is a bucket in which uploads of meta.json wait for each other, so that two
// compactors that do the same job put their results there at the same moment.
type meeting struct {
	objstore.Bucket
	wait *sync.WaitGroup
}

func (b meeting) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	if strings.HasSuffix(name, "/meta.json") {
		b.wait.Done()
		b.wait.Wait()
	}
	return b.Bucket.Upload(ctx, name, r, options...)
}

func TestTwoCompactorsThatDoTheSameJobAtOnceLoseAndDoubleNothing(t *testing.T) {
	inner := objstore.NewInMemBucket()
	want := overlapping(t, inner)
	var (
		met   sync.WaitGroup
		ended sync.WaitGroup
	)
	met.Add(2)
	for _, instance := range []string{"a", "b"} {
		c := sharer(t, meeting{inner, &met}, instance, all)
		todo, err := c.look(t.Context(), acme, blockstore.TenantDeletions{})
		require.NoError(t, err)
		require.Len(t, todo.compactions, 1)
		ended.Go(func() {
			if err := c.compact(t.Context(), acme, todo.compactions[0]); err != nil {
				t.Error(err)
			}
		})
	}
	ended.Wait()
	settleTogether(t, inner, want, 1)
}

// One compactor has seen a block more than the other, so that neither result holds all
// that the other one does.
func TestResultsThatOverlapAreMerged(t *testing.T) {
	bucket := objstore.NewInMemBucket()
	want := overlapping(t, bucket)
	a, b := sharer(t, bucket, "a", all), sharer(t, bucket, "b", all)
	todo, err := a.look(t.Context(), acme, blockstore.TenantDeletions{})
	require.NoError(t, err)
	job := todo.compactions[0]
	require.Len(t, job.blocks, 3)
	first, second := job, job
	first.blocks, second.blocks = job.blocks[:2], job.blocks[1:]
	require.NoError(t, a.compact(t.Context(), acme, first))
	require.NoError(t, b.compact(t.Context(), acme, second))
	require.Equal(t, 2, compacted(t, bucket))
	settleTogether(t, bucket, want, 1)
}

// settleTogether lets two compactors pass over a bucket at once, again and again while
// marks ripen, and checks after each time that readers read what they are to read.
func settleTogether(t *testing.T, bucket objstore.Bucket, want map[string][]string, blocks int) {
	t.Helper()
	clock := time.Now()
	a, b := sharer(t, bucket, "a", all), sharer(t, bucket, "b", all)
	// Not even visits keep them apart.
	a.visits, b.visits = nil, nil
	for range 4 {
		var passes sync.WaitGroup
		for _, c := range []*Compactor{a, b} {
			c.now = func() time.Time { return clock }
			passes.Go(func() {
				if err := c.RunOnce(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		passes.Wait()
		require.Equal(t, want, samplesIn(t, bucket))
		clock = clock.Add(time.Duration(a.cfg.DeletionDelay) + time.Minute)
	}
	left, partial, err := blockstore.New(bucket, nil).Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, left, blocks)
	require.Empty(t, partial)
}

func samplesIn(t *testing.T, bucket objstore.Bucket) map[string][]string {
	t.Helper()
	f := &fixture{store: blockstore.New(bucket, nil)}
	return f.samples(t)
}

func TestBlocksThatAreYetToBeCopiedAreLeftAloneAndAwaited(t *testing.T) {
	source, bucket := objstore.NewInMemBucket(), objstore.NewInMemBucket()
	before := blockstore.New(source, nil)
	after := blockstore.NewFollowing(bucket, source, nil, nil)
	var dirs []string
	for _, start := range []int64{0, 2 * hour} {
		dirs = append(dirs, blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step)))
	}
	for start := 4 * hour; start < 8*hour; start += 2 * hour {
		dirs = append(dirs, blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step)))
	}
	require.NoError(t, before.Upload(t.Context(), acme, dirs[0]))
	for _, dir := range dirs[1:] {
		require.NoError(t, after.Upload(t.Context(), acme, dir))
	}
	c := sharer(t, bucket, "a", all)
	c.store = after
	require.NoError(t, c.RunOnce(t.Context()))
	require.Zero(t, testutil.ToFloat64(c.metrics.compactions))
	blocks, _, err := after.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.True(t, blocks[ulid.MustParse(filepath.Base(dirs[0]))].Previous)
	require.Nil(t, blocks[ulid.MustParse(filepath.Base(dirs[0]))].Deletion)

	require.NoError(t, after.CopyPrevious(t.Context(), nil, nil))
	require.NoError(t, c.RunOnce(t.Context()))
	require.InDelta(t, 1, testutil.ToFloat64(c.metrics.compactions), 0)
	require.Equal(t, 1, compacted(t, bucket))
	require.Equal(t, blocktest.Samples(t, dirs...), samplesIn(t, bucket))
}
