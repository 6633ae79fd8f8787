package distributor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote/otlptranslator/prometheusremotewrite"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Reasons that only OTLP has.
const (
	// reasonDelta says that a metric has delta temporality, which Prometheus's
	// model has no place for.
	reasonDelta write.Reason = "otlp_delta_temporality"
	// reasonNoTimestamp says that data points have no time, which OTLP requires.
	reasonNoTimestamp write.Reason = "otlp_missing_timestamp"
	// reasonUntranslatable says that Prometheus's translator refused a metric.
	reasonUntranslatable write.Reason = "otlp_untranslatable"
)

// translator turns metrics of OTLP into batches, with Prometheus's own
// translator and Prometheus's default settings. It is safe for concurrent use.
type translator struct {
	settings   prometheusremotewrite.Settings
	converters *sync.Pool // of *prometheusremotewrite.PrometheusConverter
}

func newTranslator() translator {
	cfg := config.DefaultOTLPConfig
	return translator{
		settings: prometheusremotewrite.Settings{
			AddMetricSuffixes:                    cfg.TranslationStrategy.ShouldAddSuffixes(),
			AllowUTF8:                            !cfg.TranslationStrategy.ShouldEscape(),
			PromoteResourceAttributes:            prometheusremotewrite.NewPromoteResourceAttributes(cfg),
			KeepIdentifyingResourceAttributes:    cfg.KeepIdentifyingResourceAttributes,
			ConvertHistogramsToNHCB:              cfg.ConvertHistogramsToNHCB,
			PromoteScopeMetadata:                 cfg.PromoteScopeMetadata,
			LabelNameUnderscoreSanitization:      cfg.LabelNameUnderscoreSanitization,
			LabelNamePreserveMultipleUnderscores: cfg.LabelNamePreserveMultipleUnderscores,
		},
		converters: &sync.Pool{New: func() any { return prometheusremotewrite.NewPrometheusConverter(nil) }},
	}
}

// translate fills the batch of ws with what md says and returns what it had to
// reject. It changes md.
func (t translator) translate(ctx context.Context, md pmetric.Metrics, ws *workspace, res *reservation) (write.Result, error) {
	var refused write.Result
	dropUnsupported(md, &refused)

	ws.batch.Reset()
	app := &batchAppender{batch: &ws.batch, refused: &refused, hasher: ws.hasher, reservation: res, families: map[string]struct{}{}}
	converter := t.converters.Get().(*prometheusremotewrite.PrometheusConverter)
	converter.Reset(app)
	_, err := converter.FromMetrics(ctx, md, t.settings)
	converter.Reset(nil)
	t.converters.Put(converter)

	switch {
	case app.err != nil:
		return write.Result{}, app.err
	case ctx.Err() != nil:
		return write.Result{}, fmt.Errorf("translate the request: %w", ctx.Err())
	case err != nil:
		rejectUntranslatable(&refused, err)
	}
	return refused, nil
}

// rejectUntranslatable counts the metrics that err is about. The translator joins
// its errors to a chain as long as there are metrics, so neither err.Error nor
// errors.Is may walk it: the text of the chain grows with its square.
func rejectUntranslatable(refused *write.Result, err error) {
	count := 0
	for err != nil {
		joined, ok := err.(interface{ Unwrap() []error })
		if !ok || len(joined.Unwrap()) == 0 {
			break
		}
		count += len(joined.Unwrap()) - 1
		err = joined.Unwrap()[0]
	}
	refused.Reject(&write.SeriesError{Reason: reasonUntranslatable, Detail: clipLine(err.Error())}, count+1)
}

// dropUnsupported removes from md what cannot be stored and can be counted exactly.
func dropUnsupported(md pmetric.Metrics, refused *write.Result) {
	for _, rm := range md.ResourceMetrics().All() {
		for _, sm := range rm.ScopeMetrics().All() {
			sm.Metrics().RemoveIf(func(m pmetric.Metric) bool {
				if temporality(m) == pmetric.AggregationTemporalityDelta {
					refused.Reject(&write.SeriesError{Reason: reasonDelta, Detail: fmt.Sprintf("metric %.200q has delta temporality; send it cumulative", m.Name())}, points(m))
					return true
				}
				if n := dropTimeless(m); n > 0 {
					refused.Reject(&write.SeriesError{Reason: reasonNoTimestamp, Detail: fmt.Sprintf("a data point of metric %.200q has no time_unix_nano", m.Name())}, n)
					return points(m) == 0
				}
				return false
			})
		}
	}
}

func temporality(m pmetric.Metric) pmetric.AggregationTemporality {
	switch m.Type() {
	case pmetric.MetricTypeSum:
		return m.Sum().AggregationTemporality()
	case pmetric.MetricTypeHistogram:
		return m.Histogram().AggregationTemporality()
	case pmetric.MetricTypeExponentialHistogram:
		return m.ExponentialHistogram().AggregationTemporality()
	default:
		return pmetric.AggregationTemporalityUnspecified
	}
}

