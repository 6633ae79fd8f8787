package remotewrite

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/remotewrite/remotewritetest"
	"github.com/hundredfold/hundredfold/internal/write"
)

// requireRequest checks that b holds what r says, bit by bit.
func requireRequest(t *testing.T, r *remotewritetest.Request, v Version, b *write.Batch) {
	t.Helper()
	require.Len(t, b.Series, len(r.Series))
	for i, want := range r.Series {
		s := b.Series[i]
		require.NoError(t, s.Err)
		ls, id, err := resolve(b, i)
		require.NoError(t, err)
		require.Equal(t, want.Labels.String(), ls.String())
		require.Equal(t, id, s.ID, "sorted labels are identified without resolving them")

		samples := b.Samples[s.Samples.Off:s.Samples.End()]
		require.Len(t, samples, len(want.Samples))
		for j, x := range want.Samples {
			require.Equal(t, math.Float64bits(x.V), math.Float64bits(samples[j].V))
			require.Equal(t, x.T, samples[j].T)
			if v == V2 {
				require.Equal(t, x.ST, samples[j].ST)
			}
		}
		histograms := b.Histograms[s.Histograms.Off:s.Histograms.End()]
		require.Len(t, histograms, len(want.Histograms))
		for j, x := range want.Histograms {
			require.Equal(t, x.T, histograms[j].T)
			if v == V2 {
				require.Equal(t, x.ST, histograms[j].ST)
			}
			if x.Int != nil {
				require.True(t, x.Int.Equals(histograms[j].Int))
			} else {
				require.True(t, x.Float.Equals(histograms[j].Float))
				require.Equal(t, math.Float64bits(x.Float.Sum), math.Float64bits(histograms[j].Float.Sum))
			}
		}
		exemplars := b.Exemplars[s.Exemplars.Off:s.Exemplars.End()]
		require.Len(t, exemplars, len(want.Exemplars))
		for j, x := range want.Exemplars {
			require.True(t, x.Equals(exemplars[j]))
		}
	}
	require.Equal(t, r.Metadata, b.Metadata)
}

func TestDecoderUnderstandsWhatPrometheusSends(t *testing.T) {
	for _, v := range []Version{V1, V2} {
		b, rejected := decode(t, v, encode(t, v, wide()))
		require.Empty(t, rejected.Rejected)
		// Prometheus leaves out the sign of a negative zero.
		b.Samples[b.Series[1].Samples.Off+1].V = math.Copysign(0, -1)
		requireRequest(t, wide(), v, b)
	}
}

func TestTheSignOfZeroIsKept(t *testing.T) {
	sample := message{}.double(1, math.Copysign(0, -1)).varint(2, 5)
	v1 := message{}.bytes(1, message{}.bytes(1, label("__name__", "up")).bytes(2, sample))
	v2 := message{}.str(4, "").str(4, "__name__").str(4, "up").bytes(5, message{}.bytes(1, []byte{1, 2}).bytes(2, sample))
	for v, data := range map[Version]message{V1: v1, V2: v2} {
		b, _ := decode(t, v, data)
		require.Len(t, b.Samples, 1)
		require.True(t, math.Signbit(b.Samples[0].V))
	}
}

func TestSeriesHasOneIdentityWhateverTheProtocol(t *testing.T) {
	long := strings.Repeat("v", 300)
	for _, ls := range []labels.Labels{
		labels.FromStrings("__name__", "up"),
		labels.FromStrings("__name__", "m", "a", "1", "b", long),
		labels.FromStrings("__name__", "m", "a", strings.Repeat("x", 122), "b", strings.Repeat("y", 123)),
		labels.FromStrings("__name__", "m", "a", strings.Repeat("x", 127), "b", strings.Repeat("y", 128)),
		labels.FromStrings("__name__", "m", long, strings.Repeat("z", 20_000)),
		labels.FromStrings("__name__", "ä", "日本", "\x00"),
	} {
		want := write.NewHasher().Labels(ls)
		r := &remotewritetest.Request{Series: []remotewritetest.TimeSeries{{Labels: ls, Samples: []write.Sample{{T: 1, V: 1}}}}}
		for _, v := range []Version{V1, V2} {
			b, _ := decode(t, v, encode(t, v, r))
			require.Equal(t, want, b.Series[0].ID)
		}
	}
}

