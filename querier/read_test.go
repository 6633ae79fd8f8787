package querier

import (
	"bytes"
	"context"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/config"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// serve serves the API over a real connection, as one tenant.
func (r *rig) serve(id tenant.ID) *url.URL {
	r.t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.Handler().ServeHTTP(w, req.WithContext(tenant.NewContext(req.Context(), id)))
	}))
	r.t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	require.NoError(r.t, err)
	return u
}

func readClient(t *testing.T, base *url.URL, chunked bool) remote.ReadClient {
	t.Helper()
	accepted := []prompb.ReadRequest_ResponseType{prompb.ReadRequest_SAMPLES}
	if chunked {
		accepted = []prompb.ReadRequest_ResponseType{prompb.ReadRequest_STREAMED_XOR_CHUNKS}
	}
	client, err := remote.NewReadClient("test", &remote.ClientConfig{
		URL:                   &config.URL{URL: base.JoinPath("/api/v1/read")},
		Timeout:               model.Duration(time.Minute),
		ChunkedReadLimit:      math.MaxInt32,
		HTTPClientConfig:      config.DefaultHTTPClientConfig,
		AcceptedResponseTypes: accepted,
	}, config.WithKeepAlivesDisabled())
	require.NoError(t, err)
	return client
}

// Prometheus's own client reads what the storage has, as samples and as streamed chunks.
func TestRemoteReadReturnsWhatIsStored(t *testing.T) {
	r := halves(t, rigOption{})
	base := r.serve(alice)
	plain, err := r.ingester.get(bob).Querier(worldStart, worldEnd)
	require.NoError(t, err)
	defer plain.Close()
	all := labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")
	want := withoutStarts(samplesOf(t, plain.Select(t.Context(), true, nil, all)))

	query, err := remote.ToQuery(worldStart, worldEnd, []*labels.Matcher{all}, nil)
	require.NoError(t, err)
	for _, chunked := range []bool{false, true} {
		set, err := readClient(t, base, chunked).Read(t.Context(), query, true)
		require.NoError(t, err)
		require.Equal(t, want, samplesOf(t, set), "chunked: %v", chunked)
	}
}

// withoutStarts removes the start timestamps, which remote read does not carry.
func withoutStarts(samples map[string][]string) map[string][]string {
	for _, lines := range samples {
		for i, line := range lines {
			if parts := strings.Split(line, " "); len(parts) == 3 { // a float
				lines[i] = parts[0] + " 0 " + parts[2]
			}
		}
	}
	return samples
}

func TestStreamedChunksHaveEncodingsThatEveryClientKnows(t *testing.T) {
	r := halves(t, rigOption{})
	querier, err := r.Queryable().ChunkQuerier(worldStart, worldEnd)
	require.NoError(t, err)
	defer querier.Close()
	all := labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")
	set := querier.Select(as(alice), true, nil, all)
	before := map[chunkenc.Encoding]int{}
	after := map[chunkenc.Encoding]int{}
	for set.Next() {
		series := set.At()
		for it := series.Iterator(nil); it.Next(); {
			before[it.At().Chunk.Encoding()]++
		}
		for it := (plainChunkSeries{series}).Iterator(nil); it.Next(); {
			after[it.At().Chunk.Encoding()]++
		}
	}
	require.NoError(t, set.Err())
	require.Positive(t, before[chunkenc.EncXOR2], "the test has what it is about")
	for encoding := range after {
		require.Contains(t, []chunkenc.Encoding{chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram}, encoding)
	}
}

func readRequest(t *testing.T, body []byte) *http.Request {
	t.Helper()
	return httptest.NewRequest(http.MethodPost, "/api/v1/read", bytes.NewReader(body))
}

func encodeRead(t testing.TB, req *prompb.ReadRequest) []byte {
	t.Helper()
	raw, err := req.Marshal()
	require.NoError(t, err)
	return snappy.Encode(nil, raw)
}