// points returns the number of data points of m.
func points(m pmetric.Metric) int {
	switch m.Type() {
	case pmetric.MetricTypeGauge:
		return m.Gauge().DataPoints().Len()
	case pmetric.MetricTypeSum:
		return m.Sum().DataPoints().Len()
	case pmetric.MetricTypeHistogram:
		return m.Histogram().DataPoints().Len()
	case pmetric.MetricTypeExponentialHistogram:
		return m.ExponentialHistogram().DataPoints().Len()
	case pmetric.MetricTypeSummary:
		return m.Summary().DataPoints().Len()
	default:
		return 0
	}
}

// dropTimeless removes the data points without a time and returns their number.
// They would count as of 1970, and the translator would fill the time since with
// samples of target_info.
func dropTimeless(m pmetric.Metric) int {
	before := points(m)
	switch m.Type() {
	case pmetric.MetricTypeGauge:
		m.Gauge().DataPoints().RemoveIf(func(p pmetric.NumberDataPoint) bool { return p.Timestamp() == 0 })
	case pmetric.MetricTypeSum:
		m.Sum().DataPoints().RemoveIf(func(p pmetric.NumberDataPoint) bool { return p.Timestamp() == 0 })
	case pmetric.MetricTypeHistogram:
		m.Histogram().DataPoints().RemoveIf(func(p pmetric.HistogramDataPoint) bool { return p.Timestamp() == 0 })
	case pmetric.MetricTypeExponentialHistogram:
		m.ExponentialHistogram().DataPoints().RemoveIf(func(p pmetric.ExponentialHistogramDataPoint) bool { return p.Timestamp() == 0 })
	case pmetric.MetricTypeSummary:
		m.Summary().DataPoints().RemoveIf(func(p pmetric.SummaryDataPoint) bool { return p.Timestamp() == 0 })
	}
	return before - points(m)
}

// batchAppender is a storage.AppenderV2 that fills a batch. What it is given by
// the translator is its own: labels and histograms are made for each call.
type batchAppender struct {
	batch       *write.Batch
	refused     *write.Result
	hasher      *write.Hasher
	reservation *reservation
	families    map[string]struct{} // whose metadata is in the batch
	pending     int64               // bytes taken and not reserved yet
	err         error               // why no more samples are taken
}

var errAppendNothing = errors.New("the batch takes no more samples")

// Append implements storage.AppenderV2.
func (a *batchAppender) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AppendV2Options) (storage.SeriesRef, error) {
	if a.err != nil {
		return 0, errAppendNothing
	}
	var (
		samples    []write.Sample
		histograms []write.Histogram
	)
	if h != nil || fh != nil {
		histograms = []write.Histogram{{T: t, ST: st, Int: h, Float: fh}}
		a.pending += histogramFootprint(histograms[0])
	} else {
		samples = []write.Sample{{T: t, ST: st, V: v}}
	}
	if a.reserve(int64(ls.ByteSize()) + sizeOf(1, len(samples), len(histograms), len(opts.Exemplars), 0)); a.err != nil {
		return 0, errAppendNothing
	}
	a.batch.Add(a.hasher, ls, samples, histograms, slices.DeleteFunc(opts.Exemplars, a.rejectExemplar))
	if _, known := a.families[opts.MetricFamilyName]; !known && opts.MetricFamilyName != "" && !opts.Metadata.IsEmpty() {
		a.families[opts.MetricFamilyName] = struct{}{}
		a.batch.Metadata = append(a.batch.Metadata, write.Metadata{Metric: opts.MetricFamilyName, Metadata: opts.Metadata})
	}
	return storage.SeriesRef(len(a.batch.Series)), nil
}

// rejectExemplar rejects e, and returns true, if its labels are not valid.
func (a *batchAppender) rejectExemplar(e exemplar.Exemplar) bool {
	err := write.ValidateExemplarLabels(e.Labels)
	if err != nil {
		a.refused.Reject(&write.SeriesError{Reason: write.ReasonInvalidExemplar, Detail: err.Error()}, 1)
	}
	return err != nil
}

// reserve reserves memory in steps, so that the budget is not locked for each sample.
func (a *batchAppender) reserve(n int64) {
	const step = 64 << 10
	if a.pending += n; a.pending < step {
		return
	}
	a.err = a.reservation.grow(a.pending)
	a.pending = 0
}

// Commit implements storage.AppenderV2. Storing the batch is another's business.
func (*batchAppender) Commit() error { return nil }

// Rollback implements storage.AppenderV2.
func (*batchAppender) Rollback() error { return nil }

var _ storage.AppenderV2 = (*batchAppender)(nil)