func TestUnsortedLabelsResolveToTheIdentityOfTheSorted(t *testing.T) {
	want := write.NewHasher().Labels(labels.FromStrings("__name__", "up", "a", "1", "b", "2"))
	sample := prompb.Sample{Value: 1, Timestamp: 1}

	unsorted := []prompb.Label{{Name: "b", Value: "2"}, {Name: "empty"}, {Name: "__name__", Value: "up"}, {Name: "a", Value: "1"}}
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{Labels: unsorted, Samples: []prompb.Sample{sample}}}}).Marshal()
	require.NoError(t, err)
	b, _ := decode(t, V1, raw)
	requireResolves(t, b, want)

	raw, err = (&writev2.Request{
		Symbols: []string{"", "b", "2", "empty", "__name__", "up", "a", "1"},
		Timeseries: []writev2.TimeSeries{{
			LabelsRefs: []uint32{1, 2, 3, 0, 4, 5, 6, 7}, Samples: []writev2.Sample{{Value: 1, Timestamp: 1}},
		}},
	}).Marshal()
	require.NoError(t, err)
	b, _ = decode(t, V2, raw)
	requireResolves(t, b, want)
}

func requireResolves(t *testing.T, b *write.Batch, want write.Identity) {
	t.Helper()
	require.Len(t, b.Series, 1)
	require.NotEqual(t, want, b.Series[0].ID)
	_, id, err := resolve(b, 0)
	require.NoError(t, err)
	require.Equal(t, want, id)
}

// message builds messages that no generated encoder would.
type message []byte

func (m message) bytes(field int, value []byte) message {
	m = binary.AppendUvarint(m, uint64(field<<3|wireBytes))
	m = binary.AppendUvarint(m, uint64(len(value)))
	return append(m, value...)
}

func (m message) str(field int, value string) message { return m.bytes(field, []byte(value)) }

func (m message) double(field int, value float64) message {
	m = binary.AppendUvarint(m, uint64(field<<3|wireFixed64))
	return binary.LittleEndian.AppendUint64(m, math.Float64bits(value))
}

func (m message) varint(field int, value uint64) message {
	m = binary.AppendUvarint(m, uint64(field<<3|wireVarint))
	return binary.AppendUvarint(m, value)
}

func (m message) raw(b ...byte) message { return append(m, b...) }

func label(name, value string) message { return message{}.str(1, name).str(2, value) }

var oneSample = message{}.double(1, 5).varint(2, 77)

func TestFieldsMayComeInAnyOrder(t *testing.T) {
	want := labels.FromStrings("__name__", "up", "a", "1", "b", "2")
	v2 := func(series message) message {
		return message{}.bytes(5, series).str(4, "").str(4, "__name__").str(4, "up").str(4, "a").str(4, "1").str(4, "b").str(4, "2")
	}
	for name, c := range map[string]struct {
		version Version
		data    message
	}{
		"v1 sample between labels": {V1, message{}.bytes(1, message{}.
			bytes(1, label("__name__", "up")).bytes(2, oneSample).bytes(1, label("a", "1")).bytes(1, label("b", "2")))},
		"v1 unknown fields everywhere": {V1, message{}.varint(2, 9).bytes(1, message{}.varint(15, 1).
			bytes(1, label("__name__", "up")).str(99, "x").bytes(1, label("a", "1")).double(77, 1).bytes(1, label("b", "2")).
			raw(0xfd, 0x06, 1, 2, 3, 4).bytes(2, message{}.varint(9, 9).raw(oneSample...)))},
		"v2 symbols last":         {V2, v2(message{}.bytes(2, oneSample).bytes(1, []byte{1, 2, 3, 4, 5, 6}))},
		"v2 references in pieces": {V2, v2(message{}.bytes(1, []byte{1, 2, 3}).bytes(2, oneSample).bytes(1, nil).bytes(1, []byte{4, 5, 6}))},
		"v2 references not packed": {V2, v2(message{}.varint(1, 1).varint(1, 2).bytes(4, message{}.varint(1, 3).varint(1, 4)).varint(1, 3).
			varint(1, 4).bytes(2, oneSample).varint(1, 5).bytes(1, []byte{6}))},
	} {
		t.Run(name, func(t *testing.T) {
			b, rejected := decode(t, c.version, c.data)
			require.Empty(t, rejected.Rejected)
			require.Len(t, b.Series, 1)
			ls, id, err := resolve(b, 0)
			require.NoError(t, err)
			require.Equal(t, want, ls)
			require.Equal(t, id, b.Series[0].ID)
			require.Equal(t, []write.Sample{{T: 77, V: 5}}, b.Samples)
		})
	}
}

