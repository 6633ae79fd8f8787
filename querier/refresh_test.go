package querier

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// losing is a bucket that loses one request, which is never answered.
type losing struct {
	objstore.Bucket
	next atomic.Pointer[string] // the beginning of the operation and its name; nil: none
	lost atomic.Int64
}

func (l *losing) wait(ctx context.Context, request string) error {
	if next := l.next.Load(); next != nil && strings.HasPrefix(request, *next) && l.next.CompareAndSwap(next, nil) {
		l.lost.Add(1)
		<-ctx.Done()
	}
	return ctx.Err()
}

func (l *losing) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	if err := l.wait(ctx, "list "+dir+";"); err != nil {
		return err
	}
	return l.Bucket.Iter(ctx, dir, f, options...)
}

func (l *losing) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, options ...objstore.IterOption) error {
	if err := l.wait(ctx, "list "+dir+";"); err != nil {
		return err
	}
	return l.Bucket.IterWithAttributes(ctx, dir, f, options...)
}

func (l *losing) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := l.wait(ctx, "get "+name); err != nil {
		return nil, err
	}
	return l.Bucket.Get(ctx, name)
}

func TestARequestThatIsNeverAnsweredDoesNotStopRefreshes(t *testing.T) {
	for name, test := range map[string]struct {
		request string
		notice  bool
		within  time.Duration
	}{
		"the tenants":       {"list ;", false, lookTimeout},
		"the indexes":       {"list ~index;", false, lookTimeout},
		"an index":          {"get " + aliceIndex, false, lookTimeout},
		"a tenant's blocks": {"list bob;", false, listTimeout},
		"a block":           {"get alice/", true, lookTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bucket := &losing{Bucket: objstore.NewInMemBucket()}
				r := newRig(t, rigOption{bucket: bucket})
				r.uploadHour(0)
				r.index(1)
				r.upload(bob, 0, hour, blocktest.Floats("y", 0, hour, minute))
				stop := r.running()
				defer stop()
				synctest.Wait()
				require.NoError(t, r.Ready())
				<-time.After(time.Minute) // the index has settled, and everything was listed

				block := r.uploadHour(1)
				r.index(2)
				bucket.next.Store(&test.request)
				if test.notice {
					r.BlockUploaded(alice, block)
				}
				<-time.After(2*time.Duration(r.cfg.RefreshInterval) + test.within)
				synctest.Wait()
				require.EqualValues(t, 1, bucket.lost.Load())
				require.True(t, r.Visible(alice, block))
				require.NoError(t, r.Ready())
			})
		})
	}
}
