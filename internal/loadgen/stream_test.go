package loadgen

import (
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
)

type streamSample struct {
	t int64
	v float64
}

func TestStreamsAreWhatARunSends(t *testing.T) {
	var mu sync.Mutex
	sent := map[string]map[streamSample]bool{}
	r := &receiver{tamper: func(l labels.Labels, ts int64, v float64) (float64, bool) {
		mu.Lock()
		defer mu.Unlock()
		key := l.String()
		if sent[key] == nil {
			sent[key] = map[streamSample]bool{}
		}
		sent[key][streamSample{ts, v}] = true
		return v, true
	}}
	cfg := small(r.start(t))
	cfg.Histograms, cfg.Churn = 0, 0
	cfg.End = time.UnixMilli(1_700_000_000_000)
	report, _ := runAndVerify(t, cfg)

	streams, err := cfg.Streams()
	require.NoError(t, err)
	ticks := ticksOf(cfg)
	interval := cfg.Interval.Milliseconds()
	total, series := int64(0), 0
	for s := range streams {
		series++
		from, to := s.Ticks(ticks.from*interval, ticks.to*interval)
		require.Equal(t, ticks.from, from)
		require.Equal(t, ticks.to, to)
		for tick := from; tick < to; tick++ {
			ts, v := s.Sample(tick)
			require.Contains(t, sent[s.Labels().String()], streamSample{ts, v})
			total++
		}
	}
	require.Equal(t, smallSeries, series)
	require.Equal(t, report.Acknowledged, total)
}

func TestTicksOfATimeAreThoseWhoseSamplesLieInIt(t *testing.T) {
	streams, err := World{Series: 3 * PodSeries, Interval: time.Minute}.Streams()
	require.NoError(t, err)
	for s := range streams {
		for _, mint := range []int64{-90_000, 0, 1, 59_999, 60_000, 123_456} {
			from, to := s.Ticks(mint, mint+120_000)
			require.Equal(t, int64(2), to-from)
			first, _ := s.Sample(from)
			before, _ := s.Sample(from - 1)
			end, _ := s.Sample(to)
			require.GreaterOrEqual(t, first, mint)
			require.Less(t, before, mint)
			require.GreaterOrEqual(t, end, mint+120_000)
		}
	}
}

func TestWorldsWithoutStreamsSaySo(t *testing.T) {
	for _, w := range []World{
		{Series: 1, Interval: time.Minute, Histograms: 1},
		{Series: 1, Interval: time.Minute, Churn: 0.1},
		{Series: 1, Interval: time.Minute, Tenants: 1},
		{Series: 0, Interval: time.Minute},
	} {
		_, err := w.Streams()
		require.Error(t, err)
	}
}
