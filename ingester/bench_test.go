package ingester

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	benchSeries    = 100_000
	benchBatchSize = 2_000
)

// benchBatches returns batches that together hold one sample of each series.
func benchBatches() []*write.Batch {
	h := write.NewHasher()
	batches := make([]*write.Batch, benchSeries/benchBatchSize)
	for i := range batches {
		batches[i] = &write.Batch{}
		for k := range benchBatchSize {
			n := i*benchBatchSize + k
			batches[i].Add(h, benchLabels(n), []write.Sample{{V: float64(n)}}, nil, nil)
		}
	}
	return batches
}

func benchLabels(n int) labels.Labels {
	return labels.FromStrings("__name__", fmt.Sprintf("metric_%d", n%50), "namespace", fmt.Sprintf("ns-%d", n%37),
		"pod", fmt.Sprintf("pod-%d-abcdefgh", n/50), "container", "app", "instance", fmt.Sprintf("10.0.%d.%d:8080", n/50/256, n/50%256))
}

func at(b *write.Batch, t time.Time) *write.Batch {
	for i := range b.Samples {
		b.Samples[i].T = t.UnixMilli()
	}
	return b
}

// BenchmarkPushKnownSeries is the steady state: one new sample of each of 100,000
// series that are known, 2,000 to a batch.
func BenchmarkPushKnownSeries(b *testing.B) {
	f := newFixture(b)
	f.advance(24 * time.Hour)
	batches := benchBatches()
	now := noon
	for _, batch := range batches {
		f.offer(acme, at(batch, now))
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n%len(batches) == 0 {
			now = now.Add(time.Second)
		}
		result, err := f.Push(context.Background(), acme, at(batches[n%len(batches)], now))
		require.NoError(b, err)
		require.Equal(b, benchBatchSize, result.Written.Samples)
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchBatchSize), "ns/sample")
}

// BenchmarkPushRetry pushes batches again that are stored already.
func BenchmarkPushRetry(b *testing.B) {
	f := newFixture(b)
	batches := benchBatches()
	for _, batch := range batches {
		f.offer(acme, at(batch, noon.Add(-time.Minute)))
	}
	for _, batch := range batches {
		f.offer(acme, at(batch, noon))
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		result, err := f.Push(context.Background(), acme, at(batches[n%len(batches)], noon.Add(-time.Minute)))
		require.NoError(b, err)
		require.Equal(b, benchBatchSize, result.Written.Samples)
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchBatchSize), "ns/sample")
}

// BenchmarkPushNewSeries creates series, 2,000 to a batch.
func BenchmarkPushNewSeries(b *testing.B) {
	f := newFixture(b)
	h := write.NewHasher()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		b.StopTimer()
		batch := &write.Batch{}
		for range benchBatchSize {
			n++
			batch.Add(h, labels.FromStrings("__name__", "m", "n", fmt.Sprint(n)), []write.Sample{{T: noon.UnixMilli()}}, nil, nil)
		}
		b.StartTimer()
		result, err := f.Push(context.Background(), acme, batch)
		require.NoError(b, err)
		require.Equal(b, benchBatchSize, result.Written.Samples)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchBatchSize), "ns/sample")
}
