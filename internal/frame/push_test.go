package frame

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// encode returns a frame of series of b, from the first of the two to before the
// second. Those for which bare says so go without labels.
func encode(w *PushWriter, b *write.Batch, from, to int, bare func(i int) bool) []byte {
	w.Reset()
	source, _ := b.Source.(write.Labels)
	for i := from; i < to; i++ {
		ls := labels.EmptyLabels()
		if !bare(i) {
			ls = source[i]
		}
		w.Add(b, i, b.Series[i].ID, ls)
	}
	return w.Bytes()
}

func TestWhatIsPushedArrivesBitByBit(t *testing.T) {
	var (
		w   PushWriter
		d   PushDecoder
		got write.Batch
	)
	for seed := range uint64(300) {
		r := newRandom(seed)
		want := r.batch(r.IntN(20), 200)
		bare := func(i int) bool { return i%3 == 0 }

		split := r.IntN(len(want.Series) + 1)
		first := append([]byte(nil), encode(&w, want, 0, split, bare)...)
		require.Equal(t, split, w.Series())
		encode(&w, want, split, len(want.Series), bare)
		w.AddMetadata(want.Metadata)
		second := w.Bytes()
		var frames [][]byte
		for _, frame := range [][]byte{first, second} {
			if len(frame) > 0 { // nothing to send is no frame
				frames = append(frames, frame)
			}
		}

		require.NoError(t, d.Decode(&got, frames...))
		requireEqual(t, want, &got)
		for i := range want.Series {
			if want := want.Source.(write.Labels)[i]; bare(i) || want.IsEmpty() {
				require.ErrorIs(t, got.Source.AppendLabels(i, new(labels.ScratchBuilder)), write.ErrNoLabels)
			} else {
				require.Equal(t, want, labelsOf(t, &got, i))
			}
		}
	}
}

// oneSeries returns a batch of one series.
func oneSeries(samples ...write.Sample) *write.Batch {
	b := &write.Batch{}
	b.Add(write.NewHasher(), labels.FromStrings("__name__", "up", "job", "a"), samples, nil, nil)
	return b
}

func TestAFrameIsAsDocumented(t *testing.T) {
	b := oneSeries(write.Sample{T: 1000, V: 1}, write.Sample{T: 2000, V: 2, ST: 500})
	id := write.Identity{Hi: 0x0102030405060708, Lo: 0x1112131415161718}
	var w PushWriter
	w.Add(b, 0, id, labels.FromStrings("__name__", "up", "job", "a"))
	w.Add(b, 0, id, labels.EmptyLabels())
	h := write.Batch{
		Series: []write.Series{{Histograms: write.Span{Len: 2}, Exemplars: write.Span{Len: 1}}},
		Histograms: []write.Histogram{
			{T: 2000, Int: &histogram.Histogram{
				CounterResetHint: histogram.NotCounterReset, Schema: -1, Sum: 1, Count: 3, ZeroThreshold: 0.5, ZeroCount: 1,
				PositiveSpans: []histogram.Span{{Offset: -1, Length: 2}}, PositiveBuckets: []int64{1, 0},
				NegativeSpans: []histogram.Span{{Offset: 2, Length: 1}}, NegativeBuckets: []int64{-1},
			}},
			{T: 2000, ST: 500, Float: &histogram.FloatHistogram{
				Schema: histogram.CustomBucketsSchema, Sum: 1, Count: 2,
				PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []float64{2}, CustomValues: []float64{0.5},
			}},
		},
		Exemplars: []exemplar.Exemplar{{Labels: labels.FromStrings("a", "b"), Value: 1, Ts: 2000, HasTs: true}},
	}
	w.Add(&h, 0, id, labels.EmptyLabels())
	w.AddMetadata([]write.Metadata{{Metric: "up", Metadata: metadata.Metadata{Type: "gauge", Unit: "s", Help: "?"}}})

	const (
		one     = "000000000000f03f "
		two     = "0000000000000040 "
		half    = "000000000000e03f "
		encoded = "0807060504030201 1817161514131211 "
	)
	require.Equal(t, unhex(t, "01 "+
		"23 "+encoded+"1a 0a0e 0a085f5f6e616d655f5f 12027570 0a08 0a036a6f62 120161 "+
		"d00f "+one+"00 d00f "+two+"e807 "+
		"22 "+encoded+"cf0f "+one+"e707 d00f "+two+"e807 "+
		"0c "+encoded+
		"02 00 e707 26 01 "+one+"03 "+half+"01 01 01 02 02 02 00 01 04 01 01 01 "+
		"00 e807 09 69 "+one+two+"01 00 01 01 "+two+"01 "+half+
		"01 01 00 "+one+"08 0a06 0a0161 120162 "+
		"f1 027570 056761756765 0173 013f"), w.Bytes())

	var got write.Batch
	require.NoError(t, DecodePush(&got, w.Bytes()))
	require.Equal(t, write.Counts{Samples: 4, Histograms: 2, Exemplars: 1}, got.Counts())
	require.Equal(t, w.Counts(), got.Counts())
	require.Equal(t, 6, w.Samples())
	require.Equal(t, 3, w.Series())
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	require.NoError(t, err)
	return b
}

