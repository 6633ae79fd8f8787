package loadgen

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

func testWorld() *world {
	return newWorld(World{Seed: 3, Series: 5000, Histograms: 500, Interval: 15 * time.Second, Churn: 1})
}

// eachSeries calls f for all series of one generation.
func eachSeries(w *world, generation int64, f func(in *instance, t *template)) {
	for pod := range w.pods() {
		in := w.instance(pod, generation)
		for slot := range w.podSeries(pod) {
			f(in, w.template(pod, slot))
		}
	}
}

func labelsOf(w *world, t *template, in *instance) labels.Labels {
	b := labels.NewScratchBuilder(11)
	t.labels(w, in, b.Add)
	return b.Labels()
}

func TestSeriesLookLikeThoseOfKubernetes(t *testing.T) {
	w := testWorld()
	seen := map[string]bool{}
	histograms, size := 0, 0
	for generation := range int64(2) {
		eachSeries(w, generation, func(in *instance, tm *template) {
			ls := labelsOf(w, tm, in)
			require.Equal(t, 11, ls.Len(), ls)
			var names []string
			ls.Range(func(l labels.Label) {
				names = append(names, l.Name)
				size += len(l.Name) + len(l.Value)
				require.NotEmpty(t, l.Value)
			})
			require.True(t, slices.IsSorted(names), names)
			require.False(t, seen[ls.String()], "twice: %s", ls)
			seen[ls.String()] = true
			if tm.kind == kindNative {
				histograms++
			}
		})
	}
	require.Len(t, seen, 2*5000)
	require.Equal(t, 2*500, histograms)
	require.InDelta(t, 270, size/len(seen), 15)
}

func TestEqualWorldsAreEqualAndOthersShareNoSeries(t *testing.T) {
	a, b := testWorld(), testWorld()
	other := a.World
	other.Seed++
	c := newWorld(other)
	for pod := range a.pods() {
		require.Equal(t, a.instance(pod, 5), b.instance(pod, 5))
		require.NotEqual(t, a.instance(pod, 5).name, c.instance(pod, 5).name)
		require.Equal(t, a.offset(pod), b.offset(pod))
		in := a.instance(pod, 5)
		for slot := range a.podSeries(pod) {
			tm := a.template(pod, slot)
			require.Equal(t, math.Float64bits(a.value(tm, in, in.born+77)), math.Float64bits(b.value(tm, in, in.born+77)))
		}
	}
}

// Verification depends on it that a program of today knows what one of
// yesterday has sent.
func TestValuesStayWhatTheyAre(t *testing.T) {
	w := newWorld(World{Seed: 1, Series: 200, Histograms: 20, Interval: 15 * time.Second})
	in := w.instance(1, 0)
	const k = 117_000_000
	var got []float64
	for _, slot := range []int{0, 15, 30, 45, 60} {
		got = append(got, w.value(w.template(1, slot), in, k))
	}
	require.Equal(t, "checkout-api-b9vjf5gjh-m4pdw", in.name)
	require.Equal(t, []float64{2000, 135, 2305, 8.5344256e+07, 5497.49}, got)
}

func TestChurnReplacesItsShareOfThePods(t *testing.T) {
	w := newWorld(World{Seed: 1, Series: 73 * 1000, Interval: 15 * time.Second, Churn: 0.1})
	const hour = 240
	for _, k := range []int64{100_000_000, 117_000_000} {
		replaced := 0
		for pod := range w.pods() {
			replaced += int(w.generation(pod, k+hour) - w.generation(pod, k))
		}
		require.InDelta(t, 100, replaced, 2)
	}
}

