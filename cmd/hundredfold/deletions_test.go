package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const everything = `{__name__!=""}`

// deletions returns the states of a tenant's deletions, the newest first.
func (r *running) deletions(tenant string) (states []string) {
	r.t.Helper()
	code, body := r.do(http.MethodGet, "/api/v1/admin/tsdb/deletions", tenant, nil)
	require.Equal(r.t, http.StatusOK, code, body)
	var answer struct {
		Data []struct{ State string }
	}
	require.NoError(r.t, json.Unmarshal([]byte(body), &answer))
	for _, d := range answer.Data {
		states = append(states, d.State)
	}
	return states
}

func TestASeriesIsDeletedAndMayComeBack(t *testing.T) {
	r := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}\nmultitenancy: {enabled: true}\nadmin_api: {enabled: true}")
	now := time.Now()
	for _, tenant := range []string{"a", "b"} {
		require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", tenant, "one", now, 1))
		require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", tenant, "two", now, 2))
	}
	r.eventually(func() bool { return len(r.query("", "a", everything, now)) == 2 })
	for query, want := range map[string]int{
		"":                                     http.StatusBadRequest,
		"match[]=" + url.QueryEscape(`{x=""}`): http.StatusBadRequest,
		"match[]=one&start=yesterday":          http.StatusBadRequest,
		"match[]=one&start=2&end=1":            http.StatusBadRequest,
		"match[]=one":                          http.StatusNoContent,
	} {
		code, body := r.do(http.MethodPost, "/api/v1/admin/tsdb/delete_series?"+query, "a", nil)
		require.Equal(t, want, code, body)
	}
	require.Equal(t, map[string]string{"two": "2"}, r.query("", "a", everything, now))
	require.Equal(t, map[string]string{"one": "1", "two": "2"}, r.query("", "b", everything, now))
	require.Len(t, r.deletions("a"), 1)
	require.Empty(t, r.deletions("b"))

	// The same sample again is a new one.
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "a", "one", now, 1))
	require.Equal(t, map[string]string{"one": "1", "two": "2"}, r.query("", "a", everything, now))

	code, body := r.do(http.MethodPost, "/api/v1/admin/delete_tenant?confirm=b", "a", nil)
	require.Equal(t, http.StatusBadRequest, code)
	require.Contains(t, body, "confirm=a")
	code, body = r.do(http.MethodPost, "/api/v1/admin/delete_tenant?confirm=a", "a", nil)
	require.Equal(t, http.StatusNoContent, code, body)
	require.Empty(t, r.query("", "a", everything, now))
	require.Len(t, r.query("", "b", everything, now), 2)
	require.Equal(t, http.StatusNoContent, r.write("/api/v1/write", "a", "one", now, 7))
	require.Equal(t, map[string]string{"one": "7"}, r.query("", "a", everything, now))
	code, _ = r.do(http.MethodPost, "/api/v1/admin/tsdb/clean_tombstones", "a", nil)
	require.Equal(t, http.StatusNoContent, code)
}

func TestNothingIsDeletedWithoutTheAdminAPI(t *testing.T) {
	r := startProcess(t, t.TempDir(), "self_monitoring: {enabled: false}")
	for _, path := range []string{"tsdb/delete_series?match[]=up", "tsdb/clean_tombstones", "delete_tenant?confirm=default"} {
		code, body := r.do(http.MethodPost, "/api/v1/admin/"+path, "", nil)
		require.Equal(t, http.StatusForbidden, code, path)
		require.Contains(t, body, "admin_api: {enabled: true}")
	}
	code, body := r.do(http.MethodGet, "/compactor/retention?tenant=default&retention=30d", "", nil)
	require.Equal(t, http.StatusOK, code, body)
	require.Contains(t, body, `"retention": "30d"`)
}

func TestADeletionReachesAnIngesterThatWasAway(t *testing.T) {
	c, now := newTestedCluster(t, "replication_factor: 2"), time.Now()
	c.config += "admin_api: {enabled: true}\ncompactor: {interval: 1s}\n"
	first := c.start("all", "a", c.gossip)
	dir := t.TempDir()
	second := c.startIn(dir, "ingester", "b", "127.0.0.1:0")
	third := c.start("ingester,querier", "c", "127.0.0.1:0")
	first.sees(3)
	first.wrote("one", now, 1)
	first.wrote("two", now, 2)
	code, body := second.do(http.MethodPost, "/ingester/restart", "", nil)
	require.Equal(t, http.StatusAccepted, code, body)
	second.stop()

	first.eventually(func() bool {
		code, _ := third.do(http.MethodPost, "/api/v1/admin/tsdb/delete_series?match[]=one", "", nil)
		return code == http.StatusNoContent // once it is known to be away
	})
	for _, r := range []*running{first, third} {
		r.eventually(func() bool { return len(r.query("", "", everything, now)) == 1 })
		require.Equal(t, "pending", r.deletions("")[0])
	}

	c.startIn(dir, "ingester", "b", "127.0.0.1:0")
	first.sees(3)
	for _, r := range []*running{first, third} {
		require.Equal(t, map[string]string{"two": "2"}, r.query("", "", everything, now), "its samples are masked")
	}
	first.eventually(func() bool {
		for _, state := range first.deletions("") {
			if state == "pending" {
				return false
			}
		}
		return true
	})
	first.wrote("one", now, 1)
	for _, r := range []*running{first, third} {
		r.eventually(func() bool { return len(r.query("", "", everything, now)) == 2 })
	}
}
