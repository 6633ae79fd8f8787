package testcluster

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// Front stands before a process that is killed and restarted. While it is shut,
// requests wait. So a sender neither spends its time backing off nor learns of
// the restarts, except by the requests that were under way when the process died:
// they are answered 502. Safe for concurrent use.
type Front struct {
	// URL is where Front serves.
	URL string

	open atomic.Pointer[chan struct{}] // closed while requests may pass
}

// NewFront returns a Front of p. It is open.
func NewFront(t testing.TB, p *Process) *Front {
	t.Helper()
	target, err := url.Parse(p.URL)
	require.NoError(t, err)
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	f := &Front{}
	f.Shut()
	f.Open()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.await(r.Context()) == nil {
			proxy.ServeHTTP(w, r)
		}
	}))
	f.URL = server.URL
	t.Cleanup(func() {
		f.Shut() // the last state; waiting requests end with their clients
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	return f
}

func (f *Front) await(ctx context.Context) error {
	select {
	case <-*f.open.Load():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shut lets new requests wait.
func (f *Front) Shut() {
	gate := make(chan struct{})
	f.open.Store(&gate)
}

// Open lets requests pass, those that wait first. It follows each Shut once.
func (f *Front) Open() { close(*f.open.Load()) }
