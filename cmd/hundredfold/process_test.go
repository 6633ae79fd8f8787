package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a process that was wired as in production, on a port of its own.
type running struct {
	t      testing.TB
	p      *process
	url    string
	client *http.Client
	cancel context.CancelFunc
	done   chan error
}

func startProcess(t testing.TB, dir, text string, flags ...string) *running {
	t.Helper()
	opts, err := parseFlags(append([]string{"--config.file=" + file(t, text), "--data.dir=" + dir, "--http.listen-address=127.0.0.1:0"}, flags...))
	require.NoError(t, err)
	r := runProcess(t, opts)
	r.eventually(func() bool {
		code, _ := r.do(http.MethodGet, "/ready", "", nil)
		return code == http.StatusOK
	})
	return r
}

// runProcess does not wait until the process is ready.
func runProcess(t testing.TB, opts options) *running {
	t.Helper()
	return runLogged(t, opts, slog.New(slog.DiscardHandler))
}

func runLogged(t testing.TB, opts options, logger *slog.Logger) *running {
	t.Helper()
	p, err := open(opts, logger)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, p: p, url: "http://" + p.server.Address(), client: &http.Client{Transport: &http.Transport{}}, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- p.run(ctx) }()
	t.Cleanup(r.stop)
	return r
}

// stop stops the process and requires that it stops without an error.
func (r *running) stop() {
	r.t.Helper()
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	require.NoError(r.t, <-r.done)
	r.client.CloseIdleConnections()
}

func (r *running) eventually(condition func() bool) {
	r.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			require.FailNow(r.t, "the condition was not met in time")
		}
	}
}

func (r *running) do(method, path, tenant string, body []byte) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.t.Context()), method, r.url+path, bytes.NewReader(body))
	require.NoError(r.t, err)
	if tenant != "" {
		req.Header.Set("X-Scope-OrgID", tenant)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-protobuf")
		req.Header.Set("Content-Encoding", "snappy")
		req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	}
	resp, err := r.client.Do(req)
	require.NoError(r.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	return resp.StatusCode, string(answer)
}

// write sends one sample by remote write 1.0 and returns the status.
func (r *running) write(path, tenant, name string, at time.Time, value float64) int {
	r.t.Helper()
	request := prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels:  []prompb.Label{{Name: "__name__", Value: name}},
		Samples: []prompb.Sample{{Timestamp: at.UnixMilli(), Value: value}},
	}}}
	encoded, err := request.Marshal()
	require.NoError(r.t, err)
	code, _ := r.do(http.MethodPost, path, tenant, snappy.Encode(nil, encoded))
	return code
}

// query returns the values of an instant query, by metric name.
func (r *running) query(prefix, tenant, query string, at time.Time) map[string]string {
	r.t.Helper()
	code, body := r.do(http.MethodGet, fmt.Sprintf("%s/api/v1/query?query=%s&time=%d.%03d", prefix, url.QueryEscape(query), at.Unix(), at.UnixMilli()%1000), tenant, nil)
	require.Equal(r.t, http.StatusOK, code, body)
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	require.NoError(r.t, json.Unmarshal([]byte(body), &answer))
	values := map[string]string{}
	for _, s := range answer.Data.Result {
		values[s.Metric["__name__"]], _ = s.Value[1].(string)
	}
	return values
}

func TestWhatIsWrittenIsAnsweredAlsoAfterARestart(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first := startProcess(t, dir, "self_monitoring: {enabled: false}")
	require.Equal(t, http.StatusNoContent, first.write("/api/v1/write", "", "one", now, 1))
	require.Equal(t, http.StatusNoContent, first.write("/api/v1/push", "", "two", now, 2))
	require.Equal(t, http.StatusNoContent, first.write("/prometheus/api/v1/write", "", "three", now, 3))
	want := map[string]string{"one": "1", "two": "2", "three": "3"}
	require.Equal(t, want, first.query("", "", `{__name__!=""}`, now))
	require.Equal(t, want, first.query("/prometheus", "", `{__name__!=""}`, now))
	first.stop()

	second := startProcess(t, dir, "self_monitoring: {enabled: false}")
	require.Equal(t, want, second.query("", "", `{__name__!=""}`, now))
}

func TestNewcomerFindsTheProcessItselfInTheData(t *testing.T) {
	r := startProcess(t, t.TempDir(), "")
	r.eventually(func() bool { return r.query("", "", `up{job="hundredfold"}`, time.Now())["up"] == "1" })
	require.NotEmpty(t, r.query("", "", "hundredfold_build_info", time.Now()))

	code, home := r.do(http.MethodGet, "/", "", nil)
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, home, "Ready")
	require.Contains(t, home, "<dt>Tenants</dt><dd>1</dd>")
	require.Contains(t, home, "url: "+r.url+"/api/v1/write")
	for _, path := range []string{"/graph", "/ui/graph.js", "/metrics", "/-/healthy", "/prometheus/graph"} {
		code, _ := r.do(http.MethodGet, path, "", nil)
		require.Equal(t, http.StatusOK, code, path)
	}
	_, text := r.do(http.MethodGet, "/api/v1/status/config", "", nil)
	require.Contains(t, text, "data_dir")
}

