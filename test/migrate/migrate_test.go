// Package migrate tests the ways to Hundredfold and back: a real Prometheus's data
// directory adopted in place, imported, exported, and served by that Prometheus again,
// always with the same answers.
package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/testcluster"
)

func TestMain(m *testing.M) { os.Exit(testcluster.Main(m)) }

// quiet leaves only what tests send in the store.
const quiet = "self_monitoring: {enabled: false}\n"

// history is the span of what the load generator sends.
const history = 5 * time.Hour

// oldPrometheus starts a Prometheus that has an old block made by promtool, blocks of its
// own, and a head. end is the time of its newest sample.
func oldPrometheus(t *testing.T) (prometheus *testcluster.Process, end time.Time) {
	t.Helper()
	end = time.Now().Truncate(time.Minute)
	dir := t.TempDir()
	backfill(t, dir, end.Add(-72*time.Hour), end.Add(-70*time.Hour))
	prometheus = testcluster.StartPrometheus(t, "global: {}\n", dir, "--web.enable-remote-write-receiver", "--storage.tsdb.retention.time=10y")
	load(t, prometheus.URL, end, history, 1)
	return prometheus, end
}

// backfill writes blocks of an old series with promtool.
func backfill(t *testing.T, dir string, from, to time.Time) {
	t.Helper()
	var text strings.Builder
	text.WriteString("# TYPE old gauge\n")
	for at := from; at.Before(to); at = at.Add(time.Minute) {
		fmt.Fprintf(&text, "old{a=\"1\"} %d %d\n", at.Unix()%977, at.Unix())
	}
	text.WriteString("# EOF\n")
	file := filepath.Join(t.TempDir(), "old.om")
	require.NoError(t, os.WriteFile(file, []byte(text.String()), 0o600))
	testcluster.RunTool(t, "promtool", "tsdb", "create-blocks-from", "openmetrics", file, dir)
}

// load sends series that other seeds do not have.
func load(t *testing.T, url string, end time.Time, span time.Duration, seed uint64) {
	t.Helper()
	cfg := loadgen.Default()
	cfg.URL = url + "/api/v1/write"
	cfg.Series, cfg.Span, cfg.End, cfg.Seed, cfg.Churn, cfg.Histograms = 300, span, end, seed, 0.2, 10
	cfg.Protocol, cfg.Interval = 2, 30*time.Second
	g, err := loadgen.New(cfg, nil)
	require.NoError(t, err)
	report, err := g.Run(t.Context())
	require.NoError(t, err)
	require.True(t, report.Clean(), "%+v", report)
}

// everything asks for every sample there is, and some more.
func everything(t *testing.T, p *testcluster.Process, end time.Time) string {
	t.Helper()
	return ask(t, p, end, `{__name__!="",__name__!="old"}`, 10*time.Minute, history) +
		ask(t, p, end, `count_over_time(go_goroutines[30m])`, 30*time.Minute, history) +
		ask(t, p, end.Add(-70*time.Hour), `old`, time.Minute, 2*time.Hour)
}

func ask(t *testing.T, p *testcluster.Process, end time.Time, query string, step, span time.Duration) string {
	t.Helper()
	value := testcluster.Range(t, p.API(""), query, v1.Range{Start: end.Add(-span), End: end, Step: step})
	matrix, ok := value.(model.Matrix)
	require.True(t, ok)
	require.NotEmpty(t, matrix, query)
	slices.SortFunc(matrix, func(a, b *model.SampleStream) int { return strings.Compare(a.Metric.String(), b.Metric.String()) })
	text, err := json.Marshal(matrix)
	require.NoError(t, err)
	return string(text)
}

func blocksIn(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*", "meta.json"))
	require.NoError(t, err)
	for i := range found {
		found[i] = filepath.Base(filepath.Dir(found[i]))
	}
	return found
}

