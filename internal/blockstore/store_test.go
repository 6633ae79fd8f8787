package blockstore_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/s3"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	acme = tenant.ID("acme")
	hour = int64(time.Hour / time.Millisecond)
)

// onEveryBucket runs a test on each kind of bucket: local files in place, files
// behind a decorator (which forces copies), and a real S3-compatible server.
func onEveryBucket(t *testing.T, test func(t *testing.T, store *blockstore.Store)) {
	t.Run("filesystem", func(t *testing.T) {
		store, _ := filesystemStore(t)
		test(t, store)
	})
	t.Run("decorated", func(t *testing.T) {
		bucket, err := blockstore.OpenFilesystem(t.TempDir())
		require.NoError(t, err)
		test(t, blockstore.New(blocktest.NewFaulty(bucket), nil))
	})
	t.Run("s3", func(t *testing.T) {
		store, err := blockstore.Open(s3test.Start(t), nil, prometheus.NewRegistry())
		require.NoError(t, err)
		test(t, store)
	})
}

func filesystemStore(t *testing.T) (*blockstore.Store, string) {
	t.Helper()
	config := blockstore.Default()
	config.Filesystem.Directory = filepath.Join(t.TempDir(), "bucket")
	store, err := blockstore.Open(config, nil, prometheus.NewRegistry())
	require.NoError(t, err)
	return store, config.Filesystem.Directory
}

// writeBlock writes a block of two hours and returns its folder, its name and its samples.
func writeBlock(t *testing.T) (dir string, block ulid.ULID, samples map[string][]string) {
	t.Helper()
	dir = blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 30_000), blocktest.Floats("bb", 0, hour, 60_000))
	return dir, ulid.MustParse(filepath.Base(dir)), blocktest.Samples(t, dir)
}

func TestABlockComesBackFromTheBucketAsItWas(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		dir, block, samples := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		require.NoError(t, os.RemoveAll(dir)) // the bucket has it for itself

		tenants, err := store.Tenants(t.Context())
		require.NoError(t, err)
		require.Equal(t, []tenant.ID{acme}, tenants)
		blocks, partial, err := store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Empty(t, partial)
		require.Len(t, blocks, 1)
		require.Equal(t, 2*hour, blocks[block].Meta.MaxTime)
		require.Nil(t, blocks[block].Deletion)
		require.Nil(t, blocks[block].NoCompact)

		dst := filepath.Join(t.TempDir(), "work", block.String())
		require.NoError(t, store.Download(t.Context(), acme, block, dst))
		require.NoError(t, store.Download(t.Context(), acme, block, dst), "a second time there is nothing to do")
		require.Equal(t, samples, blocktest.Samples(t, dst))
		if local, ok := store.LocalDir(acme, block); ok {
			require.Equal(t, samples, blocktest.Samples(t, local))
		}
	})
}

func TestTenantsSeeOnlyTheirOwnBlocks(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		dir, block, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), "acme", dir))
		for _, other := range []tenant.ID{"acm", "acme-2", "b"} {
			blocks, partial, err := store.Blocks(t.Context(), other)
			require.NoError(t, err)
			require.Empty(t, blocks)
			require.Empty(t, partial)
			require.ErrorIs(t, store.Download(t.Context(), other, block, filepath.Join(t.TempDir(), block.String())), blockstore.ErrBlockNotFound)
		}
	})
}

