package ingester

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestSeriesAreKnownByTheirIdentitiesAfterARestart(t *testing.T) {
	for name, restart := range map[string]func(*fixture) *fixture{
		"a clean stop": func(f *fixture) *fixture { f.restart(); return f },
		"a kill":       (*fixture).afterCrash,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			const series = 2*recallTogether + 1
			at := func(d time.Duration) *write.Batch {
				var all []sample
				for i := range series {
					all = append(all, sample{fmt.Sprint(i), d, float64(i)})
				}
				return batch(all...)
			}
			f.offer(acme, at(0))
			f = restart(f)
			require.Equal(t, series, f.lookup(acme).app.table.size())
			result := f.offer(acme, stripped(at(time.Second)))
			require.Empty(t, result.Unknown)
			require.Equal(t, series, result.Written.Samples)
			require.Len(t, f.stored(acme), series)
		})
	}
}

func TestSamplesNewerThanTheirSeriesAreNotComparedAfterARestartThoughOthersAreNewer(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"slow", 0, 1})
	for i := range 200 { // More than a chunk.
		f.push(acme, sample{"fast", time.Duration(i) * time.Second, float64(i)})
	}
	f.restart()
	compared := func() float64 { return testutil.ToFloat64(f.metrics.compared) }
	f.push(acme, sample{"slow", time.Second, 2}, sample{"fast", 200 * time.Second, 200})
	require.Zero(t, compared())
	f.push(acme, sample{"slow", 0, 1}, sample{"fast", 199 * time.Second, 199})
	require.InDelta(t, 2, compared(), 0)
	require.Equal(t, []string{"0s 1", "1s 2"}, f.stored(acme)["slow"])
	result := f.offer(acme, batch(sample{"fast", 199 * time.Second, 7}))
	require.Len(t, rejected(result)[write.ReasonDuplicateTimestamp], 1)
}

func TestLateSamplesOfBlocksAndOutOfOrderChunksAreComparedAfterARestart(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.OutOfOrderWindow = model.Duration(24 * time.Hour) }))
	f.advance(10 * time.Hour)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 1})
	f.push(acme, sample{"a", 9 * time.Hour, 9})
	f.push(acme, sample{"b", 4 * time.Hour, 4})
	f.push(acme, sample{"a", 5 * time.Hour, 5}) // late
	f.restart()
	before := f.stored(acme)
	f.push(acme, sample{"a", 5 * time.Hour, 5}, sample{"a", 0, 1}, sample{"b", 4 * time.Hour, 4})
	require.Equal(t, before, f.stored(acme))
	require.Len(t, rejected(f.offer(acme, batch(sample{"a", 5 * time.Hour, 6})))[write.ReasonDuplicateTimestamp], 1)
}

func TestASeriesThatAStaleMarkerEndedLeavesTenMinutesAfterARestart(t *testing.T) {
	for name, restart := range map[string]func(*fixture){"a clean stop": (*fixture).restart, "a kill": (*fixture).kill} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.advance(2 * time.Hour)
			f.push(acme, sample{"on", 0, 1}, sample{"ended", 0, 1}, sample{"silent", 0, 1}, sample{"back", 0, staleNaN})
			f.push(acme, sample{"ended", time.Minute, staleNaN}, sample{"silent", time.Minute, 2}, sample{"back", time.Minute, 1})
			for _, typ := range []*histogram.Histogram{testHistogram(1), {Sum: staleNaN}} {
				b := &write.Batch{}
				at := noon.Add(time.Duration(typ.Count) * time.Second)
				if typ.Count == 0 {
					at = noon.Add(time.Minute)
				}
				b.Add(write.NewHasher(), seriesLabels("histogram"), nil, []write.Histogram{{T: at.UnixMilli(), Int: typ}}, nil)
				require.NoError(t, resultErr(f.offer(acme, b)))
			}
			restart(f)
			f.push(acme, sample{"on", 2 * time.Minute, 1})
			f.round(acme) // They age from now.
			f.push(acme, sample{"on", 11 * time.Minute, 1})
			require.NoError(t, f.evict(acme))
			require.Equal(t, 5, f.inHead())
			f.push(acme, sample{"on", 12 * time.Minute, 1})
			require.NoError(t, f.evict(acme))
			require.Equal(t, 3, f.inHead())
			f.push(acme, sample{"on", 62 * time.Minute, 1})
			require.NoError(t, f.evict(acme))
			require.Equal(t, 1, f.inHead())
		})
	}
}

// BenchmarkRecall is what opening a TSDB takes longer for knowing its series again.
func BenchmarkRecall(b *testing.B) {
	f := newFixture(b)
	f.advance(24 * time.Hour)
	batches := benchBatches()
	for i := range 100 {
		for _, some := range batches {
			_, err := f.Push(context.Background(), acme, at(some, noon.Add(time.Duration(i)*15*time.Second)))
			require.NoError(b, err)
		}
	}
	db, blocks := f.lookup(acme).db, f.lookup(acme).blocks
	b.ReportAllocs()
	for b.Loop() {
		known, err := recall(db, blocks)
		require.NoError(b, err)
		require.Equal(b, benchSeries, known.size())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchSeries), "ns/series")
}
