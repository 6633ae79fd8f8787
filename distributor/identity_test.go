package distributor

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// FuzzOneIdentity holds that a series is the same series whatever protocol it came by and
// in whatever order its labels were sent, and that no two are the same.
func FuzzOneIdentity(f *testing.F) {
	f.Add("up", "up", "job\x00node", "job\x00nod\x00e\x00x")
	f.Add("m", "m", "a\x00b\x00c\x00d", "a\x00b\x12\x01c\x00d")
	f.Add("m", "m", "a\x00"+strings.Repeat("x", 121), "a\x00"+strings.Repeat("x", 122))
	f.Add("m", "m", "a\x00"+strings.Repeat("x", 300)+"\x00b\x00"+strings.Repeat("y", 20_000), "b\x00ü\x00a\x00\n")
	f.Add("", "le", "z\x001\x00y\x002\x00x\x003", "")
	d := newDistributor(f, newMemory())
	f.Fuzz(func(t *testing.T, nameA, nameB, pairsA, pairsB string) {
		a, b := seriesOf(nameA, pairsA), seriesOf(nameB, pairsB)
		idA, idB := requireOneIdentity(t, d, a), requireOneIdentity(t, d, b)
		require.Equal(t, labels.Equal(a, b), idA == idB)
	})
}

// seriesOf makes a series of text: labels that OTLP leaves as they are.
func seriesOf(name, pairs string) labels.Labels {
	plain := func(prefix, s string) string {
		return prefix + strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, s)
	}
	set := map[string]string{model.MetricNameLabel: plain("m", name)}
	fields := strings.SplitN(pairs, "\x00", 60)
	for i := 0; i+1 < len(fields); i += 2 {
		if value := strings.ToValidUTF8(fields[i+1], "�"); value != "" {
			set[plain("l", fields[i])] = value
		}
	}
	return labels.FromMap(set)
}

// requireOneIdentity sends ls in all the ways there are and returns its identity.
func requireOneIdentity(t *testing.T, d *Distributor, ls labels.Labels) write.Identity {
	t.Helper()
	want := write.NewHasher().Labels(ls)
	var sorted []labels.Label
	ls.Range(func(l labels.Label) { sorted = append(sorted, l) })
	unsorted := slices.Concat([]labels.Label{{Name: "zz"}}, sorted, []labels.Label{{Name: "", Value: ""}})
	slices.Reverse(unsorted)

	ws := d.getWorkspace()
	defer d.putWorkspace(ws)
	require.Equal(t, want, decodedIdentity(t, ws, remotewrite.V1, encodeV1(t, sorted), ls))
	require.Equal(t, want, decodedIdentity(t, ws, remotewrite.V2, encodeV2(t, sorted), ls))
	for _, sent := range []write.Identity{
		decodedIdentity(t, ws, remotewrite.V1, encodeV1(t, unsorted), ls),
		decodedIdentity(t, ws, remotewrite.V2, encodeV2(t, append(sorted, labels.Label{Name: "zz"})), ls),
		decodedIdentity(t, ws, remotewrite.V2, encodeV2(t, unsorted), ls),
	} {
		require.False(t, sent.IsZero())
	}
	res := d.budget.reserve("team")
	defer res.release()
	refused, err := d.otlp.translate(t.Context(), otlpGauge(ls), ws, res)
	require.NoError(t, err)
	require.Empty(t, refused.Rejected)
	require.Equal(t, want, onlySeries(t, ws, ls))
	return want
}

// decodedIdentity returns the identity of the labels as sent in a request of one series,
// which must be ls.
func decodedIdentity(t *testing.T, ws *workspace, v remotewrite.Version, raw []byte, ls labels.Labels) write.Identity {
	t.Helper()
	_, err := ws.decoder.Decode(v, raw, &ws.batch)
	require.NoError(t, err)
	return onlySeries(t, ws, ls)
}

func onlySeries(t *testing.T, ws *workspace, ls labels.Labels) write.Identity {
	t.Helper()
	require.Len(t, ws.batch.Series, 1)
	scratch := labels.NewScratchBuilder(0)
	resolved, id, err := ws.batch.Resolve(0, tenant.Limits{}, &scratch, ws.hasher)
	require.NoError(t, err)
	require.True(t, labels.Equal(ls, resolved), "%s instead of %s", resolved, ls)
	require.Equal(t, ws.hasher.Labels(ls), id)
	return ws.batch.Series[0].ID
}

func encodeV1(t *testing.T, sent []labels.Label) []byte {
	t.Helper()
	ts := prompb.TimeSeries{Samples: []prompb.Sample{{Value: 1, Timestamp: now}}}
	for _, l := range sent {
		ts.Labels = append(ts.Labels, prompb.Label{Name: l.Name, Value: l.Value})
	}
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{ts}}).Marshal()
	require.NoError(t, err)
	return raw
}

func encodeV2(t *testing.T, sent []labels.Label) []byte {
	t.Helper()
	symbols := writev2.NewSymbolTable()
	ts := writev2.TimeSeries{Samples: []writev2.Sample{{Value: 1, Timestamp: now}}}
	for _, l := range sent {
		ts.LabelsRefs = append(ts.LabelsRefs, symbols.Symbolize(l.Name), symbols.Symbolize(l.Value))
	}
	raw, err := (&writev2.Request{Symbols: symbols.Symbols(), Timeseries: []writev2.TimeSeries{ts}}).Marshal()
	require.NoError(t, err)
	return raw
}

// otlpGauge returns a gauge with the labels ls.
func otlpGauge(ls labels.Labels) pmetric.Metrics {
	md := pmetric.NewMetrics()
	m := md.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
	p := m.SetEmptyGauge().DataPoints().AppendEmpty()
	p.SetTimestamp(pcommon.NewTimestampFromTime(time.UnixMilli(now)))
	p.SetDoubleValue(1)
	ls.Range(func(l labels.Label) {
		if l.Name == model.MetricNameLabel {
			m.SetName(l.Value)
		} else {
			p.Attributes().PutStr(l.Name, l.Value)
		}
	})
	return md
}
