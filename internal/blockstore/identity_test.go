package blockstore

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestAllMembersOfAClusterLearnTheSeedOfTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := objstore.NewInMemBucket()
		first, err := New(bucket, nil).IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		start := time.Now()
		for range 3 {
			seed, err := New(bucket, nil).IdentitySeed(t.Context(), "prod")
			require.NoError(t, err)
			require.Equal(t, first, seed)
		}
		require.Zero(t, time.Since(start), "only the first one waits")
		text, _, err := New(bucket, nil).readSmall(t.Context(), identityKey)
		require.NoError(t, err)
		require.Regexp(t, `^{"version":1,"seed":"[0-9a-f]{16}","cluster":"prod","settled":true}$`, string(text))
		other, err := New(objstore.NewInMemBucket(), nil).IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		require.NotEqual(t, first, other)
	})
}

func TestMembersThatStartAtOnceAgreeOnASeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := objstore.NewInMemBucket()
		seeds := make([]uint64, 10)
		var group sync.WaitGroup
		for i := range seeds {
			group.Go(func() {
				// They look at once and take different times to write.
				slow := slowBucket{Bucket: bucket, delay: time.Duration(i) * 50 * time.Millisecond}
				var err error
				seeds[i], err = New(slow, nil).IdentitySeed(t.Context(), "prod")
				require.NoError(t, err)
			})
		}
		group.Wait()
		for _, seed := range seeds {
			require.Equal(t, seeds[0], seed)
		}
	})
}

// slowBucket takes its time to upload.
type slowBucket struct {
	objstore.Bucket
	delay time.Duration
}

func (b slowBucket) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	timer := time.NewTimer(b.delay)
	defer timer.Stop()
	<-timer.C
	return b.Bucket.Upload(ctx, name, r, options...)
}

func TestABucketOfAnotherClusterIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := New(objstore.NewInMemBucket(), nil)
		_, err := store.IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		_, err = store.IdentitySeed(t.Context(), "staging")
		require.ErrorIs(t, err, ErrOtherCluster)
		require.ErrorContains(t, err, `its cluster is "prod" and this one is "staging". Give this cluster a bucket of its own, or correct cluster.name`)
		require.False(t, store.Retryable(err))
	})
}

func TestAClusterKeepsItsSeedWhenItMovesToAnotherBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := objstore.NewInMemBucket(), objstore.NewInMemBucket()
		seed, err := New(before, nil).IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		moved, err := NewFollowing(after, before, nil, nil).IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		require.Equal(t, seed, moved)
		moved, err = New(after, nil).IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		require.Equal(t, seed, moved, "also when the previous bucket is gone")

		_, err = NewFollowing(objstore.NewInMemBucket(), before, nil, nil).IdentitySeed(t.Context(), "staging")
		require.ErrorIs(t, err, ErrOtherCluster)
	})
}

func TestABucketThatIsAwayIsAskedAgain(t *testing.T) {
	bucket := failing{objstore.NewInMemBucket()}
	store := New(bucket, nil)
	_, err := store.IdentitySeed(t.Context(), "prod")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.True(t, store.Retryable(err))
}

type failing struct{ objstore.Bucket }

func (failing) Get(context.Context, string) (io.ReadCloser, error) { return nil, io.ErrUnexpectedEOF }

func TestWhatConcernsTheClusterIsNoTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := New(objstore.NewInMemBucket(), nil)
		_, err := store.IdentitySeed(t.Context(), "prod")
		require.NoError(t, err)
		require.NoError(t, store.PutVisit(t.Context(), "acme", Visit{Instance: "a"}))
		require.NoError(t, store.addCopied(t.Context(), "acme", copied{{}: {}}))
		tenants, err := store.Tenants(t.Context())
		require.NoError(t, err)
		require.Empty(t, tenants)
		for _, name := range []string{identityKey, visitKey("acme"), copiedKey("acme")} {
			first, _, _ := strings.Cut(name, "/")
			_, err := tenant.Parse(first)
			require.ErrorIs(t, err, tenant.ErrInvalidID)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add(`{"version":1,"seed":"0123456789abcdef","cluster":"prod"}`)
	f.Add(`{"version":2,"seed":"0123456789abcdef","cluster":"prod"}`)
	f.Add(`{"version":1,"seed":"0123456789abcde","cluster":"prod"}`)
	f.Add(`{"version":1,"seed":"0123456789abcdef"}`)
	f.Add(`{"version":1,"seed":`)
	f.Fuzz(func(t *testing.T, text string) {
		i, err := parseIdentity([]byte(text))
		if err != nil {
			require.ErrorIs(t, err, ErrCorruptIdentity)
			require.False(t, New(objstore.NewInMemBucket(), nil).Retryable(err))
			return
		}
		require.NotEmpty(t, i.Cluster)
		_, err = i.seed()
		require.NoError(t, err)
	})
}

func TestTheSeedIsReadAsItIsWritten(t *testing.T) {
	i, err := parseIdentity([]byte(`{"version":1,"seed":"0123456789abcdef","cluster":"prod","later":true}`))
	require.NoError(t, err)
	require.Equal(t, "prod", i.Cluster)
	seed, err := i.seed()
	require.NoError(t, err)
	require.Equal(t, uint64(0x0123456789abcdef), seed)
}
