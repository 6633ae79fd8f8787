package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/testcluster"
)

// eightHours makes at least two complete blocks.
func eightHours(c *loadgen.Config) { c.Span, c.Churn = 8*time.Hour, 0.2 }

// blockQueries are asked at times that blocks cover.
func blockQueries() []string {
	return []string{
		`count({__name__!=""})`,
		`sum by (namespace) (rate(http_requests_total[5m]))`,
		`histogram_quantile(0.9, sum by (le) (rate(http_request_duration_seconds_bucket[10m])))`,
		`histogram_quantile(0.9, sum(rate(rpc_server_handling_seconds[10m])))`,
		`max by (pod) (go_goroutines)`,
		`topk(3, container_memory_working_set_bytes)`,
		`sum by (pod) (count_over_time(go_goroutines[1h]))`,
	}
}

func TestBlocksOpenInPrometheus(t *testing.T) {
	t.Parallel()
	testcluster.Tool(t, "prometheus")
	process := testcluster.Start(t, testcluster.Options{Config: quiet})
	send(t, newLoad(t, process.URL, eightHours))

	bucket := filepath.Join(process.DataDir, "bucket")
	store := openStore(t, blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: bucket}})
	from, to := awaitBlocks(t, store, 2)
	answers := ask(t, process.API(""), from, to)

	process.Stop() // so that nothing changes while the blocks are copied
	blocks := testcluster.CopyDir(t, filepath.Join(bucket, string(tenant.Default)))
	for _, d := range folders(t, blocks) {
		require.Contains(t, testcluster.RunTool(t, "promtool", "tsdb", "list", blocks), d)
		require.Contains(t, testcluster.RunTool(t, "promtool", "tsdb", "analyze", blocks, d), "Total Series:")
	}

	prometheus := testcluster.StartPrometheus(t, "global: {}\n", blocks, "--storage.tsdb.retention.time=10y")
	require.Equal(t, answers, ask(t, prometheus.API(""), from, to))
}

func TestBlocksInS3AreQueried(t *testing.T) {
	t.Parallel()
	s3 := s3test.Start(t)
	config := fmt.Sprintf(quiet+"bucket:\n  type: s3\n  s3: {endpoint: %q, bucket: %q, access_key: %q, secret_key: %q, region: %q, insecure: true}\n",
		s3.S3.Endpoint, s3.S3.Bucket, s3.S3.AccessKey, string(s3.S3.SecretKey), s3.S3.Region)
	process := testcluster.Start(t, testcluster.Options{Config: config})
	g := newLoad(t, process.URL, eightHours)
	send(t, g)
	from, to := awaitBlocks(t, openStore(t, s3), 2)
	verify(t, g)
	answers := ask(t, process.API(""), from, to)

	// What is only in the bucket gives the same answers.
	process.Stop()
	require.NoError(t, os.RemoveAll(process.DataDir))
	process.Restart()
	testcluster.Eventually(t, time.Minute, func(ctx context.Context) error {
		value, _, _, err := process.API("").Query(ctx, `count({__name__!=""})`, to)
		if vector, ok := value.(model.Vector); err == nil && (!ok || len(vector) == 0) {
			return errNotYet
		}
		return err
	})
	require.Equal(t, answers, ask(t, process.API(""), from, to))
}

func openStore(t testing.TB, cfg blockstore.Config) *blockstore.Store {
	t.Helper()
	store, err := blockstore.Open(cfg, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

// awaitBlocks waits until the bucket holds as many blocks of the default tenant,
// and returns times between which they hold everything.
func awaitBlocks(t testing.TB, store *blockstore.Store, count int) (from, to time.Time) {
	t.Helper()
	testcluster.Eventually(t, time.Minute, func(ctx context.Context) error {
		blocks, partial, err := store.Blocks(ctx, tenant.Default)
		if err != nil {
			return err
		}
		if len(blocks) < count || len(partial) > 0 {
			return fmt.Errorf("%d blocks and %d parts of blocks are in the bucket: %w", len(blocks), len(partial), errNotYet)
		}
		first, last := int64(1<<62), int64(0)
		for _, b := range blocks {
			first, last = min(first, b.Meta.MinTime), max(last, b.Meta.MaxTime)
		}
		// The bounds are exclusive of what the queries look back at.
		from, to = time.UnixMilli(first).Add(time.Hour+time.Minute), time.UnixMilli(last).Add(-time.Minute)
		return nil
	})
	return from, to
}

// ask returns the answers to blockQueries.
func ask(t testing.TB, api v1.API, from, to time.Time) map[string]model.Value {
	t.Helper()
	answers := map[string]model.Value{}
	for _, query := range blockQueries() {
		answers["at the end: "+query] = sorted(testcluster.Instant(t, api, query, to))
		answers["over time: "+query] = sorted(testcluster.Range(t, api, query, v1.Range{Start: from, End: to, Step: 7 * time.Minute}))
	}
	for query, answer := range answers {
		require.NotEmpty(t, answer, query)
	}
	return answers
}

func folders(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	require.NotEmpty(t, names)
	return names
}