func TestMarksAreKeptAndTheFirstOneStays(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		dir, block, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		_, _, err := store.Blocks(t.Context(), acme) // now it is known without marks
		require.NoError(t, err)
		now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

		require.NoError(t, store.MarkForDeletion(t.Context(), acme, block, blockstore.DeletionMark{Time: now, Reason: blockstore.DeletionCompacted}))
		require.NoError(t, store.MarkForDeletion(t.Context(), acme, block, blockstore.DeletionMark{Time: now.Add(time.Hour), Reason: blockstore.DeletionCompacted}))
		require.NoError(t, store.MarkNoCompact(t.Context(), acme, block, blockstore.NoCompactMark{Time: now, Reason: blockstore.NoCompactDamaged, Details: "index is short"}))
		blocks, _, err := store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Equal(t, &blockstore.DeletionMark{Version: 1, Time: now, Reason: blockstore.DeletionCompacted}, blocks[block].Deletion)
		require.Equal(t, &blockstore.NoCompactMark{Version: 1, Time: now, Reason: blockstore.NoCompactDamaged, Details: "index is short"}, blocks[block].NoCompact)

		require.NoError(t, store.UnmarkForDeletion(t.Context(), acme, block))
		require.NoError(t, store.UnmarkForDeletion(t.Context(), acme, block))
		blocks, _, err = store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Nil(t, blocks[block].Deletion)
		require.NotNil(t, blocks[block].NoCompact)
	})
}

func TestABlockThatIsNotThereCannotBeMarked(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		err := store.MarkForDeletion(t.Context(), acme, ulid.MustNew(1, nil), blockstore.DeletionMark{Reason: blockstore.DeletionRetention})
		require.ErrorIs(t, err, blockstore.ErrBlockNotFound)
		tenants, err := store.Tenants(t.Context())
		require.NoError(t, err)
		require.Empty(t, tenants)
	})
}

func TestADeletedBlockLeavesNothingBehind(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		dir, block, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		require.NoError(t, store.MarkForDeletion(t.Context(), acme, block, blockstore.DeletionMark{Reason: blockstore.DeletionRetention}))
		require.NoError(t, store.Delete(t.Context(), acme, block))
		require.NoError(t, store.Delete(t.Context(), acme, block), "deleting again is no error")
		tenants, err := store.Tenants(t.Context())
		require.NoError(t, err)
		require.Empty(t, tenants)
		_, ok := store.LocalDir(acme, block)
		require.False(t, ok)
	})
}

func TestABlockIsWholeOrInvisibleWheneverItsUploadFails(t *testing.T) {
	dir, block, samples := writeBlock(t)
	for n := int64(1); ; n++ {
		filesystem, err := blockstore.OpenFilesystem(t.TempDir())
		require.NoError(t, err)
		bucket := blocktest.NewFaulty(filesystem)
		store := blockstore.New(bucket, nil)
		bucket.FailFrom(n)
		uploadErr := store.Upload(t.Context(), acme, dir)
		bucket.Heal()

		blocks, _, err := store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		if _, visible := blocks[block]; visible {
			dst := filepath.Join(t.TempDir(), block.String())
			require.NoError(t, store.Download(t.Context(), acme, block, dst))
			require.Equal(t, samples, blocktest.Samples(t, dst))
		} else {
			require.ErrorIs(t, uploadErr, blocktest.ErrBucketDown)
		}
		require.NoError(t, store.Upload(t.Context(), acme, dir), "an upload is resumed")
		blocks, _, err = store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Contains(t, blocks, block)
		if uploadErr == nil {
			require.Greater(t, n, int64(8))
			return
		}
	}
}

func TestAResumedUploadDoesNotCopyWhatIsThere(t *testing.T) {
	dir, _, _ := writeBlock(t)
	filesystem, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	bucket := blocktest.NewFaulty(filesystem)
	store := blockstore.New(bucket, nil)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	first := bucket.Uploads()
	require.Equal(t, int64(4), first, "index, one segment, tombstones, meta.json")
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	require.Equal(t, first, bucket.Uploads())
}

// While an upload puts meta.json, a cleaner that saw the block partial deletes a file of it.
func TestAnUploadThatLosesAFileToACleanerFailsAndIsRepeated(t *testing.T) {
	inner, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	dir, block, samples := writeBlock(t)
	prefix := string(acme) + "/" + block.String() + "/"
	bucket := &losing{Bucket: inner, on: prefix + "meta.json", loses: prefix + "chunks/000001"}
	store := blockstore.New(bucket, nil)
	require.ErrorContains(t, store.Upload(t.Context(), acme, dir), "chunks/000001")
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	dst := filepath.Join(t.TempDir(), block.String())
	require.NoError(t, store.Download(t.Context(), acme, block, dst))
	require.Equal(t, samples, blocktest.Samples(t, dst))
}

