package remotewrite

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Request is what a sender wants stored.
type Request struct {
	Series []TimeSeries
	// Metadata goes into requests of 1.0 only; in 2.0 it rides on the series.
	Metadata []write.Metadata
}

// TimeSeries is one series of a Request. In 2.0 it must have either samples or
// histograms. Start timestamps and its metadata are sent in 2.0 only.
type TimeSeries struct {
	Labels     labels.Labels
	Samples    []write.Sample
	Histograms []write.Histogram
	Exemplars  []exemplar.Exemplar
	Metadata   metadata.Metadata
}

// Encoder encodes requests and keeps its buffers. Equal requests become equal
// bytes. One goroutine.
type Encoder struct {
	series, nested []byte // the message being built, and one inside of it
	body           []byte // of 2.0: the series, while symbols are collected
	symbols        []byte // of 2.0: the encoded symbols
	refs           map[string]uint32
}

// NewEncoder returns an Encoder.
func NewEncoder() *Encoder { return &Encoder{refs: map[string]uint32{}} }

// Append appends r as a message of version v to dst.
func (e *Encoder) Append(dst []byte, v Version, r *Request) ([]byte, error) {
	if v == V2 {
		return e.appendV2(dst, r)
	}
	return e.appendV1(dst, r)
}

func (e *Encoder) appendV1(dst []byte, r *Request) ([]byte, error) {
	for i := range r.Series {
		s := &r.Series[i]
		b := e.series[:0]
		s.Labels.Range(func(l labels.Label) { b = write.AppendCanonical(b, l.Name, l.Value) })
		for _, sample := range s.Samples {
			b = appendBytes(b, 2, e.sample(sample, V1))
		}
		for _, x := range s.Exemplars {
			n := e.nested[:0]
			x.Labels.Range(func(l labels.Label) { n = write.AppendCanonical(n, l.Name, l.Value) })
			e.nested = appendVarint(appendDouble(n, 2, x.Value), 3, uint64(x.Ts))
			b = appendBytes(b, 3, e.nested)
		}
		for _, h := range s.Histograms {
			if err := e.histogramV1(h); err != nil {
				return nil, fmt.Errorf("encode a histogram of %s: %w", s.Labels, err)
			}
			b = appendBytes(b, 4, e.nested)
		}
		e.series = b
		dst = appendBytes(dst, 1, b)
	}
	for _, m := range r.Metadata {
		n := appendVarint(e.nested[:0], 1, metricTypeNumber(m.Type))
		n = appendString(n, 2, m.Metric)
		n = appendString(n, 4, m.Help)
		e.nested = appendString(n, 5, m.Unit)
		dst = appendBytes(dst, 3, e.nested)
	}
	return dst, nil
}

func (e *Encoder) appendV2(dst []byte, r *Request) ([]byte, error) {
	clear(e.refs)
	e.symbols, e.body = e.symbols[:0], e.body[:0]
	e.ref("")
	for i := range r.Series {
		s := &r.Series[i]
		e.labelRefs(s.Labels)
		b := appendBytes(e.series[:0], 1, e.nested)
		for _, sample := range s.Samples {
			b = appendBytes(b, 2, e.sample(sample, V2))
		}
		for _, h := range s.Histograms {
			if err := e.histogramV2(h); err != nil {
				return nil, fmt.Errorf("encode a histogram of %s: %w", s.Labels, err)
			}
			b = appendBytes(b, 3, e.nested)
		}
		for _, x := range s.Exemplars {
			b = e.exemplarV2(b, x)
		}
		n := appendVarint(e.nested[:0], 1, metricTypeNumber(s.Metadata.Type))
		n = appendVarint(n, 3, uint64(e.ref(s.Metadata.Help)))
		e.nested = appendVarint(n, 4, uint64(e.ref(s.Metadata.Unit)))
		e.series = appendBytes(b, 5, e.nested)
		e.body = appendBytes(e.body, 5, e.series)
	}
	return append(append(dst, e.symbols...), e.body...), nil
}

// ref returns the number of the symbol s.
func (e *Encoder) ref(s string) uint32 {
	ref, ok := e.refs[s]
	if !ok {
		ref = uint32(len(e.refs))
		e.refs[s] = ref
		e.symbols = append(e.symbols, 4<<3|wireBytes)
		e.symbols = binary.AppendUvarint(e.symbols, uint64(len(s)))
		e.symbols = append(e.symbols, s...)
	}
	return ref
}

// labelRefs puts references to ls into e.nested.
func (e *Encoder) labelRefs(ls labels.Labels) {
	e.nested = e.nested[:0]
	ls.Range(func(l labels.Label) {
		e.nested = binary.AppendUvarint(e.nested, uint64(e.ref(l.Name)))
		e.nested = binary.AppendUvarint(e.nested, uint64(e.ref(l.Value)))
	})
}

func (e *Encoder) exemplarV2(dst []byte, x exemplar.Exemplar) []byte {
	e.labelRefs(x.Labels)
	packed := len(e.nested)
	if packed > 0 {
		e.nested = appendBytes(e.nested, 1, e.nested)
	}
	e.nested = appendVarint(appendDouble(e.nested, 2, x.Value), 3, uint64(x.Ts))
	return appendBytes(dst, 4, e.nested[packed:])
}

// sample encodes s into e.nested and returns it.
func (e *Encoder) sample(s write.Sample, v Version) []byte {
	e.nested = appendVarint(appendDouble(e.nested[:0], 1, s.V), 2, uint64(s.T))
	if v == V2 {
		e.nested = appendVarint(e.nested, 3, uint64(s.ST))
	}
	return e.nested
}

// histogramV1 encodes h into e.nested.
func (e *Encoder) histogramV1(h write.Histogram) error {
	var m prompb.Histogram
	if h.Float != nil {
		m = prompb.FromFloatHistogram(h.T, h.Float)
	} else {
		m = prompb.FromIntHistogram(h.T, h.Int)
	}
	return e.marshal(&m)
}

// histogramV2 encodes h into e.nested.
func (e *Encoder) histogramV2(h write.Histogram) error {
	var m writev2.Histogram
	if h.Float != nil {
		m = writev2.FromFloatHistogram(h.ST, h.T, h.Float)
	} else {
		m = writev2.FromIntHistogram(h.ST, h.T, h.Int)
	}
	return e.marshal(&m)
}

func (e *Encoder) marshal(m interface {
	Size() int
	MarshalToSizedBuffer(b []byte) (int, error)
},
) error {
	size := m.Size()
	if cap(e.nested) < size {
		e.nested = make([]byte, size)
	}
	e.nested = e.nested[:size]
	_, err := m.MarshalToSizedBuffer(e.nested)
	return err
}

func appendBytes(dst []byte, field int, value []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(field<<3|wireBytes))
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

// Scalars of value zero are left out, as proto3 does.

func appendString(dst []byte, field int, value string) []byte {
	if value == "" {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(field<<3|wireBytes))
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

func appendVarint(dst []byte, field int, value uint64) []byte {
	if value == 0 {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(field<<3|wireVarint))
	return binary.AppendUvarint(dst, value)
}

func appendDouble(dst []byte, field int, value float64) []byte {
	bits := math.Float64bits(value)
	if bits == 0 {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(field<<3|wireFixed64))
	return binary.LittleEndian.AppendUint64(dst, bits)
}

// metricTypeNumber returns the number of t in both protocols.
func metricTypeNumber(t model.MetricType) uint64 {
	const last = 7
	for n := uint64(1); n <= last; n++ {
		if metricType(n) == t {
			return n
		}
	}
	return 0
}
