package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// logged keeps what is logged as lines of JSON.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// acts takes the lines of the audit out.
func (l *logged) acts(t testing.TB) (acts []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		var act struct {
			Component, By, Tenant, Act, Outcome, Reason string
			Selectors                                   []string
		}
		require.NoError(t, json.Unmarshal([]byte(line), &act), line)
		if act.Component == "audit" {
			require.Contains(t, act.By, "127.0.0.1:")
			_, user, _ := strings.Cut(act.By, ", ")
			text := fmt.Sprintf("%s, tenant %s: %s %s %s", user, act.Tenant, act.Act, strings.Join(act.Selectors, " "), act.Outcome)
			if act.Reason != "" {
				text += ": " + act.Reason
			}
			acts = append(acts, text)
		}
	}
	l.text.Reset()
	return acts
}

// startLogged starts a process that asks for the password of carol.
func startLogged(t *testing.T, config string, flags ...string) (*running, *logged) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	require.NoError(t, err)
	web := filepath.Join(t.TempDir(), "web.yml")
	require.NoError(t, os.WriteFile(web, []byte("basic_auth_users: {carol: "+string(hash)+"}\n"), 0o600))
	config += "\nself_monitoring: {enabled: false}\nhttp: {web_config_file: " + web + "}\n"
	opts, err := parseFlags(append([]string{"--config.file=" + file(t, config), "--data.dir=" + t.TempDir(), "--http.listen-address=127.0.0.1:0"}, flags...))
	require.NoError(t, err)
	log := &logged{}
	r := runLogged(t, opts, slog.New(slog.NewJSONHandler(log, nil)))
	r.url = strings.Replace(r.url, "http://", "http://carol:secret@", 1)
	r.eventually(func() bool {
		code, _ := r.do(http.MethodGet, "/ready", "", nil)
		return code == http.StatusOK
	})
	require.Empty(t, log.acts(t))
	return r, log
}

// asks sends a request and requires a status, and that the audit has one line on it, with those parts.
func (r *running) asks(log *logged, path, tenant string, body []byte, status int, parts ...string) {
	r.t.Helper()
	code, answer := r.do(http.MethodPost, path, tenant, body)
	require.Equal(r.t, status, code, answer)
	// The line is written after the answer.
	var acts []string
	r.eventually(func() bool {
		acts = append(acts, log.acts(r.t)...)
		return len(acts) > 0
	})
	require.Len(r.t, acts, 1)
	require.True(r.t, strings.HasPrefix(acts[0], "user carol, tenant "+tenant+": POST "), acts[0])
	for _, part := range parts {
		require.Contains(r.t, acts[0], part)
	}
}

func TestEachAdministrativeRequestLeavesALineInTheLog(t *testing.T) {
	const admin, upload = "/api/v1/admin/", "/api/v1/upload/block/"
	r, log := startLogged(t, "multitenancy: {enabled: true}\nadmin_api: {enabled: true}")
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "acme", "up", time.Now(), 1))

	r.asks(log, admin+"tsdb/delete_series?match[]=up", "acme", nil, http.StatusNoContent, `/delete_series {__name__="up"} accepted`)
	r.asks(log, "/prometheus"+admin+"tsdb/delete_series?match[]=down", "acme", nil, http.StatusNoContent, `/delete_series {__name__="down"} accepted`)
	r.asks(log, admin+"tsdb/delete_series?match[]="+url.QueryEscape("{x=}"), "acme", nil, http.StatusBadRequest, "refused: ", "{x=}")
	r.asks(log, admin+"tsdb/delete_series", "acme", nil, http.StatusBadRequest, "refused: ", "no match[] parameter")
	r.asks(log, admin+"tsdb/delete_series?match[]=up", "", nil, http.StatusUnauthorized, "refused: ", "X-Scope-OrgID")
	r.asks(log, admin+"tsdb/delete_series?match[]=up", "../x", nil, http.StatusBadRequest, "refused: ")
	r.asks(log, admin+"tsdb/clean_tombstones", "acme", nil, http.StatusNoContent, "accepted")
	r.asks(log, admin+"delete_tenant?confirm=other", "acme", nil, http.StatusBadRequest, "delete_tenant  refused: ", "confirm=acme")
	r.asks(log, admin+"delete_tenant?confirm=acme", "acme", nil, http.StatusNoContent, "delete_tenant  accepted")

	dir := blocktest.Write(t, t.TempDir(), 0, 7_200_000, blocktest.Floats("a", 0, 7_200_000, 60_000))
	meta, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	require.NoError(t, err)
	block := upload + filepath.Base(dir)
	r.asks(log, block+"/finish", "acme", nil, http.StatusNotFound, block+"/finish", "refused: no upload of this block was started")
	r.asks(log, block+"/start", "acme", meta, http.StatusOK, block+"/start", "accepted")
	index, err := os.ReadFile(filepath.Join(dir, "index"))
	require.NoError(t, err)
	code, body := r.do(http.MethodPost, block+"/files?path=index", "acme", index)
	require.Equal(t, http.StatusOK, code, body)
	r.asks(log, block+"/finish", "acme", nil, http.StatusOK, block+"/finish", "accepted")
	code, _ = r.do(http.MethodGet, block+"/check", "acme", nil)
	require.Equal(t, http.StatusOK, code)
	require.Len(t, r.deletions("acme"), 3)
	require.Empty(t, log.acts(t), "who only asks does nothing, and files are part of an upload")
}

func TestAnAdministrativeRequestThatIsNotAllowedLeavesALineInTheLog(t *testing.T) {
	r, log := startLogged(t, "")
	for _, path := range []string{"/api/v1/admin/tsdb/delete_series?match[]=up", "/api/v1/admin/delete_tenant?confirm=default", "/api/v1/upload/block/x/start"} {
		code, _ := r.do(http.MethodPost, path, "", nil)
		require.Equal(t, http.StatusForbidden, code)
		r.eventually(func() bool {
			acts := log.acts(t)
			return len(acts) == 1 && strings.Contains(acts[0], "tenant default: POST /api/v1/") && strings.Contains(acts[0], "refused: ") && strings.Contains(acts[0], "admin_api: {enabled: true}")
		})
	}
	// As a page of another origin that a browser shows would.
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, r.url+"/api/v1/admin/tsdb/clean_tombstones", http.NoBody)
	require.NoError(t, err)
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := r.client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
	r.eventually(func() bool { return len(log.acts(t)) == 1 })
	r.asks(log, "/-/reload", "", nil, http.StatusOK, "POST /-/reload  accepted")
}

func TestADrainLeavesALineInTheLog(t *testing.T) {
	c := newTestedCluster(t, "replication_factor: 1")
	r, log := startLogged(t, strings.Replace(c.config, "self_monitoring: {enabled: false}\n", "", 1),
		"--role=all", "--zone=a", "--grpc.listen-address=127.0.0.1:0", "--gossip.listen-address="+c.gossip)
	r.asks(log, "/ingester/drain", "", nil, http.StatusConflict, "POST /ingester/drain  refused: ", "the replication factor is 1")
	r.asks(log, "/ingester/restart", "", nil, http.StatusAccepted, "POST /ingester/restart  accepted")
}