func TestTheLastOfRepeatedScalarsCounts(t *testing.T) {
	sample := message{}.double(1, 1).varint(2, 1).double(1, 2).varint(2, 2)
	b, _ := decode(t, V1, message{}.bytes(1, message{}.bytes(1, message{}.str(1, "x").str(2, "y").raw(label("__name__", "up")...)).bytes(2, sample)))
	require.Equal(t, []write.Sample{{T: 2, V: 2}}, b.Samples)
	ls, _, err := resolve(b, 0)
	require.NoError(t, err)
	require.Equal(t, labels.FromStrings("__name__", "up"), ls)
}

func TestBrokenRequestsAreRefusedWithTheirPlace(t *testing.T) {
	series := func(m message) message { return message{}.bytes(1, m) }
	for name, c := range map[string]struct {
		version Version
		data    message
		want    string
	}{
		"field number 0":         {V1, message{0x02, 0x00}, "decode field 0 of WriteRequest at offset 0: the field number is not valid"},
		"huge field number":      {V1, message{}.raw(0xfa, 0xff, 0xff, 0xff, 0xff, 0x01, 0), "the field number is not valid"},
		"group":                  {V1, series(message{0x0b, 0x0c}), "decode field 1 of TimeSeries at offset 2: the wire type does not fit the field"},
		"unknown group":          {V1, message{0x53, 0x54}, "decode field 10 of WriteRequest at offset 0: groups are not supported"},
		"wire type 7":            {V1, message{0x57}, "the wire type does not fit"},
		"length beyond the end":  {V1, series(message{0x12, 0x05, 0x00}), "decode field 2 of TimeSeries at offset 2: the length exceeds what is left of the message"},
		"label beyond the end":   {V1, series(message{0x0a, 0x00, 0x0a, 0x7f}), "decode field 1 of TimeSeries at offset 4: the length exceeds"},
		"endless varint":         {V1, message{}.raw(0x10).raw(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), "a varint has more than ten bytes"},
		"varint cut short":       {V1, message{0x10, 0x80}, "the message ends within the field"},
		"double cut short":       {V1, series(message{}.bytes(2, []byte{0x09, 1, 2})), "decode field 1 of Sample at offset 4: the message ends within the field"},
		"sample value as varint": {V1, series(message{}.bytes(2, message{}.varint(1, 1))), "decode field 1 of Sample at offset 4: the wire type"},
		"2.0 sent as 1.0":        {V1, message{}.str(4, "").bytes(5, nil), "another version of the protocol"},
		"1.0 sent as 2.0":        {V2, series(message{}.bytes(1, label("__name__", "up"))), "another version of the protocol"},
		"first symbol not empty": {V2, message{}.str(4, "up"), "the first symbol must be the empty string"},
		"broken histogram":       {V1, series(message{}.bytes(4, []byte{0x08})), "decode field 4 of TimeSeries at offset 2"},
		"broken reference":       {V2, message{}.str(4, "").bytes(5, message{}.bytes(1, []byte{0, 0x80}).bytes(2, oneSample)), "the message ends within the field"},
		"broken reference, odd":  {V2, message{}.str(4, "").bytes(5, message{}.bytes(1, []byte{9, 0, 0x80}).bytes(2, oneSample)), "the message ends within the field"},
		"broken exemplar":        {V2, message{}.str(4, "").bytes(5, message{}.bytes(4, message{}.bytes(1, []byte{0x80}))), "decode field 4 of TimeSeries"},
	} {
		t.Run(name, func(t *testing.T) {
			b := write.Batch{Samples: make([]write.Sample, 3)}
			_, err := NewDecoder().Decode(c.version, c.data, &b)
			require.ErrorContains(t, err, c.want)
			require.Empty(t, b.Series)
			require.Empty(t, b.Samples)
		})
	}
}

