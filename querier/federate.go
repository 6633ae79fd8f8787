package querier

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"google.golang.org/protobuf/proto"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// federate serves the newest sample of each series that a match[] selects, in the
// exposition format that the client asks for. As in Prometheus, a sample counts for
// five minutes, stale series are left out, and native histograms are served in
// protobuf only, but for those with custom buckets, which become classic ones.
func (q *Querier) federate(w http.ResponseWriter, r *http.Request) {
	found, err := q.newestSamples(r)
	if err != nil {
		status, known := statusOf(err)
		if !known {
			status = wire.HTTPStatus(err)
		}
		http.Error(w, err.Error(), status)
		return
	}
	format := expfmt.NegotiateAccept(r.Header,
		expfmt.NewFormat(expfmt.TypeProtoDelim),
		expfmt.NewFormat(expfmt.TypeProtoText),
		expfmt.NewFormat(expfmt.TypeProtoCompact),
		expfmt.NewFormat(expfmt.TypeTextPlain),
	)
	w.Header().Set("Content-Type", string(format))
	enc := expfmt.NewEncoder(w, format)
	for _, family := range families(found, format.FormatType()) {
		if err := enc.Encode(family); err != nil {
			panic(http.ErrAbortHandler) // a part has been sent: the client must not take it for all
		}
	}
}

// newestSamples returns the newest samples of the selected series, by metric name.
func (q *Querier) newestSamples(r *http.Request) (found promql.Vector, err error) {
	id, err := tenant.FromContext(r.Context())
	if err != nil {
		return nil, err
	}
	if err := r.ParseForm(); err != nil {
		return nil, wire.Invalid(fmt.Errorf("read the parameters: %w", err))
	}
	selectors, err := newParser().ParseMetricSelectors(r.Form["match[]"])
	if err != nil {
		return nil, wire.Invalid(fmt.Errorf("parameter match[]: %w", err))
	}
	now := time.Now()
	hints := &storage.SelectHints{Start: timestamp.FromTime(now.Add(-lookbackDelta)), End: timestamp.FromTime(now)}
	querier, err := q.Queryable().Querier(hints.Start, hints.End)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, querier.Close()) }()

	var listed listing
	sets := make([]storage.SeriesSet, 0, len(selectors))
	for _, matchers := range selectors {
		sets = append(sets, listed.bound(querier.Select(r.Context(), true, hints, matchers...)))
	}
	limit := q.limits(id).MaxQuerySamples
	set := storage.NewMergeSeriesSet(sets, 0, storage.ChainedSeriesMerge)
	var it chunkenc.Iterator
	for set.Next() {
		series := set.At()
		it = series.Iterator(it)
		sample, ok, err := newest(it)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if limit > 0 && len(found) >= limit {
			return nil, tooManySamples(id, limit, nil)
		}
		sample.Metric = series.Labels()
		found = append(found, sample)
	}
	slices.SortStableFunc(found, func(a, b promql.Sample) int {
		return strings.Compare(a.Metric.Get(model.MetricNameLabel), b.Metric.Get(model.MetricNameLabel))
	})
	return found, set.Err()
}

// newest returns the last sample of it; ok is false if there is none, or if it says
// that the series has ended.
func newest(it chunkenc.Iterator) (s promql.Sample, ok bool, err error) {
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		ok = true
		if kind == chunkenc.ValFloat {
			s.H = nil
			s.T, s.F = it.At()
		} else {
			s.T, s.H = it.AtFloatHistogram(nil)
		}
	}
	if s.H != nil && value.IsStaleNaN(s.H.Sum) || s.H == nil && value.IsStaleNaN(s.F) {
		ok = false
	}
	return s, ok, it.Err()
}

