package remoteblock

import (
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func TestWhatWasPrefetchedIsSelectedWithoutARoundTrip(t *testing.T) {
	for name, series := range map[string][]blocktest.Series{"a small index": world(100), "a large index": padded(6000)} {
		t.Run(name, func(t *testing.T) {
			bucket := &rounds{Bucket: objstore.NewInMemBucket()}
			store, block := upload(t, bucket, blocktest.Write(t, t.TempDir(), 0, 2*hour, series...), true)
			pool := openPool(t, store)
			want, err := selectAll(t, openBlock(t, openPool(t, store), block), "up")
			require.NoError(t, err)
			require.NotEmpty(t, want)

			r := openBlock(t, pool, block)
			require.NoError(t, r.Prefetch(t.Context(), 0, 2*hour, labels.MustNewMatcher(labels.MatchEqual, "__name__", "up")))
			bucket.reset()
			got, err := selectAll(t, openBlock(t, pool, block), "up")
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.Zero(t, bucket.count, "%v", bucket.names)
		})
	}
}
