package faults

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// condition is the state that an object store is in.
type condition int32

const (
	well    condition = iota
	away              // connections break
	slow              // every request takes half a second more
	halfway           // every second request fails
)

// objectStore stands before a real object store and makes it fail.
type objectStore struct {
	cfg       blockstore.Config
	address   string
	condition atomic.Int32
	requests  atomic.Uint64
}

func newObjectStore(t testing.TB, cfg blockstore.Config, ip string) *objectStore {
	t.Helper()
	s := &objectStore{cfg: cfg}
	target := &url.URL{Scheme: "http", Host: cfg.S3.Endpoint}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := s.requests.Add(1); condition(s.condition.Load()) {
		case away:
			panic(http.ErrAbortHandler)
		case halfway:
			if n%2 == 0 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
		case slow:
			delay := time.NewTimer(500 * time.Millisecond)
			defer delay.Stop()
			select {
			case <-delay.C:
			case <-r.Context().Done():
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	require.NoError(t, server.Listener.Close())
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	s.address = listener.Addr().String()
	return s
}

func (s *objectStore) become(c condition) { s.condition.Store(int32(c)) }