func TestSeriesAtFaultLeavesTheOthersAlone(t *testing.T) {
	good := writev2.TimeSeries{LabelsRefs: []uint32{1, 2}, Samples: []writev2.Sample{{Value: 1, Timestamp: 1}}}
	for name, c := range map[string]struct {
		change func(*writev2.TimeSeries)
		want   string
	}{
		"name out of range":  {func(s *writev2.TimeSeries) { s.LabelsRefs = []uint32{9, 2} }, "label references 9 and 2 exceed the 3 symbols"},
		"value out of range": {func(s *writev2.TimeSeries) { s.LabelsRefs = []uint32{1, 2, 1, math.MaxUint32} }, "exceed the 3 symbols"},
		"odd":                {func(s *writev2.TimeSeries) { s.LabelsRefs = []uint32{1, 2, 1} }, "the number of label references is odd"},
		"help out of range":  {func(s *writev2.TimeSeries) { s.Metadata.HelpRef = 3 }, "help_ref 3 or unit_ref 0 exceeds the 3 symbols"},
		"unit out of range":  {func(s *writev2.TimeSeries) { s.Metadata.UnitRef = 1 << 31 }, "unit_ref"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			c.change(&bad)
			raw, err := (&writev2.Request{Symbols: []string{"", "__name__", "up"}, Timeseries: []writev2.TimeSeries{good, bad, good}}).Marshal()
			require.NoError(t, err)
			b, rejected := decode(t, V2, raw)
			require.Empty(t, rejected.Rejected)
			require.Len(t, b.Series, 3)
			require.NoError(t, b.Series[0].Err)
			require.ErrorContains(t, b.Series[1].Err, c.want)
			require.True(t, b.Series[1].ID.IsZero(), "no lookup may find it")
			require.NoError(t, b.Series[2].Err)
			require.Len(t, b.Samples, 3)
		})
	}
}

func TestEmptySeriesIsRejectedInV2Only(t *testing.T) {
	raw, err := (&writev2.Request{
		Symbols: []string{"", "__name__", "up"},
		Timeseries: []writev2.TimeSeries{
			{LabelsRefs: []uint32{1, 2}, Exemplars: []writev2.Exemplar{{Value: 1, Timestamp: 1}, {Value: 2, Timestamp: 2}}},
			{LabelsRefs: []uint32{1, 2}},
			{LabelsRefs: []uint32{1}},
		},
	}).Marshal()
	require.NoError(t, err)
	b, rejected := decode(t, V2, raw)
	require.Equal(t, write.Counts{Exemplars: 2}, b.Counts(), "Prometheus sends exemplars alone")
	require.Len(t, b.Series, 1)
	require.Equal(t, []write.Rejection{
		{Reason: write.ReasonNoSamples, Count: 1, Example: &write.SeriesError{
			Reason: write.ReasonNoSamples, Detail: "the series has neither samples nor histograms nor exemplars", Labels: `{__name__="up"}`,
		}},
		{Reason: write.ReasonMalformedSeries, Count: 1, Example: &write.SeriesError{
			Reason: write.ReasonMalformedSeries, Detail: "the number of label references is odd",
		}},
	}, rejected.Rejected)

	raw, err = (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{Labels: []prompb.Label{{Name: "__name__", Value: "up"}}}}}).Marshal()
	require.NoError(t, err)
	b, rejected = decode(t, V1, raw)
	require.Empty(t, b.Series)
	require.Empty(t, rejected.Rejected)
}