func TestTenantsAreApartAndNamed(t *testing.T) {
	r := startProcess(t, t.TempDir(), "multitenancy: {enabled: true}")
	now := time.Now()
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "a", "x", now, 1))
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "b", "x", now, 2))
	require.Equal(t, "1", r.query("", "a", "x", now)["x"])
	require.Equal(t, "2", r.query("", "b", "x", now)["x"])
	require.Empty(t, r.query("", "a", "up", now))
	r.eventually(func() bool { return r.query("", "hundredfold", "up", time.Now())["up"] == "1" })

	require.Equal(t, http.StatusUnauthorized, r.write("/api/v1/write", "", "x", now, 3))
	require.Equal(t, http.StatusBadRequest, r.write("/api/v1/write", "../a", "x", now, 3))
	for _, pattern := range []string{"/api/v1/query?query=x", "/api/v1/labels", "/api/v1/label/job/values", "/api/v1/metadata", "/api/v1/status/config", "/prometheus/api/v1/series"} {
		code, body := r.do(http.MethodGet, pattern, "", nil)
		require.Equal(t, http.StatusUnauthorized, code, pattern)
		require.Contains(t, body, `"errorType":"bad_data"`)
	}
	code, body := r.do(http.MethodGet, "/federate?match[]=x", "", nil)
	require.Equal(t, http.StatusUnauthorized, code)
	require.Contains(t, body, "X-Scope-OrgID")
}

func TestLimitsOfTheFileHoldAndReload(t *testing.T) {
	r := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}\nlimits: {max_series: 1}")
	now := time.Now()
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "", "first", now, 1))
	require.Equal(t, http.StatusTooManyRequests, r.write("/api/v1/write", "", "second", now, 1))

	opts := options{configFile: file(t, "limits: {max_series: 2}"), roles: allRoles(), overrides: []func(*config){func(c *config) { c.DataDir = r.p.cfg.DataDir }}}
	r.p.reloader.mu.Lock()
	r.p.reloader.load = opts.load
	r.p.reloader.mu.Unlock()
	code, body := r.do(http.MethodPost, "/-/reload", "", nil)
	require.Equal(t, http.StatusOK, code, body)
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "", "second", now, 1))
}

func TestRequestsAreCountedByRoute(t *testing.T) {
	r := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}")
	r.query("/prometheus", "", "up", time.Now())
	r.do(http.MethodGet, "/api/v1/label/job/values", "", nil)
	_, metrics := r.do(http.MethodGet, "/metrics", "", nil)
	require.Contains(t, metrics, `hundredfold_http_requests_total{code="200",route="/api/v1/query"} 1`)
	require.Contains(t, metrics, `hundredfold_http_requests_total{code="200",route="/api/v1/label/{name}/values"} 1`)
}

func TestReadingAndWritingUseTheirMethods(t *testing.T) {
	r := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}")
	for path, want := range map[string]int{
		"/api/v1/write":            http.StatusMethodNotAllowed,
		"/api/v1/push":             http.StatusMethodNotAllowed,
		"/api/v1/otlp/v1/metrics":  http.StatusMethodNotAllowed,
		"/-/reload":                http.StatusMethodNotAllowed,
		"/api/v1/does-not-exist":   http.StatusNotFound,
		"/api/v1/admin/tsdb/clean": http.StatusForbidden,
		"/does-not-exist":          http.StatusNotFound,
	} {
		code, _ := r.do(http.MethodGet, path, "", nil)
		require.Equal(t, want, code, path)
	}
}

func TestSecondProcessInTheSameDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	startProcess(t, dir, "self_monitoring: {enabled: false}")
	var errs bytes.Buffer
	require.Equal(t, exitFailed, command(t.Context(), []string{"--data.dir=" + dir, "--http.listen-address=127.0.0.1:0"}, io.Discard, &errs))
	require.Contains(t, errs.String(), "in use by another process (pid ")
}

func TestAddressOffLoopbackIsRefusedBeforeAnythingIsTouched(t *testing.T) {
	dir := t.TempDir() + "/data"
	opts, err := parseFlags([]string{"--data.dir=" + dir, "--http.listen-address=0.0.0.0:0"})
	require.NoError(t, err)
	_, err = open(opts, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, server.ErrUnprotected)
	require.NoDirExists(t, dir)
}

func TestFailedStartLeavesNothingLocked(t *testing.T) {
	dir := t.TempDir()
	taken := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}")
	opts, err := parseFlags([]string{"--data.dir=" + dir, "--http.listen-address=" + taken.p.server.Address()})
	require.NoError(t, err)
	_, err = open(opts, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "address already in use")
	startProcess(t, dir, "self_monitoring: {enabled: false}")
}