// losing is a bucket that once deletes the object loses when the object on is uploaded.
type losing struct {
	objstore.Bucket
	on, loses string
}

func (b *losing) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	if name == b.on {
		b.on = ""
		if err := b.Delete(ctx, b.loses); err != nil {
			return err
		}
	}
	return b.Bucket.Upload(ctx, name, r, options...)
}

func TestObjectsAreAsOldAsTheirUploadAndNotAsTheFileThatWasLinked(t *testing.T) {
	store, root := filesystemStore(t)
	dir, block, _ := writeBlock(t)
	old := time.Now().Add(-48 * time.Hour)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "index"), old, old))
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	info, err := os.Stat(filepath.Join(root, string(acme), block.String(), "index"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), info.ModTime(), time.Hour)
}

func TestAnUploadRefusesWhatIsNotAWholeBlock(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string) string
		want   string
	}{
		{"a folder of another name", func(t *testing.T, dir string) string { return renamed(t, dir, "copy") }, "not named by a ULID"},
		{"a folder with another block's name", func(t *testing.T, dir string) string { return renamed(t, dir, ulid.MustNew(7, nil).String()) }, "it is that of block"},
		{"no meta.json", func(t *testing.T, dir string) string { return without(t, dir, "meta.json") }, "there is no meta.json"},
		{"no index", func(t *testing.T, dir string) string { return without(t, dir, "index") }, "there is no index"},
		{"no chunks", func(t *testing.T, dir string) string { return without(t, dir, "chunks") }, "there are no chunks"},
		{"a meta.json cut short", func(t *testing.T, dir string) string {
			require.NoError(t, os.Truncate(filepath.Join(dir, "meta.json"), 20))
			return dir
		}, "corrupt meta.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _, _ := writeBlock(t)
			store, _ := filesystemStore(t)
			err := store.Upload(t.Context(), acme, c.damage(t, dir))
			require.ErrorIs(t, err, blockstore.ErrInvalidBlock)
			require.ErrorContains(t, err, c.want)
			tenants, err := store.Tenants(t.Context())
			require.NoError(t, err)
			require.Empty(t, tenants)
		})
	}
}

