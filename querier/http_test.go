package querier

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// store pushes samples of one series into the ingester.
func (r *rig) push(id tenant.ID, ls labels.Labels, samples ...write.Sample) {
	r.t.Helper()
	batch := &write.Batch{}
	last := samples[len(samples)-1]
	batch.Add(write.NewHasher(), ls, samples, nil, []exemplar.Exemplar{{
		Labels: labels.FromStrings("trace_id", "of "+string(id)), Value: last.V, Ts: last.T, HasTs: true,
	}})
	_, err := r.ingester.Push(context.Background(), id, batch)
	require.NoError(r.t, err)
}

// secrets is a rig in which only alice has data, of every kind.
func secrets(t *testing.T) *rig {
	r := newRig(t, rigOption{})
	now := time.Now().UnixMilli()
	r.push(alice, labels.FromStrings("__name__", "secret_total", "secret_label", "secret_value", "größe", "µ"), write.Sample{T: now - minute, V: 41}, write.Sample{T: now - 1000, V: 42})
	r.push(alice, labels.FromStrings("__name__", "secret_other", "secret_label", "x"), write.Sample{T: now - minute, V: 6}, write.Sample{T: now - 1000, V: 7})
	r.ingester.md[alice] = map[string][]metadata.Metadata{
		"secret_total": {{Type: model.MetricTypeCounter, Help: "Secrets.", Unit: "pieces"}, {Type: model.MetricTypeCounter, Help: "More secrets."}},
		"secret_other": {{Type: model.MetricTypeGauge}},
	}
	r.refresh()
	return r
}

