// Package remotewritetest encodes remote-write requests for tests, with the code that
// Prometheus itself generates, so that no test holds us against ourselves.
package remotewritetest

import (
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Request is what a sender wants stored.
type Request struct {
	Series []TimeSeries
	// Metadata goes into requests of 1.0 only; in 2.0 it rides on the series.
	Metadata []write.Metadata
}

// TimeSeries is one series of a Request. Start timestamps and its metadata are sent
// in 2.0 only.
type TimeSeries struct {
	Labels     labels.Labels
	Samples    []write.Sample
	Histograms []write.Histogram
	Exemplars  []exemplar.Exemplar
	Metadata   metadata.Metadata
}

// EncodeV1 returns r encoded for remote write 1.0. As Prometheus, it leaves out the
// sign of a negative zero.
func EncodeV1(t testing.TB, r *Request) []byte {
	t.Helper()
	encoded, err := MessageV1(r).Marshal()
	require.NoError(t, err)
	return encoded
}

// EncodeV2 returns r encoded for remote write 2.0, like EncodeV1.
func EncodeV2(t testing.TB, r *Request) []byte {
	t.Helper()
	encoded, err := MessageV2(r).Marshal()
	require.NoError(t, err)
	return encoded
}

// MessageV1 returns r as the message of remote write 1.0.
func MessageV1(r *Request) *prompb.WriteRequest {
	m := &prompb.WriteRequest{}
	for _, s := range r.Series {
		ts := prompb.TimeSeries{Labels: prompb.FromLabels(s.Labels, nil)}
		for _, x := range s.Samples {
			ts.Samples = append(ts.Samples, prompb.Sample{Value: x.V, Timestamp: x.T})
		}
		for _, x := range s.Exemplars {
			ts.Exemplars = append(ts.Exemplars, prompb.Exemplar{Labels: prompb.FromLabels(x.Labels, nil), Value: x.Value, Timestamp: x.Ts})
		}
		for _, h := range s.Histograms {
			if h.Float != nil {
				ts.Histograms = append(ts.Histograms, prompb.FromFloatHistogram(h.T, h.Float))
			} else {
				ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(h.T, h.Int))
			}
		}
		m.Timeseries = append(m.Timeseries, ts)
	}
	for _, x := range r.Metadata {
		m.Metadata = append(m.Metadata, prompb.MetricMetadata{
			Type: prompb.FromMetadataType(x.Type), MetricFamilyName: x.Metric, Help: x.Help, Unit: x.Unit,
		})
	}
	return m
}

// MessageV2 returns r as the message of remote write 2.0.
func MessageV2(r *Request) *writev2.Request {
	symbols := writev2.NewSymbolTable()
	m := &writev2.Request{}
	for _, s := range r.Series {
		ts := writev2.TimeSeries{LabelsRefs: symbols.SymbolizeLabels(s.Labels, nil)}
		for _, x := range s.Samples {
			ts.Samples = append(ts.Samples, writev2.Sample{Value: x.V, Timestamp: x.T, StartTimestamp: x.ST})
		}
		for _, x := range s.Exemplars {
			ts.Exemplars = append(ts.Exemplars, writev2.Exemplar{LabelsRefs: symbols.SymbolizeLabels(x.Labels, nil), Value: x.Value, Timestamp: x.Ts})
		}
		for _, h := range s.Histograms {
			if h.Float != nil {
				ts.Histograms = append(ts.Histograms, writev2.FromFloatHistogram(h.ST, h.T, h.Float))
			} else {
				ts.Histograms = append(ts.Histograms, writev2.FromIntHistogram(h.ST, h.T, h.Int))
			}
		}
		ts.Metadata = writev2.Metadata{
			Type:    writev2.FromMetadataType(s.Metadata.Type),
			HelpRef: symbols.Symbolize(s.Metadata.Help),
			UnitRef: symbols.Symbolize(s.Metadata.Unit),
		}
		m.Timeseries = append(m.Timeseries, ts)
	}
	m.Symbols = symbols.Symbols()
	return m
}
