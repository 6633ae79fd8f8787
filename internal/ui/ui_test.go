package ui

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

func ready() (string, bool) { return "", false }

func holds(s Summary) func() (Summary, bool, error) {
	return func() (Summary, bool, error) { return s, true, nil }
}

func newUI(t testing.TB, cfg Config, deps Deps) http.Handler {
	t.Helper()
	if deps.Waiting == nil {
		deps.Waiting = ready
	}
	if deps.Summary == nil {
		deps.Summary = holds(Summary{})
	}
	u, err := New(cfg, deps)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/{$}", u.Home())
	mux.Handle("/graph", u.Graph())
	mux.Handle("/cluster", u.Cluster())
	mux.Handle("/ui/", u.Static("/ui/"))
	return mux
}

func get(t testing.TB, h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func page(t testing.TB, h http.Handler, path string) string {
	t.Helper()
	w := get(t, h, httptest.NewRequest("GET", path, nil))
	require.Equal(t, http.StatusOK, w.Code)
	return w.Body.String()
}

func TestHomeSaysWhatRunsAndWhatItHolds(t *testing.T) {
	h := newUI(t, Config{Version: "1.2.3", Role: "all", Started: time.Now().Add(-26 * time.Hour)}, Deps{Summary: holds(Summary{
		Tenants: 2, Series: 1_234_567, LocalBlocks: 3, BucketBlocks: 45,
		Oldest: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Newest: time.Date(2026, 1, 9, 3, 4, 5, 0, time.UTC),
	})})
	body := page(t, h, "/")
	for _, want := range []string{"1.2.3", ">all<", "1 d 2 h", "Ready", "1\u202f234\u202f567", ">45<", "2026-01-02 03:04:05 UTC", "2026-01-09 03:04:05 UTC", "7 d later"} {
		require.Contains(t, body, want)
	}
}

func TestHomePromisesOwnMetricsOnlyIfThereAreAny(t *testing.T) {
	const promise = "writes its own metrics into itself"
	require.Contains(t, page(t, newUI(t, Config{SelfMonitoring: true}, Deps{}), "/"), promise)
	require.NotContains(t, page(t, newUI(t, Config{}, Deps{}), "/"), promise)
}

func TestHomeSaysWhyTheProcessIsNotReady(t *testing.T) {
	h := newUI(t, Config{}, Deps{
		Waiting: func() (string, bool) { return "ingester: replaying <3> tenants", true },
		Summary: func() (Summary, bool, error) { return Summary{}, false, nil },
	})
	body := page(t, h, "/")
	require.Contains(t, body, "Not ready: ingester: replaying &lt;3&gt; tenants")
	require.Contains(t, body, "Not known yet")
}

func TestHomeShowsWhatItKnowsBesideAnError(t *testing.T) {
	h := newUI(t, Config{}, Deps{Summary: func() (Summary, bool, error) {
		return Summary{Tenants: 7}, true, errors.New("list the bucket: <down>")
	}})
	body := page(t, h, "/")
	require.Contains(t, body, "The numbers are not complete: list the bucket: &lt;down&gt;")
	require.Contains(t, body, "<dd>7</dd>")
}

func TestSnippetsPointToTheHostThatWasAsked(t *testing.T) {
	for name, c := range map[string]struct {
		host, proto string
		want        string
	}{
		"plain":         {"metrics.example:9009", "", "http://metrics.example:9009"},
		"IPv6":          {"[::1]:9009", "", "http://[::1]:9009"},
		"behind TLS":    {"metrics.example", "https", "https://metrics.example"},
		"strange host":  {"x\"><script>", "", "http://HOST:PORT"},
		"strange proto": {"a", "javascript", "http://a"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newUI(t, Config{}, Deps{})
			r := httptest.NewRequest("GET", "/", nil)
			r.Host = c.host
			r.Header.Set("X-Forwarded-Proto", c.proto)
			body := get(t, h, r).Body.String()
			require.Contains(t, body, "url: "+c.want+"/api/v1/write\n")
			require.Contains(t, body, "url: "+c.want+"\n    isDefault")
		})
	}
}

