package loadgen

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/model/value"
)

// encoder assembles the body of one request at a time. One goroutine.
type encoder interface {
	// float appends a sample.
	float(in *instance, t *template, timestamp int64, v float64)
	// histogram appends a native histogram; nil is a stale marker.
	histogram(in *instance, t *template, timestamp int64, n *native)
	// body returns the compressed request and begins another. The bytes are
	// valid until the next call.
	body() []byte
	// contentType is that of the body.
	contentType() string
}

func newEncoder(w *world, p Protocol) encoder {
	if p == ProtocolV2 {
		return newEncoderV2(w)
	}
	return &encoderV1{}
}

// Field tags of the messages: number<<3 | wire type.
const (
	tagTimeSeriesV1 = 0x0a // WriteRequest.timeseries = 1
	tagSampleV1     = 0x12 // TimeSeries.samples = 2
	tagHistogramV1  = 0x22 // TimeSeries.histograms = 4

	tagSymbolV2     = 0x22 // Request.symbols = 4
	tagTimeSeriesV2 = 0x2a // Request.timeseries = 5
	tagLabelRefsV2  = 0x0a // TimeSeries.labels_refs = 1
	tagSampleV2     = 0x12 // TimeSeries.samples = 2
	tagHistogramV2  = 0x1a // TimeSeries.histograms = 3
	tagMetadataV2   = 0x2a // TimeSeries.metadata = 5
)

// encoderV1 writes prometheus.WriteRequest.
type encoderV1 struct {
	raw, compressed, histogramBuf []byte
}

func (e *encoderV1) contentType() string { return "application/x-protobuf" }

func (e *encoderV1) float(in *instance, t *template, timestamp int64, v float64) {
	sample := sampleSize(timestamp, v)
	e.series(in, t, 2+sample)
	e.raw = append(e.raw, tagSampleV1, byte(sample))
	e.raw = appendSample(e.raw, timestamp, v)
}

func (e *encoderV1) histogram(in *instance, t *template, timestamp int64, n *native) {
	e.histogramBuf = appendHistogram(e.histogramBuf[:0], timestamp, n)
	e.series(in, t, 1+uvarintLen(uint64(len(e.histogramBuf)))+len(e.histogramBuf))
	e.raw = appendBytes(append(e.raw, tagHistogramV1), e.histogramBuf)
}

// series begins a TimeSeries whose fields after the labels take rest bytes.
func (e *encoderV1) series(in *instance, t *template, rest int) {
	size := rest
	for i := range t.pieces {
		p := &t.pieces[i]
		size += len(p.literal) + int(in.offsets[p.to]) - int(in.offsets[p.from])
	}
	e.raw = append(e.raw, tagTimeSeriesV1)
	e.raw = binary.AppendUvarint(e.raw, uint64(size))
	for i := range t.pieces {
		p := &t.pieces[i]
		e.raw = append(e.raw, p.literal...)
		e.raw = append(e.raw, in.encoded[in.offsets[p.from]:in.offsets[p.to]]...)
	}
}

func (e *encoderV1) body() []byte {
	e.compressed = s2.EncodeSnappy(e.compressed[:cap(e.compressed)], e.raw)
	e.raw = e.raw[:0]
	return e.compressed
}

// encoderV2 writes io.prometheus.write.v2.Request.
type encoderV2 struct {
	world                               *world
	symbols, series, refs, histogramBuf []byte
	raw, compressed                     []byte
	next                                uint32   // the reference of the next new symbol
	static                              []uint32 // by symbol of the world: its reference, 0 if it has none yet
	pod                                 *instance
	podRefs                             [podLabels]uint32
	podSymbols                          map[string]uint32
}

func newEncoderV2(w *world) *encoderV2 {
	e := &encoderV2{world: w, static: make([]uint32, len(w.symbols)), podSymbols: map[string]uint32{}}
	e.reset()
	return e
}

func (e *encoderV2) reset() {
	e.symbols = append(e.symbols[:0], tagSymbolV2, 0) // the first symbol is always ""
	e.series = e.series[:0]
	e.next = 1
	clear(e.static)
	clear(e.podSymbols)
	e.pod = nil
}

func (e *encoderV2) contentType() string {
	return "application/x-protobuf;proto=io.prometheus.write.v2.Request"
}

func (e *encoderV2) add(s string) uint32 {
	e.symbols = appendBytes(append(e.symbols, tagSymbolV2), s)
	e.next++
	return e.next - 1
}

// enter makes the values of the pod known.
func (e *encoderV2) enter(in *instance) {
	e.pod = in
	for i, s := range in.values {
		ref, ok := e.podSymbols[s]
		if !ok {
			ref = e.add(s)
			e.podSymbols[s] = ref
		}
		e.podRefs[i] = ref
	}
}

