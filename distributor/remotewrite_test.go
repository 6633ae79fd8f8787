package distributor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/remotewrite/remotewritetest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	v1Type = "application/x-protobuf;proto=prometheus.WriteRequest"
	v2Type = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
)

func TestContentNegotiation(t *testing.T) {
	v1, v2 := encode(t, remotewrite.V1, up(1)), encode(t, remotewrite.V2, up(1))
	encoding := func(s string) http.Header { return http.Header{"Content-Encoding": {s}} }
	for _, c := range []struct {
		name    string
		request request
		status  int
		written string
		says    string
	}{
		{"no content type", request{body: v1}, 204, "", ""},
		{"plain protobuf", request{contentType: "application/x-protobuf", body: v1}, 204, "", ""},
		{"protobuf in capitals", request{contentType: "Application/X-Protobuf", body: v1}, 204, "", ""},
		{"1.0 by name", request{contentType: v1Type, body: v1}, 204, "", ""},
		{"2.0 by name", request{contentType: v2Type, body: v2}, 204, "1 0 0", ""},
		{"a space is legal", request{contentType: "application/x-protobuf; proto=io.prometheus.write.v2.Request", body: v2}, 204, "1 0 0", ""},
		{"quotes are legal", request{contentType: `application/x-protobuf; proto="io.prometheus.write.v2.Request"; charset=utf-8`, body: v2}, 204, "1 0 0", ""},
		{"the version header is not believed", request{contentType: v2Type, body: v2, header: http.Header{"X-Prometheus-Remote-Write-Version": {"0.1.0"}}}, 204, "1 0 0", ""},
		{"snappy", request{body: v1, header: encoding("snappy")}, 204, "", ""},
		{"GET", request{method: http.MethodGet, body: v1}, 405, "", "the method GET is not allowed"},
		{"PUT", request{method: http.MethodPut, body: v1}, 405, "", "the method PUT is not allowed"},
		{"json", request{contentType: "application/json", body: v1}, 415, "", `the Content-Type "application/json" is not supported`},
		{"png", request{contentType: "image/png", body: v1}, 415, "", "is not supported"},
		{"unknown message", request{contentType: "application/x-protobuf;proto=io.prometheus.write.v3.Request", body: v1}, 415, "", "supported are"},
		{"no media type", request{contentType: ";;", body: v1}, 415, "", "is not supported"},
		{"gzip", request{body: v1, header: encoding("gzip")}, 415, "", `the Content-Encoding "gzip" is not supported`},
		{"deflate", request{body: v1, header: encoding("deflate")}, 415, "", "is not supported"},
		{"zstd, 2.0", request{contentType: v2Type, body: v2, header: encoding("zstd")}, 415, "0 0 0", "is not supported"},
		{"corrupt snappy", request{raw: true, body: []byte("\xff\xff\xff\xff no")}, 400, "", "decompress the request"},
		{"no snappy", request{raw: true, body: v1}, 400, "", "decompress the request"},
		{"framed snappy", request{raw: true, body: framed(t, v1)}, 400, "", "decompress the request"},
		{"empty body", request{raw: true}, 400, "", "decompress the request"},
		{"corrupt protobuf", request{body: []byte{0x0a, 0x7f}}, 400, "", "decode field 1 of WriteRequest at offset 0"},
		{"corrupt protobuf, 2.0", request{contentType: v2Type, body: []byte{0x2a, 0x7f}}, 400, "0 0 0", "decode field 5 of Request"},
		{"1.0 called 2.0", request{contentType: v2Type, body: v1}, 400, "0 0 0", "another version of the protocol"},
		{"2.0 called 1.0", request{contentType: v1Type, body: v2}, 400, "", "another version of the protocol"},
		{"no series", request{body: nil}, 204, "", ""},
		{"no series, 2.0", request{contentType: v2Type}, 204, "0 0 0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory()
			w := c.request.send(t, newDistributor(t, m).WriteHandler())
			require.Equal(t, c.status, w.Code, w.Body)
			require.Equal(t, c.written, written(w))
			require.Contains(t, w.Body.String(), c.says)
			if c.status == http.StatusNoContent {
				require.Empty(t, w.Body.String())
			} else {
				require.Empty(t, m.tenants)
				requireShortLine(t, w)
			}
			if c.status == http.StatusMethodNotAllowed {
				require.Equal(t, "POST", w.Header().Get("Allow"))
			}
		})
	}
}