func TestStartTimestampOfTheSampleComesBeforeThatOfTheSeries(t *testing.T) {
	data := message{}.str(4, "").str(4, "__name__").str(4, "up").bytes(5, message{}.
		varint(6, 500).bytes(1, []byte{1, 2}).
		bytes(2, message{}.double(1, 1).varint(2, 1000)).
		bytes(2, message{}.double(1, 1).varint(2, 2000).varint(3, 900)).
		bytes(3, message{}.varint(15, 3000)).
		bytes(3, message{}.varint(15, 4000).varint(17, 901)))
	b, _ := decode(t, V2, data)
	require.Equal(t, []write.Sample{{T: 1000, ST: 500, V: 1}, {T: 2000, ST: 900, V: 1}}, b.Samples)
	require.Equal(t, int64(500), b.Histograms[0].ST)
	require.Equal(t, int64(901), b.Histograms[1].ST)
}

func TestMetadataIsTakenOnceForEachFamily(t *testing.T) {
	r := &remotewritetest.Request{}
	add := func(name string, m metadata.Metadata) {
		r.Series = append(r.Series, remotewritetest.TimeSeries{Labels: labels.FromStrings("__name__", name, "n", string(rune('a'+len(r.Series)))), Samples: []write.Sample{{T: 1}}, Metadata: m})
	}
	histogramMeta := metadata.Metadata{Type: "histogram", Help: "h", Unit: "seconds"}
	add("d_seconds_bucket", histogramMeta)
	add("d_seconds_bucket", histogramMeta)
	add("d_seconds_sum", histogramMeta)
	add("d_seconds_count", histogramMeta)
	add("s", metadata.Metadata{Type: "summary"})
	add("s_count", metadata.Metadata{Type: "summary"})
	add("g_gcount", metadata.Metadata{Type: "gaugehistogram"})
	add("requests_total", metadata.Metadata{Type: "counter", Help: "n"})
	add("items_count", metadata.Metadata{Type: "gauge"})
	add("nothing", metadata.Metadata{Type: "unknown"})
	b, _ := decode(t, V2, encode(t, V2, r))
	require.Equal(t, []write.Metadata{
		{Metric: "d_seconds", Metadata: histogramMeta},
		{Metric: "s", Metadata: metadata.Metadata{Type: "summary"}},
		{Metric: "g", Metadata: metadata.Metadata{Type: "gaugehistogram"}},
		{Metric: "requests_total", Metadata: metadata.Metadata{Type: "counter", Help: "n"}},
		{Metric: "items_count", Metadata: metadata.Metadata{Type: "gauge"}},
	}, b.Metadata)
}

func TestFineHistogramsAreReducedAndOversizedOnesRejected(t *testing.T) {
	fine := histogram.Histogram{
		Schema: 9, Count: 3, Sum: 1, PositiveSpans: []histogram.Span{{Offset: 0, Length: 2}}, PositiveBuckets: []int64{1, 1},
	}
	broken := fine
	broken.PositiveSpans = []histogram.Span{{Length: 1 << 31}}
	huge := histogram.Histogram{PositiveBuckets: make([]int64, maxHistogramBytes)}
	for _, v := range []Version{V1, V2} {
		r := &remotewritetest.Request{Series: []remotewritetest.TimeSeries{{
			Labels:     labels.FromStrings("__name__", "h"),
			Histograms: []write.Histogram{{T: 1, Int: &fine}, {T: 2, Int: &broken}, {T: 3, Int: &huge}},
		}}}
		b, rejected := decode(t, v, encode(t, v, r))
		require.Len(t, b.Histograms, 1)
		require.Equal(t, write.Span{Len: 1}, b.Series[0].Histograms)
		require.Equal(t, int32(8), b.Histograms[0].Int.Schema)
		require.NoError(t, b.Histograms[0].Int.Validate())
		require.Len(t, rejected.Rejected, 1)
		require.Equal(t, write.ReasonInvalidHistogram, rejected.Rejected[0].Reason)
		require.Equal(t, 2, rejected.Rejected[0].Count)

		r.Series[0].Histograms = r.Series[0].Histograms[1:2]
		b, rejected = decode(t, v, encode(t, v, r))
		require.Empty(t, b.Series)
		require.Len(t, rejected.Rejected, 1, "the histogram is rejected, not the series besides")
	}
}

