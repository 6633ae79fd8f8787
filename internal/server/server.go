// Package server is the process's HTTP front: one listener with TLS and basic
// authentication by Prometheus's web configuration file, health and readiness,
// /metrics, /debug/pprof, request metrics, recovery from panics, and a graceful
// stop. It refuses to be reachable from other machines without authentication.
//
// It knows nothing of tenants or of the roles: cmd hands it their handlers.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/hundredfold/hundredfold/internal/sparse"
)

const (
	// readHeaderTimeout frees connections whose client says nothing.
	readHeaderTimeout = 10 * time.Second
	// readTimeout bounds the whole request, body included: a body of 100 MB over
	// a slow line takes minutes.
	readTimeout = 5 * time.Minute
	// writeTimeout bounds the request and its answer: a client that stops reading
	// must not hold open what its query reads.
	writeTimeout = 10 * time.Minute
	// idleTimeout is longer than the intervals at which Prometheus sends, so that
	// connections are used again.
	idleTimeout = 5 * time.Minute
	// drainTimeout is how long requests that run at the stop may take to finish.
	// It is shorter than the 30 s that Kubernetes gives a pod.
	drainTimeout = 20 * time.Second

	// alias is a second root of all routes, for clients that are set up for
	// Cortex or Mimir.
	alias = "/prometheus"
)

// Config says where to listen.
type Config struct {
	// ListenAddress is HOST:PORT; off loopback it needs authentication.
	ListenAddress string `yaml:"listen_address"`
	// WebConfigFile has TLS and authentication in the format of exporter-toolkit,
	// which reads it again for every connection. Empty: neither.
	WebConfigFile string `yaml:"web_config_file"`
}

// DefaultConfig returns the configuration of a process that nobody configured.
func DefaultConfig() Config { return Config{ListenAddress: "127.0.0.1:9009"} }

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.ListenAddress); err != nil {
		errs = append(errs, fmt.Errorf("listen_address: %q is not HOST:PORT", c.ListenAddress))
	}
	if err := web.Validate(c.WebConfigFile); err != nil {
		errs = append(errs, fmt.Errorf("web_config_file: %s: %w", c.WebConfigFile, err))
	}
	return errors.Join(errs...)
}

// Server serves HTTP. Routes are added with Handle before Run. Safe for
// concurrent use, but for Handle.
type Server struct {
	cfg       Config
	logger    *slog.Logger
	metrics   *metrics
	readiness *Readiness
	listener  net.Listener
	mux       *http.ServeMux

	refused   sparse.Lines // of logs of what is turned away
	misspoken sparse.Lines // of logs of connections that do not speak TLS as we do
}

// Open checks that cfg may be served under auth, listens, and adds the routes
// that every process has. Connections wait until Run.
func Open(cfg Config, auth Auth, readiness *Readiness, logger *slog.Logger, registry *prometheus.Registry) (*Server, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	address, err := check(cfg, auth)
	if err != nil {
		return nil, err
	}
	// What was resolved and permitted is what is listened on: another look-up of
	// the name could yield another address.
	listener, err := net.ListenTCP("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; stop what listens there, or choose another with --http.listen-address", cfg.ListenAddress, err)
	}
	s := &Server{
		cfg:       cfg,
		logger:    logger,
		metrics:   newMetrics(registry),
		readiness: readiness,
		listener:  listener,
		mux:       http.NewServeMux(),
	}
	s.addRoutes(registry)
	return s, nil
}

func (s *Server) addRoutes(registry *prometheus.Registry) {
	s.Handle("/ready", s.readiness)
	s.Handle("/-/ready", s.readiness)
	s.Handle("/-/healthy", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writePlain(w, http.StatusOK, "hundredfold is healthy")
	}))
	s.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelError),
	}))
	s.Handle("/debug/pprof/", http.HandlerFunc(pprof.Index))
	s.Handle("/debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	s.Handle("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.Handle("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	s.Handle("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
}

// Handle adds a route in the syntax of http.ServeMux. It is served under
// /prometheus too. The pattern is the label by which its requests are counted.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Address is where s listens: the configured address, with the port that was
// chosen if that was 0.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Close ends listening. It is for a Server that Run is never called on.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends. Then it takes no more connections, gives running
// requests drainTimeout to finish and cuts off the rest.
func (s *Server) Run(ctx context.Context) error {
	// Requests outlive ctx by the drain, so their contexts do not descend from it.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	srv := &http.Server{
		Handler:           atRoot(s.instrument(s.mux)),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(errorLog{s}, slog.LevelDebug),
	}
	srv.BaseContext = func(net.Listener) context.Context {
		// The library has put its handler in the place of ours by now, and no connection
		// has been accepted.
		if s.cfg.WebConfigFile != "" {
			srv.Handler = s.admit(srv.Handler)
		}
		return base
	}
	served := make(chan error, 1)
	go func() {
		served <- web.Serve(s.listener, srv, &web.FlagConfig{WebConfigFile: &s.cfg.WebConfigFile}, s.logger)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", s.Address(), errors.Join(err, s.closeListener()))
	case <-ctx.Done():
	}

	s.readiness.stop()
	drain, cancel := context.WithTimeout(base, drainTimeout)
	defer cancel()
	err := srv.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		s.logger.Warn("Requests did not finish in time and are cut off.", "timeout", drainTimeout)
		cut()
		err = srv.Close()
	}
	// Shutdown knows the listener only once Serve has it.
	err = errors.Join(err, s.closeListener())
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) && !errors.Is(serveErr, net.ErrClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("stop HTTP on %s: %w", s.Address(), err)
	}
	return nil
}

func (s *Server) closeListener() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// atRoot serves what is asked for under the alias as if asked for at the root.
// It stands before the router, so that both are one route in the metrics.
func atRoot(next http.Handler) http.Handler {
	strip := http.StripPrefix(alias, next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == alias:
			http.Redirect(w, r, alias+"/", http.StatusMovedPermanently)
		case strings.HasPrefix(r.URL.Path, alias+"/"):
			strip.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func writePlain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// The client may have gone; there is nobody to tell.
	_, _ = fmt.Fprintln(w, text)
}