func TestRemoteReadOfNonsenseIsRefused(t *testing.T) {
	r := newRig(t, rigOption{})
	r.refresh()
	bomb := []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0} // says that it holds 4 GiB
	badMatcher := encodeRead(t, &prompb.ReadRequest{Queries: []*prompb.Query{{Matchers: []*prompb.LabelMatcher{{Type: prompb.LabelMatcher_RE, Name: "a", Value: "("}}}}})
	for name, body := range map[string][]byte{"empty": nil, "no snappy": []byte("up"), "no protobuf": snappy.Encode(nil, []byte("up")), "a bomb": bomb, "a bad matcher": badMatcher} {
		got := r.do(alice, readRequest(t, body))
		require.Equal(t, 400, got.Code, "%s: %s", name, got.Body)
	}
	require.Equal(t, 401, r.do("", readRequest(t, nil)).Code)
}

func TestRemoteReadObeysTheLimitsOfTheTenant(t *testing.T) {
	r := newRig(t, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	matcher := []*prompb.LabelMatcher{{Type: prompb.LabelMatcher_EQ, Name: "__name__", Value: "x"}}
	query := &prompb.Query{EndTimestampMs: hour, Matchers: matcher}
	body := encodeRead(t, &prompb.ReadRequest{Queries: []*prompb.Query{query, query}})
	for limit, code := range map[int]int{0: 200, 120: 200, 119: 422, 60: 422, 10: 422} {
		r.limits.MaxQuerySamples = limit
		got := r.do(alice, readRequest(t, body))
		require.Equal(t, code, got.Code, "limit %d: %s", limit, got.Body)
		if code != 200 {
			require.Contains(t, got.Body, "limit max_query_samples of ")
			require.Contains(t, got.Body, `tenant "alice"`)
		}
	}
}

// A stream that breaks off must not look like one that ended.
func TestAStreamThatFailsHalfwayIsCut(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	bad := r.upload(alice, hour, 2*hour, blocktest.Floats("x", hour, 2*hour, minute))
	r.refresh()
	dir, _ := r.store.LocalDir(alice, bad)
	require.NoError(t, os.Remove(filepath.Join(dir, "index")))

	matcher := []*prompb.LabelMatcher{{Type: prompb.LabelMatcher_EQ, Name: "__name__", Value: "x"}}
	good := &prompb.Query{EndTimestampMs: hour - 1, Matchers: matcher}
	failing := &prompb.Query{StartTimestampMs: hour, EndTimestampMs: 2 * hour, Matchers: matcher}
	stream := []prompb.ReadRequest_ResponseType{prompb.ReadRequest_STREAMED_XOR_CHUNKS}
	post := func(queries ...*prompb.Query) (*http.Response, error) {
		body := encodeRead(t, &prompb.ReadRequest{Queries: queries, AcceptedResponseTypes: stream})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.serve(alice).JoinPath("/api/v1/read").String(), bytes.NewReader(body))
		require.NoError(t, err)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		return client.Do(req)
	}
	resp, err := post(failing)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, 500, resp.StatusCode)
	require.Contains(t, readAll(t, resp.Body), bad.String())

	resp, err = post(good, failing)
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestFederationServesTheNewestSamples(t *testing.T) {
	r := newRig(t, rigOption{})
	now := time.Now().UnixMilli()
	name := func(name string, kv ...string) labels.Labels {
		return labels.FromStrings(append([]string{"__name__", name}, kv...)...)
	}
	r.push(alice, name("up", "job", "a", "instance", "i"), write.Sample{T: now - 2000, V: 1}, write.Sample{T: now - 1000, V: 0})
	r.push(alice, name("up", "job", "b"), write.Sample{T: now - 1000, V: 1})
	r.push(alice, name("up", "job", "too old"), write.Sample{T: now - 10*minute, V: 1})
	r.push(alice, name("up", "job", "stale"), write.Sample{T: now - 2000, V: 1}, write.Sample{T: now - 1000, V: math.Float64frombits(value.StaleNaN)})
	r.push(alice, name("a", "job", "a"), write.Sample{T: now - 1000, V: math.Inf(1)})
	batch := &write.Batch{}
	add := func(ls labels.Labels, h write.Histogram) {
		h.T = now - 1000
		batch.Add(write.NewHasher(), ls, nil, []write.Histogram{h}, nil)
	}
	gauge := tsdbutil.GenerateTestGaugeFloatHistogram(1)
	add(name("native"), write.Histogram{Int: tsdbutil.GenerateTestHistogram(1)})
	add(name("native", "kind", "gauge"), write.Histogram{Float: gauge})
	add(name("custom"), write.Histogram{Int: tsdbutil.GenerateTestCustomBucketsHistogram(1)})
	_, err := r.ingester.Push(context.Background(), alice, batch)
	require.NoError(t, err)
	r.refresh()

	path := "/federate?match[]=up&match[]=" + url.QueryEscape(`{__name__=~"a|native|custom"}`)
	got := r.get(alice, path)
	require.Equal(t, 200, got.Code, got.Body)
	require.Contains(t, got.Body, `a{job="a",instance=""} +Inf `+strconv.FormatInt(now-1000, 10))
	require.Contains(t, got.Body, `up{instance="i",job="a"} 0 `)
	require.Contains(t, got.Body, `up{job="b",instance=""} 1 `)
	require.Contains(t, got.Body, `custom_bucket{instance="",le="+Inf"}`)
	require.Contains(t, got.Body, "# TYPE up untyped")
	for _, absent := range []string{"too old", "stale", "native"} {
		require.NotContains(t, got.Body, absent)
	}

	req := httptest.NewRequest(http.MethodGet, path, http.NoBody)
	req.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	got = r.do(alice, req)
	dec := expfmt.NewDecoder(strings.NewReader(got.Body), expfmt.NewFormat(expfmt.TypeProtoDelim))
	var families []*dto.MetricFamily
	for {
		family := &dto.MetricFamily{}
		if err := dec.Decode(family); err != nil {
			require.ErrorIs(t, err, io.EOF)
			break
		}
		families = append(families, family)
	}
	kinds := map[string][]string{}
	for _, f := range families {
		kinds[f.GetName()] = append(kinds[f.GetName()], f.GetType().String())
		require.Equal(t, now-1000, f.Metric[0].GetTimestampMs())
	}
	require.ElementsMatch(t, []string{"HISTOGRAM", "GAUGE_HISTOGRAM"}, kinds["native"])
	require.Equal(t, []string{"HISTOGRAM"}, kinds["custom"])
	require.Equal(t, []string{"UNTYPED"}, kinds["up"])
	for _, f := range families {
		if f.GetType() == dto.MetricType_GAUGE_HISTOGRAM {
			h := f.Metric[0].Histogram
			require.InDelta(t, gauge.Count, h.GetSampleCountFloat(), 0)
			require.Equal(t, gauge.PositiveBuckets, h.PositiveCount)
			require.Equal(t, gauge.Schema, h.GetSchema())
			require.Len(t, h.NegativeSpan, len(gauge.NegativeSpans))
		}
	}
}