// Everything that Grafana's Prometheus data source asks, in the way it asks.
func TestGrafanaGetsWhatItNeeds(t *testing.T) {
	r := secrets(t)
	now := time.Now().Unix()
	start, end := fmt.Sprint(now-3600), fmt.Sprint(now)
	startMS, endMS := start+"000", end+"000"
	form := func(kv ...string) url.Values {
		v := url.Values{}
		for i := 0; i < len(kv); i += 2 {
			v.Add(kv[i], kv[i+1])
		}
		return v
	}
	for _, tc := range []struct {
		name, path string
		form       url.Values
		want       string // a regular expression for the data
	}{
		{"save and test", "/query", form("query", "1+1", "time", "4"), `"result":\[4,"2"\]`},
		{"save and test with data", "/query", form("query", "secret_total", "time", "4"), `"result":\[\]`},
		{"build information", "/status/buildinfo", nil, `"version":"3\.15\.0"`},
		{"rules", "/rules", nil, `^\{"groups":\[\]\}$`},
		{"rules with filters", "/rules", form("file[]", "a", "group[]", "b", "rule[]", "c", "rule_group[]", "d", "rule_name[]", "e", "exclude_alerts", "true", "group_limit", "10"), `^\{"groups":\[\]\}$`},
		{"alerts", "/alerts", nil, `^\{"alerts":\[\]\}$`},
		{"are exemplars there, in milliseconds", "/query_exemplars", form("query", "test", "start", startMS, "end", endMS), `^\[\]$`},
		{"exemplars of a panel", "/query_exemplars", form("query", "rate(secret_total[5m])", "start", start, "end", end), `"trace_id":"of alice"`},
		{"label names", "/labels", form("limit", "40000", "start", start, "end", end), `^\["__name__","größe","secret_label"\]$`},
		{"label names of a metric", "/labels", form("match[]", "secret_other", "limit", "1000"), `^\["__name__","secret_label"\]$`},
		{"metric names", "/label/__name__/values", form("limit", "40000", "start", start, "end", end), `^\["secret_other","secret_total"\]$`},
		{"metric names without a limit", "/label/__name__/values", form("limit", "0"), `^\["secret_other","secret_total"\]$`},
		{"metric names, one of many", "/label/__name__/values", form("limit", "1"), `^\["secret_other"\]$`},
		{"typing a metric name", "/label/__name__/values", form("match[]", `{__name__=~".*_tot.*"}`, "limit", "1000"), `^\["secret_total"\]$`},
		{"values of a UTF-8 label", "/label/U__gr_f6__df_e/values", form("match[]", `{__name__="secret_total"}`), `^\["µ"\]$`},
		{"series", "/series", form("match[]", `{__name__!=""}`, "limit", "1000", "start", start, "end", end), `"secret_label":"secret_value"`},
		{"metadata", "/metadata", form("limit", "40000"), `"secret_total":\[\{"type":"counter","unit":"pieces","help":"Secrets\."\}`},
		{"metadata without a limit", "/metadata", form("limit", "0"), `secret_total`},
		{"metadata of one metric", "/metadata", form("metric", "secret_other"), `^\{"secret_other":\[\{"type":"gauge","unit":"","help":""\}\]\}$`},
		{"metadata, one of each", "/metadata", form("limit", "1", "limit_per_metric", "1"), `^\{"secret_other":\[\{"type":"gauge","unit":"","help":""\}\]\}$`},
		{"a panel", "/query_range", form("query", "secret_total", "start", start, "end", end, "step", "15", "timeout", "30s"), `"resultType":"matrix".*"42"`},
		{"a panel off the grid", "/query_range", form("query", "vector(1)", "start", "7", "end", "100", "step", "60"), `\[\[7,"1"\],\[67,"1"\]\]`},
		{"a table", "/query", form("query", "secret_total", "time", end, "timeout", "30s"), `"resultType":"vector".*"42"`},
		{"query statistics", "/query", form("query", "secret_total", "time", end, "stats", "all"), `"totalQueryableSamples":1,.*PerStep`},
		{"how far back", "/query", form("query", "secret_total", "time", fmt.Sprint(now+60), "lookback_delta", "10s"), `"result":\[\]`},
		{"a limit of series", "/query", form("query", `{secret_label!=""}`, "limit", "1"), `"result":\[\{[^{]*\{[^{]*\}\]`},
		{"format", "/format_query", form("query", "sum(rate(a[5m]))by(b)"), `"sum by \(b\) \(rate\(a\[5m\]\)\)"`},
		{"parse", "/parse_query", form("query", "a+b"), `"type":"binaryExpr"`},
		{"status", "/status/tsdb", form("limit", "5"), `"numSeries":2.*"seriesCountByMetricName":\[\{"name":"secret_`},
		{"flags", "/status/flags", nil, `^\{\}$`},
		{"configuration", "/status/config", nil, `^\{"yaml":""\}$`},
		{"runtime", "/status/runtimeinfo", nil, `"storageRetention":"1y"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := regexp.MustCompile(tc.want)
			for method, got := range map[string]response{
				"GET":  r.get(alice, "/api/v1"+tc.path+"?"+tc.form.Encode()),
				"POST": r.post(alice, "/api/v1"+tc.path, tc.form),
				// What the suggestions of the editor do.
				"POST with parameters in the URL": r.post(alice, "/api/v1"+tc.path+"?"+tc.form.Encode(), nil),
			} {
				require.Equal(t, 200, got.Code, "%s: %s", method, got.Body)
				require.Equal(t, "success", got.Status, method)
				require.Regexp(t, want, string(got.Data), method)
			}
		})
	}
}

func TestWarningsAndInfosReachTheClient(t *testing.T) {
	r := secrets(t)
	got := r.get(alice, "/api/v1/query?query="+url.QueryEscape(`rate(secret_other[5m])`))
	require.Len(t, got.Infos, 1, got.Body)
	got = r.get(alice, "/api/v1/query?query="+url.QueryEscape(`quantile(2, secret_other)`))
	require.Len(t, got.Warnings, 1, got.Body)
	got = r.get(alice, "/api/v1/labels?limit=1")
	require.Equal(t, []string{"results truncated due to limit"}, got.Warnings)
}

func TestParametersOfTheFormGoBeforeThoseOfTheURL(t *testing.T) {
	r := secrets(t)
	got := r.post(alice, "/api/v1/query?query=1&time=4", url.Values{"query": {"2"}})
	require.JSONEq(t, `{"resultType":"scalar","result":[4,"2"]}`, string(got.Data))

	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	require.NoError(t, form.WriteField("query", "3"))
	require.NoError(t, form.Close())
	req := httptest.NewRequest(http.MethodPost, "/api/v1/query?time=4", &body)
	req.Header.Set("Content-Type", form.FormDataContentType())
	require.JSONEq(t, `{"resultType":"scalar","result":[4,"3"]}`, string(r.do(alice, req).Data))
}

func TestFormsThatCannotBeReadAreRefused(t *testing.T) {
	r := secrets(t)
	for name, body := range map[string]string{"malformed": "query=%zz", "too large": "query=" + strings.Repeat("1", maxFormBytes)} {
		req := httptest.NewRequest(http.MethodPost, "/api/v1/query", strings.NewReader(body))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		got := r.do(alice, req)
		require.Equal(t, 400, got.Code, name)
		require.Equal(t, "bad_data", got.ErrorType, name)
	}
}

func TestAnswersAreCompressed(t *testing.T) {
	r := secrets(t)
	for _, path := range []string{"/api/v1/query?query=1", "/api/v1/metadata", "/api/v1/status/tsdb"} {
		req := httptest.NewRequest(http.MethodGet, path, http.NoBody)
		req.Header.Set("Accept-Encoding", "gzip")
		got := r.do(alice, req)
		require.Equal(t, "gzip", got.Header.Get("Content-Encoding"), path)
		unzipped, err := gzip.NewReader(strings.NewReader(got.Body))
		require.NoError(t, err)
		require.Contains(t, readAll(t, unzipped), `"status":"success"`)
	}
}

func TestAnythingElseDoesNotExist(t *testing.T) {
	r := secrets(t)
	for _, path := range []string{
		"/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/query/", "/api/v1/label/values", "/api/v1/label//values", "/api/v1/label/a/b/values",
		"/api/v1/targets", "/api/v1/targets/metadata", "/api/v1/targets/relabel_steps", "/api/v1/scrape_pools", "/api/v1/alertmanagers",
		"/api/v1/admin/tsdb/delete_series", "/api/v1/admin/tsdb/clean_tombstones", "/api/v1/admin/tsdb/snapshot",
		"/api/v1/status/walreplay", "/api/v1/status/self_metrics", "/api/v1/status/tsdb/blocks", "/api/v1/features", "/api/v1/notifications",
		"/api/v1/notifications/live", "/api/v1/search/metric_names", "/api/v1/openapi.yaml", "/federate/",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut} {
			got := r.do(alice, httptest.NewRequest(method, path, http.NoBody))
			require.Equal(t, 404, got.Code, "%s %s", method, path)
			require.Equal(t, "not_found", got.ErrorType, "%s %s", method, path)
			require.NotContains(t, got.Body, "secret", "%s %s", method, path)
		}
	}
	for _, tc := range []struct{ method, path, allow string }{
		{http.MethodDelete, "/api/v1/query", "GET, POST"}, {http.MethodPut, "/api/v1/series", "GET, POST"}, {http.MethodGet, "/api/v1/read", "POST"},
	} {
		got := r.do(alice, httptest.NewRequest(tc.method, tc.path, http.NoBody))
		require.Equal(t, 405, got.Code)
		require.Equal(t, tc.allow, got.Header.Get("Allow"))
	}
}

func TestOptionsAndOtherOrigins(t *testing.T) {
	r := secrets(t)
	for _, method := range []string{http.MethodOptions, http.MethodGet} {
		for _, path := range []string{"/api/v1/query?query=1", "/api/v1/metadata"} {
			req := httptest.NewRequest(method, path, http.NoBody)
			req.Header.Set("Origin", "https://grafana.example")
			got := r.do(alice, req)
			require.Less(t, got.Code, 300)
			require.Equal(t, "*", got.Header.Get("Access-Control-Allow-Origin"), "%s %s", method, path)
		}
	}
}

// Every route, asked for everything it may know, as another tenant and as nobody.
func TestATenantSeesNothingOfAnother(t *testing.T) {
	r := secrets(t)
	block := r.upload(alice, 0, hour, blocktest.Floats("secret_in_a_block", 0, hour, minute))
	r.refresh()
	now := time.Now().Unix()
	all := url.Values{
		"query": {`{secret_label!=""}`}, "match[]": {`{secret_label!=""}`, `{__name__!=""}`}, "metric": {""}, "limit": {"0"},
		"start": {"0"}, "end": {fmt.Sprint(now)}, "step": {fmt.Sprint(now)}, "time": {fmt.Sprint(now)},
	}
	paths := []string{
		"/api/v1/query", "/api/v1/query_range", "/api/v1/query_exemplars", "/api/v1/labels", "/api/v1/label/secret_label/values",
		"/api/v1/label/__name__/values", "/api/v1/series", "/api/v1/metadata", "/api/v1/rules", "/api/v1/alerts", "/api/v1/status/tsdb",
		"/api/v1/status/buildinfo", "/api/v1/status/runtimeinfo", "/api/v1/status/config", "/api/v1/status/flags", "/federate",
	}
	tells := map[string]bool{} // the paths that would tell
	for _, path := range paths {
		form := all
		if path == "/api/v1/status/tsdb" || path == "/api/v1/metadata" {
			form = nil
		}
		for _, got := range []response{r.get(alice, path+"?"+form.Encode()), r.post(alice, path, form)} {
			require.Equal(t, 200, got.Code, got.Body)
			tells[path] = tells[path] || strings.Contains(got.Body, "secret")
		}
		for _, got := range []response{r.get(bob, path+"?"+form.Encode()), r.post(bob, path, form)} {
			require.Equal(t, 200, got.Code, got.Body)
			require.NotContains(t, got.Body, "secret", path)
			require.NotContains(t, got.Body, "of alice", path)
		}
		for _, got := range []response{r.get("", path+"?"+form.Encode()), r.post("", path, form)} {
			require.Equal(t, 401, got.Code, "%s: %s", path, got.Body)
			require.NotContains(t, got.Body, "secret", path)
		}
	}
	require.Len(t, tells, len(paths))
	told := 0
	for _, yes := range tells {
		if yes {
			told++
		}
	}
	require.GreaterOrEqual(t, told, 10, "the test asks for what alice has: %v", tells)

	for _, path := range []string{"/api/v1/format_query?query=a", "/api/v1/parse_query?query=a", "/api/v1/rules"} {
		require.Equal(t, 401, r.get("", path).Code, path)
	}
	require.True(t, r.Visible(alice, block))
	require.False(t, r.Visible(bob, block))
}

func TestNobodyReadsTheStorageWithoutATenant(t *testing.T) {
	r := secrets(t)
	ctx := t.Context()
	all := labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")
	samples, err := r.Queryable().Querier(0, time.Now().UnixMilli())
	require.NoError(t, err)
	defer samples.Close()
	chunks, err := r.Queryable().ChunkQuerier(0, time.Now().UnixMilli())
	require.NoError(t, err)
	defer chunks.Close()

	set := samples.Select(ctx, true, nil, all)
	require.False(t, set.Next())
	require.ErrorIs(t, set.Err(), tenant.ErrNoTenant)
	chunkSet := chunks.Select(ctx, true, nil, all)
	require.False(t, chunkSet.Next())
	require.ErrorIs(t, chunkSet.Err(), tenant.ErrNoTenant)
	for _, q := range []reader{samples, chunks} {
		_, _, err = q.LabelNames(ctx, nil)
		require.ErrorIs(t, err, tenant.ErrNoTenant)
		_, _, err = q.LabelValues(ctx, "__name__", nil)
		require.ErrorIs(t, err, tenant.ErrNoTenant)
	}
	_, err = r.ExemplarQueryable().ExemplarQuerier(ctx)
	require.ErrorIs(t, err, tenant.ErrNoTenant)
	_, err = r.Engine().NewInstantQuery(ctx, r.Queryable(), nil, "1", time.Now())
	require.ErrorIs(t, err, tenant.ErrNoTenant)

	// One querier stays with the tenant that used it first.
	_, err = countIn(as(alice), samples, "secret_total")
	require.NoError(t, err)
	_, err = countIn(as(bob), samples, "secret_total")
	require.ErrorIs(t, err, errTenantChanged)
}

func TestConfigurationAndFlagsAreShownAsGiven(t *testing.T) {
	r := newRig(t, rigOption{})
	r.cfg.ConfigText = func() string { return "password: <secret>\n" }
	r.cfg.Flags = map[string]string{"role": "all"}
	require.JSONEq(t, `{"yaml":"password: <secret>\n"}`, string(r.get(alice, "/api/v1/status/config").Data))

	r.cfg.Operator, r.cfg.Flags = alice, map[string]string{"role": "all"}
	require.Contains(t, r.get(alice, "/api/v1/status/config").Body, "password")
	require.JSONEq(t, `{"role":"all"}`, string(r.get(alice, "/api/v1/status/flags").Data))
	require.JSONEq(t, `{"yaml":""}`, string(r.get(bob, "/api/v1/status/config").Data), "bob is not the operator")
	require.JSONEq(t, `{}`, string(r.get(bob, "/api/v1/status/flags").Data))
	require.JSONEq(t, `{"role":"all"}`, string(r.get(alice, "/api/v1/status/flags").Data))
}

func TestBuildInformationIsThatOfTheEmbeddedPrometheus(t *testing.T) {
	r := newRig(t, rigOption{})
	got := r.get(alice, "/api/v1/status/buildinfo")
	require.NotContains(t, got.Body, "features", "Grafana would take this for Mimir")
	gomod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	module := regexp.MustCompile(`github.com/prometheus/prometheus v0\.(\d)(\d\d)\.(\d+)`).FindSubmatch(gomod)
	require.NotNil(t, module)
	require.Equal(t, prometheusVersion, fmt.Sprintf("%s.%s.%s", module[1], module[2], module[3]))
}

func TestRequestsAreCountedByRoute(t *testing.T) {
	r := secrets(t)
	r.get(alice, "/api/v1/label/a/values")
	r.get(alice, "/api/v1/label/b/values")
	r.get(alice, "/api/v1/query?query=(")
	m := r.metrics
	require.InDelta(t, 2, testutil.ToFloat64(m.requests.WithLabelValues("/api/v1/label/:name/values", "200")), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.requests.WithLabelValues("/api/v1/query", "400")), 0)
	require.InDelta(t, 0, testutil.ToFloat64(m.inFlight), 0)
	problems, err := testutil.GatherAndLint(r.registry)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestConfigFaultsAreAllReported(t *testing.T) {
	err := Config{RefreshInterval: model.Duration(time.Millisecond)}.Validate()
	require.ErrorContains(t, err, "refresh_interval: 1ms is outside 1s to 15m")
	require.ErrorContains(t, err, "dir: it is empty")
	_, err = New(Config{}, nil, nil, nil, nil, nil)
	require.Error(t, err)
}
