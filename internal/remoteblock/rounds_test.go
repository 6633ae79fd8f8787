package remoteblock

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/testcluster/history"
)

// Long chunks, and values that hardly compress: the last chunk of a series is longer than most.
func TestSeriesOfJoinedChunksNeedNoFurtherRoundTrip(t *testing.T) {
	c := history.Year()
	c.End, c.Joined = c.Start.Add(24*time.Hour), true
	dir := t.TempDir()
	_, err := history.Write(t.Context(), c, dir)
	require.NoError(t, err)
	blocks, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, blocks, 1)
	bucket := &rounds{Bucket: objstore.NewInMemBucket()}
	store, block := upload(t, bucket, filepath.Join(dir, blocks[0].Name()), true)
	for _, metric := range []string{history.Counter, history.Gauge} {
		bucket.reset()
		r := openBlock(t, openPool(t, store), block)
		mint, maxt := c.Start.UnixMilli(), c.End.UnixMilli()
		q, err := tsdb.NewBlockQuerier(r.Select(t.Context(), mint, maxt, true), mint, maxt)
		require.NoError(t, err)
		read := lines(q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", metric)))
		require.Greater(t, len(read), 9*24*60)
		require.NoError(t, q.Close())
		require.Equal(t, 2, bucket.count, "%v", bucket.names)
	}
}
