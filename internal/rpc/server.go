package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/hundredfold/hundredfold/internal/sparse"
)

// Server serves gRPC to the peers of a cluster. Services are added to Registrar
// before Run. The health service is there.
type Server struct {
	logger   *slog.Logger
	listener net.Listener
	grpc     *grpc.Server
	health   *health.Server
	stopping chan struct{}
}

// NewServer listens where cfg says. Calls must come from the cluster of that name.
// Connections wait until Run. The caller has asked Check whether cfg will do.
func NewServer(cfg Config, security *Security, cluster string, logger *slog.Logger, reg prometheus.Registerer) (*Server, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	address, err := resolve(cfg)
	if err != nil {
		return nil, err
	}
	listen := net.ListenConfig{KeepAliveConfig: keepAlive()}
	listener, err := listen.Listen(context.Background(), "tcp", address.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; stop what listens there, or choose another with --grpc.listen-address", cfg.ListenAddress, err)
	}
	metrics := newServerMetrics(reg, security.files)
	s := &Server{logger: logger, listener: listener, health: health.NewServer(), stopping: make(chan struct{})}
	g := &guard{cluster: cluster, logger: logger, metrics: metrics, stopping: s.stopping}
	s.grpc = grpc.NewServer(
		grpc.Creds(newWitness(security, logger, metrics.handshakes)),
		grpc.UnaryInterceptor(g.unary),
		grpc.StreamInterceptor(g.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ConnectionTimeout(pingTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter / 2, PermitWithoutStream: true}),
		// Run returns when nothing uses what the handlers use.
		grpc.WaitForHandlers(true),
	)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	return s, nil
}

func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: tcpIdle, Interval: tcpInterval, Count: int(pingTimeout / tcpInterval)}
}

// Registrar is where services are registered, before Run.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.grpc }

// Address is where s listens: the configured address, with the port that was chosen
// if that was 0.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Close ends listening. It is for a Server that Run is never called on.
func (s *Server) Close() error { return closeListener(s.listener) }

// Run serves until ctx ends. Then it takes no more calls, lets streams on which peers
// send end after the message at hand, gives running calls 10 s to finish and cuts off
// the rest. It returns when all handlers have.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.listener) }()
	select {
	case err := <-served:
		s.grpc.Stop()
		return fmt.Errorf("serve gRPC on %s: %w", s.Address(), err)
	case <-ctx.Done():
	}

	s.health.Shutdown()
	close(s.stopping)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.grpc.GracefulStop()
	}()
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	select {
	case <-finished:
	case <-timeout.C:
		s.logger.Warn("Calls did not finish in time and are cut off.", "timeout", drainTimeout)
		s.grpc.Stop()
		<-finished
	}
	// Serve returns nil after a stop, also if it comes before Serve has begun; then it
	// has not closed the listener.
	if err := errors.Join(<-served, closeListener(s.listener)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("stop gRPC on %s: %w", s.Address(), err)
	}
	return nil
}

func closeListener(listener net.Listener) error {
	if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// witness logs and counts who could not prove that it is a peer.
type witness struct {
	credentials.TransportCredentials
	security *Security
	logger   *slog.Logger
	failures prometheus.Counter
	refused  *sparse.Lines // of logs of failures
	broken   *sparse.Lines // of logs of files that cannot be loaded
}

func newWitness(security *Security, logger *slog.Logger, failures prometheus.Counter) *witness {
	return &witness{
		TransportCredentials: security.server,
		security:             security,
		logger:               logger,
		failures:             failures,
		refused:              &sparse.Lines{},
		broken:               &sparse.Lines{},
	}
}

// ServerHandshake implements credentials.TransportCredentials.
func (w *witness) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ServerHandshake(raw)
	if w.security.files != nil {
		w.reportFiles()
	}
	// Who connects and leaves without a word, as probes of ports do, tries nothing.
	if err != nil && !errors.Is(err, io.EOF) {
		w.failures.Inc()
		if unsaid, ok := w.refused.Allow(); ok {
			w.logger.Warn("A connection was refused: the other side could not prove that it is a peer. If it is one, its cluster.secret_file or grpc.tls differs from this node's.",
				"peer", raw.RemoteAddr().String(), "err", err, "protected_by", w.security.String(), "not_logged", unsaid)
		}
	}
	return conn, info, err
}

func (w *witness) reportFiles() {
	fault := w.security.files.fault()
	if fault == nil {
		return
	}
	if unsaid, ok := w.broken.Allow(); ok {
		w.logger.Error("The certificates of grpc.tls cannot be loaded; those loaded before stay in force.", "err", fault, "not_logged", unsaid)
	}
}

// Clone implements credentials.TransportCredentials.
func (w *witness) Clone() credentials.TransportCredentials {
	clone := *w
	clone.TransportCredentials = w.TransportCredentials.Clone()
	return &clone
}
