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
// the queriers, to each in turn. A request that a member did not answer, or answered
// 503 because it starts or stops, goes to the next, as load balancers do it.
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
	last := answer{status: http.StatusBadGateway, body: []byte(errNobody.Error())}
	first := fr.turn.Add(1)
	for i := range members {
		m := members[(first+uint64(i))%uint64(len(members))]
		if m.Alive() != nil {
			continue
		}
		switch got, err := fr.pass(r, m, body); {
		case err != nil:
			last.body = []byte(err.Error())
		case got.status == http.StatusServiceUnavailable:
			last = got
		default:
			got.write(w)
			return
		}
	}
	last.write(w)
}

// answer is what a member answers.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) write(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may have gone
}

func (fr *Front) pass(r *http.Request, m *Member, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, m.URL+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header = r.Header.Clone()
	// What the client compressed stays so, and what it did not ask for neither.
	if req.Header.Get("Accept-Encoding") == "" {
		req.Header.Set("Accept-Encoding", "identity")
	}
	resp, err := fr.fleet.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: text}, nil
}
