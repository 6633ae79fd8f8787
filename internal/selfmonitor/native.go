package selfmonitor

import (
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"

	"github.com/hundredfold/hundredfold/internal/write"
)

// isNative reports whether h has a resolution beyond its classic buckets. A
// native histogram without observations carries a span without buckets.
func isNative(h *dto.Histogram) bool {
	return len(h.GetPositiveSpan()) > 0 || len(h.GetNegativeSpan()) > 0 || h.GetZeroThreshold() > 0 || h.GetZeroCount() > 0 || h.GetZeroCountFloat() > 0
}

// nativeHistogram returns h as a sample that shares no memory with it: storage
// keeps the histogram.
func nativeHistogram(t int64, h *dto.Histogram) []write.Histogram {
	if h.GetSampleCountFloat() > 0 || h.GetZeroCountFloat() > 0 {
		return []write.Histogram{{T: t, Float: &histogram.FloatHistogram{
			Schema:          h.GetSchema(),
			ZeroThreshold:   h.GetZeroThreshold(),
			ZeroCount:       h.GetZeroCountFloat(),
			Count:           h.GetSampleCountFloat(),
			Sum:             h.GetSampleSum(),
			PositiveSpans:   spans(h.GetPositiveSpan()),
			NegativeSpans:   spans(h.GetNegativeSpan()),
			PositiveBuckets: append([]float64(nil), h.GetPositiveCount()...),
			NegativeBuckets: append([]float64(nil), h.GetNegativeCount()...),
		}}}
	}
	return []write.Histogram{{T: t, Int: &histogram.Histogram{
		Schema:          h.GetSchema(),
		ZeroThreshold:   h.GetZeroThreshold(),
		ZeroCount:       h.GetZeroCount(),
		Count:           h.GetSampleCount(),
		Sum:             h.GetSampleSum(),
		PositiveSpans:   spans(h.GetPositiveSpan()),
		NegativeSpans:   spans(h.GetNegativeSpan()),
		PositiveBuckets: append([]int64(nil), h.GetPositiveDelta()...),
		NegativeBuckets: append([]int64(nil), h.GetNegativeDelta()...),
	}}}
}

// spans drops the span without buckets that marks an empty native histogram.
func spans(in []*dto.BucketSpan) []histogram.Span {
	var out []histogram.Span
	for _, s := range in {
		if len(in) == 1 && s.GetLength() == 0 {
			break
		}
		out = append(out, histogram.Span{Offset: s.GetOffset(), Length: s.GetLength()})
	}
	return out
}