func TestFramesOfNothing(t *testing.T) {
	var w PushWriter
	require.Nil(t, w.Bytes())
	require.Zero(t, w.Len())
	w.AddMetadata(nil)
	require.Nil(t, w.Bytes(), "to send nothing needs no frame")

	b := oneSeries()
	require.NoError(t, DecodePush(b), "no frames, no series")
	require.Empty(t, b.Series)
	require.NoError(t, DecodePush(b, []byte{pushVersion}))
	require.Empty(t, b.Series)
	require.ErrorIs(t, DecodePush(b, nil), ErrMalformed)

	w.Add(oneSeries(), 0, write.Identity{Lo: 1}, labels.EmptyLabels())
	require.NoError(t, DecodePush(b, w.Bytes()))
	require.Equal(t, []write.Series{{ID: write.Identity{Lo: 1}}}, b.Series, "a series may have no samples")
}

func TestAWriterForgetsTheLastFrame(t *testing.T) {
	b := oneSeries(write.Sample{T: 1000, V: 1, ST: 7})
	var w PushWriter
	frame := func() string {
		w.Add(b, 0, write.Identity{Lo: 1}, labels.EmptyLabels())
		return string(w.Bytes())
	}
	first := frame()
	require.NotEqual(t, first, frame(), "two series")
	w.Reset()
	require.Zero(t, w.Series()+w.Samples()+w.Len())
	require.Equal(t, first, frame())
}

func TestMalformedPushFramesAreRefused(t *testing.T) {
	id := strings.Repeat("00", 16)
	for name, c := range map[string]struct {
		frame string
		want  error
	}{
		"unknown version":             {"02", ErrMalformed},
		"unknown entry":               {"01 f2", errEntry},
		"identity cut":                {"01 10 00", errCut},
		"value cut":                   {"01 10" + id + "00 00000000", errCut},
		"time cut":                    {"01 10" + id + "80", errCut},
		"time too long":               {"01 10" + id + strings.Repeat("ff", 10) + "01" + id, errCut},
		"more samples than bytes":     {"01 e0" + id + "ffffff7f 00", errCut},
		"start cut":                   {"01 12" + id + "00" + id[:16], errCut},
		"labels cut":                  {"01 01" + id + "05 0a", errCut},
		"labels of no bytes":          {"01 01" + id + "00", errCut},
		"more histograms than bytes":  {"01 04" + id + "ffffff7f 00", errCut},
		"unknown histogram flags":     {"01 04" + id + "01 00 00 80" + id, errHistogram},
		"schema out of range":         {"01 04" + id + "01 00 00 00 ffffffff7f" + id, errCut},
		"more spans than bytes":       {"01 04" + id + "01 00 00 00 00" + id[:16] + "00 ffffff7f 00 00", errCut},
		"span of too great a length":  {"01 04" + id + "01 00 00 00 00" + id[:16] + "00 01 00 ffffffffff7f 00", errCut},
		"more buckets than bytes":     {"01 04" + id + "01 00 00 00 00" + id[:16] + "00 00 ffffff7f 00", errCut},
		"more float buckets":          {"01 04" + id + "01 00 00 01 00" + id + "00 02" + id[:16], errCut},
		"more exemplars than bytes":   {"01 08" + id + "ffffff7f 00", errCut},
		"unknown exemplar flags":      {"01 08" + id + "01 02 00" + id, errExemplar},
		"labels of an exemplar cut":   {"01 08" + id + "01 00 00" + id[:16] + "05 0a", errCut},
		"labels of an exemplar wrong": {"01 08" + id + "01 00 00" + id[:16] + "01 0b", errLabelForm},
		"metadata cut":                {"01 f1 01 61 00 00", errCut},
	} {
		t.Run(name, func(t *testing.T) {
			b := oneSeries()
			err := DecodePush(b, []byte{pushVersion}, unhex(t, c.frame))
			require.ErrorIs(t, err, c.want)
			require.ErrorIs(t, err, ErrMalformed)
			require.ErrorContains(t, err, "push frame 2 of 2, behind series 0")
			require.Empty(t, b.Series)
			require.Nil(t, b.Source)
		})
	}
}