func TestCountersOnlyGrowButForResets(t *testing.T) {
	w := testWorld()
	resets := 0
	for pod := range w.pods() {
		in := w.instance(pod, 5)
		for slot := range w.podSeries(pod) {
			tm := w.template(pod, slot)
			if tm.kind != kindCounter && tm.kind != kindSeconds && tm.kind != kindBucket {
				continue
			}
			previous := w.value(tm, in, in.born)
			for k := in.born + 1; k < in.born+3*in.restart; k += 37 {
				v := w.value(tm, in, k)
				if v < previous {
					resets++
					require.Less(t, (k-in.born)%in.restart, int64(37), "%s fell at tick %d of %d", tm.name, k-in.born, in.restart)
				}
				previous = v
			}
		}
	}
	require.Positive(t, resets)
}

func TestClassicHistogramsAreCumulative(t *testing.T) {
	w := testWorld()
	in := w.instance(2, 5)
	byHandler := map[string][]float64{}
	for slot := range w.podSeries(2) {
		if tm := w.template(2, slot); strings.HasSuffix(tm.name, "_seconds_bucket") {
			byHandler[tm.dims[0].value] = append(byHandler[tm.dims[0].value], w.value(tm, in, in.born+500))
		}
	}
	require.Len(t, byHandler, 2)
	for _, buckets := range byHandler {
		require.Len(t, buckets, 12)
		require.True(t, slices.IsSorted(buckets), buckets)
	}
}

func TestNativeHistogramsAreValid(t *testing.T) {
	w := testWorld()
	var n native
	eachSeries(w, 5, func(in *instance, tm *template) {
		if tm.kind == kindNative {
			w.native(&n, tm, in, in.born+100)
			require.NoError(t, n.histogram().Validate())
		}
	})
}

// encodeTick encodes tick k of some pods, with stale markers of the generation before.
func encodeTick(w *world, enc encoder, k int64) (raw []byte, want map[string]any) {
	want = map[string]any{}
	for pod := range 5 {
		in, ended := w.instance(pod, 9), w.instance(pod, 8)
		s := sender{g: &Generator{world: w}, enc: enc}
		for slot := range w.podSeries(pod) {
			tm := w.template(pod, slot)
			s.add(tm, in, ended, k*w.interval, k)
			if tm.kind == kindNative {
				var n native
				w.native(&n, tm, in, k)
				want[labelsOf(w, tm, in).String()] = n.histogram()
				continue
			}
			want[labelsOf(w, tm, in).String()] = w.value(tm, in, k)
		}
	}
	raw, err := snappy.Decode(nil, enc.body())
	if err != nil {
		panic(err)
	}
	return raw, want
}

func TestRequestsOfProtocol1AreWhatPrometheusDecodes(t *testing.T) {
	w := testWorld()
	const k = 117_000_000
	enc := newEncoder(w, ProtocolV1)
	for range 2 { // the second request reuses the buffers
		raw, want := encodeTick(w, enc, k)
		var req prompb.WriteRequest
		require.NoError(t, req.Unmarshal(raw))
		again, err := req.Marshal()
		require.NoError(t, err)
		require.True(t, bytes.Equal(again, raw), "the same bytes as Prometheus's own encoder writes")
		b := labels.NewScratchBuilder(11)
		stale := 0
		for _, ts := range req.Timeseries {
			name := ts.ToLabels(&b, nil).String()
			switch {
			case len(ts.Samples) == 1 && value.IsStaleNaN(ts.Samples[0].Value):
				stale++
			case len(ts.Samples) == 1:
				require.Equal(t, want[name], any(ts.Samples[0].Value))
				require.Equal(t, k*w.interval, ts.Samples[0].Timestamp)
				delete(want, name)
			case value.IsStaleNaN(ts.Histograms[0].Sum):
				stale++
			default:
				require.True(t, ts.Histograms[0].ToIntHistogram().ToFloat(nil).Equals(asFloat(want[name])))
				require.Equal(t, k*w.interval, ts.Histograms[0].Timestamp)
				delete(want, name)
			}
		}
		require.Empty(t, want)
		require.Equal(t, 5*seriesPerPod, stale)
	}
}