func framed(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := snappy.NewBufferedWriter(&buf)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func requireShortLine(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	body := w.Body.String()
	require.LessOrEqual(t, len(body), maxAnswerBytes+1)
	require.Equal(t, 1, strings.Count(body, "\n"))
	require.True(t, strings.HasSuffix(body, "\n"))
}

func TestSamplesReachTheIngesterBitByBit(t *testing.T) {
	specials := []float64{
		1, math.Float64frombits(value.StaleNaN), math.Float64frombits(value.NormalNaN), math.Inf(1), math.Inf(-1),
		0, math.SmallestNonzeroFloat64, math.MaxFloat64, float64(value.StaleNaN),
	}
	for _, v := range []remotewrite.Version{remotewrite.V1, remotewrite.V2} {
		m := newMemory()
		w := sendWrite(t, newDistributor(t, m), v, up(specials...))
		require.Equal(t, http.StatusNoContent, w.Code)
		got := m.points[`{__name__="up", job="node"}`]
		require.Len(t, got, len(specials))
		for i, want := range specials {
			require.Equal(t, math.Float64bits(want), got[i].bits)
			require.Equal(t, now+int64(i)*15_000, got[i].t)
		}
		require.Equal(t, []tenant.ID{"team"}, m.tenants)
	}
}

func TestPartialWriteIs400WithCountsAndReasons(t *testing.T) {
	m := newMemory()
	m.judge = func(_ labels.Labels, s write.Sample) *write.SeriesError {
		if s.V == 13 {
			return &write.SeriesError{Reason: write.ReasonTooOld, Detail: "4 h before\nthe newest", Labels: `{__name__="up"}`}
		}
		return nil
	}
	d := newDistributor(t, m)
	w := sendWrite(t, d, remotewrite.V2, up(1, 13, 2, 13))
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Equal(t, "2 0 0", written(w))
	require.Equal(t, "2 rejected, for example sample_too_old: 4 h before the newest (series {__name__=\"up\"})\n", w.Body.String())
	require.Len(t, m.points[`{__name__="up", job="node"}`], 2)

	w = sendWrite(t, d, remotewrite.V2, up(13))
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Equal(t, "0 0 0", written(w))

	w = sendWrite(t, d, remotewrite.V1, up(1, 13))
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Empty(t, written(w), "1.0 has no such headers")

	require.InDelta(t, 7, testutil.ToFloat64(d.metrics.receivedSamples.WithLabelValues("team", "float")), 0)
	require.InDelta(t, 3, testutil.ToFloat64(d.metrics.writtenSamples.WithLabelValues("team", "float")), 0)
	require.InDelta(t, 4, testutil.ToFloat64(d.metrics.rejectedSamples.WithLabelValues("team", "sample_too_old")), 0)
}

func TestTheClassOfTheReasonsDecidesTheStatus(t *testing.T) {
	for _, c := range []struct {
		reasons    []write.Reason
		status     int
		retryAfter string
	}{
		{[]write.Reason{write.ReasonFuture}, 400, ""},
		{[]write.Reason{write.ReasonFuture, write.ReasonTenantSeriesLimit}, 429, ""},
		{[]write.Reason{write.ReasonTenantSeriesLimit, write.ReasonInstanceSeriesLimit, write.ReasonTooOld}, 503, "5"},
	} {
		m := newMemory()
		m.judge = func(_ labels.Labels, s write.Sample) *write.SeriesError {
			return &write.SeriesError{Reason: c.reasons[int(s.V)], Detail: strings.Repeat("x", 900)}
		}
		var values []float64
		for i := range c.reasons {
			values = append(values, float64(i))
		}
		w := sendWrite(t, newDistributor(t, m), remotewrite.V2, up(values...))
		require.Equal(t, c.status, w.Code)
		require.Equal(t, c.retryAfter, w.Header().Get("Retry-After"))
		requireShortLine(t, w)
	}
}

func TestFailuresOfTheIngesterAreNeverTheSendersFault(t *testing.T) {
	for _, c := range []struct {
		err        error
		status     int
		retryAfter string
	}{
		{errors.New("index out of range"), 500, ""},
		{wire.Unavailable(errors.New("the disk is full"), 1500*time.Millisecond), 503, "2"},
		{wire.Unavailable(errors.New("starting"), 0), 503, "5"},
		{context.DeadlineExceeded, 503, "5"},
	} {
		m := newMemory()
		m.err = c.err
		for _, v := range []remotewrite.Version{remotewrite.V1, remotewrite.V2} {
			w := sendWrite(t, newDistributor(t, m), v, up(1))
			require.Equal(t, c.status, w.Code)
			require.Equal(t, c.retryAfter, w.Header().Get("Retry-After"))
			require.Contains(t, w.Body.String(), c.err.Error())
			if v == remotewrite.V2 {
				require.Equal(t, "0 0 0", written(w))
			}
		}
	}
}

func TestRequestWithoutATenantIsRefused(t *testing.T) {
	m := newMemory()
	d := newDistributor(t, m)
	for _, h := range []http.Handler{d.WriteHandler(), d.OTLPHandler()} {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(snappy.Encode(nil, nil)))
		r.Header.Set("Content-Type", "application/x-protobuf")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, http.StatusUnauthorized, w.Code)
	}
	require.Empty(t, m.tenants)
}

