package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

func TestCompareMeasuresHundredfoldAndPrometheusSideBySide(t *testing.T) {
	t.Parallel()
	testcluster.Tool(t, "prometheus")
	ours := testcluster.Start(t, testcluster.Options{Config: quiet})
	theirs := testcluster.StartPrometheus(t, "", "", "--web.enable-remote-write-receiver")
	target := func(name string, p *testcluster.Process) string {
		return fmt.Sprintf("--target=%s,%s/api/v1/write,%d", name, p.URL, p.PID())
	}
	code, stdout, stderr := testcluster.Run(t, "compare", target("hundredfold", ours), target("prometheus", theirs),
		"--series=2000", "--span=30m", "--rounds=2", "--settle=1s")
	require.Zero(t, code, stderr)

	for _, name := range []string{"hundredfold", "prometheus"} {
		var lines []string
		for line := range strings.Lines(stdout) {
			fields := strings.Fields(line)
			if len(fields) != 11 || fields[1] != name {
				continue
			}
			lines = append(lines, fields[0])
			for i, cell := range fields[2:9] { // retries may be none, and the sender's cost is not theirs
				v, err := strconv.ParseFloat(cell, 64)
				require.NoError(t, err)
				require.Positivef(t, v, "column %d of %s", i, line)
			}
		}
		require.Equal(t, []string{"1", "2", "median"}, lines, stdout)
	}
}
