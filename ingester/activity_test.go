package ingester

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// withRegistry has the ingester register its metrics.
func withRegistry(reg *prometheus.Registry) option {
	return func(f *fixture) { f.registry = reg }
}

// requireActive requires what the metric of active series says, as "tenant series" each.
func requireActive(t *testing.T, reg *prometheus.Registry, want ...string) {
	t.Helper()
	var text strings.Builder
	if len(want) > 0 {
		text.WriteString("# HELP hundredfold_ingester_active_series Series that got a sample in the last 20 minutes, by tenant.\n# TYPE hundredfold_ingester_active_series gauge\n")
	}
	for _, w := range want {
		id, n, _ := strings.Cut(w, " ")
		fmt.Fprintf(&text, "hundredfold_ingester_active_series{tenant=%q} %s\n", id, n)
	}
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(text.String()), "hundredfold_ingester_active_series"))
}

func TestSeriesAreActiveFor20MinutesAfterASample(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := newFixture(t, withRegistry(reg))
	f.advance(time.Hour)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 1})
	f.push("globex", sample{"a", 0, 1})
	f.round(acme)
	f.round("globex")
	requireActive(t, reg, "acme 2", "globex 1")

	f.push(acme, sample{"a", 19 * time.Minute, 2})
	f.round(acme)
	requireActive(t, reg, "acme 2", "globex 1")

	f.push(acme, sample{"a", 21 * time.Minute, 3})
	f.round(acme)
	requireActive(t, reg, "acme 1", "globex 1")

	f.push(acme, sample{"b", 21 * time.Minute, 3})
	f.round(acme)
	requireActive(t, reg, "acme 2", "globex 1")
}

func TestSeriesOfASenderThatIsBehindAreActive(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := newFixture(t, withRegistry(reg))
	f.advance(time.Hour)
	f.push(acme, sample{"a", 0, 1}, sample{"behind", -50 * time.Minute, 1})
	f.push(acme, sample{"a", 30 * time.Minute, 2})
	f.push(acme, sample{"behind", -40 * time.Minute, 2})
	f.push(acme, sample{"a", 31 * time.Minute, 2}, sample{"new", -40 * time.Minute, 2})
	f.round(acme)
	requireActive(t, reg, "acme 3")
}

func TestATenantThatStopsSendingHasNoActiveSeries(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := newFixture(t, withRegistry(reg))
	f.push(acme, sample{"a", 0, 1})
	f.round(acme)
	requireActive(t, reg, "acme 1")

	f.advance(20 * time.Minute)
	f.round(acme)
	requireActive(t, reg, "acme 0")

	f.advance(time.Hour)
	f.round(acme)
	require.Nil(t, f.lookup(acme), "idle, and uploaded")
	requireActive(t, reg)
}

func TestSeriesAreActiveAfterARestartOnceTheyAreSent(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 1})
	reg := prometheus.NewRegistry()
	f.registry = reg
	f.restart()
	f.round(acme)
	requireActive(t, reg, "acme 0")

	f.push(acme, sample{"a", time.Minute, 2})
	f.round(acme)
	requireActive(t, reg, "acme 1")
}

func TestMinutesGoOnWhereTheyRepeat(t *testing.T) {
	for _, c := range []struct {
		then, now minute
		want      int
	}{
		{1, 1, 0},
		{1, 21, 20},
		{minutes, 1, 1},
		{minutes - 9, 11, 20},
	} {
		require.Equal(t, c.want, c.now.since(c.then), "from %d to %d", c.then, c.now)
	}
}
