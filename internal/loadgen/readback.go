package loadgen

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
)

// sample is a float or histogram as PromQL returned it.
type sample struct {
	at        int64 // ms
	value     model.SampleValue
	histogram *model.SampleHistogram // nil for floats
}

// String implements fmt.Stringer.
func (s sample) String() string {
	if s.histogram != nil {
		return fmt.Sprintf("%s at %s", s.histogram, at(s.at))
	}
	return fmt.Sprintf("%v at %s", float64(s.value), at(s.at))
}

// at writes a timestamp in ms so that it can be read and also be searched for.
func at(timestamp int64) string {
	return fmt.Sprintf("%s (%d)", time.UnixMilli(timestamp).UTC().Format("15:04:05.000"), timestamp)
}

// samplesOf returns floats and histograms together, by time.
func samplesOf(s *model.SampleStream) []sample {
	samples := make([]sample, 0, len(s.Values)+len(s.Histograms))
	for _, p := range s.Values {
		samples = append(samples, sample{at: int64(p.Timestamp), value: p.Value})
	}
	for _, p := range s.Histograms {
		samples = append(samples, sample{at: int64(p.Timestamp), histogram: p.Histogram})
	}
	slices.SortStableFunc(samples, func(a, b sample) int { return int(a.at - b.at) })
	return samples
}

// asJSON returns h as the query API shows it: without empty buckets, and with
// the kind of each bucket's bounds: 0 is open left, 1 open right, 2 open, 3 closed.
func asJSON(h *histogram.FloatHistogram) *model.SampleHistogram {
	out := &model.SampleHistogram{Count: model.FloatString(h.Count), Sum: model.FloatString(h.Sum)}
	it := h.AllBucketIterator()
	for it.Next() {
		b := it.At()
		if b.Count == 0 {
			continue
		}
		bounds := int32(2)
		switch {
		case b.LowerInclusive && b.UpperInclusive:
			bounds = 3
		case b.LowerInclusive:
			bounds = 1
		case b.UpperInclusive:
			bounds = 0
		}
		out.Buckets = append(out.Buckets, &model.HistogramBucket{
			Boundaries: bounds, Lower: model.FloatString(b.Lower), Upper: model.FloatString(b.Upper), Count: model.FloatString(b.Count),
		})
	}
	return out
}

// seriesKey and metricKey write label sets so that equal ones are equal strings.
func seriesKey(w *world, t *template, in *instance) string {
	var b strings.Builder
	t.labels(w, in, func(name, value string) {
		b.WriteString(name)
		b.WriteByte(0)
		b.WriteString(value)
		b.WriteByte(0)
	})
	return b.String()
}

func metricKey(m model.Metric) string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, string(name))
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		b.WriteString(name)
		b.WriteByte(0)
		b.WriteString(string(m[model.LabelName(name)]))
		b.WriteByte(0)
	}
	return b.String()
}

// seriesText writes a series for people, when it is needed.
type seriesText struct {
	w  *world
	t  *template
	in *instance
}

// String implements fmt.Stringer.
func (s seriesText) String() string {
	var labels []string
	s.t.labels(s.w, s.in, func(name, value string) {
		if name != "__name__" {
			labels = append(labels, fmt.Sprintf("%s=%q", name, value))
		}
	})
	return s.t.name + "{" + strings.Join(labels, ",") + "}"
}
