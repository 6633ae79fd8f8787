package frame

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

// random makes values of which the odd ones are frequent.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 1))} }

func pick[T any](r random, of ...T) T { return of[r.IntN(len(of))] }

func (r random) float() float64 {
	return pick(r, 0, math.Copysign(0, -1), 1, -1.5, r.NormFloat64(), math.Inf(1), math.Inf(-1), math.MaxFloat64,
		math.SmallestNonzeroFloat64, math.Float64frombits(value.StaleNaN), math.Float64frombits(value.NormalNaN),
		math.Float64frombits(0xfff8000000000001), math.Float64frombits(r.Uint64()))
}

func (r random) time() int64 {
	const now = 1_790_000_000_000
	return pick(r, now, now+15_000, now+int64(r.IntN(100)), 0, -1, math.MaxInt64, math.MinInt64, int64(r.Uint64()))
}

func (r random) start() int64 { return pick(r, 0, 0, 0, r.time()) }

func (r random) uint() uint64 { return pick(r, 0, 1, 200, math.MaxUint64, r.Uint64()) }

func (r random) text() string {
	return pick(r, "a", "Ü", "node_cpu_seconds_total", strings.Repeat("x", r.IntN(300)), "\n\x00\xff")
}

func (r random) labels(most int) labels.Labels {
	b := labels.NewBuilder(labels.EmptyLabels())
	for range r.IntN(most + 1) {
		b.Set(r.text()+"1", r.text()+"2")
	}
	return b.Labels()
}

func (r random) spans() []histogram.Span {
	var spans []histogram.Span
	for range r.IntN(4) {
		spans = append(spans, histogram.Span{Offset: pick[int32](r, 0, 1, -5, math.MinInt32, math.MaxInt32), Length: pick[uint32](r, 0, 1, 7, math.MaxUint32)})
	}
	return spans
}

func (r random) floats() []float64 {
	var values []float64
	for range r.IntN(5) {
		values = append(values, r.float())
	}
	return values
}

func (r random) deltas() []int64 {
	var values []int64
	for range r.IntN(5) {
		values = append(values, int64(r.uint()))
	}
	return values
}

func (r random) histogram() write.Histogram {
	h := write.Histogram{T: r.time(), ST: r.start()}
	hint := pick(r, histogram.UnknownCounterReset, histogram.CounterReset, histogram.NotCounterReset, histogram.GaugeType)
	schema := pick[int32](r, 0, 3, 8, -4, histogram.CustomBucketsSchema, math.MinInt32, math.MaxInt32)
	if r.IntN(2) == 0 {
		h.Int = &histogram.Histogram{
			CounterResetHint: hint, Schema: schema,
			ZeroThreshold: pick(r, 0, r.float()), ZeroCount: pick(r, 0, r.uint()), Count: r.uint(), Sum: r.float(),
			PositiveSpans: r.spans(), NegativeSpans: r.spans(), PositiveBuckets: r.deltas(), NegativeBuckets: r.deltas(),
			CustomValues: r.floats(),
		}
		return h
	}
	h.Float = &histogram.FloatHistogram{
		CounterResetHint: hint, Schema: schema,
		ZeroThreshold: pick(r, 0, r.float()), ZeroCount: pick(r, 0, r.float()), Count: r.float(), Sum: r.float(),
		PositiveSpans: r.spans(), NegativeSpans: r.spans(), PositiveBuckets: r.floats(), NegativeBuckets: r.floats(),
		CustomValues: r.floats(),
	}
	return h
}

