package faults

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/testcluster"
	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// A process that was alone, with its blocks in a folder, becomes the first ingester of
// a cluster whose blocks are in S3. Then two more join and the first is drained: all it
// ever had is answered at its URL throughout, and in the end by the others.
func TestOneProcessBecomesACluster(t *testing.T) {
	t.Parallel()
	alone := testcluster.Start(t, testcluster.Options{Config: "self_monitoring: {enabled: false}\n"})
	l := startLoad(t, alone.URL, func(c *loadgen.Config) { c.Rate = 60_000 })
	awaitBlocks(t, alone)
	w := startWatch(t, alone.URL, l)
	l.goesOn(settled)
	w.clean()

	cfg := s3test.Start(t)
	grpc, gossip := testcluster.FreeAddress(t), testcluster.FreeAddress(t)
	yaml := fmt.Sprintf(`self_monitoring: {enabled: false}
bucket:
  type: s3
  s3: {endpoint: %q, bucket: %s, access_key: %s, secret_key: %s, region: %s, insecure: true}
`, cfg.S3.Endpoint, cfg.S3.Bucket, cfg.S3.AccessKey, string(cfg.S3.SecretKey), cfg.S3.Region)
	w.during(func() {
		alone.Stop()
		alone.Reconfigure(yaml+fmt.Sprintf(`  previous: {type: filesystem, filesystem: {directory: %q}}
cluster: {replication_factor: 1}
`, filepath.Join(alone.DataDir, "bucket")), "--zone=a", "--grpc.listen-address="+grpc, "--gossip.listen-address="+gossip, "--gossip.join="+gossip)
		alone.Restart()
	})
	l.goesOn(settled)
	w.clean()
	testcluster.Eventually(t, readyTimeout, func(ctx context.Context) error {
		remaining, err := alone.Metric(ctx, "hundredfold_bucket_previous_blocks")
		if err == nil && remaining > 0 {
			err = fmt.Errorf("%v blocks are still to be copied", remaining)
		}
		return err
	})

	f, err := fleet.New(fleet.Config{
		Dir: t.TempDir(), Binary: testcluster.Binary(t),
		YAML: yaml + "cluster: {replication_factor: 1}\n",
		Args: []string{"--gossip.join=" + gossip}, Zones: []string{"b", "c"}, Queriers: 1,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	require.NoError(t, f.Start(ctx))
	l.goesOn(settled)
	w.clean()

	code, out, errs := testcluster.Run(t, "drain", "--url="+alone.URL)
	require.Zero(t, code, out+errs)
	require.Contains(t, out, "has left the cluster")
	l.goesOn(settled)
	w.clean()
	l.stop()
	require.NoError(t, l.running.Wait())

	// The first process is gone; its data is where the others read it.
	report, err := l.VerifyAt(t.Context(), f.Members("querier")[0].URL)
	require.NoError(t, err)
	require.Truef(t, report.Clean(), "%+v", report)
	require.Zero(t, l.Progress().Refused)
}

// awaitBlocks waits until the process has blocks in its bucket.
func awaitBlocks(t testing.TB, p *testcluster.Process) {
	t.Helper()
	testcluster.Eventually(t, readyTimeout, func(ctx context.Context) error {
		blocks, err := p.Metric(ctx, "hundredfold_querier_blocks_visible")
		if err == nil && blocks == 0 {
			err = errNotYet
		}
		return err
	})
}