func TestLabelsThatAreNotCanonicalAreTheFaultOfTheirSeriesAlone(t *testing.T) {
	id := strings.Repeat("00", 16)
	for name, c := range map[string]struct {
		labels string
		want   error
	}{
		"another field":         {"12 05 0a0161 1200", errLabelForm},
		"label cut":             {"0a 07 0a0161 120162", errLabelForm},
		"name missing":          {"0a 03 120162", errLabelForm},
		"value missing":         {"0a 03 0a0161", errLabelForm},
		"value cut":             {"0a 06 0a0161 120262", errLabelForm},
		"bytes behind":          {"0a 07 0a0161 120162 00", errLabelForm},
		"length that overflows": {"0a 06 0a ffffffffffffffffff7f", errLabelForm},
		"not sorted":            {"0a 06 0a0162 120162 0a 06 0a0161 120162", errLabelOrder},
		"twice":                 {"0a 06 0a0161 120162 0a 06 0a0161 120162", errLabelOrder},
	} {
		t.Run(name, func(t *testing.T) {
			encoded := unhex(t, c.labels)
			frame := append(unhex(t, "01 01"+id), byte(len(encoded)))
			frame = append(frame, encoded...)
			frame = append(frame, unhex(t, "10"+id+"02"+id[:16])...)
			var b write.Batch
			require.NoError(t, DecodePush(&b, frame))
			require.Len(t, b.Series, 2)
			scratch := labels.NewScratchBuilder(0)
			require.ErrorIs(t, b.Source.AppendLabels(0, &scratch), c.want)
			_, _, err := b.Resolve(0, tenant.Limits{}, &scratch, write.NewHasher())
			var reason *write.SeriesError
			require.ErrorAs(t, err, &reason)
			require.Equal(t, write.ReasonMalformedSeries, reason.Reason)
			require.ErrorIs(t, b.Source.AppendLabels(1, &scratch), write.ErrNoLabels)
		})
	}
}

func TestLabelsTooLongForPrometheusAreRefused(t *testing.T) {
	var w PushWriter
	w.Add(oneSeries(), 0, write.Identity{Lo: 1}, labels.FromStrings("a", strings.Repeat("x", maxLabelsBytes-20)))
	w.Add(oneSeries(), 0, write.Identity{Lo: 2}, labels.FromStrings("a", strings.Repeat("x", maxLabelsBytes/2), "b", strings.Repeat("x", maxLabelsBytes/2)))
	var b write.Batch
	require.NoError(t, DecodePush(&b, w.Bytes()))
	require.Len(t, labelsOf(t, &b, 0).Get("a"), maxLabelsBytes-20)
	require.ErrorIs(t, b.Source.AppendLabels(1, new(labels.ScratchBuilder)), errLabelForm)
}

func TestDecodingAgainAndAgainAllocatesNothing(t *testing.T) {
	b := steady(100)
	var (
		w   PushWriter
		d   PushDecoder
		got write.Batch
	)
	frames := [][]byte{nil}
	require.Zero(t, testing.AllocsPerRun(10, func() {
		w.Reset()
		for i := range b.Series {
			w.Add(b, i, b.Series[i].ID, b.Source.(write.Labels)[i])
		}
		frames[0] = w.Bytes()
		if err := d.Decode(&got, frames...); err != nil {
			panic(err)
		}
	}))
	require.Positive(t, w.Retained())
	require.Positive(t, d.Retained())
}

