package remotewrite

import (
	"fmt"
	"math"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/remotewrite/remotewritetest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

const now = int64(1_700_000_000_000)

// stale returns the value of a staleness marker. It is no constant, so that no
// compiler has a chance to touch its bits.
func stale() float64 { return math.Float64frombits(value.StaleNaN) }

// wide returns a request that uses everything both protocols have.
func wide() *remotewritetest.Request {
	gauge := tsdbutil.GenerateTestFloatHistogram(3)
	custom := tsdbutil.GenerateTestCustomBucketsHistogram(2)
	return &remotewritetest.Request{
		Series: []remotewritetest.TimeSeries{
			{
				Labels:   labels.FromStrings("__name__", "up", "instance", "a:9090", "job", "node"),
				Samples:  []write.Sample{{T: now, V: 1}, {T: now + 15000, V: stale(), ST: now - 5}},
				Metadata: metadata.Metadata{Type: model.MetricTypeGauge, Help: "Is it up?", Unit: "bool"},
			},
			{
				Labels: labels.FromStrings("__name__", "rpc.duration μs", "le", "+Inf", "zone with space", "x\ny"),
				Samples: []write.Sample{
					{T: -1, V: math.Inf(1)},
					{T: 0, V: math.Copysign(0, -1)},
					{T: math.MaxInt64, V: math.NaN(), ST: math.MinInt64},
					{T: math.MinInt64, V: math.MaxFloat64},
				},
				Exemplars: []exemplar.Exemplar{
					{Labels: labels.FromStrings("trace_id", "abc", "ü", "x"), Value: 1.5, Ts: now, HasTs: true},
					{Value: -2},
				},
				Metadata: metadata.Metadata{Type: model.MetricTypeUnknown},
			},
			{
				Labels: labels.FromStrings("__name__", "latency_seconds", "job", "node"),
				Histograms: []write.Histogram{
					{T: now, Int: tsdbutil.GenerateTestHistogram(1)},
					{T: now + 1, ST: 7, Float: gauge},
					{T: now + 2, Int: custom},
					{T: now + 3, Float: &histogram.FloatHistogram{Sum: stale()}},
				},
				Metadata: metadata.Metadata{Type: model.MetricTypeHistogram, Help: "How long?"},
			},
		},
		Metadata: []write.Metadata{
			{Metric: "up", Metadata: metadata.Metadata{Type: model.MetricTypeGauge, Help: "Is it up?", Unit: "bool"}},
			{Metric: "latency_seconds", Metadata: metadata.Metadata{Type: model.MetricTypeHistogram, Help: "How long?"}},
		},
	}
}

// fleet returns a request as Prometheus sends them: n series with a sample each.
func fleet(n int) *remotewritetest.Request {
	r := &remotewritetest.Request{}
	for i := range n {
		r.Series = append(r.Series, remotewritetest.TimeSeries{
			Labels: labels.FromStrings(
				"__name__", fmt.Sprintf("container_metric_%d_total", i%200),
				"cluster", "eu-west-1", "container", "server", "endpoint", "https-metrics",
				"instance", fmt.Sprintf("10.0.%d.%d:10250", i/250, i%250), "job", "kubelet",
				"namespace", "monitoring", "node", fmt.Sprintf("ip-10-0-%d-1.compute.internal", i/250),
				"pod", fmt.Sprintf("prometheus-server-%d", i/200), "service", "kube-prometheus-kubelet",
			),
			Samples:  []write.Sample{{T: now, V: float64(i) * 1.1}},
			Metadata: metadata.Metadata{Type: model.MetricTypeCounter, Help: "Something that the container counts."},
		})
	}
	return r
}

func encode(t testing.TB, v Version, r *remotewritetest.Request) []byte {
	t.Helper()
	if v == V2 {
		return remotewritetest.EncodeV2(t, r)
	}
	return remotewritetest.EncodeV1(t, r)
}

// decode decodes data, which must be a request, into a batch.
func decode(t testing.TB, v Version, data []byte) (*write.Batch, write.Result) {
	t.Helper()
	var b write.Batch
	rejected, err := NewDecoder().Decode(v, data, &b)
	require.NoError(t, err)
	return &b, rejected
}

// sentLabels returns the labels of series i in the order they were sent in.
func sentLabels(b *write.Batch, i int) ([]labels.Label, error) {
	builder := labels.NewScratchBuilder(0)
	if err := b.Source.AppendLabels(i, &builder); err != nil {
		return nil, err
	}
	var ls []labels.Label
	builder.Labels().Range(func(l labels.Label) { ls = append(ls, l) })
	return ls, nil
}

func resolve(b *write.Batch, i int) (labels.Labels, write.Identity, error) {
	scratch := labels.NewScratchBuilder(0)
	return b.Resolve(i, tenant.Limits{}, &scratch, write.NewHasher())
}