func TestADownloadIsWholeOrAbsentWhereverItFails(t *testing.T) {
	dir, block, samples := writeBlock(t)
	filesystem, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	bucket := blocktest.NewFaulty(filesystem)
	store := blockstore.New(bucket, nil)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	for n := int64(1); ; n++ {
		bucket.FailFrom(n)
		parent := t.TempDir()
		dst := filepath.Join(parent, block.String())
		err := store.Download(t.Context(), acme, block, dst)
		if err == nil {
			require.Greater(t, n, int64(8))
			require.Equal(t, samples, blocktest.Samples(t, dst))
			return
		}
		require.ErrorIs(t, err, blocktest.ErrBucketDown)
		left, err := os.ReadDir(parent)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func TestADeletionThatBreaksOffIsRecognisedAndLeavesNoVisibleBlock(t *testing.T) {
	dir, block, _ := writeBlock(t)
	for n := int64(1); ; n++ {
		filesystem, err := blockstore.OpenFilesystem(t.TempDir())
		require.NoError(t, err)
		bucket := blocktest.NewFaulty(filesystem)
		store := blockstore.New(bucket, nil)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		require.NoError(t, store.MarkForDeletion(t.Context(), acme, block, blockstore.DeletionMark{Reason: blockstore.DeletionRetention}))
		bucket.FailFrom(n)
		deleteErr := store.Delete(t.Context(), acme, block)
		bucket.Heal()
		if deleteErr == nil {
			require.Greater(t, n, int64(5))
			return
		}
		blocks, partial, err := store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		if n <= 2 { // neither the list nor the deletion of meta.json came through
			require.Contains(t, blocks, block)
			continue
		}
		require.Empty(t, blocks)
		require.Equal(t, []ulid.ULID{block}, partial)
		found, err := store.Partial(t.Context(), acme, block)
		require.NoError(t, err)
		require.True(t, found.Marked)
		require.False(t, found.DamagedMeta)
		require.False(t, found.Whole)
	}
}

func TestADamagedMetaIsReportedAndHidesNoOtherBlock(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":            `{"ulid": "`,
		"another block":       `{"version":1,"ulid":"0000000001AAAAAAAAAAAAAAAA"}`,
		"an unknown version":  `{"version":2,"ulid":"%s"}`,
		"no range":            `{"version":1,"ulid":"%s","minTime":5,"maxTime":4}`,
		"nothing in the file": ``,
	} {
		t.Run(name, func(t *testing.T) {
			store, root := filesystemStore(t)
			good, goodID, _ := writeBlock(t)
			bad, badID, _ := writeBlock(t)
			require.NoError(t, store.Upload(t.Context(), acme, good))
			require.NoError(t, store.Upload(t.Context(), acme, bad))
			if strings.Contains(text, "%s") {
				text = fmt.Sprintf(text, badID)
			}
			replace(t, filepath.Join(root, string(acme), badID.String(), "meta.json"), text)
			blocks, partial, err := store.Blocks(t.Context(), acme)
			require.NoError(t, err)
			require.Contains(t, blocks, goodID)
			require.NotContains(t, blocks, badID)
			require.Equal(t, []ulid.ULID{badID}, partial)
			found, err := store.Partial(t.Context(), acme, badID)
			require.NoError(t, err)
			require.True(t, found.DamagedMeta)
			require.WithinDuration(t, time.Now(), found.LastModified, time.Hour)
		})
	}
}

func TestADamagedMarkErrsOnTheSafeSide(t *testing.T) {
	store, root := filesystemStore(t)
	dir, block, _ := writeBlock(t)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	inBucket := filepath.Join(root, string(acme), block.String())
	replace(t, filepath.Join(inBucket, "deletion-mark.json"), `{"rea`)
	replace(t, filepath.Join(inBucket, "no-compact-mark.json"), `nonsense`)

	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Nil(t, blocks[block].Deletion, "without a reason nothing is deleted nor hidden")
	require.Equal(t, blockstore.NoCompactUnreadableMark, blocks[block].NoCompact.Reason)

	mark := blockstore.DeletionMark{Time: time.Unix(9, 0).UTC(), Reason: blockstore.DeletionRetention}
	require.NoError(t, store.MarkForDeletion(t.Context(), acme, block, mark))
	blocks, _, err = store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Equal(t, blockstore.DeletionRetention, blocks[block].Deletion.Reason)
}

func TestAMarkWithoutReasonOrTimeDeletesNothing(t *testing.T) {
	for name, text := range map[string]string{
		"of Cortex": `{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","deletion_time":1469918176,"version":1}`,
		"no time":   `{"version":1,"reason":"retention"}`,
		"no reason": `{"version":1,"time":"2026-01-02T03:04:05Z"}`,
	} {
		t.Run(name, func(t *testing.T) {
			store, root := filesystemStore(t)
			dir, block, _ := writeBlock(t)
			require.NoError(t, store.Upload(t.Context(), acme, dir))
			replace(t, filepath.Join(root, string(acme), block.String(), "deletion-mark.json"), text)
			blocks, _, err := store.Blocks(t.Context(), acme)
			require.NoError(t, err)
			require.Contains(t, blocks, block)
			require.Nil(t, blocks[block].Deletion)
		})
	}
}

func TestABlockThatBecameWholeMeanwhileIsNotCalledDamaged(t *testing.T) {
	store, _ := filesystemStore(t)
	dir, block, _ := writeBlock(t)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	found, err := store.Partial(t.Context(), acme, block)
	require.NoError(t, err)
	require.True(t, found.Whole)
	require.False(t, found.DamagedMeta)
}

func TestAPartialBlockIsNotDownloaded(t *testing.T) {
	inner, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	bucket := &completing{Bucket: inner}
	store := blockstore.New(bucket, nil)
	dir, block, _ := writeBlock(t)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	require.NoError(t, inner.Delete(t.Context(), string(acme)+"/"+block.String()+"/meta.json"))
	// The upload is completed between the listing and the end of the download.
	bucket.afterIter = func() { require.NoError(t, store.Upload(t.Context(), acme, dir)) }
	dst := filepath.Join(t.TempDir(), block.String())
	require.ErrorIs(t, store.Download(t.Context(), acme, block, dst), blockstore.ErrBlockNotFound)
	require.NoDirExists(t, dst)
}

// completing is a bucket that does something once after the next listing.
type completing struct {
	objstore.Bucket
	afterIter func()
}

func (b *completing) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	err := b.Bucket.Iter(ctx, dir, f, options...)
	if after := b.afterIter; after != nil {
		b.afterIter = nil
		after()
	}
	return err
}

func TestForeignObjectsAreIgnored(t *testing.T) {
	store, root := filesystemStore(t)
	dir, block, _ := writeBlock(t)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	for _, name := range []string{"README", "acme/bucket-index.json.gz", "acme/markers/x", "not a tenant/x", "acme/" + block.String() + "/sidecar"} {
		replace(t, filepath.Join(root, name), "foreign")
	}
	tenants, err := store.Tenants(t.Context())
	require.NoError(t, err)
	require.Equal(t, []tenant.ID{acme}, tenants)
	blocks, partial, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 1)
	require.Empty(t, partial)
}

func TestMetasAreReadOnce(t *testing.T) {
	filesystem, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	bucket := blocktest.NewFaulty(filesystem)
	store := blockstore.New(bucket, nil)
	for range 3 {
		dir, _, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
	}
	_, _, err = store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	before := bucket.Calls()
	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 3)
	require.Equal(t, int64(1), bucket.Calls()-before, "one LIST and nothing else")
}