// families groups samples, which are sorted by name, as the exposition formats want
// it. A name whose series are of different kinds becomes several families of that
// name; Prometheus, whom this is for, understands that.
func families(samples promql.Vector, format expfmt.FormatType) []*dto.MetricFamily {
	isProtobuf := format == expfmt.TypeProtoDelim || format == expfmt.TypeProtoText || format == expfmt.TypeProtoCompact
	var (
		out  []*dto.MetricFamily
		last *dto.MetricFamily
	)
	for _, s := range samples {
		name := s.Metric.Get(model.MetricNameLabel)
		if name == "" || s.H != nil && !s.H.UsesCustomBuckets() && !isProtobuf {
			continue
		}
		kind := kindOf(s.H)
		if last == nil || last.GetName() != name || last.GetType() != kind {
			last = &dto.MetricFamily{Name: proto.String(name), Type: kind.Enum()}
			out = append(out, last)
		}
		last.Metric = append(last.Metric, metricOf(s))
	}
	return out
}

func kindOf(h *histogram.FloatHistogram) dto.MetricType {
	switch {
	case h == nil:
		return dto.MetricType_UNTYPED
	case h.CounterResetHint == histogram.GaugeType:
		return dto.MetricType_GAUGE_HISTOGRAM
	default:
		return dto.MetricType_HISTOGRAM
	}
}

func metricOf(s promql.Sample) *dto.Metric {
	m := &dto.Metric{TimestampMs: proto.Int64(s.T)}
	hasInstance := false
	s.Metric.Range(func(l labels.Label) {
		if l.Name == model.MetricNameLabel {
			return
		}
		hasInstance = hasInstance || l.Name == model.InstanceLabel
		m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(l.Name), Value: proto.String(l.Value)})
	})
	if !hasInstance {
		// An empty instance keeps the scraper from adding its own: the series has none.
		m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(model.InstanceLabel), Value: proto.String("")})
	}
	switch {
	case s.H == nil:
		m.Untyped = &dto.Untyped{Value: proto.Float64(s.F)}
	case s.H.UsesCustomBuckets():
		m.Histogram = classicHistogram(s.H)
	default:
		m.Histogram = nativeHistogram(s.H)
	}
	return m
}

func nativeHistogram(h *histogram.FloatHistogram) *dto.Histogram {
	return &dto.Histogram{
		SampleCountFloat: proto.Float64(h.Count),
		SampleSum:        proto.Float64(h.Sum),
		Schema:           proto.Int32(h.Schema),
		ZeroThreshold:    proto.Float64(h.ZeroThreshold),
		ZeroCountFloat:   proto.Float64(h.ZeroCount),
		PositiveSpan:     bucketSpans(h.PositiveSpans),
		PositiveCount:    h.PositiveBuckets,
		NegativeSpan:     bucketSpans(h.NegativeSpans),
		NegativeCount:    h.NegativeBuckets,
	}
}

func bucketSpans(spans []histogram.Span) []*dto.BucketSpan {
	out := make([]*dto.BucketSpan, len(spans))
	for i, s := range spans {
		out[i] = &dto.BucketSpan{Offset: proto.Int32(s.Offset), Length: proto.Uint32(s.Length)}
	}
	return out
}

// classicHistogram returns a histogram with custom buckets as one of cumulative
// buckets. The last one, up to +Inf, goes without saying in these formats.
func classicHistogram(h *histogram.FloatHistogram) *dto.Histogram {
	counts := make([]float64, len(h.CustomValues)+1)
	for it := h.PositiveBucketIterator(); it.Next(); {
		bucket := it.At()
		if i := int(bucket.Index); 0 <= i && i < len(counts) {
			counts[i] += bucket.Count
		}
	}
	out := &dto.Histogram{SampleCountFloat: proto.Float64(h.Count), SampleSum: proto.Float64(h.Sum)}
	total := 0.0
	for i, bound := range h.CustomValues {
		total += counts[i]
		out.Bucket = append(out.Bucket, &dto.Bucket{UpperBound: proto.Float64(bound), CumulativeCountFloat: proto.Float64(total)})
	}
	return out
}
