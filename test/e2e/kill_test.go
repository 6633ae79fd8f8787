package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/testcluster"
)

// maintenance is longer than a process waits before it looks for blocks to cut.
const maintenance = 20 * time.Second

// The process is killed during ingestion at random points. It loses nothing that
// it has acknowledged, and changes nothing. HUNDREDFOLD_CHAOS_ROUNDS sets how
// often; every tenth process then lives long enough to cut and upload blocks.
func TestNothingAcknowledgedIsLostByKills(t *testing.T) {
	t.Parallel()
	rounds := 10
	if s := os.Getenv("HUNDREDFOLD_CHAOS_ROUNDS"); s != "" {
		var err error
		rounds, err = strconv.Atoi(s)
		require.NoError(t, err, "HUNDREDFOLD_CHAOS_ROUNDS")
	}
	for name, protocol := range map[string]loadgen.Protocol{"v1": loadgen.ProtocolV1, "v2": loadgen.ProtocolV2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			process := testcluster.Start(t, testcluster.Options{Config: quiet})
			front := testcluster.NewFront(t, process)
			g := newLoad(t, front.URL, func(c *loadgen.Config) {
				c.World = loadgen.World{Seed: 5, Series: 700, Histograms: 40, Interval: 15 * time.Second, Churn: 0.5}
				c.Span = 14 * 24 * time.Hour // more than there is time for
				c.Rate = 150_000
				c.Senders, c.SamplesPerRequest = 8, 200 // so that some requests are always under way
				c.Protocol = protocol
			})

			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var running errgroup.Group
			running.Go(func() error {
				_, err := g.Run(ctx)
				return err
			})
			for round := range rounds {
				life := time.Duration(50+rand.IntN(600)) * time.Millisecond
				if round%10 == 9 && rounds > 10 {
					life += maintenance
				}
				live(t, g, life)
				front.Shut()
				process.Kill()
				process.Restart()
				front.Open()
			}
			live(t, g, 100*time.Millisecond)
			stop()
			require.NoError(t, running.Wait())

			verify(t, g)
			process.Stop()
			process.Restart()
			verify(t, g)
			progress := g.Progress()
			require.Zero(t, progress.Refused)
			t.Logf("%d kills, %d samples acknowledged, %d requests repeated", rounds, progress.Acknowledged, progress.Retries)
		})
	}
}

// live returns when the load has gone on for a while and something of it was
// acknowledged meanwhile.
func live(t testing.TB, g *loadgen.Generator, d time.Duration) {
	t.Helper()
	before, started := g.Progress().Acknowledged, time.Now()
	testcluster.Eventually(t, time.Minute, func(context.Context) error {
		if g.Progress().Acknowledged == before || time.Since(started) < d {
			return errNotYet
		}
		return nil
	})
}