func TestSnippetsAreYAMLThatPrometheusAndGrafanaTake(t *testing.T) {
	u, err := New(Config{MultiTenant: true}, Deps{})
	require.NoError(t, err)
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "h:1"
	r.SetBasicAuth(`al"ice`, "never shown")

	var texts []string
	for _, s := range u.snippets(r) {
		require.NotContains(t, s.Text, "never shown")
		texts = append(texts, s.Text)
	}
	type prometheus struct {
		RemoteWrite []map[string]any `yaml:"remote_write"`
	}
	var v1, v2 prometheus
	require.NoError(t, yaml.Unmarshal([]byte(texts[0]), &v1))
	require.NoError(t, yaml.Unmarshal([]byte(texts[1]), &v2))
	want := map[string]any{
		"url":        "http://h:1/api/v1/write",
		"headers":    map[string]any{"X-Scope-OrgID": "YOUR_TENANT"},
		"basic_auth": map[string]any{"username": `al"ice`, "password": "YOUR_PASSWORD"},

		"send_exemplars":         true,
		"send_native_histograms": true,
	}
	require.Equal(t, []map[string]any{want}, v1.RemoteWrite)
	want["protobuf_message"] = "io.prometheus.write.v2.Request"
	require.Equal(t, []map[string]any{want}, v2.RemoteWrite)

	var grafana struct {
		Datasources []map[string]any
	}
	require.NoError(t, yaml.Unmarshal([]byte(texts[2]), &grafana))
	require.Equal(t, map[string]any{
		"name": "Hundredfold", "type": "prometheus", "access": "proxy", "url": "http://h:1", "isDefault": true,
		"basicAuth": true, "basicAuthUser": `al"ice`,
		"jsonData":       map[string]any{"httpMethod": "POST", "timeInterval": "15s", "httpHeaderName1": "X-Scope-OrgID"},
		"secureJsonData": map[string]any{"httpHeaderValue1": "YOUR_TENANT", "basicAuthPassword": "YOUR_PASSWORD"},
	}, grafana.Datasources[0])
}

func TestTenantIsAskedForOnlyWithMultiTenancy(t *testing.T) {
	single, multi := newUI(t, Config{}, Deps{}), newUI(t, Config{MultiTenant: true}, Deps{})
	require.NotContains(t, page(t, single, "/graph"), `id="tenant"`)
	require.Contains(t, page(t, multi, "/graph"), `id="tenant"`)
	require.Contains(t, page(t, multi, "/graph"), `data-tenant-header="X-Scope-OrgID"`)
	require.NotContains(t, page(t, single, "/"), "X-Scope-OrgID")
	require.Contains(t, page(t, multi, "/"), "X-Scope-OrgID: YOUR_TENANT")
}

// The policy forbids inline scripts and styles and other origins, so the pages
// must not rely on them.
func TestPagesKeepTheirOwnContentSecurityPolicy(t *testing.T) {
	h := newUI(t, Config{MultiTenant: true}, Deps{Cluster: clusterStatus})
	reference := regexp.MustCompile(`(?:src|href|action)="([^"]*)"`)
	for _, path := range []string{"/", "/graph", "/cluster?format=html"} {
		w := get(t, h, httptest.NewRequest("GET", path, nil))
		require.Equal(t, contentSecurityPolicy, w.Header().Get("Content-Security-Policy"))
		body := w.Body.String()
		require.NotRegexp(t, `<script>|<script [^>]*>[^<]|<style|style="|\son[a-z]+="`, body)
		for _, m := range reference.FindAllStringSubmatch(body, -1) {
			require.NotRegexp(t, `^(/|[a-z]+:)`, m[1], "references are relative, so that they hold under any prefix")
			if strings.HasPrefix(m[1], "ui/") {
				require.Equal(t, http.StatusOK, get(t, h, httptest.NewRequest("GET", "/"+m[1], nil)).Code, m[1])
			}
		}
	}
}

func TestScriptsNeverBuildMarkupFromText(t *testing.T) {
	files, err := fs.Glob(assets, "assets/*.js")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		source, err := fs.ReadFile(assets, name)
		require.NoError(t, err)
		require.NotRegexp(t, `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`, string(source), name)
	}
}

func TestStaticServesOnlyWhatPagesLoad(t *testing.T) {
	h := newUI(t, Config{}, Deps{})
	for path, code := range map[string]int{
		"/ui/style.css": 200, "/ui/graph.js": 200, "/ui/logo.svg": 200,
		"/ui/": 404, "/ui/home.html": 404, "/ui/missing.js": 404, "/ui/..%2fui.go": 404,
	} {
		w := get(t, h, httptest.NewRequest("GET", path, nil))
		require.Equal(t, code, w.Code, path)
		if code == http.StatusOK {
			require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		}
	}
	require.Contains(t, get(t, h, httptest.NewRequest("GET", "/ui/graph.js", nil)).Header().Get("Content-Type"), "javascript")
}
