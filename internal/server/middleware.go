package server

import (
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	panics   prometheus.Counter
	refused  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_http_requests_total",
			Help: "HTTP requests answered, by route and status code.",
		}, []string{"route", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "hundredfold_http_request_duration_seconds",
			Help:    "Time from the headers of a request to the end of its answer, by route.",
			Buckets: []float64{.005, .025, .1, .25, 1, 2.5, 10, 30, 120},
		}, []string{"route"}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_http_requests_in_flight",
			Help: "HTTP requests being served.",
		}),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_http_panics_total",
			Help: "Handlers that panicked. Each is a bug; its stack is in the log.",
		}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_http_refused_total",
			Help: "What http.web_config_file has turned away before any route, by reason: wrong_password (or user), no_password, handshake (of TLS: no certificate, or one that is not accepted), protocol (not TLS, or not a version that both speak, or our certificate is not accepted), rate (of requests), configuration (the file cannot be read).",
		}, []string{"reason"}),
	}
}

// instrument counts the requests to mux and keeps a panic in one of them from
// ending the process.
func (s *Server) instrument(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec, watched := w.(*recorder) // See admit.
		if !watched {
			rec = &recorder{ResponseWriter: w}
		}
		rec.admitted = true
		s.metrics.inFlight.Inc()
		defer func() {
			s.metrics.inFlight.Dec()
			abort := false
			if failure := recover(); failure != nil {
				abort = !s.answerPanic(rec, r, failure)
			}
			route := routeOf(r.Pattern)
			s.metrics.requests.WithLabelValues(route, strconv.Itoa(rec.code())).Inc()
			s.metrics.duration.WithLabelValues(route).Observe(time.Since(start).Seconds())
			if abort {
				// The answer has begun and cannot be taken back; the client must see that
				// it is cut short. net/http does so, silently, on this value.
				panic(http.ErrAbortHandler)
			}
		}()
		mux.ServeHTTP(rec, r)
	})
}

// answerPanic reports whether the client could still be told.
func (s *Server) answerPanic(rec *recorder, r *http.Request, failure any) bool {
	if failure == http.ErrAbortHandler { //nolint:errorlint // it is the value that was panicked with
		return false
	}
	s.metrics.panics.Inc()
	s.logger.Error("A request panicked and was answered with 500. This is a bug; please report it with the stack.",
		"method", r.Method, "path", r.URL.Path, "panic", failure, "stack", string(debug.Stack()))
	if rec.status != 0 {
		return false
	}
	writePlain(rec, http.StatusInternalServerError, "internal error: the request panicked; the log of the server has the details")
	return true
}

// routeOf turns the pattern that matched into a label: bounded, because patterns
// are. Requests that matched nothing are "other".
func routeOf(pattern string) string {
	if pattern == "" {
		return "other"
	}
	if _, path, ok := strings.Cut(pattern, " "); ok {
		pattern = path
	}
	return strings.TrimSuffix(pattern, "{$}")
}

// recorder remembers the status of an answer. It is an http.Flusher whatever it
// wraps, because streamed remote read asks for one.
type recorder struct {
	http.ResponseWriter
	status int
	// admitted says that the request has come to our handlers.
	admitted bool
}

func (r *recorder) WriteHeader(status int) {
	// An informational answer is followed by the final one.
	if r.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (r *recorder) Flush() {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	// A writer that cannot flush delivers at the end, which is all that is lost.
	_ = http.NewResponseController(r.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}
