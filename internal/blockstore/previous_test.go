package blockstore_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// onEveryMove runs a test on each way to another bucket. before writes to the previous
// one, after moves.
func onEveryMove(t *testing.T, test func(t *testing.T, before, after *blockstore.Store, reg *prometheus.Registry)) {
	run := func(t *testing.T, to blockstore.Config) {
		t.Helper()
		from := blockstore.Default()
		from.Filesystem.Directory = filepath.Join(t.TempDir(), "old")
		before, err := blockstore.Open(from, nil, nil)
		require.NoError(t, err)
		to.Previous = &from
		reg := prometheus.NewRegistry()
		after, err := blockstore.Open(to, nil, reg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, after.Close()) })
		test(t, before, after, reg)
	}
	t.Run("filesystem to filesystem", func(t *testing.T) {
		to := blockstore.Default()
		to.Filesystem.Directory = filepath.Join(t.TempDir(), "new")
		run(t, to)
	})
	t.Run("filesystem to s3", func(t *testing.T) { run(t, s3test.Start(t)) })
	t.Run("behind decorators", func(t *testing.T) {
		from, to := blocktest.NewFaulty(objstore.NewInMemBucket()), blocktest.NewFaulty(objstore.NewInMemBucket())
		reg := prometheus.NewRegistry()
		test(t, blockstore.New(from, nil), blockstore.NewFollowing(to, from, nil, reg), reg)
	})
}

// put writes a block of two hours to a store and returns its name.
func put(t testing.TB, store *blockstore.Store, start int64) ulid.ULID {
	t.Helper()
	dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, 60_000))
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	return ulid.MustParse(filepath.Base(dir))
}

// read returns the samples of all blocks that readers read, fetched or in place.
func read(t testing.TB, store *blockstore.Store) map[string][]string {
	t.Helper()
	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	superseded := blockstore.Superseded(blocks)
	var dirs []string
	for block := range blocks {
		if _, ok := superseded[block]; ok {
			continue
		}
		dir, ok := store.LocalDir(acme, block)
		if !ok {
			dir = filepath.Join(t.TempDir(), block.String())
			require.NoError(t, store.Download(t.Context(), acme, block, dir))
		}
		dirs = append(dirs, dir)
	}
	return blocktest.Samples(t, dirs...)
}

func previous(t testing.TB, store *blockstore.Store) map[ulid.ULID]bool {
	t.Helper()
	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	where := map[ulid.ULID]bool{}
	for id, block := range blocks {
		where[id] = block.Previous
	}
	return where
}

func TestBlocksOfThePreviousBucketAreReadBesideTheNewOnesAndCopied(t *testing.T) {
	onEveryMove(t, func(t *testing.T, before, after *blockstore.Store, reg *prometheus.Registry) {
		first, second := put(t, before, 0), put(t, before, 2*hour)
		third := put(t, after, 4*hour)
		want := read(t, after)
		require.Len(t, want[`{__name__="a", job="test"}`], 360)
		require.Equal(t, map[ulid.ULID]bool{first: true, second: true, third: false}, previous(t, after))
		tenants, err := after.Tenants(t.Context())
		require.NoError(t, err)
		require.Equal(t, []tenant.ID{acme}, tenants)

		var steps []blockstore.CopyProgress
		require.NoError(t, after.CopyPrevious(t.Context(), nil, func(p blockstore.CopyProgress) { steps = append(steps, p) }))
		require.Equal(t, []blockstore.CopyProgress{{Blocks: 2, Copied: 1}, {Blocks: 2, Copied: 2}}, steps)
		require.Equal(t, map[ulid.ULID]bool{first: false, second: false, third: false}, previous(t, after))
		require.Equal(t, want, read(t, after))
		remaining, err := reg.Gather()
		require.NoError(t, err)
		require.NotEmpty(t, remaining)

		left, _, err := before.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Len(t, left, 2, "nothing is deleted where it came from")
		require.NoError(t, after.CopyPrevious(t.Context(), nil, func(blockstore.CopyProgress) { t.Error("there is nothing to copy") }))
	})
}

func TestWhatIsDoneToCopiedBlocksStaysDone(t *testing.T) {
	onEveryMove(t, func(t *testing.T, before, after *blockstore.Store, _ *prometheus.Registry) {
		block := put(t, before, 0)
		require.ErrorIs(t, after.MarkForDeletion(t.Context(), acme, block, blockstore.DeletionMark{Reason: blockstore.DeletionRetention}),
			blockstore.ErrBlockNotFound, "a block that is not here cannot be marked here")
		require.NoError(t, after.CopyPrevious(t.Context(), nil, nil))
		require.NoError(t, after.Delete(t.Context(), acme, block))
		require.Empty(t, previous(t, after), "it does not come back from where it was copied")
		require.NoError(t, after.CopyPrevious(t.Context(), nil, nil))
		require.Empty(t, previous(t, after))
	})
}