// steady returns what a scrape brings: one sample for each series.
func steady(series int) *write.Batch {
	b := &write.Batch{}
	h := write.NewHasher()
	for i := range series {
		b.Add(h, labels.FromStrings("__name__", "http_requests_total", "instance", fmt.Sprint(i/50), "job", "node", "path", fmt.Sprint(i)),
			[]write.Sample{{T: 1_790_000_000_000 + int64(i/50*37), V: float64(i) * 1.5}}, nil, nil)
	}
	return b
}

func FuzzDecodePush(f *testing.F) {
	var w PushWriter
	for seed := range uint64(8) {
		b := newRandom(seed).batch(3, 20)
		encode(&w, b, 0, len(b.Series), func(i int) bool { return i%2 == 0 })
		w.AddMetadata(b.Metadata)
		f.Add(append([]byte(nil), w.Bytes()...))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		var b write.Batch
		if err := DecodePush(&b, frame); err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			require.Empty(t, b.Series)
			return
		}
		require.LessOrEqual(t, memoryOf(&b), 32*len(frame)+4096)

		// What was decoded is the same after another way through a frame, but for labels
		// that are at fault, which no writer makes.
		again := func(b *write.Batch) []byte {
			w := &PushWriter{}
			scratch := labels.NewScratchBuilder(0)
			for i, s := range b.Series {
				ls := labels.EmptyLabels()
				scratch.Reset()
				if b.Source.AppendLabels(i, &scratch) == nil {
					ls = scratch.Labels()
				}
				w.Add(b, i, s.ID, ls)
			}
			w.AddMetadata(b.Metadata)
			return w.Bytes()
		}
		encoded := again(&b)
		if encoded == nil {
			return
		}
		var second write.Batch
		require.NoError(t, DecodePush(&second, encoded))
		requireEqual(t, &b, &second)
		require.Equal(t, encoded, again(&second))
	})
}

// memoryOf returns how many bytes b takes without what it aliases.
func memoryOf(b *write.Batch) int {
	n := 56*cap(b.Series) + 24*cap(b.Samples) + 32*cap(b.Histograms) + 48*cap(b.Exemplars) + 64*cap(b.Metadata)
	for _, h := range b.Histograms {
		switch {
		case h.Int != nil:
			n += 176 + 8*(cap(h.Int.PositiveSpans)+cap(h.Int.NegativeSpans)+cap(h.Int.PositiveBuckets)+cap(h.Int.NegativeBuckets)+cap(h.Int.CustomValues))
		case h.Float != nil:
			n += 176 + 8*(cap(h.Float.PositiveSpans)+cap(h.Float.NegativeSpans)+cap(h.Float.PositiveBuckets)+cap(h.Float.NegativeBuckets)+cap(h.Float.CustomValues))
		}
	}
	for _, e := range b.Exemplars {
		n += len(e.Labels.Bytes(nil))
	}
	return n
}

func BenchmarkPush(b *testing.B) {
	batch := steady(2000)
	many := &write.Batch{}
	for i := range 20 {
		samples := make([]write.Sample, 100)
		for j := range samples {
			samples[j] = write.Sample{T: 1_790_000_000_000 + int64(j)*15_000, V: float64(i * j)}
		}
		many.Add(write.NewHasher(), labels.FromStrings("__name__", "up"), samples, nil, nil)
	}
	for _, c := range []struct {
		name  string
		batch *write.Batch
		bare  bool
	}{{"known", batch, true}, {"new", batch, false}, {"many", many, true}} {
		bare := func(int) bool { return c.bare }
		perSample := func(b *testing.B, w *PushWriter) {
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*w.Samples()), "ns/sample")
			b.ReportMetric(float64(w.Len())/float64(w.Samples()), "B/sample")
		}
		b.Run("encode/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			var w PushWriter
			for b.Loop() {
				encode(&w, c.batch, 0, len(c.batch.Series), bare)
			}
			perSample(b, &w)
		})
		b.Run("decode/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			var (
				w   PushWriter
				d   PushDecoder
				got write.Batch
			)
			frames := [][]byte{encode(&w, c.batch, 0, len(c.batch.Series), bare)}
			for b.Loop() {
				if err := d.Decode(&got, frames...); err != nil {
					b.Fatal(err)
				}
			}
			perSample(b, &w)
		})
	}
}