func TestUnknownResetHintsCountAsUnspecified(t *testing.T) {
	data := message{}.bytes(1, message{}.bytes(1, label("__name__", "h")).bytes(4, message{}.varint(1, 0).varint(14, 77)))
	b, _ := decode(t, V1, data)
	require.Equal(t, histogram.UnknownCounterReset, b.Histograms[0].Int.CounterResetHint)
}

func TestBadExemplarsAreRejectedAlone(t *testing.T) {
	long := strings.Repeat("x", maxExemplarBytes)
	bad := []labels.Labels{
		labels.FromStrings("a", long, "b", "1"),
		labels.FromStrings("a", "\xff"),
		labels.FromStrings("\xff", "a"),
		labels.FromStrings("", "a"),
		labels.New(labels.Label{Name: "a", Value: "1"}, labels.Label{Name: "a", Value: "2"}),
	}
	for _, v := range []Version{V1, V2} {
		s := remotewritetest.TimeSeries{Labels: labels.FromStrings("__name__", "up"), Samples: []write.Sample{{T: 1, V: 1}}}
		for _, ls := range bad {
			s.Exemplars = append(s.Exemplars, exemplar.Exemplar{Labels: ls, Value: 1, Ts: 1})
		}
		s.Exemplars = append(s.Exemplars, exemplar.Exemplar{Labels: labels.FromStrings("trace_id", "1"), Value: 9, Ts: 1})
		b, rejected := decode(t, v, encode(t, v, &remotewritetest.Request{Series: []remotewritetest.TimeSeries{s}}))
		require.Len(t, b.Exemplars, 1)
		require.InDelta(t, 9, b.Exemplars[0].Value, 0)
		require.Len(t, rejected.Rejected, 1)
		require.Equal(t, write.ReasonInvalidExemplar, rejected.Rejected[0].Reason)
		require.Equal(t, len(bad), rejected.Rejected[0].Count)
	}
}

func TestExemplarWithBadReferencesIsRejectedAlone(t *testing.T) {
	raw, err := (&writev2.Request{
		Symbols: []string{"", "__name__", "up"},
		Timeseries: []writev2.TimeSeries{{
			LabelsRefs: []uint32{1, 2}, Samples: []writev2.Sample{{Value: 1, Timestamp: 1}},
			Exemplars: []writev2.Exemplar{{LabelsRefs: []uint32{1, 3}}, {LabelsRefs: []uint32{1}}},
		}},
	}).Marshal()
	require.NoError(t, err)
	b, rejected := decode(t, V2, raw)
	require.Len(t, b.Samples, 1)
	require.Empty(t, b.Exemplars)
	require.Equal(t, write.ReasonInvalidExemplar, rejected.Rejected[0].Reason)
	require.Equal(t, 2, rejected.Rejected[0].Count)
}

func TestLabelsTooLongForStorageAreAFaultOfTheSeries(t *testing.T) {
	r := &remotewritetest.Request{Series: []remotewritetest.TimeSeries{{
		Labels: labels.FromStrings("__name__", "up", "x", strings.Repeat("x", maxLabelsBytes)), Samples: []write.Sample{{T: 1, V: 1}},
	}}}
	for _, v := range []Version{V1, V2} {
		b, _ := decode(t, v, encode(t, v, r))
		require.ErrorContains(t, b.Series[0].Err, "more than 1048576")
		require.Error(t, b.Source.AppendLabels(0, &labels.ScratchBuilder{}))
	}
}