func TestOversizedRequestsAreRefusedBeforeMemoryIsTaken(t *testing.T) {
	small := func(c *Config) { c.MaxRequestBytes = 64 << 10 }
	limit := 64 << 10
	for _, c := range []struct {
		name   string
		body   []byte
		status int
		says   string
	}{
		{"bomb", snappy.Encode(nil, make([]byte, limit+1)), 400, "above the 65536 that max_request_bytes allows"},
		{"header that lies", []byte{0xff, 0xff, 0x03, 0x00}, 400, "decompress the request"},
		{"header that lies hugely", []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0x00}, 400, "decompress the request"},
		{"body", make([]byte, 2*limit), 400, "above the 76"},
	} {
		for _, length := range []string{"known", "unknown"} {
			t.Run(c.name+", length "+length, func(t *testing.T) {
				d := newDistributor(t, newMemory(), small)
				r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(c.body))
				if length == "unknown" {
					r = httptest.NewRequest(http.MethodPost, "/", chunked{bytes.NewReader(c.body)})
					require.Equal(t, int64(-1), r.ContentLength)
				}
				w := httptest.NewRecorder()
				d.WriteHandler().ServeHTTP(w, r.WithContext(tenant.NewContext(r.Context(), "team")))
				require.Equal(t, c.status, w.Code)
				require.Contains(t, w.Body.String(), c.says)
				require.Zero(t, d.budget.inUse())
			})
		}
	}
}

func TestBodiesOfUnknownLengthAreTaken(t *testing.T) {
	m := newMemory()
	d := newDistributor(t, m)
	values := make([]float64, 50_000)
	for i := range values {
		values[i] = math.Sqrt(float64(i))
	}
	body := snappy.Encode(nil, encode(t, remotewrite.V1, up(values...)))
	require.Greater(t, len(body), 3*firstRead)
	r := httptest.NewRequest(http.MethodPost, "/", chunked{bytes.NewReader(body)})
	w := httptest.NewRecorder()
	d.WriteHandler().ServeHTTP(w, r.WithContext(tenant.NewContext(r.Context(), "team")))
	require.Equal(t, http.StatusNoContent, w.Code, w.Body)
	require.Len(t, m.points[`{__name__="up", job="node"}`], len(values))
}

