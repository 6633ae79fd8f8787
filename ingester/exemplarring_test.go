package ingester

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestRingOfExemplarsGrowsWithThemAndSurvivesARestart(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.MaxExemplars = 2000 }))
	sent := 0
	send := func(n int) {
		t.Helper()
		b := &write.Batch{}
		xs := make([]exemplar.Exemplar, n)
		for i := range xs {
			sent++
			xs[i] = exemplar.Exemplar{Labels: labels.FromStrings("n", fmt.Sprint(sent)), Ts: noon.Add(time.Duration(sent) * time.Millisecond).UnixMilli(), HasTs: true}
		}
		b.Add(write.NewHasher(), seriesLabels("a"), nil, nil, xs)
		require.Equal(t, n, f.offer(acme, b).Written.Exemplars)
	}
	kept := func(n int) {
		t.Helper()
		q, err := f.ExemplarQuerier(context.Background(), acme)
		require.NoError(t, err)
		found, err := q.Select(math.MinInt64, math.MaxInt64, []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "s", "a")})
		require.NoError(t, err)
		require.Len(t, found, 1)
		require.Len(t, found[0].Exemplars, n)
		require.Equal(t, fmt.Sprint(sent), found[0].Exemplars[n-1].Labels.Get("n"))
	}
	f.push(acme, sample{"a", time.Minute, 1}, sample{"a", 0, 2})
	require.Zero(t, f.lookup(acme).ring.size)
	f.restart()
	require.Zero(t, f.lookup(acme).ring.size)
	for _, step := range []struct{ n, kept, size int }{{1, 1, 256}, {255, 256, 256}, {1, 257, 1024}, {1500, 1757, 2000}, {243, 2000, 2000}, {500, 2000, 2000}} {
		send(step.n)
		require.Equal(t, step.size, f.lookup(acme).ring.size)
		kept(step.kept)
		crashed := f.afterCrash() // With the default limit, which is larger.
		require.GreaterOrEqual(t, crashed.lookup(acme).ring.size, step.size)
		f.restart()
		require.Equal(t, step.size, f.lookup(acme).ring.size)
		kept(step.kept)
	}
	// Late samples go on to be taken.
	f.push(acme, sample{"a", 10 * time.Second, 3})
}
