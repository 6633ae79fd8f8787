package loadgen

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
)

// Values are functions of the series and the tick alone. Products are converted
// to float64 before they are added, because Go may otherwise fuse the two
// operations on some processors and values would differ from machine to machine.

// idleShare: one counter in so many never counts.
const idleShare = 4

// newRates returns factors from 1/8 to 8: series of one template differ by these.
func newRates() [rateSteps]float64 {
	var rates [rateSteps]float64
	for i := range rates {
		rates[i] = math.Exp2(float64(float64(i)*6/(rateSteps-1)) - 3)
	}
	return rates
}

// value returns the float that the pod's series of t has at tick k.
func (w *world) value(t *template, in *instance, k int64) float64 {
	h := mix(in.hash + golden*t.group)
	switch t.kind {
	case kindCounter:
		return math.Floor(w.total(t, in, h, k))
	case kindSeconds:
		return math.Floor(w.total(t, in, h, k)*100) / 100
	case kindBucket:
		return math.Floor(math.Floor(w.total(t, in, h, k)) * t.fraction)
	case kindSum:
		return math.Floor(w.total(t, in, h, k)) * meanOf(h)
	case kindBytes:
		return math.Floor(w.around(t, h, k)/4096) * 4096
	case kindCount:
		return math.Floor(w.around(t, h, k))
	case kindFraction:
		return w.around(t, h, k)
	case kindStart:
		age := (k - in.born) % in.restart
		return float64((k-age)*w.interval) / 1000
	default:
		return t.scale
	}
}

// total returns what a counter has counted since its last reset. It grows from
// tick to tick by between 0 and twice its rate.
func (w *world) total(t *template, in *instance, h uint64, k int64) float64 {
	if h>>32%idleShare == 0 {
		return math.Floor(t.scale * 100)
	}
	age := (k - in.born) % in.restart
	perTick := t.scale * w.rates[h%rateSteps] * float64(w.interval) / 1000
	return perTick * (float64(age) + unit(h, k))
}

// around returns a gauge: between a half and one and a half times its usual size.
func (w *world) around(t *template, h uint64, k int64) float64 {
	return t.scale * w.rates[h%rateSteps] * (0.5 + unit(h, k))
}

// unit returns a number in [0, 1) that says nothing about that of another tick.
func unit(h uint64, k int64) float64 {
	return float64(mix(h+golden*uint64(k))>>11) * (1.0 / (1 << 53))
}

// meanOf returns the mean of what a histogram observes.
func meanOf(h uint64) float64 { return 0.001 * float64(1+h>>40%500) }

// native is a native histogram: exponential, schema 3, with two spans of buckets.
type native struct {
	count, zero uint64
	sum         float64
	offset      int32 // of the first span
	buckets     [2 * nativeSpan]uint64
}

const (
	nativeSchema        = 3
	nativeZeroThreshold = 0x1p-128
	nativeSpan          = 6 // buckets in each of the two spans
	nativeGap           = 2 // empty buckets between them
)

func nativeFractions() [2 * nativeSpan]float64 {
	return [...]float64{0.01, 0.03, 0.07, 0.13, 0.19, 0.2, 0.16, 0.1, 0.05, 0.03, 0.015, 0.005}
}

// native fills n with the histogram that the pod's series of t has at tick k.
func (w *world) native(n *native, t *template, in *instance, k int64) {
	h := mix(in.hash + golden*t.group)
	total := math.Floor(w.total(t, in, h, k))
	fractions := nativeFractions()
	n.zero = uint64(total * 0.01)
	n.count = n.zero
	for i := range n.buckets {
		n.buckets[i] = uint64(total * fractions[i])
		n.count += n.buckets[i]
	}
	n.sum = float64(n.count) * meanOf(h)
	n.offset = int32(h>>48%16) - 40
}

// histogram returns n as Prometheus represents it.
func (n *native) histogram() *histogram.FloatHistogram {
	fh := &histogram.FloatHistogram{
		Schema:        nativeSchema,
		ZeroThreshold: nativeZeroThreshold,
		ZeroCount:     float64(n.zero),
		Count:         float64(n.count),
		Sum:           n.sum,
		PositiveSpans: []histogram.Span{{Offset: n.offset, Length: nativeSpan}, {Offset: nativeGap, Length: nativeSpan}},
	}
	for _, b := range n.buckets {
		fh.PositiveBuckets = append(fh.PositiveBuckets, float64(b))
	}
	return fh
}