func TestBodiesCutShortMayBeSentAgain(t *testing.T) {
	d := newDistributor(t, newMemory())
	for _, length := range []int64{100, -1} {
		r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader("x"), failing{}))
		r.ContentLength = length
		w := httptest.NewRecorder()
		d.WriteHandler().ServeHTTP(w, r.WithContext(tenant.NewContext(r.Context(), "team")))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Contains(t, w.Body.String(), "read the body of the request")
		require.Zero(t, d.budget.inUse())
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("connection reset by peer") }

func TestRequestsOverTheBudgetArePutOff(t *testing.T) {
	entered, proceed := make(chan struct{}), make(chan struct{})
	m := newMemory()
	m.enter = func() { entered <- struct{}{}; <-proceed }
	d := newDistributor(t, m, func(c *Config) { c.MaxRequestBytes, c.MaxInflightBytes = 64<<10, 6*64<<10 })

	// A request of the tenant takes more than half of what it may use.
	values := make([]float64, 3000)
	for i := range values {
		values[i] = math.Sqrt(float64(i))
	}
	done := make(chan *httptest.ResponseRecorder)
	large := request{body: encode(t, remotewrite.V1, up(values...))}
	go func() { done <- large.send(t, d.WriteHandler()) }()
	<-entered
	require.Greater(t, d.budget.inUse(), d.budget.share/2)

	w := sendWrite(t, d, remotewrite.V2, up(values...))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.Equal(t, "0 0 0", written(w))
	require.Contains(t, w.Body.String(), "requests of tenant team in flight reach 196608 bytes, half of max_inflight_bytes (393216)")

	close(proceed)
	require.Equal(t, http.StatusNoContent, (<-done).Code)
	require.Zero(t, d.budget.inUse())
	require.Empty(t, d.budget.mu.tenants)
	go func() { <-entered }()
	require.Equal(t, http.StatusNoContent, sendWrite(t, d, remotewrite.V1, up(values...)).Code)
}

func TestSymbolsOutOfRangeRejectTheirSeriesAlone(t *testing.T) {
	good := writev2.TimeSeries{LabelsRefs: []uint32{1, 2}, Samples: []writev2.Sample{{Value: 1, Timestamp: now}}}
	bad := []writev2.TimeSeries{good, good, good, good}
	bad[0].LabelsRefs = []uint32{1, 77}
	bad[1].LabelsRefs = []uint32{1, 2, 1}
	bad[2].Metadata.HelpRef = 77
	bad[3].Metadata.UnitRef = math.MaxUint32
	for _, s := range bad {
		raw, err := (&writev2.Request{Symbols: []string{"", "__name__", "up"}, Timeseries: []writev2.TimeSeries{s, good}}).Marshal()
		require.NoError(t, err)
		m := newMemory()
		w := request{contentType: v2Type, body: raw}.send(t, newDistributor(t, m).WriteHandler())
		require.Equal(t, http.StatusBadRequest, w.Code)
		require.Equal(t, "1 0 0", written(w))
		require.Contains(t, w.Body.String(), "malformed_series")
		require.Len(t, m.points[`{__name__="up"}`], 1)
	}
}

