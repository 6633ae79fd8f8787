package remotewrite

import (
	"errors"
	"math"
	"reflect"
	"testing"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/remotewrite/remotewritetest"
	"github.com/hundredfold/hundredfold/internal/write"
)

// The fuzz targets hold the decoder against the generated one: whatever both
// accept means the same, whatever the generated one encodes is accepted, and
// memory stays in proportion to the input.

func seed(f *testing.F, v Version) {
	f.Add(encode(f, v, wide()))
	f.Add(encode(f, v, fleet(3)))
	for _, m := range []interface{ Marshal() ([]byte, error) }{remotewritetest.MessageV1(wide()), remotewritetest.MessageV2(wide())} {
		raw, err := m.Marshal()
		require.NoError(f, err)
		f.Add(raw)
	}
	f.Add([]byte{})
	f.Add([]byte(message{}.str(4, "").bytes(5, message{}.varint(1, 0).bytes(1, []byte{0}).bytes(2, oneSample).bytes(4, nil))))
	f.Add([]byte(message{}.bytes(1, message{}.bytes(1, label("a", "b")).bytes(2, oneSample).bytes(1, label("", "")))))
	group := label("a", "b").raw(8<<3|3, 8<<3|4)
	f.Add([]byte(message{}.bytes(1, message{}.bytes(1, group).bytes(2, oneSample))))
}

// tryDecode decodes data, checks what must hold of any batch, and returns nil
// if data is no request.
func tryDecode(t *testing.T, v Version, data []byte) (*write.Batch, *write.Result) {
	var b write.Batch
	d := NewDecoder()
	rejected, err := d.Decode(v, data, &b)
	if err != nil {
		require.Empty(t, b.Series)
		return nil, nil
	}
	held := cap(b.Series)*int(unsafe.Sizeof(write.Series{})) + cap(b.Samples)*int(unsafe.Sizeof(write.Sample{})) +
		cap(b.Metadata)*int(unsafe.Sizeof(write.Metadata{})) + d.Retained()
	require.LessOrEqual(t, held, 128*len(data)+4096)
	for i, s := range b.Series {
		require.LessOrEqual(t, int(s.Samples.End()), len(b.Samples))
		require.LessOrEqual(t, int(s.Histograms.End()), len(b.Histograms))
		require.LessOrEqual(t, int(s.Exemplars.End()), len(b.Exemplars))
		ls, id, err := resolve(&b, i)
		if err != nil {
			continue
		}
		require.NoError(t, s.Err)
		if v == V2 {
			require.Equal(t, identityAsSent(t, &b, i), s.ID)
		}
		if s.ID == id {
			continue
		}
		// Only what is not sent in canonical form may miss, which then must
		// not be found as another series either.
		require.NotEqual(t, s.ID, write.NewHasher().Labels(ls))
	}
	return &b, &rejected
}

// identityAsSent returns the identity that series i has by its labels in the order sent.
func identityAsSent(t *testing.T, b *write.Batch, i int) write.Identity {
	sent, err := sentLabels(b, i)
	require.NoError(t, err)
	var canonical []byte
	for _, l := range sent {
		if l.Value != "" {
			canonical = write.AppendCanonical(canonical, l.Name, l.Value)
		}
	}
	return write.NewHasher().Canonical(canonical)
}

// forget removes the fields that a message of generated code did not know, for
// they may be what the decoder refuses: groups, say, or another version.
func forget(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			forget(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name == "XXX_unrecognized" {
				v.Field(i).SetZero()
			} else {
				forget(v.Field(i))
			}
		}
	}
}

func FuzzDecodeV1(f *testing.F) {
	seed(f, V1)
	f.Fuzz(func(t *testing.T, data []byte) {
		var want prompb.WriteRequest
		wantErr := want.Unmarshal(data)
		b, rejected := tryDecode(t, V1, data)
		if wantErr != nil {
			return
		}
		if b != nil {
			requireSameV1(t, &want, b, rejected)
		}
		forget(reflect.ValueOf(&want).Elem())
		again, err := want.Marshal()
		require.NoError(t, err)
		want.Reset()
		require.NoError(t, want.Unmarshal(again)) // it has lost the sign of negative zeros
		b, rejected = tryDecode(t, V1, again)
		require.NotNil(t, b, "what the generated encoder makes is a request")
		requireSameV1(t, &want, b, rejected)
	})
}

