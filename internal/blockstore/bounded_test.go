package blockstore

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// hung is a bucket that takes requests and never goes on with them.
type hung struct{ objstore.Bucket }

func forever(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (h hung) Iter(ctx context.Context, _ string, f func(string) error, _ ...objstore.IterOption) error {
	if err := f("the first"); err != nil {
		return err
	}
	return forever(ctx)
}

func (h hung) Get(ctx context.Context, _ string) (io.ReadCloser, error) {
	begun := false
	return io.NopCloser(readerFunc(func(p []byte) (int, error) {
		if begun {
			return 0, forever(ctx)
		}
		begun = true
		return copy(p, "the first"), nil
	})), nil
}

func (h hung) GetRange(ctx context.Context, _ string, _, _ int64) (io.ReadCloser, error) {
	return nil, forever(ctx)
}

func (h hung) Exists(ctx context.Context, _ string) (bool, error) { return false, forever(ctx) }

func (h hung) Attributes(ctx context.Context, _ string) (objstore.ObjectAttributes, error) {
	return objstore.ObjectAttributes{}, forever(ctx)
}

func (h hung) Upload(ctx context.Context, _ string, r io.Reader, _ ...objstore.ObjectUploadOption) error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return forever(ctx)
}

func (h hung) Delete(ctx context.Context, _ string) error { return forever(ctx) }

// slowly waits for longer than a bucket may be silent.
func slowly() { <-time.After(10 * maxSilence) }

func TestARequestToABucketThatHangsIsGivenUp(t *testing.T) {
	requests := map[string]func(context.Context, objstore.Bucket) error{
		"a listing": func(ctx context.Context, b objstore.Bucket) error {
			return b.Iter(ctx, "", func(string) error { slowly(); return nil })
		},
		"an object": func(ctx context.Context, b objstore.Bucket) error {
			r, err := b.Get(ctx, "a")
			if err != nil {
				return err
			}
			slowly()
			_, err = io.Copy(io.Discard, r)
			_ = r.Close()
			return err
		},
		"a range": func(ctx context.Context, b objstore.Bucket) error {
			_, err := b.GetRange(ctx, "a", 1, 2)
			return err
		},
		"whether there is an object": func(ctx context.Context, b objstore.Bucket) error {
			_, err := b.Exists(ctx, "a")
			return err
		},
		"attributes": func(ctx context.Context, b objstore.Bucket) error {
			_, err := b.Attributes(ctx, "a")
			return err
		},
		"an upload": func(ctx context.Context, b objstore.Bucket) error {
			slow := readerFunc(func(p []byte) (int, error) {
				slowly()
				return copy(p, "all"), io.EOF
			})
			return b.Upload(ctx, "a", objstore.NopCloserWithSize(io.LimitReader(slow, 3)))
		},
		"an upload from memory": func(ctx context.Context, b objstore.Bucket) error {
			return b.Upload(ctx, "a", bytes.NewReader([]byte("all")))
		},
		"a removal": func(ctx context.Context, b objstore.Bucket) error { return b.Delete(ctx, "a") },
	}
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				err := request(t.Context(), bounded{hung{}})
				require.ErrorIs(t, err, errSilent)
				require.NotErrorIs(t, err, context.Canceled, "which means that nobody waits for it any more")
				waited := time.Since(begun) % (10 * maxSilence) // less what the caller did
				require.Equal(t, maxSilence, waited)
			})
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				require.ErrorIs(t, request(ctx, bounded{hung{}}), context.DeadlineExceeded)
			})
		})
	}
}

func TestWhatABucketSaysIsPassedOn(t *testing.T) {
	b := bounded{objstore.NewInMemBucket()}
	for name, content := range map[string]io.Reader{
		"a": bytes.NewReader([]byte("all")),
		"b": objstore.NopCloserWithSize(strings.NewReader("all")),
	} {
		require.NoError(t, b.Upload(t.Context(), name, content))
		r, err := b.Get(t.Context(), name)
		require.NoError(t, err)
		size, err := objstore.TryToGetSize(r)
		require.NoError(t, err)
		require.EqualValues(t, 3, size)
		text, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Equal(t, "all", string(text))
	}
	_, err := b.Get(t.Context(), "none")
	require.True(t, b.IsObjNotFoundErr(err))
}