func TestLabelsAreSortedAndInvalidOnesNamed(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels []prompb.Label
		want   string // the series, or a part of the answer
		status int
	}{
		{"unsorted", []prompb.Label{{Name: "z", Value: "1"}, {Name: "__name__", Value: "up"}, {Name: "a", Value: "2"}}, `{__name__="up", a="2", z="1"}`, 204},
		{"empty value", []prompb.Label{{Name: "__name__", Value: "up"}, {Name: "a"}}, `{__name__="up"}`, 204},
		{"UTF-8, dots, spaces", []prompb.Label{{Name: "__name__", Value: "rpc.latency ms"}, {Name: "ü.1", Value: "日\n本"}}, `{__name__="rpc.latency ms", "ü.1"="日\n本"}`, 204},
		{"missing name", []prompb.Label{{Name: "job", Value: "x"}}, "missing_metric_name: the label __name__ is missing or empty", 400},
		{"empty name", []prompb.Label{{Name: "__name__"}, {Name: "job", Value: "x"}}, "missing_metric_name", 400},
		{"no labels", nil, "missing_metric_name", 400},
		{"duplicate", []prompb.Label{{Name: "__name__", Value: "up"}, {Name: "a", Value: "1"}, {Name: "a", Value: "2"}}, "duplicate_label_name", 400},
		{"not UTF-8", []prompb.Label{{Name: "__name__", Value: "up"}, {Name: "a", Value: "\xff"}}, "invalid_label", 400},
		{"empty label name", []prompb.Label{{Name: "__name__", Value: "up"}, {Value: "x"}}, "invalid_label", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory()
			ts := prompb.TimeSeries{Labels: c.labels, Samples: []prompb.Sample{{Value: 1, Timestamp: now}}}
			raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{ts}}).Marshal()
			require.NoError(t, err)
			w := request{body: raw}.send(t, newDistributor(t, m).WriteHandler())
			require.Equal(t, c.status, w.Code, w.Body)
			if c.status == http.StatusNoContent {
				require.Len(t, m.series(), 1)
				require.Equal(t, c.want, m.series()[0])
			} else {
				require.Contains(t, w.Body.String(), c.want)
				require.Empty(t, m.series())
			}
		})
	}
}

func TestNativeHistogramsAndExemplarsAreCounted(t *testing.T) {
	bad := tsdbutil.GenerateTestHistogram(1)
	bad.Count++
	fine := tsdbutil.GenerateTestHistogram(1)
	fine.Schema = 10
	r := &remotewritetest.Request{Series: []remotewritetest.TimeSeries{{
		Labels: labels.FromStrings("__name__", "h"),
		Histograms: []write.Histogram{
			{T: now, Int: tsdbutil.GenerateTestHistogram(1)},
			{T: now + 1, Float: tsdbutil.GenerateTestFloatHistogram(1)},
			{T: now + 2, Int: tsdbutil.GenerateTestCustomBucketsHistogram(1)},
			{T: now + 3, Int: fine},
			{T: now + 4, Int: bad},
			{T: now + 5, Int: &histogram.Histogram{PositiveBuckets: make([]int64, 100_000)}},
		},
		Exemplars: []exemplar.Exemplar{
			{Labels: labels.FromStrings("trace_id", "ü"), Value: 1, Ts: now},
			{Value: 2, Ts: now},
			{Labels: labels.FromStrings("a", "\xff"), Value: 2, Ts: now},
		},
	}}}
	for _, v := range []remotewrite.Version{remotewrite.V1, remotewrite.V2} {
		m := newMemory()
		d := newDistributor(t, m)
		w := sendWrite(t, d, v, r)
		require.Equal(t, http.StatusBadRequest, w.Code)
		require.Contains(t, w.Body.String(), "2 rejected, for example invalid_histogram")
		require.Contains(t, w.Body.String(), "1 rejected, for example invalid_exemplar")
		if v == remotewrite.V2 {
			require.Equal(t, "0 4 2", written(w))
		}
		require.Equal(t, int32(8), m.histograms[`{__name__="h"}`][3].Int.Schema)
		require.InDelta(t, 6, testutil.ToFloat64(d.metrics.receivedSamples.WithLabelValues("team", "histogram")), 0)
		require.InDelta(t, 3, testutil.ToFloat64(d.metrics.receivedSamples.WithLabelValues("team", "exemplar")), 0)
	}
}

