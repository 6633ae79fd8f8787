package fleet

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// maxBody bounds the requests that Front keeps to repeat them.
const maxBody = 64 << 20

var errNobody = errors.New("no member that could answer is running")

// Front stands before a cluster: it passes writes to the distributors and all else to
// the queriers, to each in turn. A request that a member did not answer goes to the
// next. It is what a load balancer does in production.
type Front struct {
	fleet *Fleet
	turn  atomic.Uint64
}

// NewFront returns a Front of f.
func NewFront(f *Fleet) *Front { return &Front{fleet: f} }

// ServeHTTP implements http.Handler.
func (fr *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	role := "querier"
	for _, path := range []string{"/api/v1/write", "/api/v1/push", "/api/v1/otlp/"} {
		if strings.HasPrefix(r.URL.Path, path) {
			role = "distributor"
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	members := fr.fleet.Members(role)
	err = errNobody
	first := fr.turn.Add(1)
	for i := range members {
		m := members[(first+uint64(i))%uint64(len(members))]
		if m.Alive() != nil {
			continue
		}
		var resp *http.Response
		if resp, err = fr.pass(r, m, body); err != nil {
			continue
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the client may have gone
		return
	}
	http.Error(w, err.Error(), http.StatusBadGateway)
}

func (fr *Front) pass(r *http.Request, m *Member, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, m.URL+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	// What the client compressed stays so, and what it did not ask for neither.
	if req.Header.Get("Accept-Encoding") == "" {
		req.Header.Set("Accept-Encoding", "identity")
	}
	return fr.fleet.client.Do(req)
}
