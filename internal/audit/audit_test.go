package audit

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// audited serves a request and returns the lines that it leaves, without their times.
func audited(t *testing.T, r *http.Request, next http.HandlerFunc) (code int, lines []map[string]any) {
	t.Helper()
	var out bytes.Buffer
	h := Handler(slog.New(slog.NewJSONHandler(&out, nil)), func(r *http.Request) string { return r.Header.Get("Of") }, next)
	rec := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }()
		h.ServeHTTP(rec, r)
	}()
	for decoder := json.NewDecoder(&out); decoder.More(); {
		line := map[string]any{}
		require.NoError(t, decoder.Decode(&line))
		delete(line, "time")
		require.Equal(t, "INFO", line["level"])
		delete(line, "level")
		lines = append(lines, line)
	}
	return rec.Code, lines
}

func TestEachActLeavesALine(t *testing.T) {
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		want  map[string]any
	}{
		"accepted": {func(w http.ResponseWriter, r *http.Request) {
			Note(r.Context(), "what", "all")
			_, _ = io.WriteString(w, "fine")
		}, map[string]any{"outcome": "accepted", "status": 200.0, "what": "all"}},
		"noting more than a line has room for": {func(w http.ResponseWriter, r *http.Request) {
			Note(r.Context(), "selectors", []string{"up", strings.Repeat("x", 10<<20), "down"}, "name", strings.Repeat("y", 1000))
			Note(r.Context(), "many", make([]string, 1000), "count", 7)
		}, map[string]any{
			"outcome": "accepted", "status": 200.0, "selectors": []any{"up", strings.Repeat("x", 498) + " ..."}, "name": strings.Repeat("y", 500),
			"many": append(slices.Repeat([]any{""}, 20), " ..."), "count": 7.0,
		}},
		"without an answer": {func(http.ResponseWriter, *http.Request) {}, map[string]any{"outcome": "accepted", "status": 200.0}},
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no "+strings.Repeat("x", 1000), http.StatusForbidden)
		}, map[string]any{"outcome": "refused", "status": 403.0, "reason": "no " + strings.Repeat("x", 497)}},
		"failed": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}, map[string]any{"outcome": "failed", "status": 503.0}},
		"panicked": {func(http.ResponseWriter, *http.Request) { panic("BUG") }, map[string]any{"outcome": "failed", "status": 0.0}},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/admin", http.NoBody)
			r.Header.Set("Of", "acme")
			r.SetBasicAuth("carol", "secret")
			_, lines := audited(t, r, test.serve)
			test.want["msg"], test.want["act"] = "Administrative request", "POST /admin"
			test.want["tenant"], test.want["by"] = "acme", r.RemoteAddr+", user carol"
			require.Equal(t, []map[string]any{test.want}, lines)
		})
	}
}

func TestAskingLeavesNoLine(t *testing.T) {
	code, lines := audited(t, httptest.NewRequest(http.MethodGet, "/admin", http.NoBody), func(w http.ResponseWriter, r *http.Request) {
		Note(r.Context(), "nobody", "listens")
		w.WriteHeader(http.StatusNoContent)
	})
	require.Equal(t, http.StatusNoContent, code)
	require.Empty(t, lines)
}

func TestACertificateSaysWhoAsks(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/admin", http.NoBody)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "ops"}}}}
	require.Equal(t, r.RemoteAddr+", certificate CN=ops", Who(r))
}