func TestRequestsOfProtocol2AreWhatPrometheusDecodes(t *testing.T) {
	w := testWorld()
	const k = 117_000_000
	enc := newEncoder(w, ProtocolV2)
	for range 2 {
		raw, want := encodeTick(w, enc, k)
		var req writev2.Request
		require.NoError(t, req.Unmarshal(raw))
		require.Empty(t, req.Symbols[0])
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(req.Symbols))), len(req.Symbols), "a symbol is there twice")
		b := labels.NewScratchBuilder(11)
		stale := 0
		for _, ts := range req.Timeseries {
			ls, err := ts.ToLabels(&b, req.Symbols)
			require.NoError(t, err)
			name := ls.String()
			require.NotZero(t, ts.Metadata.Type)
			switch {
			case len(ts.Samples) == 1 && value.IsStaleNaN(ts.Samples[0].Value):
				stale++
			case len(ts.Samples) == 1:
				require.Equal(t, want[name], any(ts.Samples[0].Value))
				delete(want, name)
			case value.IsStaleNaN(ts.Histograms[0].Sum):
				stale++
			default:
				require.True(t, ts.Histograms[0].ToIntHistogram().ToFloat(nil).Equals(asFloat(want[name])))
				delete(want, name)
			}
		}
		require.Empty(t, want)
		require.Equal(t, 5*seriesPerPod, stale)
	}
}

func TestAcknowledgedKnowsRefusedRanges(t *testing.T) {
	at := func(tick int64, position int) Cursor { return Cursor{tick, position} }
	s := SenderAcknowledged{Before: at(10, 0)}
	s.advance(Range{at(10, 0), at(10, 5)}, true)
	s.advance(Range{at(10, 5), at(11, 2)}, false)
	s.advance(Range{at(11, 2), at(11, 4)}, false)
	s.advance(Range{at(11, 4), at(12, 1)}, true)
	require.Equal(t, []Range{{at(10, 5), at(11, 4)}}, s.Refused)
	for c, want := range map[Cursor]bool{
		at(10, 0): true, at(10, 4): true, at(10, 5): false, at(10, 9): false, at(11, 0): false, at(11, 3): false,
		at(11, 4): true, at(11, 9): true, at(12, 0): true, at(12, 1): false, at(13, 0): false,
	} {
		require.Equal(t, want, s.has(c), c)
	}
}

func TestQuantilesOfLatencyAreNear(t *testing.T) {
	var l latencies
	for us := range 100_000 {
		l.add(time.Duration(us+1) * time.Microsecond)
	}
	s := l.summary()
	for _, c := range []struct {
		got  time.Duration
		want float64
	}{{s.P50, 50}, {s.P90, 90}, {s.P99, 99}, {s.Max, 100}} {
		require.InEpsilon(t, c.want, c.got.Seconds()*1000, 0.07)
	}
	require.LessOrEqual(t, latencyBound(latencyBucket(math.MaxInt64)), time.Duration(math.MaxInt64))
}

func asFloat(v any) *histogram.FloatHistogram { return v.(*histogram.FloatHistogram) }

func BenchmarkEncode(b *testing.B) {
	for name, protocol := range map[string]Protocol{"v1": ProtocolV1, "v2": ProtocolV2} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(World{Seed: 1, Series: 73 * 1000, Interval: 15 * time.Second})
			instances := make([]*instance, w.pods())
			for pod := range instances {
				instances[pod] = w.instance(pod, 0)
			}
			s := sender{g: &Generator{world: w}, enc: newEncoder(w, protocol)}
			samples, bytes := 0, 0
			b.ReportAllocs()
			for k := int64(117_000_000); b.Loop(); k++ {
				for pod := range 27 {
					in := instances[(int(k)*27+pod)%len(instances)]
					for slot := range seriesPerPod {
						s.add(w.template(in.pod, slot), in, nil, k*w.interval, k)
						samples++
					}
				}
				bytes += len(s.enc.body())
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
			b.ReportMetric(float64(bytes)/float64(samples), "B/sample")
		})
	}
}
