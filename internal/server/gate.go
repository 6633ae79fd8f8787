package server

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// gateRetryAfter is what a client is told before the gate opens. A small instance
// is ready within it; for a long replay Prometheus backs off by itself.
const gateRetryAfter = time.Second

// Gate stands in for a handler that does not exist yet: HTTP is up before the
// roles are, so that /ready can say what they wait for. Safe for concurrent use.
type Gate struct {
	readiness *Readiness
	handler   atomic.Pointer[http.Handler]
}

// NewGate returns a closed Gate. Until Open it answers 503 with the reason of
// readiness and with Retry-After.
func NewGate(readiness *Readiness) *Gate { return &Gate{readiness: readiness} }

// Open lets requests through to h.
func (g *Gate) Open(h http.Handler) { g.handler.Store(&h) }

// ServeHTTP implements http.Handler.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := g.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	reason, waiting := g.readiness.Reason()
	if !waiting {
		reason = "the process is starting"
	}
	w.Header().Set("Retry-After", strconv.Itoa(int(gateRetryAfter.Seconds())))
	writePlain(w, http.StatusServiceUnavailable, "not ready: "+reason)
}