func TestSymbolsDoNotBecomeABomb(t *testing.T) {
	data := message{}.str(4, "").str(4, "__name__").str(4, strings.Repeat("x", maxLabelsBytes/2))
	for range 300 {
		data = data.bytes(5, message{}.bytes(1, []byte{1, 2}).bytes(2, oneSample))
	}
	var b write.Batch
	_, err := NewDecoder().Decode(V2, data, &b)
	require.ErrorIs(t, err, errExpanded)
}

func TestSymbolsOfExemplarsAreCountedAndReserved(t *testing.T) {
	data := message{}.str(4, "").str(4, "__name__").str(4, "up").str(4, "long").str(4, strings.Repeat("x", maxExemplarBytes-4))
	series := message{}.bytes(1, []byte{1, 2})
	for range maxExpandedBytes / maxExemplarBytes {
		series = series.bytes(4, message{}.bytes(1, []byte{3, 4}))
	}
	var b write.Batch
	d := NewDecoder()
	var reserved int64
	d.Reserve = func(n int64) error { reserved += n; return nil }
	_, err := d.Decode(V2, data.bytes(5, series), &b)
	require.ErrorIs(t, err, errExpanded)
	require.Greater(t, reserved, int64(maxExpandedBytes)*9/10)
}

func TestElementsAreCounted(t *testing.T) {
	for name, c := range map[string]struct {
		version Version
		data    func() message
	}{
		"samples":    {V1, func() message { return message{}.bytes(1, []byte(strings.Repeat("\x12\x00", maxSamples+1))) }},
		"exemplars":  {V1, func() message { return message{}.bytes(1, []byte(strings.Repeat("\x1a\x00", maxExemplars+1))) }},
		"histograms": {V1, func() message { return message{}.bytes(1, []byte(strings.Repeat("\x22\x00", maxHistograms+1))) }},
		"series":     {V1, func() message { return []byte(strings.Repeat("\x0a\x02\x12\x00", maxSeries+1)) }},
		"metadata":   {V1, func() message { return []byte(strings.Repeat("\x1a\x03\x12\x01a", maxMetadata+1)) }},
		"symbols":    {V2, func() message { return []byte(strings.Repeat("\x22\x00", maxSymbols+1)) }},
	} {
		t.Run(name, func(t *testing.T) {
			var b write.Batch
			_, err := NewDecoder().Decode(c.version, c.data(), &b)
			require.ErrorIs(t, err, errTooMany)
		})
	}
}

func TestDecoderKeepsNothingOfOneRequestInTheNext(t *testing.T) {
	d := NewDecoder()
	var b write.Batch
	for _, r := range []*remotewritetest.Request{fleet(50), wide(), {}, fleet(3)} {
		for _, v := range []Version{V2, V1} {
			rejected, err := d.Decode(v, encode(t, v, r), &b)
			require.NoError(t, err)
			require.Empty(t, rejected.Rejected)
			require.Len(t, b.Series, len(r.Series))
			for i, s := range r.Series {
				ls, _, err := resolve(&b, i)
				require.NoError(t, err)
				require.Equal(t, s.Labels, ls)
			}
		}
	}
	_, err := d.Decode(V1, []byte{0xff}, &b)
	require.Error(t, err)
	_, err = d.Decode(V2, encode(t, V2, fleet(2)), &b)
	require.NoError(t, err)
	require.Len(t, b.Series, 2)
	require.Positive(t, d.Retained())
}

func TestDecodingAllocatesNothingForSamples(t *testing.T) {
	for _, v := range []Version{V1, V2} {
		data := encode(t, v, fleet(500))
		d := NewDecoder()
		var b write.Batch
		allocs := testing.AllocsPerRun(20, func() {
			_, err := d.Decode(v, data, &b)
			require.NoError(t, err)
		})
		require.LessOrEqual(t, allocs, 2.0, "version %s", v)
	}
}