func TestFederationRefusesNonsense(t *testing.T) {
	r := secrets(t)
	require.Equal(t, 400, r.get(alice, "/federate?match[]=(").Code)
	require.Empty(t, r.get(alice, "/federate").Body, "nothing is selected")
	r.limits.MaxQuerySamples = 1
	got := r.get(alice, "/federate?match[]="+url.QueryEscape(`{__name__!=""}`))
	require.Equal(t, 422, got.Code)
	requireLimit(t, got.Body, "max_query_samples", "1")
}

func TestCustomBucketsBecomeCumulativeOnes(t *testing.T) {
	h := &histogram.FloatHistogram{
		Schema: histogram.CustomBucketsSchema, Count: 10, Sum: 5, CustomValues: []float64{1, 2, 3},
		PositiveSpans: []histogram.Span{{Offset: 0, Length: 1}, {Offset: 1, Length: 2}}, PositiveBuckets: []float64{4, 3, 3},
	}
	got := classicHistogram(h)
	var cumulative []float64
	for _, b := range got.Bucket {
		cumulative = append(cumulative, b.GetUpperBound(), b.GetCumulativeCountFloat())
	}
	require.Equal(t, []float64{1, 4, 2, 4, 3, 7}, cumulative)
	require.InDelta(t, 10, got.GetSampleCountFloat(), 0)
}