// batch returns series of all kinds, with up to most samples each.
func (r random) batch(series, most int) *write.Batch {
	b := &write.Batch{}
	h := write.NewHasher()
	for range series {
		var (
			samples    []write.Sample
			histograms []write.Histogram
			exemplars  []exemplar.Exemplar
		)
		for range pick(r, 1, 1, 1, 0, 13, 14, 15, r.IntN(most+1)) {
			samples = append(samples, write.Sample{T: r.time(), ST: r.start(), V: r.float()})
		}
		for range pick(r, 0, 0, 0, 1, 3) {
			histograms = append(histograms, r.histogram())
		}
		for range pick(r, 0, 0, 0, 1, 3) {
			exemplars = append(exemplars, exemplar.Exemplar{Labels: r.labels(3), Value: r.float(), Ts: r.time(), HasTs: r.IntN(2) == 0})
		}
		b.Add(h, r.labels(12), samples, histograms, exemplars)
	}
	for range r.IntN(3) {
		b.Metadata = append(b.Metadata, r.metadata())
	}
	return b
}

func (r random) metadata() write.Metadata {
	return write.Metadata{Metric: r.text(), Metadata: metadata.Metadata{
		Type: pick(r, model.MetricTypeCounter, model.MetricTypeUnknown, "", "newer"),
		Unit: r.text(), Help: pick(r, "", r.text()),
	}}
}

// labelsOf returns the labels of series i of b, as its Source gives them.
func labelsOf(t testing.TB, b *write.Batch, i int) labels.Labels {
	t.Helper()
	scratch := labels.NewScratchBuilder(0)
	require.NoError(t, b.Source.AppendLabels(i, &scratch))
	return scratch.Labels()
}

// requireEqual checks that two batches hold the same, bit by bit, but for their labels.
func requireEqual(t testing.TB, want, got *write.Batch) {
	t.Helper()
	require.Len(t, got.Series, len(want.Series))
	for i := range want.Series {
		require.Equal(t, want.Series[i], got.Series[i], "series %d", i)
	}
	require.Len(t, got.Samples, len(want.Samples))
	for i, w := range want.Samples {
		g := got.Samples[i]
		require.Equal(t, math.Float64bits(w.V), math.Float64bits(g.V), "value of sample %d", i)
		require.Equal(t, [2]int64{w.T, w.ST}, [2]int64{g.T, g.ST}, "times of sample %d", i)
	}
	require.Len(t, got.Histograms, len(want.Histograms))
	for i, w := range want.Histograms {
		g := got.Histograms[i]
		require.Equal(t, [2]int64{w.T, w.ST}, [2]int64{g.T, g.ST}, "times of histogram %d", i)
		require.Equal(t, bitsOf(w), bitsOf(g), "histogram %d", i)
	}
	require.Len(t, got.Exemplars, len(want.Exemplars))
	for i, w := range want.Exemplars {
		g := got.Exemplars[i]
		require.Equal(t, math.Float64bits(w.Value), math.Float64bits(g.Value), "value of exemplar %d", i)
		w.Value, g.Value = 0, 0
		require.Equal(t, w, g, "exemplar %d", i)
	}
	require.Len(t, got.Metadata, len(want.Metadata))
	for i := range want.Metadata {
		require.Equal(t, want.Metadata[i], got.Metadata[i])
	}
}

// bitsOf returns a histogram as something that compares by bits.
func bitsOf(h write.Histogram) any {
	bits := func(values ...float64) []uint64 {
		var b []uint64
		for _, v := range values {
			b = append(b, math.Float64bits(v))
		}
		return b
	}
	if f := h.Float; f != nil {
		return []any{
			"float", f.CounterResetHint, f.Schema, bits(f.ZeroThreshold, f.ZeroCount, f.Count, f.Sum),
			f.PositiveSpans, f.NegativeSpans, bits(f.PositiveBuckets...), bits(f.NegativeBuckets...), bits(f.CustomValues...),
		}
	}
	i := h.Int
	return []any{
		"int", i.CounterResetHint, i.Schema, bits(i.ZeroThreshold, i.Sum), i.ZeroCount, i.Count,
		i.PositiveSpans, i.NegativeSpans, i.PositiveBuckets, i.NegativeBuckets, bits(i.CustomValues...),
	}
}
