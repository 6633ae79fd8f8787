package selfmonitor

import (
	"math"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"

	"github.com/hundredfold/hundredfold/internal/write"
)

// collector turns gathered families into the series of one batch, named just as
// a scrape would name them.
type collector struct {
	now       int64
	instance  string
	hasher    *write.Hasher
	batch     *write.Batch
	seen      map[write.Identity]series
	described map[string]struct{}
	dropped   int
	builder   labels.ScratchBuilder
}

// series is one that was pushed, with what its end needs.
type series struct {
	labels labels.Labels
	native bool // its samples are histograms
}

// addStale says that s ends. It has room in any batch: there are never more of
// these than series in an earlier one.
func (s series) addStale(c *collector) {
	stale := math.Float64frombits(value.StaleNaN)
	if s.native {
		c.batch.Add(c.hasher, s.labels, nil, []write.Histogram{{T: c.now, Int: &histogram.Histogram{Sum: stale}}}, nil)
		return
	}
	c.batch.Add(c.hasher, s.labels, []write.Sample{{T: c.now, V: stale}}, nil, nil)
}

// addUp adds the series that every scraped target has.
func (c *collector) addUp() { c.addFloat("up", nil, "", "", 1) }

func (c *collector) addFamily(f *dto.MetricFamily) {
	name := f.GetName()
	before := len(c.batch.Series)
	for _, m := range f.GetMetric() {
		switch {
		case m.GetCounter() != nil:
			c.addFloat(name, m, "", "", m.GetCounter().GetValue())
		case m.GetGauge() != nil:
			c.addFloat(name, m, "", "", m.GetGauge().GetValue())
		case m.GetUntyped() != nil:
			c.addFloat(name, m, "", "", m.GetUntyped().GetValue())
		case m.GetSummary() != nil:
			c.addSummary(name, m)
		case m.GetHistogram() != nil:
			c.addHistogram(name, m)
		}
	}
	if _, ok := c.described[name]; !ok && len(c.batch.Series) > before {
		c.batch.Metadata = append(c.batch.Metadata, write.Metadata{
			Metric:   name,
			Metadata: metadata.Metadata{Type: metricType(f.GetType()), Unit: f.GetUnit(), Help: f.GetHelp()},
		})
	}
}

func (c *collector) addSummary(name string, m *dto.Metric) {
	s := m.GetSummary()
	for _, q := range s.GetQuantile() {
		c.addFloat(name, m, model.QuantileLabel, labels.FormatOpenMetricsFloat(q.GetQuantile()), q.GetValue())
	}
	c.addFloat(name+"_sum", m, "", "", s.GetSampleSum())
	c.addFloat(name+"_count", m, "", "", float64(s.GetSampleCount()))
}

// addHistogram adds the classic series if there are classic buckets, and the
// native one if there is resolution; a histogram may have both, for dashboards of
// either kind.
func (c *collector) addHistogram(name string, m *dto.Metric) {
	h := m.GetHistogram()
	if isNative(h) {
		c.add(name, m, "", "", nil, nativeHistogram(c.now, m.GetHistogram()))
		if len(h.GetBucket()) == 0 {
			return
		}
	}
	count := h.GetSampleCountFloat()
	if count == 0 {
		count = float64(h.GetSampleCount())
	}
	hasInf := false
	for _, b := range h.GetBucket() {
		cumulative := b.GetCumulativeCountFloat()
		if cumulative == 0 {
			cumulative = float64(b.GetCumulativeCount())
		}
		hasInf = hasInf || math.IsInf(b.GetUpperBound(), 1)
		c.addFloat(name+"_bucket", m, model.BucketLabel, labels.FormatOpenMetricsFloat(b.GetUpperBound()), cumulative)
	}
	if !hasInf {
		c.addFloat(name+"_bucket", m, model.BucketLabel, labels.FormatOpenMetricsFloat(math.Inf(1)), count)
	}
	c.addFloat(name+"_sum", m, "", "", h.GetSampleSum())
	c.addFloat(name+"_count", m, "", "", count)
}

func (c *collector) addFloat(name string, m *dto.Metric, extraName, extraValue string, v float64) {
	c.add(name, m, extraName, extraValue, []write.Sample{{T: c.now, V: v}}, nil)
}

func (c *collector) add(name string, m *dto.Metric, extraName, extraValue string, samples []write.Sample, histograms []write.Histogram) {
	if len(c.seen) >= maxSeries {
		c.dropped++
		return
	}
	ls := c.labels(name, m, extraName, extraValue)
	id := c.hasher.Labels(ls)
	if _, ok := c.seen[id]; ok {
		return // two collectors yield the same series; the first one counts
	}
	c.seen[id] = series{labels: ls, native: len(histograms) > 0}
	c.batch.Add(c.hasher, ls, samples, histograms, nil)
}

func (c *collector) labels(name string, m *dto.Metric, extraName, extraValue string) labels.Labels {
	c.builder.Reset()
	c.builder.Add(model.MetricNameLabel, name)
	c.builder.Add(model.JobLabel, job)
	c.builder.Add(model.InstanceLabel, c.instance)
	for _, l := range m.GetLabel() {
		switch l.GetName() {
		case model.JobLabel, model.InstanceLabel:
			// As in a scrape: the target's own labels win, the metric's are kept aside.
			c.builder.Add(model.ExportedLabelPrefix+l.GetName(), l.GetValue())
		default:
			c.builder.Add(l.GetName(), l.GetValue())
		}
	}
	if extraName != "" {
		c.builder.Add(extraName, extraValue)
	}
	c.builder.Sort()
	return c.builder.Labels().WithoutEmpty()
}

func metricType(t dto.MetricType) model.MetricType {
	switch t {
	case dto.MetricType_COUNTER:
		return model.MetricTypeCounter
	case dto.MetricType_GAUGE:
		return model.MetricTypeGauge
	case dto.MetricType_SUMMARY:
		return model.MetricTypeSummary
	case dto.MetricType_HISTOGRAM:
		return model.MetricTypeHistogram
	case dto.MetricType_GAUGE_HISTOGRAM:
		return model.MetricTypeGaugeHistogram
	default:
		return model.MetricTypeUnknown
	}
}
