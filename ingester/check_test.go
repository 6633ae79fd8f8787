package ingester

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// identityOf returns the identity of the series of this name.
func identityOf(name string) write.Identity { return write.NewHasher().Labels(seriesLabels(name)) }

// entryOf returns what the table has of a series.
func (f *fixture) entryOf(id tenant.ID, name string) *entry {
	t, err := f.tenantForPush(id)
	require.NoError(f.t, err)
	require.NoError(f.t, t.appending.take(context.Background()))
	defer t.appending.give()
	e := t.app.table.find(identityOf(name))
	require.NotNil(f.t, e)
	return e
}

// requireMismatches requires that so many checks found another series.
func requireMismatches(t *testing.T, reg *prometheus.Registry, want float64) {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, f := range families {
		if f.GetType().String() == "COUNTER" {
			got[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	require.InDelta(t, want, got["hundredfold_identity_mismatches_total"], 0)
	require.Positive(t, got["hundredfold_identity_checks_total"])
}

func TestSeriesTakenForAnotherIsFoundByItsLabelsBeforeLong(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := newFixture(t, func(f *fixture) { f.registry = registry })
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 2})
	f.entryOf(acme, "a").setRef(f.entryOf(acme, "b").ref())
	const pushes = 1100
	for i := range pushes {
		f.push(acme, sample{"a", time.Duration(i+1) * time.Millisecond, 1})
	}
	requireMismatches(t, registry, 1)
	stored := f.stored(acme)
	require.Contains(t, stored["a"], "1.1s 1")
	require.NotContains(t, stored["b"], "1.1s 1")
	require.Equal(t, pushes+2, len(stored["a"])+len(stored["b"]), "nothing is lost")
	require.Greater(t, len(stored["a"]), 1)
}

func TestLabelsThatComeToAKnownSeriesAreCompared(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := newFixture(t, withCluster(i0, time.Hour), func(f *fixture) { f.registry = registry })
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 2})
	f.push(acme, sample{"a", time.Second, 1})

	f.entryOf(acme, "a").setRef(f.entryOf(acme, "b").ref())
	labelled := stripped(batch(sample{"a", 2 * time.Second, 1}, sample{"b", 2 * time.Second, 2}), 0)
	result := f.offer(acme, labelled)
	require.Equal(t, 1, result.Written.Samples)
	require.Equal(t, []uint32{1}, result.Unknown, "whatever was known of either is in doubt")
	f.push(acme, sample{"b", 2 * time.Second, 2})
	requireMismatches(t, registry, 1)

	// What is sent as b is a by its labels.
	taken := stripped(batch(sample{"a", 3 * time.Second, 1}), 0)
	taken.Series[0].ID = identityOf("b")
	require.Equal(t, 1, f.offer(acme, taken).Written.Samples)
	requireMismatches(t, registry, 2)

	stored := f.stored(acme)
	require.Equal(t, []string{"0s 1", "1s 1", "2s 1", "3s 1"}, stored["a"])
	require.Equal(t, []string{"0s 2", "2s 2"}, stored["b"])
}

func TestSeriesOfOlderLimitsAreNoMismatch(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := newFixture(t, withCluster(i0, time.Hour), func(f *fixture) { f.registry = registry })
	f.push(acme, sample{"a", 0, 1})
	f.limits.MaxLabelsPerSeries = 1
	f.push(acme, sample{"a", time.Second, 1}, sample{"a", 2 * time.Second, 1})
	labelled := stripped(batch(sample{"a", 3 * time.Second, 1}), 0)
	require.Equal(t, 1, f.offer(acme, labelled).Written.Samples)
	requireMismatches(t, registry, 0)
}

// looked counts how often the labels of series are asked for.
type looked struct {
	write.LabelSource
	times *int
}

func (s looked) AppendLabels(i int, b *labels.ScratchBuilder) error {
	*s.times++
	return s.LabelSource.AppendLabels(i, b)
}

func TestRefusedSeriesIsLookedAtOnceUntilTheLimitsChange(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.MaxLabelValueBytes = 3 }))
	f.push(acme, sample{"ok", 0, 1})
	times, at := 0, time.Duration(0)
	offer := func() write.Result {
		at += time.Second
		b := batch(sample{"ok", at, 1}, sample{"long1", at, 1}, sample{"long2", at, 1}, sample{"long3", at, 1})
		b.Source, times = looked{b.Source, &times}, 0
		return f.offer(acme, b)
	}
	refused := func() {
		t.Helper()
		result := offer()
		require.Equal(t, 1, result.Written.Samples)
		require.Equal(t, map[write.Reason][]string{write.ReasonLabelTooLong: {"sample 1", "sample 2", "sample 3"}}, rejected(result))
		require.Contains(t, result.Err().Error(), "long1")
	}
	refused()
	require.Equal(t, 3, times)
	for range 3 {
		refused()
		require.Equal(t, 1, times, "for the example")
	}
	f.limits.MaxLabelValueBytes = 10
	require.Equal(t, 4, offer().Written.Samples)
	f.limits.MaxLabelValueBytes = 3
	require.Equal(t, 4, offer().Written.Samples, "limits on labels are for new series")
	require.Contains(t, f.stored(acme)["long3"], "5s 1")
}

func TestSeriesIsRefusedOnceTheLimitsSayIt(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"other", 0, 1})
	f.limits.MaxLabelValueBytes = 3
	require.Len(t, f.offer(acme, batch(sample{"long", 0, 1})).Rejected, 1)
	f.limits.MaxLabelValueBytes = 4
	require.Empty(t, f.offer(acme, batch(sample{"long", 0, 1})).Rejected)
	f.limits.MaxLabelValueBytes = 3
	require.Len(t, f.offer(acme, batch(sample{"long2", 0, 1})).Rejected, 1)
}
