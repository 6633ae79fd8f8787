package distributor

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

func at(ms int64) pcommon.Timestamp { return pcommon.Timestamp(ms * int64(time.Millisecond)) }

// scope returns metrics of one resource and a place for more metrics.
func scope() (pmetric.Metrics, pmetric.MetricSlice) {
	md := pmetric.NewMetrics()
	rm := md.ResourceMetrics().AppendEmpty()
	rm.Resource().Attributes().PutStr("service.name", "shop")
	rm.Resource().Attributes().PutStr("service.instance.id", "shop-1")
	return md, rm.ScopeMetrics().AppendEmpty().Metrics()
}

func addGauge(ms pmetric.MetricSlice, name string, t int64, v float64) {
	m := ms.AppendEmpty()
	m.SetName(name)
	p := m.SetEmptyGauge().DataPoints().AppendEmpty()
	p.SetTimestamp(at(t))
	p.SetDoubleValue(v)
}

func addSum(ms pmetric.MetricSlice, name string, temporality pmetric.AggregationTemporality) pmetric.NumberDataPoint {
	m := ms.AppendEmpty()
	m.SetName(name)
	m.SetUnit("s")
	m.SetDescription("How long.")
	sum := m.SetEmptySum()
	sum.SetIsMonotonic(true)
	sum.SetAggregationTemporality(temporality)
	p := sum.DataPoints().AppendEmpty()
	p.SetTimestamp(at(now))
	p.SetStartTimestamp(at(now - 1000))
	p.SetIntValue(7)
	p.Attributes().PutStr("http.method", "GET")
	return p
}

func postOTLP(t testing.TB, d *Distributor, contentType string, body []byte, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := request{contentType: contentType, body: body, raw: true, header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		r.header.Set(header[i], header[i+1])
	}
	return r.send(t, d.OTLPHandler())
}

func marshalOTLP(t testing.TB, md pmetric.Metrics, encoding string) []byte {
	t.Helper()
	r := pmetricotlp.NewExportRequestFromMetrics(md)
	marshal := r.MarshalProto
	if encoding == otlpJSON {
		marshal = r.MarshalJSON
	}
	b, err := marshal()
	require.NoError(t, err)
	return b
}

