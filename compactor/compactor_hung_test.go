package compactor

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// hanging is a bucket that goes on with nothing after a number of requests, until it is healed.
type hanging struct {
	objstore.Bucket
	left atomic.Int64 // requests that are answered
}

func (h *hanging) wait(ctx context.Context) error {
	if h.left.Add(-1) >= 0 {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (h *hanging) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	if err := h.wait(ctx); err != nil {
		return err
	}
	return h.Bucket.Iter(ctx, dir, f, options...)
}

func (h *hanging) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := h.wait(ctx); err != nil {
		return nil, err
	}
	return h.Bucket.Get(ctx, name)
}

func (h *hanging) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	if err := h.wait(ctx); err != nil {
		return err
	}
	return h.Bucket.Upload(ctx, name, r, options...)
}

// TestABucketThatHangsEndsAPassAndNotTheCompactor lets the bucket hang from some of its
// requests on.
func TestABucketThatHangsEndsAPassAndNotTheCompactor(t *testing.T) {
	const enough = 1 << 30
	for answered := int64(0); ; answered += everyCall() {
		whole := false
		synctest.Test(t, func(t *testing.T) {
			bucket := &hanging{Bucket: objstore.NewInMemBucket()}
			bucket.left.Store(enough)
			f := fixtureOver(t, blockstore.New(bucket, nil))
			f.now = time.Now
			for start := int64(0); start < 6*hour; start += 2 * hour {
				f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
			}
			want := f.samples(t)

			bucket.left.Store(answered)
			begun := time.Now()
			err := f.RunOnce(t.Context())
			if whole = bucket.left.Load() >= 0; whole {
				require.NoError(t, err)
			}
			require.Less(t, time.Since(begun), time.Hour, "after %d requests", answered)

			bucket.left.Store(enough)
			require.NoError(t, f.RunOnce(t.Context()))
			require.Equal(t, want, f.samples(t))
			require.Len(t, f.visible(t), 1, "after %d requests", answered)
		})
		if whole {
			return
		}
	}
}
