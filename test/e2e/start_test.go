package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

func TestASecondProcessOnADataDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	first := testcluster.Start(t, testcluster.Options{})
	code, _, stderr := testcluster.Run(t, "--data.dir="+first.DataDir, "--http.listen-address=127.0.0.1:0")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, first.DataDir)
	require.Contains(t, stderr, "in use by another process")

	// It is free again however the first one ends.
	first.Kill()
	first.Restart()
	first.Stop()
	first.Restart()
}

func TestUnknownOptionsAreErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "hundredfold.yml")
	require.NoError(t, os.WriteFile(file, []byte("limits:\n  max_serie: 10\n"), 0o600))
	data := filepath.Join(t.TempDir(), "data")

	code, _, stderr := testcluster.Run(t, "--data.dri="+data)
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "--data.dri")

	code, _, stderr = testcluster.Run(t, "--data.dir="+data, "--config.file="+file)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "hundredfold.yml:2: unknown key limits.max_serie")
	require.NoDirExists(t, data, "nothing is created before the configuration is read")

	code, _, stderr = testcluster.Run(t, "loadgen", "--serie=5")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "-serie")
}

func TestLoadgenReportsWhatTheProcessCosts(t *testing.T) {
	t.Parallel()
	process := testcluster.Start(t, testcluster.Options{Config: quiet})
	code, stdout, stderr := testcluster.Run(t, "loadgen", "--url="+process.URL+"/api/v1/write", "--series=2000", "--span=30m",
		"--churn=0.5", "--histograms=0.1", "--protocol=2", "--pid="+strconv.Itoa(process.PID()), "--verify")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "240000 acknowledged samples: 0 lost, 0 changed, 0 doubled; 0 never sent")
	require.Regexp(t, `receiver +[0-9.]+ CPU s per million samples, \d+ bytes of anonymous memory per active series`, stdout)
}
