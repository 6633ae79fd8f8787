package querier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/grafana/regexp"
	"github.com/prometheus/prometheus/util/httputil"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	apiPrefix    = "/api/v1"
	labelPrefix  = apiPrefix + "/label/"
	valuesSuffix = "/values"
	federatePath = "/federate"

	// maxFormBytes bounds the body of a POST that carries parameters. Go's own bound
	// is the same; here it is in force for multipart forms, too.
	maxFormBytes = 10 << 20
)

// anyOrigin lets web pages of all origins read answers, as Prometheus does by
// default. It is written as SetCORS compares it.
var anyOrigin = regexp.MustCompile("^(?:.*)$")

// endpoint is one path of the API and how it is served.
type endpoint struct {
	route string // the path, with placeholders
	serve http.HandlerFunc

	// reads says that data is read: the request waits for its turn among those of its
	// tenant, and is refused while the view of the bucket is not loaded.
	reads bool
	// deadline ends the request at the tenant's max_query_duration. The engine sees
	// to that itself.
	deadline bool
	// partial says that a request may take an answer in which something is missing.
	partial bool
	// raw leaves the body to serve; the method is POST then. Otherwise parameters come
	// with GET or POST alike.
	raw bool
	// text answers errors as text, for clients that expect no JSON.
	text bool
}

// newHandler returns the handler of all endpoints. What is not listed here does not
// exist: Prometheus's own routes beyond these are for one tenant, or for none.
func (q *Querier) newHandler() http.Handler {
	prom := q.newPrometheusAPI()
	endpoints := map[string]*endpoint{}
	add := func(e endpoint) { endpoints[e.route] = &e }
	for _, path := range []string{"/query", "/query_range"} {
		add(endpoint{route: apiPrefix + path, serve: prom, reads: true, partial: true})
	}
	for _, path := range []string{"/labels", "/series"} {
		add(endpoint{route: apiPrefix + path, serve: prom, reads: true, deadline: true, partial: true})
	}
	add(endpoint{route: apiPrefix + "/query_exemplars", serve: prom, reads: true, deadline: true})
	for _, path := range []string{"/format_query", "/parse_query", "/status/buildinfo", "/rules", "/alerts"} {
		add(endpoint{route: apiPrefix + path, serve: prom})
	}
	add(endpoint{route: apiPrefix + "/metadata", serve: q.answer(q.metadata)})
	add(endpoint{route: apiPrefix + "/status/tsdb", serve: q.answer(q.tsdbStatus)})
	add(endpoint{route: apiPrefix + "/status/runtimeinfo", serve: q.answer(q.runtimeInfo)})
	add(endpoint{route: apiPrefix + "/status/config", serve: q.answer(q.configStatus)})
	add(endpoint{route: apiPrefix + "/status/flags", serve: q.answer(q.flagsStatus)})
	add(endpoint{route: apiPrefix + "/read", serve: q.remoteRead, reads: true, deadline: true, raw: true, text: true})
	add(endpoint{route: federatePath, serve: q.federate, reads: true, deadline: true, text: true})
	labelValues := &endpoint{route: labelPrefix + ":name" + valuesSuffix, serve: prom, reads: true, deadline: true, partial: true}

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := endpoints[r.URL.Path]
		if isLabelValues(r.URL.Path) {
			e = labelValues
		}
		if e == nil {
			httputil.SetCORS(w, anyOrigin, r)
			writeError(w, http.StatusNotFound, "not_found", fmt.Errorf("there is no %s here", r.URL.Path))
			return
		}
		q.observe(e, w, r)
	})
}

func isLabelValues(path string) bool {
	name, ok := strings.CutPrefix(path, labelPrefix)
	if !ok {
		return false
	}
	name, ok = strings.CutSuffix(name, valuesSuffix)
	return ok && name != "" && !strings.Contains(name, "/")
}

// observe serves e and counts how it went.
func (q *Querier) observe(e *endpoint, w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &statusRecorder{ResponseWriter: w}
	r = r.WithContext(context.WithValue(r.Context(), retryKey{}, &rec.retryAfter))
	q.metrics.inFlight.Inc()
	defer func() {
		q.metrics.inFlight.Dec()
		q.metrics.requests.WithLabelValues(e.route, strconv.Itoa(rec.code())).Inc()
		q.metrics.duration.WithLabelValues(e.route).Observe(time.Since(start).Seconds())
	}()
	q.serveEndpoint(e, rec, r)
}

