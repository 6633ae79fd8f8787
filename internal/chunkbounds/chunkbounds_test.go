package chunkbounds

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
)

// greedy is a histogram chunk of one sample whose one span has 2^32-1 buckets.
func greedy() []byte {
	return []byte("\x00\x01\x00\x00\x47\xf8\x00\x00\x03\xff\xff\xff\xfc" + strings.Repeat("\x00", 17))
}

func encodings() []chunkenc.Encoding {
	return []chunkenc.Encoding{chunkenc.EncHistogram, chunkenc.EncFloatHistogram, chunkenc.EncHistogramST, chunkenc.EncFloatHistogramST}
}

func TestAChunkWithMoreBucketsThanItCanHoldIsRefused(t *testing.T) {
	for _, e := range encodings() {
		_, err := New(e, greedy())
		require.ErrorContains(t, err, "4294967295 buckets", "%s", e)
		none := greedy()
		none[1] = 0
		chunk, err := New(e, none)
		require.NoError(t, err, "%s: the layout of no samples is not read", e)
		require.Equal(t, chunkenc.ValNone, chunk.Iterator(nil).Next())
	}
}

func TestAChunkThatIsShorterThanItsHeaderIsRefused(t *testing.T) {
	for _, e := range append(encodings(), chunkenc.EncXOR, chunkenc.EncXOR2) {
		for n := range 3 {
			if e != chunkenc.EncXOR || n < 2 {
				require.ErrorContains(t, Check(e, make([]byte, n)), "less than its header")
			}
		}
	}
	_, err := New(chunkenc.Encoding(99), make([]byte, 3))
	require.Error(t, err)
}

// hist returns a histogram as some program may expose it.
func hist(r *rand.Rand) *histogram.Histogram {
	spans := func() (s []histogram.Span, deltas []int64) {
		for range r.IntN(4) {
			span := histogram.Span{Offset: r.Int32N(1 << r.IntN(12)), Length: r.Uint32N(1 << r.IntN(7))}
			for range span.Length {
				deltas = append(deltas, r.Int64N(1<<r.IntN(40)))
			}
			s = append(s, span)
		}
		return s, deltas
	}
	h := &histogram.Histogram{
		Schema: r.Int32N(13) - 4, ZeroThreshold: []float64{0, 1e-128, math.Ldexp(0.5, -127), 0.3}[r.IntN(4)],
		Count: r.Uint64(), ZeroCount: r.Uint64() >> r.IntN(64), Sum: r.NormFloat64(),
	}
	h.PositiveSpans, h.PositiveBuckets = spans()
	if r.IntN(3) > 0 {
		h.NegativeSpans, h.NegativeBuckets = spans()
	} else if r.IntN(2) == 0 {
		h.Schema, h.ZeroThreshold, h.ZeroCount = histogram.CustomBucketsSchema, 0, 0
		for i := range r.IntN(30) {
			h.CustomValues = append(h.CustomValues, float64(i)*[]float64{1, 0.1, 1e9, 1.0 / 3}[r.IntN(4)])
		}
	}
	if r.IntN(20) == 0 {
		h.Sum = math.Float64frombits(value.StaleNaN)
	}
	return h
}

// written returns the chunks that Prometheus makes of some histograms.
func written(t testing.TB, seed uint64, e chunkenc.Encoding) []chunkenc.Chunk {
	r := rand.New(rand.NewPCG(seed, uint64(e)))
	chunk, err := chunkenc.NewEmptyChunk(e)
	require.NoError(t, err)
	all := []chunkenc.Chunk{chunk}
	appender, err := chunk.Appender()
	require.NoError(t, err)
	for at := range int64(1 + r.IntN(8)) {
		var next chunkenc.Chunk
		if h := hist(r); e == chunkenc.EncHistogram || e == chunkenc.EncHistogramST {
			next, _, appender, err = appender.AppendHistogram(nil, 0, at, h, false)
		} else {
			next, _, appender, err = appender.AppendFloatHistogram(nil, 0, at, h.ToFloat(nil), false)
		}
		require.NoError(t, err)
		if next != nil {
			all = append(all, next)
		}
	}
	return all
}

func TestNoChunkThatPrometheusWroteIsRefused(t *testing.T) {
	for _, e := range encodings() {
		for seed := range uint64(2000) {
			for _, chunk := range written(t, seed, e) {
				require.NoError(t, Check(e, chunk.Bytes()), "%s, seed %d", e, seed)
				it := chunk.Iterator(nil)
				if it.Next() == chunkenc.ValNone {
					require.NoError(t, it.Err())
					continue
				}
				_, first := it.AtFloatHistogram(nil)
				if value.IsStaleNaN(first.Sum) {
					continue // it is returned without its buckets
				}
				buckets, err := layout(&bitReader{data: chunk.Bytes()[header:]})
				require.NoError(t, err)
				require.EqualValues(t, len(first.PositiveBuckets)+len(first.NegativeBuckets), buckets, fmt.Sprint(first))
			}
		}
	}
}

// What is not refused takes no more memory than its length allows: the fuzzer's process
// would end otherwise. (The converse does not hold: of a chunk that is cut short,
// Prometheus decodes up to 255 bits that are not there.)
func FuzzCheck(f *testing.F) {
	f.Add(byte(chunkenc.EncHistogram), greedy())
	for _, e := range encodings() {
		for seed := range uint64(8) {
			f.Add(byte(e), written(f, seed, e)[0].Bytes())
		}
	}
	f.Fuzz(func(_ *testing.T, encoding byte, data []byte) {
		chunk, err := New(chunkenc.Encoding(encoding), data)
		if err != nil {
			return
		}
		it := chunk.Iterator(nil)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			_ = it.AtT()
		}
	})
}

func FuzzNoChunkThatPrometheusWroteIsRefused(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		for _, e := range encodings() {
			for _, chunk := range written(t, seed, e) {
				require.NoError(t, Check(e, chunk.Bytes()), "%s, seed %d", e, seed)
			}
		}
	})
}