func TestHistogramsAreReservedBeforeTheyAreDecoded(t *testing.T) {
	// A bucket takes one byte on the wire and eight in memory.
	s := remotewritetest.TimeSeries{Labels: labels.FromStrings("__name__", "h")}
	for i := range int64(6) {
		s.Histograms = append(s.Histograms, write.Histogram{T: now + i, Int: &histogram.Histogram{PositiveBuckets: make([]int64, 10_000)}})
	}
	for _, v := range []remotewrite.Version{remotewrite.V1, remotewrite.V2} {
		m := newMemory()
		d, err := New(Config{MaxRequestBytes: minRequestBytes, MaxInflightBytes: inflightShare * minRequestBytes}, m, nil, nil)
		require.NoError(t, err)
		w := sendWrite(t, d, v, &remotewritetest.Request{Series: []remotewritetest.TimeSeries{s}})
		require.Equal(t, http.StatusBadRequest, w.Code)
		require.Contains(t, w.Body.String(), "half of max_inflight_bytes")
		require.Empty(t, m.histograms)
		require.Zero(t, d.budget.inUse())
	}
}

func TestMetadataOnlyRequestsOfV1Succeed(t *testing.T) {
	m := newMemory()
	meta := []write.Metadata{{Metric: "up", Metadata: metadata.Metadata{Type: "gauge", Help: "Is it up?", Unit: "bool"}}}
	w := sendWrite(t, newDistributor(t, m), remotewrite.V1, &remotewritetest.Request{Metadata: meta})
	require.Equal(t, http.StatusNoContent, w.Code)
	require.Equal(t, meta, m.metadata)
}

func TestMetadataOfV2RidesOnTheSeries(t *testing.T) {
	m := newMemory()
	r := up(1)
	r.Series[0].Metadata = metadata.Metadata{Type: "gauge", Help: "Is it up?"}
	require.Equal(t, http.StatusNoContent, sendWrite(t, newDistributor(t, m), remotewrite.V2, r).Code)
	require.Equal(t, []write.Metadata{{Metric: "up", Metadata: r.Series[0].Metadata}}, m.metadata)
}

func TestSeriesWithoutSamplesIs400InV2(t *testing.T) {
	m := newMemory()
	d := newDistributor(t, m)
	r := up(1)
	r.Series = append(r.Series, remotewritetest.TimeSeries{Labels: labels.FromStrings("__name__", "bare")})
	w := sendWrite(t, d, remotewrite.V2, r)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Equal(t, "1 0 0", written(w))
	require.Contains(t, w.Body.String(), `series_without_samples: the series has neither samples nor histograms nor exemplars (series {__name__="bare"})`)
	require.Zero(t, testutil.ToFloat64(d.metrics.receivedSamples.WithLabelValues("team", "exemplar")), "there was none")
	require.Equal(t, http.StatusNoContent, sendWrite(t, d, remotewrite.V1, r).Code)
}

func TestStartTimestampsReachTheIngester(t *testing.T) {
	m := newMemory()
	r := up(1)
	r.Series[0].Samples[0].ST = now - 1000
	require.Equal(t, http.StatusNoContent, sendWrite(t, newDistributor(t, m), remotewrite.V2, r).Code)
	require.Equal(t, now-1000, m.points[`{__name__="up", job="node"}`][0].st)
}