// exported decodes a 200.
func exported(t *testing.T, w *httptest.ResponseRecorder) pmetricotlp.ExportPartialSuccess {
	t.Helper()
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	response := pmetricotlp.NewExportResponse()
	if w.Header().Get("Content-Type") == otlpJSON {
		require.NoError(t, response.UnmarshalJSON(w.Body.Bytes()))
	} else {
		require.Equal(t, otlpProtobuf, w.Header().Get("Content-Type"))
		require.NoError(t, response.UnmarshalProto(w.Body.Bytes()))
	}
	return response.PartialSuccess()
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func TestOTLPTakesBothEncodingsAndCompressions(t *testing.T) {
	for _, encoding := range []string{otlpProtobuf, otlpJSON} {
		for _, compression := range []string{"", "identity", "gzip"} {
			md, ms := scope()
			addGauge(ms, "room.temperature", now, 21.5)
			body := marshalOTLP(t, md, encoding)
			var header []string
			if compression != "" {
				header = []string{"Content-Encoding", compression}
			}
			if compression == "gzip" {
				body = zip(t, body)
			}
			m := newMemory()
			d := newDistributor(t, m)
			success := exported(t, postOTLP(t, d, encoding, body, header...))
			require.Zero(t, success.RejectedDataPoints())
			require.Empty(t, success.ErrorMessage())
			require.Equal(t, []point{{t: now, bits: math.Float64bits(21.5)}}, m.points[`{__name__="room_temperature", instance="shop-1", job="shop"}`])
			require.Zero(t, d.budget.inUse())
		}
	}
}

func TestOTLPTypesBecomeWhatPrometheusMakesOfThem(t *testing.T) {
	md, ms := scope()
	p := addSum(ms, "request.duration", pmetric.AggregationTemporalityCumulative)
	e := p.Exemplars().AppendEmpty()
	e.SetTimestamp(at(now))
	e.SetDoubleValue(0.5)
	e.FilteredAttributes().PutStr("user", "x")

	h := ms.AppendEmpty()
	h.SetName("size")
	h.SetUnit("By")
	h.SetEmptyHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	hp := h.Histogram().DataPoints().AppendEmpty()
	hp.SetTimestamp(at(now))
	hp.SetCount(3)
	hp.SetSum(6)
	hp.ExplicitBounds().FromRaw([]float64{1, 2})
	hp.BucketCounts().FromRaw([]uint64{1, 1, 1})

	x := ms.AppendEmpty()
	x.SetName("latency")
	x.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	xp := x.ExponentialHistogram().DataPoints().AppendEmpty()
	xp.SetTimestamp(at(now))
	xp.SetStartTimestamp(at(now - 5))
	xp.SetCount(3)
	xp.SetSum(6)
	xp.SetScale(10)
	xp.SetZeroCount(1)
	xp.Positive().BucketCounts().FromRaw([]uint64{1, 1})

	s := ms.AppendEmpty()
	s.SetName("quantiles")
	sp := s.SetEmptySummary().DataPoints().AppendEmpty()
	sp.SetTimestamp(at(now))
	sp.SetCount(1)
	q := sp.QuantileValues().AppendEmpty()
	q.SetQuantile(0.5)
	q.SetValue(4)

	stale := ms.AppendEmpty()
	stale.SetName("gone")
	gone := stale.SetEmptyGauge().DataPoints().AppendEmpty()
	gone.SetTimestamp(at(now))
	gone.SetFlags(pmetric.DefaultDataPointFlags.WithNoRecordedValue(true))

	m := newMemory()
	require.Zero(t, exported(t, postOTLP(t, newDistributor(t, m), otlpProtobuf, marshalOTLP(t, md, otlpProtobuf))).RejectedDataPoints())
	const who = `instance="shop-1", job="shop"`
	require.Equal(t, []string{
		`{__name__="gone", ` + who + `}`,
		`{__name__="quantiles", ` + who + `, quantile="0.5"}`,
		`{__name__="quantiles_count", ` + who + `}`,
		`{__name__="quantiles_sum", ` + who + `}`,
		`{__name__="request_duration_seconds_total", http_method="GET", ` + who + `}`,
		`{__name__="size_bytes_bucket", ` + who + `, le="+Inf"}`,
		`{__name__="size_bytes_bucket", ` + who + `, le="1.0"}`,
		`{__name__="size_bytes_bucket", ` + who + `, le="2.0"}`,
		`{__name__="size_bytes_count", ` + who + `}`,
		`{__name__="size_bytes_sum", ` + who + `}`,
	}, normalized(m.series()))
	require.Equal(t, value.StaleNaN, m.points[`{__name__="gone", `+who+`}`][0].bits)
	total := `{__name__="request_duration_seconds_total", http_method="GET", ` + who + `}`
	require.Equal(t, []point{{t: now, st: now - 1000, bits: math.Float64bits(7)}}, m.points[total])
	require.Equal(t, 1, m.exemplars[total])
	native := m.histograms[`{__name__="latency", `+who+`}`]
	require.Len(t, native, 1)
	require.Equal(t, int32(8), native[0].Int.Schema)
	require.Equal(t, now-5, native[0].ST)
	var families []string
	for _, md := range m.metadata {
		families = append(families, fmt.Sprintf("%s %s %s", md.Metric, md.Type, md.Help))
	}
	require.Contains(t, families, "request_duration_seconds_total counter How long.")
}

// normalized is for bounds that are formatted as 1 or as 1.0.
func normalized(series []string) []string {
	for i, s := range series {
		series[i] = strings.NewReplacer(`le="1"`, `le="1.0"`, `le="2"`, `le="2.0"`).Replace(s)
	}
	return series
}

func TestOTLPReportsWhatItCannotStore(t *testing.T) {
	md, ms := scope()
	addGauge(ms, "good", now, 1)
	addGauge(ms, "timeless", 0, 1)
	addSum(ms, "delta.one", pmetric.AggregationTemporalityDelta)
	addSum(ms, "delta.two", pmetric.AggregationTemporalityDelta)
	addSum(ms, "unspecified", pmetric.AggregationTemporalityUnspecified)
	m := newMemory()
	for _, encoding := range []string{otlpProtobuf, otlpJSON} {
		success := exported(t, postOTLP(t, newDistributor(t, m), encoding, marshalOTLP(t, md, encoding)))
		require.Equal(t, int64(4), success.RejectedDataPoints())
		require.Contains(t, success.ErrorMessage(), `2 rejected, for example otlp_delta_temporality: metric "delta.one" has delta temporality; send it cumulative`)
		require.Contains(t, success.ErrorMessage(), `1 rejected, for example otlp_missing_timestamp: a data point of metric "timeless" has no time_unix_nano`)
		require.Contains(t, success.ErrorMessage(), `1 rejected, for example otlp_untranslatable: invalid temporality and type combination for metric "unspecified"`)
	}
	require.Len(t, m.series(), 1)
}

func TestOTLPStatusByWhatTheIngesterSays(t *testing.T) {
	reject := func(reason write.Reason, name string) func(labels.Labels, write.Sample) *write.SeriesError {
		return func(ls labels.Labels, _ write.Sample) *write.SeriesError {
			if strings.HasPrefix(ls.Get("__name__"), name) {
				return &write.SeriesError{Reason: reason}
			}
			return nil
		}
	}
	for _, c := range []struct {
		name     string
		memory   *memory
		status   int
		rejected int64
	}{
		{"some too old", &memory{judge: reject(write.ReasonTooOld, "a")}, 200, 1},
		{"some over the tenant's limit", &memory{judge: reject(write.ReasonTenantSeriesLimit, "a")}, 200, 1},
		{"all too old", &memory{judge: reject(write.ReasonTooOld, "")}, 400, 0},
		{"all over the tenant's limit", &memory{judge: reject(write.ReasonTenantSeriesLimit, "")}, 429, 0},
		{"some put off", &memory{judge: reject(write.ReasonInstanceHeapLimit, "a")}, 503, 0},
		{"unavailable", &memory{err: wire.Unavailable(errors.New("starting"), time.Second)}, 503, 0},
		{"internal", &memory{err: errors.New("index out of range")}, 500, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, encoding := range []string{otlpProtobuf, otlpJSON} {
				m := newMemory()
				m.judge, m.err = c.memory.judge, c.memory.err
				md, ms := scope()
				addGauge(ms, "a", now, 1)
				addGauge(ms, "b", now, 1)
				w := postOTLP(t, newDistributor(t, m), encoding, marshalOTLP(t, md, encoding))
				require.Equal(t, c.status, w.Code)
				require.Equal(t, encoding, w.Header().Get("Content-Type"))
				require.Equal(t, c.status == http.StatusServiceUnavailable, w.Header().Get("Retry-After") != "")
				if c.status == http.StatusOK {
					require.Equal(t, c.rejected, exported(t, w).RejectedDataPoints())
					continue
				}
				requireStatus(t, w)
			}
		})
	}
}

// requireStatus checks that the body is a google.rpc.Status with a message.
func requireStatus(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var message string
	if w.Header().Get("Content-Type") == otlpJSON {
		var status struct{ Message string }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &status))
		message = status.Message
	} else {
		var status rpcstatus.Status
		require.NoError(t, proto.Unmarshal(w.Body.Bytes(), &status))
		message = status.GetMessage()
	}
	require.NotEmpty(t, message)
	return message
}

func TestOTLPNegotiation(t *testing.T) {
	d := newDistributor(t, newMemory())
	md, ms := scope()
	addGauge(ms, "a", now, 1)
	body := marshalOTLP(t, md, otlpProtobuf)
	require.Equal(t, http.StatusOK, postOTLP(t, d, "application/x-protobuf; charset=utf-8", body).Code)
	require.Equal(t, http.StatusUnsupportedMediaType, postOTLP(t, d, "text/plain", body).Code)
	require.Equal(t, http.StatusUnsupportedMediaType, postOTLP(t, d, "", body).Code)
	require.Equal(t, http.StatusUnsupportedMediaType, postOTLP(t, d, otlpProtobuf, body, "Content-Encoding", "zstd").Code)
	w := request{contentType: otlpProtobuf, method: http.MethodGet}.send(t, d.OTLPHandler())
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
	require.Equal(t, "POST", w.Header().Get("Allow"))

	require.Equal(t, http.StatusOK, postOTLP(t, d, otlpProtobuf, nil).Code, "an empty message is a message")
	for _, c := range []struct{ contentType, body, encoding string }{
		{otlpProtobuf, "\x0a\x7f", ""},
		{otlpProtobuf, "\xff", ""},
		{otlpJSON, "{", ""},
		{otlpJSON, `{"resourceMetrics":7}`, ""},
		{otlpProtobuf, "no gzip", "gzip"},
		{otlpProtobuf, string(zip(t, body)[:20]), "gzip"},
		{otlpProtobuf, "", "gzip"},
	} {
		w := postOTLP(t, d, c.contentType, []byte(c.body), "Content-Encoding", c.encoding)
		require.Equal(t, http.StatusBadRequest, w.Code, "%q", c.body)
		requireStatus(t, w)
	}
	require.Zero(t, d.budget.inUse())
}

func field(number int, value []byte) []byte {
	b := binary.AppendUvarint(nil, uint64(number<<3|2))
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

func TestOTLPBombsAreRefusedBeforeMemoryIsTaken(t *testing.T) {
	deep := []byte{}
	for range 200 {
		deep = field(5, field(1, deep)) // an array in a value
	}
	deep = field(1, field(1, field(1, field(2, deep))))
	attribute := func(key string, size int) []byte {
		return append(field(1, []byte(key)), field(2, field(1, bytes.Repeat([]byte("x"), size)))...)
	}
	wide := append(field(1, attribute("a.b", maxOTLPBytes/2)), field(1, attribute("a_b", maxOTLPBytes/2))...)
	md, ms := scope()
	md.ResourceMetrics().At(0).Resource().Attributes().PutStr("host", "h")
	addGauge(ms, "a", 1, 1)
	addGauge(ms, "b", now, 1)
	centuries := marshalOTLP(t, md, otlpProtobuf)
	md, ms = scope()
	for i := range 200 {
		addSum(ms, "m", pmetric.AggregationTemporalityCumulative).Attributes().PutStr("n", strings.Repeat(string(rune('a'+i%26)), 500_000))
	}
	for _, c := range []struct {
		name, contentType string
		body              []byte
		header            string
		says              string
	}{
		{"gzip", otlpProtobuf, zip(t, make([]byte, 33<<20)), "gzip", "max_request_bytes allows"},
		{"nesting", otlpProtobuf, deep, "", "nest more than 64 deep"},
		{"nesting in JSON", otlpJSON, []byte(strings.Repeat(`{"a":[`, 1000)), "", "nest more than 64 deep"},
		{"empty messages", otlpProtobuf, bytes.Repeat([]byte{0x0a, 0x00}, 8<<20), "", "half of max_inflight_bytes"},
		{"empty messages in JSON", otlpJSON, []byte(`{"resourceMetrics":[` + strings.Repeat("{},", 1<<20) + "{}]}"), "", "half of max_inflight_bytes"},
		{"attributes that become one label", otlpProtobuf, field(1, field(1, wide)), "", "attributes of one thing take more than"},
		{"a long string", otlpProtobuf, field(1, field(2, field(2, field(1, make([]byte, maxOTLPBytes+1))))), "", "a string, an array or"},
		{"target_info since 1970", otlpProtobuf, centuries, "", "half of max_inflight_bytes"},
		{"a large request", otlpProtobuf, marshalOTLP(t, md, otlpProtobuf), "", "max_request_bytes allows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDistributor(t, newMemory())
			w := postOTLP(t, d, c.contentType, c.body, "Content-Encoding", c.header)
			require.Equal(t, http.StatusBadRequest, w.Code)
			require.Contains(t, requireStatus(t, w), c.says)
			require.Zero(t, d.budget.inUse())
		})
	}
}

func TestOTLPMeasuresAboutWhatDecodingTakes(t *testing.T) {
	md, ms := scope()
	for range 100 {
		addSum(ms, "m", pmetric.AggregationTemporalityCumulative)
	}
	for _, c := range []struct {
		encoding string
		measure  func([]byte) (int64, error)
	}{{otlpProtobuf, measureProtobuf}, {otlpJSON, measureJSON}} {
		body := marshalOTLP(t, md, c.encoding)
		size, err := c.measure(body)
		require.NoError(t, err)
		require.Greater(t, size, int64(100*(3*nodeBytes)))
		require.Less(t, size, int64(100*20*nodeBytes))
	}
}

func TestOTLPOfACancelledClientIsNotItsFault(t *testing.T) {
	md, ms := scope()
	for range 300 {
		addGauge(ms, "a", now, 1)
	}
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(marshalOTLP(t, md, otlpProtobuf)))
	r.Header.Set("Content-Type", otlpProtobuf)
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	w := httptest.NewRecorder()
	newDistributor(t, newMemory()).OTLPHandler().ServeHTTP(w, r.WithContext(tenantContext(ctx)))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
}

func FuzzOTLPHandler(f *testing.F) {
	md, ms := scope()
	addGauge(ms, "a", now, 1)
	p := addSum(ms, "b", pmetric.AggregationTemporalityCumulative)
	p.Attributes().PutEmptySlice("list").AppendEmpty().SetStr("x")
	p.Attributes().PutEmptyMap("map").PutEmptyBytes("y").FromRaw([]byte{1})
	x := ms.AppendEmpty()
	x.SetName("x")
	x.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	xp := x.ExponentialHistogram().DataPoints().AppendEmpty()
	xp.SetTimestamp(at(now))
	xp.Negative().BucketCounts().FromRaw([]uint64{1, 2, 0, 0, 0, 3})
	for _, encoding := range []string{otlpProtobuf, otlpJSON} {
		f.Add(marshalOTLP(f, md, encoding), encoding == otlpJSON, false)
	}
	f.Add(zip(f, marshalOTLP(f, md, otlpProtobuf)), false, true)
	d := newDistributor(f, newMemory(), func(c *Config) { c.MaxRequestBytes, c.MaxInflightBytes = 1<<20, 32<<20 })
	f.Fuzz(func(t *testing.T, body []byte, json, zipped bool) {
		d.ingester = newMemory()
		encoding, compression := otlpProtobuf, ""
		if json {
			encoding = otlpJSON
		}
		if zipped {
			compression = "gzip"
		}
		w := postOTLP(t, d, encoding, body, "Content-Encoding", compression)
		require.Contains(t, []int{http.StatusOK, http.StatusBadRequest}, w.Code, w.Body)
		require.Zero(t, d.budget.inUse())
	})
}

// Frames hold no exemplar like that, so one would fail the request again and again.
func TestOTLPExemplarsWithInvalidLabelsAreDroppedAlone(t *testing.T) {
	for name, spoil := range map[string]func(pmetric.Exemplar){
		"a name twice": func(e pmetric.Exemplar) {
			e.SetTraceID([16]byte{1})
			e.FilteredAttributes().PutStr("trace_id", "2")
		},
		"no name":   func(e pmetric.Exemplar) { e.FilteredAttributes().PutStr("", "x") },
		"not UTF-8": func(e pmetric.Exemplar) { e.FilteredAttributes().PutStr("k", "\xff") },
	} {
		t.Run(name, func(t *testing.T) {
			md, ms := scope()
			p := addSum(ms, "requests", pmetric.AggregationTemporalityCumulative)
			for range 2 {
				e := p.Exemplars().AppendEmpty()
				e.SetTimestamp(at(now))
				e.SetIntValue(1)
				e.FilteredAttributes().PutStr("fine", "yes")
			}
			spoil(p.Exemplars().At(0))
			r := newRing(t, 3, 3)
			success := exported(t, postOTLP(t, newDistributor(t, r), otlpProtobuf, marshalOTLP(t, md, otlpProtobuf)))
			require.Equal(t, int64(1), success.RejectedDataPoints())
			require.Contains(t, success.ErrorMessage(), string(write.ReasonInvalidExemplar))
			require.Equal(t, 1, r.at(0).count("team"))
		})
	}
}