func (q *Querier) serveEndpoint(e *endpoint, w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodOptions {
		httputil.SetCORS(w, anyOrigin, r)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.Method != http.MethodPost && (r.Method != http.MethodGet || e.raw) {
		w.Header().Set("Allow", e.methods())
		e.fail(w, r, http.StatusMethodNotAllowed, "bad_data", fmt.Errorf("the method %s is not allowed for %s, but %s", r.Method, e.route, e.methods()))
		return
	}
	id, err := tenant.FromContext(r.Context())
	if err != nil {
		e.fail(w, r, wire.HTTPStatus(err), "unauthorized", err)
		return
	}
	if !e.raw {
		if r, err = parametersInURL(w, r); err != nil {
			e.fail(w, r, http.StatusBadRequest, "bad_data", fmt.Errorf("read the parameters: %w", err))
			return
		}
	}
	if !e.reads {
		e.serve(w, r)
		return
	}
	incomplete := false
	if e.partial {
		if incomplete, err = wantsPartial(r); err != nil {
			e.fail(w, r, http.StatusBadRequest, "bad_data", err)
			return
		}
	}
	ctx, done, err := q.admit(r.Context(), e, id, incomplete)
	if err != nil {
		status, known := statusOf(err)
		if !known {
			status = http.StatusInternalServerError
		}
		e.fail(w, r, status, "unavailable", err)
		return
	}
	defer done()
	account := newAccount(id, q.limits(id))
	defer func() { q.metrics.observeAccount(account) }()
	ctx = withoutCache(ctx, r)
	if incomplete {
		account = servePartial(e.serve, w, r.WithContext(ctx), account)
		return
	}
	e.serve(w, r.WithContext(withAccount(ctx, account)))
}

func (e *endpoint) methods() string {
	if e.raw {
		return http.MethodPost
	}
	return http.MethodGet + ", " + http.MethodPost
}

// admit waits until a request that reads data may run. One that takes an answer in which
// something is missing may do so before the bucket is known.
func (q *Querier) admit(ctx context.Context, e *endpoint, id tenant.ID, incomplete bool) (_ context.Context, done func(), err error) {
	if _, err := q.views.of(id); err != nil && !incomplete {
		return nil, nil, unavailable(err)
	}
	start := time.Now()
	leave, err := q.gate.enter(ctx, id, func() int { return q.limits(id).MaxConcurrentQueries })
	q.metrics.queueWait.Observe(time.Since(start).Seconds())
	if err != nil {
		return nil, nil, err
	}
	limit := time.Duration(q.limits(id).MaxQueryDuration)
	if !e.deadline || limit <= 0 {
		return ctx, leave, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, tooSlow(id, limit, context.DeadlineExceeded))
	return ctx, func() { cancel(); leave() }, nil
}

// parametersInURL returns r as a GET request whose URL has all parameters of a POST:
// those of the form go before those of the URL. So POST works wherever GET does.
func parametersInURL(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	if r.Method != http.MethodPost {
		return r, nil
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	// All of a multipart form fits into memory, so no files are made.
	if err := r.ParseMultipartForm(maxFormBytes); err != nil && !errors.Is(err, http.ErrNotMultipart) {
		return r, err
	}
	get := r.Clone(r.Context())
	get.Method = http.MethodGet
	get.URL.RawQuery = r.Form.Encode()
	get.Form, get.PostForm, get.MultipartForm = nil, nil, nil
	get.Body, get.ContentLength = http.NoBody, 0
	get.Header.Del("Content-Type")
	get.Header.Del("Content-Length")
	return get, nil
}

// fail answers r with an error.
func (e *endpoint) fail(w http.ResponseWriter, r *http.Request, status int, kind string, err error) {
	httputil.SetCORS(w, anyOrigin, r)
	setRetryAfter(w, err)
	if e.text {
		http.Error(w, err.Error(), status)
		return
	}
	writeError(w, status, kind, err)
}

func setRetryAfter(w http.ResponseWriter, err error) {
	if after, ok := wire.RetryAfter(err); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
}

// envelope is the JSON of every answer of Prometheus's API.
type envelope struct {
	Status    string `json:"status"`
	Data      any    `json:"data,omitempty"`
	ErrorType string `json:"errorType,omitempty"`
	Error     string `json:"error,omitempty"`
}

func writeError(w http.ResponseWriter, status int, kind string, err error) {
	writeJSON(w, status, envelope{Status: "error", ErrorType: kind, Error: err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, body envelope) {
	encoded, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(encoded) // the client has gone: nobody is left to tell
}

// answer serves what f returns in Prometheus's envelope. An error of f is the
// client's fault unless its kind says otherwise.
func (*Querier) answer(f func(r *http.Request, id tenant.ID) (any, error)) http.HandlerFunc {
	return httputil.CompressionHandler{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		httputil.SetCORS(w, anyOrigin, r)
		id, err := tenant.FromContext(r.Context())
		if err != nil {
			writeError(w, wire.HTTPStatus(err), "unauthorized", err)
			return
		}
		data, err := f(r, id)
		if err != nil {
			if status, known := statusOf(err); known && status != http.StatusBadRequest {
				setRetryAfter(w, err)
				writeError(w, status, "unavailable", err)
				return
			}
			writeError(w, http.StatusBadRequest, "bad_data", err)
			return
		}
		writeJSON(w, http.StatusOK, envelope{Status: "success", Data: data})
	})}.ServeHTTP
}

// statusRecorder remembers the status of an answer. It adds when to try again, if that
// was noted by way of the request's context (retryKey).
type statusRecorder struct {
	http.ResponseWriter
	status     int
	retryAfter atomic.Int64 // seconds; 0: nothing was noted
}

func (s *statusRecorder) code() int {
	if s.status == 0 {
		return http.StatusOK
	}
	return s.status
}

func (s *statusRecorder) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
	if after := s.retryAfter.Load(); after > 0 && status == http.StatusServiceUnavailable {
		s.Header().Set("Retry-After", strconv.FormatInt(after, 10))
	}
	s.ResponseWriter.WriteHeader(status)
}

// Flush implements http.Flusher, which streamed remote read wants.
func (s *statusRecorder) Flush() { _ = http.NewResponseController(s.ResponseWriter).Flush() }

// Unwrap is for http.ResponseController.
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }
