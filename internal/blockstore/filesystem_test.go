package blockstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

var errCrash = errors.New("the machine has crashed")

func TestFilesystemIsABucketLikeAnyOther(t *testing.T) {
	bucket, err := OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	objstore.AcceptanceTest(t, bucket)
}

func TestFilesystemUploadSyncsAFileBeforeItIsVisibleAndTheFoldersAfter(t *testing.T) {
	bucket, steps := recorded(t)
	require.NoError(t, bucket.Upload(t.Context(), "tenant/block/meta.json", strings.NewReader("{}")))
	require.Equal(t, []string{
		"create ~tmp", "sync ~tmp", "mkdir tenant/block", "rename tenant/block/meta.json",
		"syncdir tenant/block", "syncdir tenant", "syncdir .",
	}, *steps)
}

func TestFilesystemDeleteIsDurableBeforeItReturns(t *testing.T) {
	bucket, steps := recorded(t)
	require.NoError(t, bucket.Upload(t.Context(), "tenant/block/meta.json", strings.NewReader("{}")))
	require.NoError(t, bucket.Upload(t.Context(), "tenant/block/index", strings.NewReader("index")))
	*steps = nil
	require.NoError(t, bucket.Delete(t.Context(), "tenant/block/meta.json"))
	require.Equal(t, []string{
		"remove tenant/block/meta.json", "remove tenant/block", // which fails, there is an index
		"syncdir tenant/block", "syncdir tenant", "syncdir .",
	}, *steps)
}

func TestFilesystemShowsNothingOfAnUploadThatCrashedAtAnyStep(t *testing.T) {
	for step := 1; ; step++ {
		root := t.TempDir()
		bucket, err := OpenFilesystem(root)
		require.NoError(t, err)
		require.NoError(t, bucket.Upload(t.Context(), "tenant/old", strings.NewReader("old")))
		var renamed bool
		bucket.disk = crashingDisk(bucket.disk, step, &renamed)
		err = bucket.Upload(t.Context(), "tenant/block/index", strings.NewReader("new"))
		if err == nil {
			require.Greater(t, step, 6, "an upload has at least the steps create, sync, mkdir, rename, and two folders")
			return
		}
		require.ErrorIs(t, err, errCrash)

		reopened, err := OpenFilesystem(root)
		require.NoError(t, err)
		objects := contents(t, reopened)
		if renamed {
			require.Equal(t, map[string]string{"tenant/old": "old", "tenant/block/index": "new"}, objects, "crash at step %d", step)
		} else {
			require.Equal(t, map[string]string{"tenant/old": "old"}, objects, "crash at step %d", step)
		}
		left, err := os.ReadDir(filepath.Join(root, tempDir))
		require.NoError(t, err)
		require.Empty(t, left, "opening the bucket removes what the upload left behind")
	}
}

func TestFilesystemKeepsTheOldObjectWhenAnUploadFailsHalfway(t *testing.T) {
	bucket, err := OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, bucket.Upload(t.Context(), "a/b", strings.NewReader("old")))
	half := io.MultiReader(strings.NewReader("ne"), readerFunc(func([]byte) (int, error) { return 0, errCrash }))
	require.ErrorIs(t, bucket.Upload(t.Context(), "a/b", half), errCrash)
	require.Equal(t, map[string]string{"a/b": "old"}, contents(t, bucket))
}

func TestFilesystemUploadEndsWithItsContext(t *testing.T) {
	bucket, err := OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	r := readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	require.ErrorIs(t, bucket.Upload(ctx, "endless", r), context.Canceled)
	require.Empty(t, contents(t, bucket))
}

func TestFilesystemOpenLeavesTheTemporaryFilesOfLiveUploadsAlone(t *testing.T) {
	root := t.TempDir()
	bucket, err := OpenFilesystem(root)
	require.NoError(t, err)
	r := readerFunc(func([]byte) (int, error) {
		// Another process opens the bucket in the middle of the upload.
		if _, err := OpenFilesystem(root); err != nil {
			return 0, err
		}
		return 0, io.EOF
	})
	require.NoError(t, bucket.Upload(t.Context(), "x", io.MultiReader(strings.NewReader("text"), r)))
	require.Equal(t, map[string]string{"x": "text"}, contents(t, bucket))
}

func TestFilesystemUploadsAndDeletionsInOneFolderDoNotDisturbEachOther(t *testing.T) {
	bucket, err := OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	// Each deletion leaves the folder empty for an instant; no upload may be lost to that.
	var group errgroup.Group
	for _, name := range []string{"a", "b", "c", "d"} {
		group.Go(func() error {
			for range 30 {
				key := "tenant/folder/" + name
				if err := bucket.Upload(t.Context(), key, strings.NewReader(name)); err != nil {
					return err
				}
				if ok, err := bucket.Exists(t.Context(), key); err != nil || !ok {
					return errors.Join(err, errors.New("an object is gone that was just uploaded"))
				}
				if err := bucket.Delete(t.Context(), key); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		for range 200 {
			if err := bucket.Iter(t.Context(), "", func(string) error { return nil }, objstore.WithRecursiveIter()); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, group.Wait())
}

func TestFilesystemRefusesNamesOutsideTheBucket(t *testing.T) {
	bucket, err := OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	for _, name := range []string{"", ".", "..", "../x", "/etc/x", "a/../../x", tempDir, tempDir + "/x"} {
		require.Error(t, bucket.Upload(t.Context(), name, strings.NewReader("x")), "name %q", name)
		require.Error(t, bucket.Delete(t.Context(), name), "name %q", name)
	}
}

func TestFilesystemReportsADirectoryThatItCannotUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := OpenFilesystem(filepath.Join(file, "bucket"))
	require.ErrorContains(t, err, "create bucket directory "+filepath.Join(file, "bucket"))
}

// contents returns all objects with their content.
func contents(t *testing.T, bucket objstore.Bucket) map[string]string {
	t.Helper()
	objects := make(map[string]string)
	require.NoError(t, bucket.Iter(t.Context(), "", func(name string) error {
		r, err := bucket.Get(t.Context(), name)
		if err != nil {
			return err
		}
		var text bytes.Buffer
		_, err = io.Copy(&text, r)
		objects[name] = text.String()
		return errors.Join(err, r.Close())
	}, objstore.WithRecursiveIter()))
	return objects
}

// intercept returns a disk that calls before with each step and the path that it
// concerns, and does not take the step if that returns an error.
func intercept(d disk, before func(step, path string) error) disk {
	return disk{
		create: func(path string) (*os.File, error) {
			if err := before("create", filepath.Dir(path)); err != nil {
				return nil, err
			}
			return d.create(path)
		},
		sync: func(f *os.File) error {
			return errors.Join(before("sync", filepath.Dir(f.Name())), d.sync(f))
		},
		syncDir: func(dir string) error { return first(before("syncdir", dir), func() error { return d.syncDir(dir) }) },
		mkdir:   func(dir string) error { return first(before("mkdir", dir), func() error { return d.mkdir(dir) }) },
		link: func(from, to string) error {
			return first(before("link", to), func() error { return d.link(from, to) })
		},
		rename: func(from, to string) error {
			return first(before("rename", to), func() error { return d.rename(from, to) })
		},
		remove: func(path string) error { return first(before("remove", path), func() error { return d.remove(path) }) },
	}
}

func first(err error, then func() error) error {
	if err != nil {
		return err
	}
	return then()
}

// recorded returns an empty bucket and the steps that it takes on the disk.
func recorded(t *testing.T) (*Filesystem, *[]string) {
	t.Helper()
	bucket, err := OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	var steps []string
	bucket.disk = intercept(bucket.disk, func(step, path string) error {
		relative, err := filepath.Rel(bucket.root, path)
		steps = append(steps, step+" "+relative)
		return err
	})
	return bucket, &steps
}

// crashingDisk returns a disk that fails the given step and all later ones, as a
// crash would, and tells whether a rename came before.
func crashingDisk(d disk, crashAt int, renamed *bool) disk {
	taken := 0
	return intercept(d, func(step, _ string) error {
		if taken++; taken >= crashAt {
			return errCrash
		}
		*renamed = *renamed || step == "rename"
		return nil
	})
}