// begin begins a TimeSeries whose fields after the labels take rest bytes.
func (e *encoderV2) begin(in *instance, t *template, rest int) {
	if e.pod != in {
		e.enter(in)
	}
	e.refs = e.refs[:0]
	for _, s := range t.refs {
		if s < podLabels {
			e.refs = binary.AppendUvarint(e.refs, uint64(e.podRefs[s]))
			continue
		}
		ref := &e.static[s-podLabels]
		if *ref == 0 {
			*ref = e.add(e.world.symbols[s-podLabels])
		}
		e.refs = binary.AppendUvarint(e.refs, uint64(*ref))
	}
	size := 1 + uvarintLen(uint64(len(e.refs))) + len(e.refs) + rest + 4
	e.series = append(e.series, tagTimeSeriesV2)
	e.series = binary.AppendUvarint(e.series, uint64(size))
	e.series = appendBytes(append(e.series, tagLabelRefsV2), e.refs)
}

func (e *encoderV2) end(t *template) {
	e.series = append(e.series, tagMetadataV2, 2, 0x08, byte(t.metricType)) // 4 bytes; see begin
}

func (e *encoderV2) float(in *instance, t *template, timestamp int64, v float64) {
	sample := sampleSize(timestamp, v)
	e.begin(in, t, 2+sample)
	e.series = append(e.series, tagSampleV2, byte(sample))
	e.series = appendSample(e.series, timestamp, v)
	e.end(t)
}

func (e *encoderV2) histogram(in *instance, t *template, timestamp int64, n *native) {
	e.histogramBuf = appendHistogram(e.histogramBuf[:0], timestamp, n)
	e.begin(in, t, 1+uvarintLen(uint64(len(e.histogramBuf)))+len(e.histogramBuf))
	e.series = appendBytes(append(e.series, tagHistogramV2), e.histogramBuf)
	e.end(t)
}

func (e *encoderV2) body() []byte {
	e.raw = append(append(e.raw[:0], e.symbols...), e.series...)
	e.compressed = s2.EncodeSnappy(e.compressed[:cap(e.compressed)], e.raw)
	e.reset()
	return e.compressed
}

// A Sample is the same in both protocols: value = 1, timestamp = 2. Like
// Prometheus, we leave a value of 0 out.
func sampleSize(timestamp int64, v float64) int {
	if v == 0 {
		return 1 + uvarintLen(uint64(timestamp))
	}
	return 1 + 8 + 1 + uvarintLen(uint64(timestamp))
}

func appendSample(dst []byte, timestamp int64, v float64) []byte {
	if v != 0 {
		dst = appendDouble(append(dst, 0x09), v)
	}
	return binary.AppendUvarint(append(dst, 0x10), uint64(timestamp))
}

// A Histogram is the same in both protocols, in the fields that are used here.
func appendHistogram(dst []byte, timestamp int64, n *native) []byte {
	if n == nil {
		dst = binary.AppendUvarint(append(dst, 0x08), 0)                            // count_int = 1
		dst = appendDouble(append(dst, 0x19), math.Float64frombits(value.StaleNaN)) // sum = 3
		return binary.AppendUvarint(append(dst, 0x78), uint64(timestamp))           // timestamp = 15
	}
	dst = binary.AppendUvarint(append(dst, 0x08), n.count)
	if n.sum != 0 {
		dst = appendDouble(append(dst, 0x19), n.sum)
	}
	dst = append(dst, 0x20, nativeSchema<<1)                   // schema = 4, zigzag
	dst = appendDouble(append(dst, 0x29), nativeZeroThreshold) // zero_threshold = 5
	dst = binary.AppendUvarint(append(dst, 0x30), n.zero)      // zero_count_int = 6
	for _, offset := range [...]int32{n.offset, nativeGap} {   // positive_spans = 11
		zigzag := uint64(uint32(offset<<1) ^ uint32(offset>>31))
		dst = append(dst, 0x5a, byte(1+uvarintLen(zigzag)+2), 0x08)
		dst = append(binary.AppendUvarint(dst, zigzag), 0x10, nativeSpan)
	}
	var scratch [len(n.buckets) * binary.MaxVarintLen64]byte
	deltas, previous := scratch[:0], uint64(0)
	for _, b := range n.buckets {
		deltas = binary.AppendVarint(deltas, int64(b-previous)) // zigzag
		previous = b
	}
	dst = appendBytes(append(dst, 0x62), deltas) // positive_deltas = 12
	return binary.AppendUvarint(append(dst, 0x78), uint64(timestamp))
}

func appendDouble(dst []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

func appendBytes[B ~[]byte | ~string](dst []byte, b B) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }
