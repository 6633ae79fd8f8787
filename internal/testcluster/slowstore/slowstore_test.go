package slowstore

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// distant serves the text at every path, slowed down by cfg.
func distant(t *testing.T, cfg Config, text string) (*Proxy, *httptest.Server) {
	t.Helper()
	var host string
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != host {
			http.Error(w, "the signature is over another host", http.StatusForbidden)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(store.Close)
	target, err := url.Parse(store.URL)
	require.NoError(t, err)
	proxy := New(cfg, target)
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	host = strings.TrimPrefix(front.URL, "http://")
	return proxy, front
}

func get(t *testing.T, server *httptest.Server, path string) string {
	t.Helper()
	response, err := server.Client().Get(server.URL + path)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, string(body))
	return string(body)
}

func TestARequestTakesTheLatencyAndRequestsAtOnceShareIt(t *testing.T) {
	_, front := distant(t, Config{Latency: 100 * time.Millisecond}, "block")
	started := time.Now()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { require.Equal(t, "block", get(t, front, "/blocks/a")) })
	}
	group.Wait()
	took := time.Since(started)
	require.GreaterOrEqual(t, took, 100*time.Millisecond)
	require.Less(t, took, 700*time.Millisecond, "they were delayed one after the other")
}

func TestAllAnswersTogetherKeepTheRate(t *testing.T) {
	_, front := distant(t, Config{BytesPerSecond: 1e6}, strings.Repeat("x", 100_000))
	started := time.Now()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() { get(t, front, "/blocks/a") })
	}
	group.Wait()
	require.GreaterOrEqual(t, time.Since(started), 390*time.Millisecond)
}

func TestRequestsAndBytesAreCounted(t *testing.T) {
	proxy, front := distant(t, Config{}, "12345")
	get(t, front, "/blocks/a")
	before := proxy.Counts()
	get(t, front, "/blocks/a")
	get(t, front, "/blocks/?list-type=2")
	response, err := front.Client().Post(front.URL+"/blocks/b", "", strings.NewReader("content"))
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	got := proxy.Counts().Minus(before)
	require.Equal(t, Counts{Requests: 3, Reads: 1, Lists: 1, Writes: 1, Bytes: got.Bytes}, got)
	require.GreaterOrEqual(t, got.Bytes, int64(10))
}