func TestACopyBringsOnlyWhatIsStillReadAndTheMarksAgainstCompaction(t *testing.T) {
	onEveryMove(t, func(t *testing.T, before, after *blockstore.Store, _ *prometheus.Registry) {
		live, kept, expired, lost := put(t, before, 0), put(t, before, 2*hour), put(t, before, 4*hour), put(t, before, 6*hour)
		mark := blockstore.NoCompactMark{Version: 1, Time: time.Unix(1, 0).UTC(), Reason: "by-hand"}
		require.NoError(t, before.MarkNoCompact(t.Context(), acme, kept, mark))
		deletion := blockstore.DeletionMark{Time: time.Unix(1, 0).UTC(), Reason: blockstore.DeletionRetention}
		require.NoError(t, before.MarkForDeletion(t.Context(), acme, expired, deletion))
		deletion.Reason = blockstore.DeletionCompacted // into a block that is not there
		require.NoError(t, before.MarkForDeletion(t.Context(), acme, lost, deletion))
		require.NoError(t, after.CopyPrevious(t.Context(), nil, nil))

		blocks, _, err := after.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.False(t, blocks[live].Previous)
		require.Equal(t, &mark, blocks[kept].NoCompact)
		require.False(t, blocks[kept].Previous)
		require.True(t, blocks[expired].Previous)
		require.Equal(t, blockstore.DeletionRetention, blocks[expired].Deletion.Reason)
		require.False(t, blocks[lost].Previous)
		require.Nil(t, blocks[lost].Deletion)
	})
}

func TestACopyLeavesTenantsOfOthersToThem(t *testing.T) {
	source := objstore.NewInMemBucket()
	after := blockstore.NewFollowing(objstore.NewInMemBucket(), source, nil, nil)
	block := put(t, blockstore.New(source, nil), 0)
	require.NoError(t, after.CopyPrevious(t.Context(), func(id tenant.ID) bool { return id != acme }, nil))
	require.True(t, previous(t, after)[block])
	require.NoError(t, after.CopyPrevious(t.Context(), func(id tenant.ID) bool { return id == acme }, nil))
	require.False(t, previous(t, after)[block])
}

func TestACopyThatBreaksOffAnywhereIsReadWholeAndGoesOn(t *testing.T) {
	for name, fail := range map[string]func(*blocktest.Faulty, int64){
		"a crash":       (*blocktest.Faulty).FailFrom,
		"a short fault": (*blocktest.Faulty).FailOnly,
	} {
		t.Run(name, func(t *testing.T) {
			source := objstore.NewInMemBucket()
			from := blockstore.New(source, nil)
			put(t, from, 0)
			put(t, from, 2*hour)
			want := read(t, from)
			for n := int64(1); ; n++ {
				to := blocktest.NewFaulty(objstore.NewInMemBucket())
				after := blockstore.NewFollowing(to, source, nil, nil)
				fail(to, n)
				err := after.CopyPrevious(t.Context(), nil, nil)
				calls := to.Calls()
				to.Heal()
				require.Equal(t, want, read(t, after))
				require.NoError(t, after.CopyPrevious(t.Context(), nil, nil))
				for block, isPrevious := range previous(t, after) {
					require.False(t, isPrevious, block)
				}
				require.Equal(t, want, read(t, after))
				if calls < n {
					require.NoError(t, err)
					require.Greater(t, n, int64(20))
					return
				}
			}
		})
	}
}

func TestACopyOfWhatCannotBeReadIsReportedAndTheRestIsCopied(t *testing.T) {
	source := objstore.NewInMemBucket()
	before := blockstore.New(source, nil)
	good, bad := put(t, before, 0), put(t, before, 2*hour)
	require.NoError(t, source.Delete(t.Context(), string(acme)+"/"+bad.String()+"/index"))
	reg := prometheus.NewRegistry()
	after := blockstore.NewFollowing(objstore.NewInMemBucket(), source, nil, reg)
	err := after.CopyPrevious(t.Context(), nil, nil)
	require.ErrorIs(t, err, blockstore.ErrInvalidBlock)
	require.ErrorContains(t, err, bad.String())
	require.Equal(t, map[ulid.ULID]bool{good: false, bad: true}, previous(t, after))
	require.NoError(t, testutil.GatherAndCompare(reg, bytes.NewBufferString(`
# HELP hundredfold_bucket_previous_blocks Blocks in bucket.previous that this process has yet to copy. At 0 on all nodes that show it, bucket.previous can be taken out of the configuration.
# TYPE hundredfold_bucket_previous_blocks gauge
hundredfold_bucket_previous_blocks 1
`)))
}

func TestTheCopyGoesOnInTheBackgroundAndSaysOnceThatItIsComplete(t *testing.T) {
	source := objstore.NewInMemBucket()
	before := blockstore.New(source, nil)
	first := put(t, before, 0)
	late := blocktest.Write(t, t.TempDir(), 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, 60_000))
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		to := blocktest.NewFaulty(objstore.NewInMemBucket())
		after := blockstore.NewFollowing(to, source, slog.New(slog.NewTextHandler(&log, nil)), nil)
		to.FailFrom(1)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- after.RunCopy(ctx, nil) }()
		synctest.Wait()
		require.Contains(t, log.String(), "Not all blocks could be copied")
		to.Heal()
		<-time.After(time.Minute)
		synctest.Wait()
		require.False(t, previous(t, after)[first])
		require.NoError(t, before.Upload(t.Context(), acme, late))
		<-time.After(time.Hour)
		synctest.Wait()
		require.False(t, previous(t, after)[ulid.MustParse(filepath.Base(late))])
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, 1, bytes.Count(log.Bytes(), []byte("are all in the new one")))
	})
}

func TestAPreviousBucketThatIsNotThereIsRefused(t *testing.T) {
	config := blockstore.Default()
	config.Filesystem.Directory = filepath.Join(t.TempDir(), "new")
	missing := blockstore.Default()
	missing.Filesystem.Directory = filepath.Join(t.TempDir(), "absent")
	config.Previous = &missing
	_, err := blockstore.Open(config, nil, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "bucket.previous")
	_, err = os.Stat(missing.Filesystem.Directory)
	require.ErrorIs(t, err, os.ErrNotExist, "it is not created")
}
