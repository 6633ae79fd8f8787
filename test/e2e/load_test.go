package e2e

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/loadgen"
)

var errNotYet = errors.New("this has not happened yet")

// newLoad returns a Generator of a small load for the process at url.
func newLoad(t testing.TB, url string, change func(*loadgen.Config)) *loadgen.Generator {
	t.Helper()
	cfg := loadgen.Default()
	cfg.URL = url + "/api/v1/write"
	cfg.World = loadgen.World{Seed: 1, Series: 300, Histograms: 20, Interval: 15 * time.Second}
	cfg.Senders = 3
	cfg.SamplesPerRequest = 500
	cfg.Progress = 0
	change(&cfg)
	g, err := loadgen.New(cfg, nil)
	require.NoError(t, err)
	return g
}

// send runs g to its end. Nothing may be refused.
func send(t testing.TB, g *loadgen.Generator) loadgen.Report {
	t.Helper()
	report, err := g.Run(t.Context())
	require.NoError(t, err)
	require.Truef(t, report.Clean(), "refused: %s", report.FirstRefusal)
	return report
}

// verify checks that everything that g has had acknowledged can be read back.
func verify(t testing.TB, g *loadgen.Generator) {
	t.Helper()
	report, err := g.Verify(t.Context())
	require.NoError(t, err)
	require.Truef(t, report.Clean(), "%+v", report)
	require.Positive(t, report.Acknowledged)
}