func TestAnUnavailableBucketIsAnErrorAndNotAnEmptyList(t *testing.T) {
	filesystem, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	bucket := blocktest.NewFaulty(filesystem)
	store := blockstore.New(bucket, nil)
	dir, _, _ := writeBlock(t)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	for n := int64(1); n <= 2; n++ {
		bucket.FailFrom(n)
		_, _, err = store.Blocks(t.Context(), acme)
		require.ErrorIs(t, err, blocktest.ErrBucketDown)
	}
	bucket.FailFrom(1)
	_, err = store.Tenants(t.Context())
	require.ErrorIs(t, err, blocktest.ErrBucketDown)
}

func TestTheS3ServerOfTheTestsIsABucketLikeAnyOther(t *testing.T) {
	config := s3test.Start(t).S3
	provider := s3.DefaultConfig
	provider.Endpoint, provider.Region, provider.Insecure = config.Endpoint, config.Region, config.Insecure
	provider.AccessKey, provider.SecretKey, provider.Bucket = config.AccessKey, string(config.SecretKey), config.Bucket
	bucket, err := s3.NewBucketWithConfig(nil, provider, "test", nil)
	require.NoError(t, err)
	objstore.AcceptanceTest(t, bucket)
}

func TestMetricsOfTheBucketCarryOurPrefix(t *testing.T) {
	registry := prometheus.NewRegistry()
	config := blockstore.Default()
	config.Filesystem.Directory = t.TempDir()
	store, err := blockstore.Open(config, nil, registry)
	require.NoError(t, err)
	_, err = store.Tenants(t.Context())
	require.NoError(t, err)
	families, err := registry.Gather()
	require.NoError(t, err)
	require.NotEmpty(t, families)
	for _, family := range families {
		require.True(t, strings.HasPrefix(family.GetName(), "hundredfold_objstore_"), family.GetName())
	}
	require.NoError(t, store.Close())
}

func renamed(t *testing.T, dir, name string) string {
	t.Helper()
	to := filepath.Join(filepath.Dir(dir), name)
	require.NoError(t, os.Rename(dir, to))
	return to
}

func without(t *testing.T, dir, file string) string {
	t.Helper()
	require.NoError(t, os.RemoveAll(filepath.Join(dir, file)))
	return dir
}

// replace writes a file with its folders.
func replace(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}