func requireSameV1(t *testing.T, want *prompb.WriteRequest, b *write.Batch, rejected *write.Result) {
	t.Helper()
	var counts write.Counts
	series := 0
	for _, ts := range want.Timeseries {
		counts.Samples += len(ts.Samples)
		counts.Histograms += len(ts.Histograms)
		counts.Exemplars += len(ts.Exemplars)
		if len(ts.Samples) == 0 {
			continue
		}
		// Series with samples are in the batch in their order.
		for b.Series[series].Samples.Len == 0 {
			series++
		}
		s := b.Series[series]
		sent, err := sentLabels(b, series)
		if errors.Is(err, errGroup) {
			sent = nil // Generated code knows groups and skips them; they are the fault of this series alone.
		} else {
			require.NoError(t, err)
			require.Len(t, sent, len(ts.Labels))
		}
		for i, l := range sent {
			require.Equal(t, labels.Label{Name: ts.Labels[i].Name, Value: ts.Labels[i].Value}, l)
		}
		require.Equal(t, len(ts.Samples), int(s.Samples.Len))
		for i, x := range ts.Samples {
			got := b.Samples[int(s.Samples.Off)+i]
			require.Equal(t, x.Timestamp, got.T)
			require.Equal(t, math.Float64bits(x.Value), math.Float64bits(got.V))
		}
		series++
	}
	requireSameCounts(t, counts, b, rejected)
}

func requireSameCounts(t *testing.T, want write.Counts, b *write.Batch, rejected *write.Result) {
	t.Helper()
	for _, r := range rejected.Rejected {
		switch r.Reason {
		case write.ReasonInvalidHistogram:
			want.Histograms -= r.Count
		case write.ReasonInvalidExemplar:
			want.Exemplars -= r.Count
		}
	}
	require.Equal(t, want, b.Counts())
}

func FuzzDecodeV2(f *testing.F) {
	seed(f, V2)
	f.Fuzz(func(t *testing.T, data []byte) {
		var want writev2.Request
		wantErr := want.Unmarshal(data)
		b, _ := tryDecode(t, V2, data)
		if wantErr != nil {
			return
		}
		if b != nil {
			requireSameV2(t, &want, b)
		}
		forget(reflect.ValueOf(&want).Elem())
		again, err := want.Marshal()
		require.NoError(t, err)
		want.Reset()
		require.NoError(t, want.Unmarshal(again)) // it has lost the sign of negative zeros
		b, _ = tryDecode(t, V2, again)
		if len(want.Symbols) > 0 && want.Symbols[0] != "" {
			require.Nil(t, b)
			return
		}
		require.NotNil(t, b, "what the generated encoder makes is a request")
		requireSameV2(t, &want, b)
	})
}

func requireSameV2(t *testing.T, want *writev2.Request, b *write.Batch) {
	t.Helper()
	series := 0
	builder := labels.NewScratchBuilder(0)
	for _, ts := range want.Timeseries {
		if len(ts.Samples) == 0 {
			continue
		}
		for b.Series[series].Samples.Len == 0 {
			series++
		}
		s := b.Series[series]
		_, labelsErr := ts.ToLabels(&builder, want.Symbols)
		_, metaErr := ts.ToMetadata(want.Symbols)
		if labelsErr != nil || metaErr != nil && ts.Metadata.Size() > 0 {
			require.Error(t, s.Err)
		} else {
			require.NoError(t, s.Err)
			sent, err := sentLabels(b, series)
			require.NoError(t, err)
			for i := range sent {
				require.Equal(t, want.Symbols[ts.LabelsRefs[2*i]], sent[i].Name)
				require.Equal(t, want.Symbols[ts.LabelsRefs[2*i+1]], sent[i].Value)
			}
		}
		require.Equal(t, len(ts.Samples), int(s.Samples.Len))
		for i, x := range ts.Samples {
			got := b.Samples[int(s.Samples.Off)+i]
			require.Equal(t, x.Timestamp, got.T)
			require.Equal(t, math.Float64bits(x.Value), math.Float64bits(got.V))
			if x.StartTimestamp != 0 {
				require.Equal(t, x.StartTimestamp, got.ST)
			}
		}
		series++
	}
}
