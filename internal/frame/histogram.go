package frame

import (
	"encoding/binary"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
)

// The first byte of a histogram: what kind it is and what it has. Fields that most
// histograms do not have are left out, whatever their schema: what storage makes of a
// field that does not fit the schema is not decided here.
const (
	isFloat   = 1 << 0
	hasZero   = 1 << 1 // a threshold or a count of the zero bucket
	hasNeg    = 1 << 2 // negative spans or buckets
	hasCustom = 1 << 3 // custom bounds

	hintShift = 4 // two bits of the counter reset hint

	knownHistogramFlags = isFloat | hasZero | hasNeg | hasCustom | 3<<hintShift
)

// minHistogramBytes is the least that a histogram takes: two times, flags, schema, sum,
// count, and the numbers of positive spans and buckets.
const minHistogramBytes = 2 + 1 + 1 + 8 + 1 + 2

func histogramFlags(hint histogram.CounterResetHint, zeroThreshold float64, zeroCount bool, negative, custom int) byte {
	var flags byte
	// Prometheus has these four only; what is neither is unknown.
	if hint <= histogram.GaugeType {
		flags = byte(hint) << hintShift
	}
	if zeroCount || math.Float64bits(zeroThreshold) != 0 {
		flags |= hasZero
	}
	if negative > 0 {
		flags |= hasNeg
	}
	if custom > 0 {
		flags |= hasCustom
	}
	return flags
}

func appendHistogram(dst []byte, h *histogram.Histogram) []byte {
	flags := histogramFlags(h.CounterResetHint, h.ZeroThreshold, h.ZeroCount != 0,
		len(h.NegativeSpans)+len(h.NegativeBuckets), len(h.CustomValues))
	dst = append(dst, flags)
	dst = appendVarint(dst, int64(h.Schema))
	dst = appendDouble(dst, h.Sum)
	dst = binary.AppendUvarint(dst, h.Count)
	if flags&hasZero != 0 {
		dst = appendDouble(dst, h.ZeroThreshold)
		dst = binary.AppendUvarint(dst, h.ZeroCount)
	}
	dst = appendDeltas(appendSpans(dst, h.PositiveSpans), h.PositiveBuckets)
	if flags&hasNeg != 0 {
		dst = appendDeltas(appendSpans(dst, h.NegativeSpans), h.NegativeBuckets)
	}
	if flags&hasCustom != 0 {
		dst = appendDoubles(dst, h.CustomValues)
	}
	return dst
}

func appendFloatHistogram(dst []byte, h *histogram.FloatHistogram) []byte {
	flags := isFloat | histogramFlags(h.CounterResetHint, h.ZeroThreshold, math.Float64bits(h.ZeroCount) != 0,
		len(h.NegativeSpans)+len(h.NegativeBuckets), len(h.CustomValues))
	dst = append(dst, flags)
	dst = appendVarint(dst, int64(h.Schema))
	dst = appendDouble(dst, h.Sum)
	dst = appendDouble(dst, h.Count)
	if flags&hasZero != 0 {
		dst = appendDouble(dst, h.ZeroThreshold)
		dst = appendDouble(dst, h.ZeroCount)
	}
	dst = appendDoubles(appendSpans(dst, h.PositiveSpans), h.PositiveBuckets)
	if flags&hasNeg != 0 {
		dst = appendDoubles(appendSpans(dst, h.NegativeSpans), h.NegativeBuckets)
	}
	if flags&hasCustom != 0 {
		dst = appendDoubles(dst, h.CustomValues)
	}
	return dst
}

func appendSpans(dst []byte, spans []histogram.Span) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(spans)))
	for _, s := range spans {
		dst = appendVarint(dst, int64(s.Offset))
		dst = binary.AppendUvarint(dst, uint64(s.Length))
	}
	return dst
}

func appendDeltas(dst []byte, values []int64) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(values)))
	for _, v := range values {
		dst = appendVarint(dst, v)
	}
	return dst
}

func appendDoubles(dst []byte, values []float64) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(values)))
	for _, v := range values {
		dst = appendDouble(dst, v)
	}
	return dst
}

// histogram reads what follows flags. Storage keeps histograms, so all memory is new.
func (c *cursor) histogram(flags byte) *histogram.Histogram {
	h := &histogram.Histogram{
		CounterResetHint: histogram.CounterResetHint(flags >> hintShift & 3),
		Schema:           c.int32(),
		Sum:              c.double(),
		Count:            c.uvarint(),
	}
	if flags&hasZero != 0 {
		h.ZeroThreshold = c.double()
		h.ZeroCount = c.uvarint()
	}
	h.PositiveSpans, h.PositiveBuckets = c.spans(), c.deltas()
	if flags&hasNeg != 0 {
		h.NegativeSpans, h.NegativeBuckets = c.spans(), c.deltas()
	}
	if flags&hasCustom != 0 {
		h.CustomValues = c.doubles()
	}
	return h
}

func (c *cursor) floatHistogram(flags byte) *histogram.FloatHistogram {
	h := &histogram.FloatHistogram{
		CounterResetHint: histogram.CounterResetHint(flags >> hintShift & 3),
		Schema:           c.int32(),
		Sum:              c.double(),
		Count:            c.double(),
	}
	if flags&hasZero != 0 {
		h.ZeroThreshold = c.double()
		h.ZeroCount = c.double()
	}
	h.PositiveSpans, h.PositiveBuckets = c.spans(), c.doubles()
	if flags&hasNeg != 0 {
		h.NegativeSpans, h.NegativeBuckets = c.spans(), c.doubles()
	}
	if flags&hasCustom != 0 {
		h.CustomValues = c.doubles()
	}
	return h
}

func (c *cursor) int32() int32 {
	v := c.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		c.fail()
		return 0
	}
	return int32(v)
}

func (c *cursor) uint32() uint32 {
	v := c.uvarint()
	if v > math.MaxUint32 {
		c.fail()
		return 0
	}
	return uint32(v)
}

func (c *cursor) spans() []histogram.Span {
	n := c.count(2)
	if n == 0 {
		return nil
	}
	spans := make([]histogram.Span, n)
	for i := range spans {
		spans[i] = histogram.Span{Offset: c.int32(), Length: c.uint32()}
	}
	return spans
}

func (c *cursor) deltas() []int64 {
	n := c.count(1)
	if n == 0 {
		return nil
	}
	values := make([]int64, n)
	for i := range values {
		values[i] = c.varint()
	}
	return values
}

func (c *cursor) doubles() []float64 {
	n := c.count(8)
	if n == 0 {
		return nil
	}
	values := make([]float64, n)
	for i := range values {
		values[i] = c.double()
	}
	return values
}