func TestManySendersShareTheWorkspaces(t *testing.T) {
	m := newMemory()
	d := newDistributor(t, m)
	const senders, requests = 8, 20
	done := make(chan int, senders)
	bodies := [][]byte{encode(t, remotewrite.V1, up(1, 2, 3)), encode(t, remotewrite.V2, up(1, 2, 3))}
	for range senders {
		go func() {
			status := http.StatusNoContent
			for i := range requests {
				r := request{contentType: remotewrite.Version(1 + i%2).ContentType(), body: bodies[i%2]}
				if w := r.send(t, d.WriteHandler()); w.Code != http.StatusNoContent {
					status = w.Code
				}
			}
			done <- status
		}()
	}
	for range senders {
		require.Equal(t, http.StatusNoContent, <-done)
	}
	require.Len(t, m.points[`{__name__="up", job="node"}`], senders*requests*3)
	require.Len(t, m.series(), 1)
}

func TestPushOfTheProcessItselfIsCounted(t *testing.T) {
	m := newMemory()
	d := newDistributor(t, m)
	var b write.Batch
	b.Add(write.NewHasher(), labels.FromStrings("__name__", "up"), []write.Sample{{T: now, V: 1}}, nil, nil)
	result, err := d.Push(context.Background(), tenant.Self, &b)
	require.NoError(t, err)
	require.Equal(t, 1, result.Written.Samples)
	require.InDelta(t, 1, testutil.ToFloat64(d.metrics.writtenSamples.WithLabelValues("hundredfold", "float")), 0)
}

func TestConfigNamesAllFaults(t *testing.T) {
	require.NoError(t, Default().Validate())
	err := Config{MaxRequestBytes: 1, MaxInflightBytes: 0}.Validate()
	require.ErrorContains(t, err, "max_request_bytes: 1 is outside 65536 to 1073741824")
	require.ErrorContains(t, err, "max_inflight_bytes: 0 is below 6")
	_, err = New(Config{}, newMemory(), nil, nil)
	require.Error(t, err)
}

// No body is worth a 5xx, which would be sent again for ever.
func FuzzWriteHandler(f *testing.F) {
	f.Add(true, snappy.Encode(nil, encode(f, remotewrite.V1, up(1, 2))), false)
	f.Add(true, snappy.Encode(nil, encode(f, remotewrite.V2, up(1, 2))), true)
	f.Add(false, encode(f, remotewrite.V2, up(1, 2)), true)
	d := newDistributor(f, newMemory())
	f.Fuzz(func(t *testing.T, raw bool, body []byte, v2 bool) {
		d.ingester = newMemory()
		r := request{raw: raw, body: body}
		if v2 {
			r.contentType = v2Type
		}
		w := r.send(t, d.WriteHandler())
		require.Contains(t, []int{http.StatusNoContent, http.StatusBadRequest}, w.Code, w.Body)
		require.Zero(t, d.budget.inUse())
	})
}

func BenchmarkWriteHandler(b *testing.B) {
	for _, v := range []remotewrite.Version{remotewrite.V1, remotewrite.V2} {
		b.Run("v"+v.String(), func(b *testing.B) {
			const series = 2000
			r := &remotewritetest.Request{}
			for i := range series {
				r.Series = append(r.Series, remotewritetest.TimeSeries{
					Labels: labels.FromStrings("__name__", "container_cpu_usage_seconds_total", "cluster", "eu-west-1", "cpu", "total",
						"instance", "10.0.0.1:10250", "job", "kubelet", "namespace", "monitoring", "pod", "prometheus-server-"+string(rune('a'+i%26))+strings.Repeat("x", i%20)),
					Samples: []write.Sample{{T: now, V: float64(i)}},
				})
			}
			body := snappy.Encode(nil, encode(b, v, r))
			d := newDistributor(b, accepting{})
			b.ReportAllocs()
			for b.Loop() {
				w := request{contentType: v.ContentType(), body: body, raw: true}.send(b, d.WriteHandler())
				require.Equal(b, http.StatusNoContent, w.Code)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/sample")
		})
	}
}

// accepting is an Ingester that says that it has stored everything.
type accepting struct{}

func (accepting) Push(_ context.Context, _ tenant.ID, b *write.Batch) (write.Result, error) {
	return write.Result{Written: b.Counts()}, nil
}
