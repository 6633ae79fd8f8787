package distributor

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// counterOf returns the value of a counter without labels of its own.
func counterOf(t *testing.T, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

func TestSightingOfAnotherSeriesIsCorrectedBeforeLong(t *testing.T) {
	r := newRing(t, 1, 3)
	push := func(at int64) {
		result, err := r.Push(t.Context(), "team", batchOf(1, now+at))
		require.NoError(t, err)
		require.Equal(t, 1, result.Written.Samples)
	}
	push(0)
	right := r.setOf("team", seriesName(0))[0]
	r.eventually(func() bool { return r.acknowledgedSeries() == 1 })

	// The series is remembered in the slot of another ingester.
	tenantHash := hashring.TenantHash("team")
	salt := sightingSalt(tenantHash, r.limitsOf("team"))
	id := write.NewHasher().Labels(seriesName(0))
	key := write.Identity{Hi: id.Hi ^ salt.Hi, Lo: id.Lo ^ salt.Lo}
	layout, err := r.routes.Load().layouts.get(tenantHash, r.limitsOf("team").ShardSize)
	require.NoError(t, err)
	truth := slotOf(seriesName(0), tenantHash)
	wrong := truth
	for layout.of(wrong) == layout.of(truth) {
		wrong++
	}
	r.sightings.correct(key, sighting{id: id, slot: wrong})
	r.sightings.acknowledge(key, true)
	push(1)
	require.False(t, right.has("team", seriesName(0).String(), write.Sample{T: now + 1}))

	at := int64(2)
	for ; counterOf(t, r.registry, "hundredfold_identity_mismatches_total") == 0; at++ {
		require.Less(t, at, int64(5000))
		push(at)
	}
	push(at)
	require.True(t, right.has("team", seriesName(0).String(), write.Sample{T: now + at}))
	require.InDelta(t, 1, counterOf(t, r.registry, "hundredfold_identity_mismatches_total"), 0)
	require.Positive(t, counterOf(t, r.registry, "hundredfold_identity_checks_total"))
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

func TestVerdictsOnLabelsAreRememberedUntilTheLimitsChange(t *testing.T) {
	r := newRing(t, 1, 1)
	at := now
	push := func(limit int) (result write.Result, times int) {
		limits := tenant.DefaultLimits()
		limits.MaxLabelsPerSeries = limit
		r.limits["team"] = limits
		at++
		b := batchOf(10, at)
		b.Source = looked{b.Source, &times}
		result, err := r.Push(t.Context(), "team", b)
		require.NoError(t, err)
		return result, times
	}
	for range 2 { // Both ways, and again.
		result, _ := push(1)
		require.Len(t, result.Rejected, 1)
		require.Equal(t, 10, result.Rejected[0].Count)
		result, times := push(1)
		require.Equal(t, write.ReasonTooManyLabels, result.Rejected[0].Reason)
		require.Len(t, result.Rejected[0].Items, 10)
		require.Contains(t, result.Err().Error(), seriesName(0).String())
		require.Equal(t, 1, times, "for the example")

		result, _ = push(2)
		require.Equal(t, 10, result.Written.Samples)
	}
	require.InDelta(t, 0, counterOf(t, r.registry, "hundredfold_identity_mismatches_total"), 0)
}
