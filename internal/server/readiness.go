package server

import (
	"net/http"
	"strings"
	"sync"
)

// Readiness knows what the process still waits for. Each component states its
// own reason under its name; without reasons the process is ready. It serves
// /ready. Safe for concurrent use.
type Readiness struct {
	mu struct {
		sync.Mutex
		components []string // in the order of their first reason
		reasons    map[string]func() string
		stopping   bool
	}
}

// NewReadiness returns a Readiness that waits for nothing.
func NewReadiness() *Readiness {
	r := &Readiness{}
	r.mu.reasons = map[string]func() string{}
	return r
}

// Wait says that component is not ready, and why.
func (r *Readiness) Wait(component, reason string) {
	r.Check(component, func() string { return reason })
}

// Check says that component is ready as long as reason returns nothing. It
// replaces what was said about component before. reason MUST NOT block.
func (r *Readiness) Check(component string, reason func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.mu.reasons[component]; !ok {
		r.mu.components = append(r.mu.components, component)
	}
	r.mu.reasons[component] = reason
}

// Ready says that component waits for nothing any more.
func (r *Readiness) Ready(component string) { r.Wait(component, "") }

// Reason returns what the process waits for, and whether it waits at all.
func (r *Readiness) Reason() (reason string, waiting bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.stopping {
		return "the process is stopping", true
	}
	var reasons []string
	for _, c := range r.mu.components {
		if why := r.mu.reasons[c](); why != "" {
			reasons = append(reasons, c+": "+why)
		}
	}
	return strings.Join(reasons, "; "), len(reasons) > 0
}

// stop makes the process unready for good, so that load balancers turn away.
func (r *Readiness) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.stopping = true
}

// ServeHTTP answers 200, or 503 with the reason.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if reason, waiting := r.Reason(); waiting {
		writePlain(w, http.StatusServiceUnavailable, reason)
		return
	}
	writePlain(w, http.StatusOK, "ready")
}
