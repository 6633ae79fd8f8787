package server

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Before the gate opens a client is told to come back when half of what is left has
// passed: the estimate may be too high, and waiting senders fall behind. A small instance
// is ready within the shortest time.
const (
	shortestRetryAfter = time.Second
	longestRetryAfter  = 30 * time.Second
)

// Gate stands in for a handler that does not exist yet: HTTP is up before the
// roles are, so that /ready can say what they wait for. Safe for concurrent use.
type Gate struct {
	readiness *Readiness
	left      func() time.Duration
	handler   atomic.Pointer[http.Handler]
}

// NewGate returns a closed Gate. Until Open it answers 503 with the reason of
// readiness and with Retry-After. left says how long it will stay closed, or 0 when
// that is not known. It MUST NOT block.
func NewGate(readiness *Readiness, left func() time.Duration) *Gate {
	return &Gate{readiness: readiness, left: left}
}

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
	retryAfter := min(max(g.left()/2, shortestRetryAfter), longestRetryAfter)
	w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
	writePlain(w, http.StatusServiceUnavailable, "not ready: "+reason)
}