func TestADirectoryOfAPrometheusIsServedAtOnceUploadedAndGivenBack(t *testing.T) {
	t.Parallel()
	prometheus, end := oldPrometheus(t)
	want := everything(t, prometheus, end)
	prometheus.Stop()
	dir := prometheus.DataDir
	before := blocksIn(t, dir)
	require.GreaterOrEqual(t, len(before), 2)

	// Adopted: the same answers at once, and the bucket gets all blocks.
	began := time.Now()
	store := testcluster.Start(t, testcluster.Options{Config: quiet, DataDir: dir})
	t.Logf("ready after %s", time.Since(began))
	require.Equal(t, want, everything(t, store, end))
	testcluster.Eventually(t, time.Minute, func(context.Context) error {
		if there := blocksIn(t, filepath.Join(dir, "bucket", "default")); len(there) < len(before) {
			return fmt.Errorf("the bucket has %d blocks of %d", len(there), len(before))
		}
		return nil
	})

	// Nobody else may work on the directory meanwhile.
	prometheus.Launch()
	require.Error(t, waitEnd(t, prometheus))
	load(t, store.URL, end, 20*time.Minute, 2)
	both := everything(t, store, end)
	require.NotEqual(t, want, both)
	store.Stop()
	require.Subset(t, blocksIn(t, dir), before, "nothing is deleted")

	// And back: Prometheus has what it had, and what came meanwhile.
	prometheus.Restart()
	require.Equal(t, both, everything(t, prometheus, end))
	load(t, prometheus.URL, end, 10*time.Minute, 3)
	more := everything(t, prometheus, end)
	prometheus.Stop()

	store.Restart()
	require.Equal(t, more, everything(t, store, end))
}

// waitEnd waits until a process that was launched ends by itself.
func waitEnd(t *testing.T, p *testcluster.Process) error {
	t.Helper()
	testcluster.Eventually(t, time.Minute, func(context.Context) error {
		if p.Alive() == nil {
			return fmt.Errorf("it still runs")
		}
		return nil
	})
	return p.End()
}

func TestAPrometheusIsImportedWithItsHeadBesideARunningStore(t *testing.T) {
	t.Parallel()
	prometheus, end := oldPrometheus(t)
	want := everything(t, prometheus, end)
	store := testcluster.Start(t, testcluster.Options{Config: quiet + "querier: {refresh_interval: 1s}\ncompactor: {interval: 1s}\n"})
	importing := []string{"import", "--from=" + prometheus.DataDir, "--data.dir=" + store.DataDir}
	code, _, stderr := testcluster.Run(t, importing...)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "runs on", "the Prometheus holds its lock")

	prometheus.Stop()
	code, out, stderr := testcluster.Run(t, append(importing, "--verify=full")...)
	require.Zero(t, code, stderr)
	require.Contains(t, out, " 0 damaged")
	testcluster.Eventually(t, time.Minute, func(ctx context.Context) error {
		value, _, _, err := store.API("").Query(ctx, `count(old)`, end.Add(-71*time.Hour))
		if vector, ok := value.(model.Vector); err == nil && (!ok || len(vector) == 0) {
			return fmt.Errorf("it is not read yet")
		}
		return err
	})
	require.Equal(t, want, everything(t, store, end))
	code, out, _ = testcluster.Run(t, importing...)
	require.Zero(t, code)
	require.Contains(t, out, "0 imported")
}

func TestWhatIsExportedIsAnsweredAlikeByAStockPrometheus(t *testing.T) {
	t.Parallel()
	prometheus, end := oldPrometheus(t)
	want := everything(t, prometheus, end)
	prometheus.Stop()
	data := t.TempDir()
	code, _, stderr := testcluster.Run(t, "import", "--from="+prometheus.DataDir, "--data.dir="+data)
	require.Zero(t, code, stderr)

	code, out, stderr := testcluster.Run(t, "verify", "--data.dir="+data)
	require.Zero(t, code, out+stderr)
	require.Contains(t, out, " 0 faults")

	for _, encoding := range []string{"any", "xor"} {
		output := t.TempDir()
		export := []string{"export", "--data.dir=" + data, "--output=" + output, "--encoding=" + encoding}
		code, out, stderr := testcluster.Run(t, export...)
		require.Zero(t, code, stderr)
		blocks := blocksIn(t, output)
		require.GreaterOrEqual(t, len(blocks), 2, out)
		for _, block := range blocks {
			require.Contains(t, testcluster.RunTool(t, "promtool", "tsdb", "list", output), block)
			require.Contains(t, testcluster.RunTool(t, "promtool", "tsdb", "analyze", output, block), "Total Series:")
		}
		again := testcluster.StartPrometheus(t, "global: {}\n", output, "--storage.tsdb.retention.time=10y")
		require.Equal(t, want, everything(t, again, end))
		again.Stop()
		require.Contains(t, testcluster.RunTool(t, "promtool", "tsdb", "dump", "--match={__name__=\"old\"}", output), "old")
	}
}
