package rpc

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/hundredfold/hundredfold/internal/sparse"
)

// healthPrefix begins the methods that probes may call: they know no cluster.
const healthPrefix = "/grpc.health.v1.Health/"

// guard is what every call to a Server goes through.
type guard struct {
	cluster  string
	logger   *slog.Logger
	metrics  *serverMetrics
	foreign  sparse.Lines // of logs of calls of other clusters
	stopping <-chan struct{}
}

// unary is a grpc.UnaryServerInterceptor.
func (g *guard) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	start := time.Now()
	g.metrics.inFlight.Inc()
	defer func() {
		if failure := recover(); failure != nil {
			err = g.panicked(ctx, info.FullMethod, failure)
		}
		g.metrics.inFlight.Dec()
		g.metrics.requests.WithLabelValues(info.FullMethod, code(err).String()).Inc()
		g.metrics.duration.WithLabelValues(info.FullMethod).Observe(time.Since(start).Seconds())
	}()
	if err := g.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
	}
	return handler(ctx, request)
}

// stream is a grpc.StreamServerInterceptor.
func (g *guard) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := time.Now()
	g.metrics.inFlight.Inc()
	defer func() {
		if failure := recover(); failure != nil {
			err = g.panicked(stream.Context(), info.FullMethod, failure)
		}
		g.metrics.inFlight.Dec()
		g.metrics.requests.WithLabelValues(info.FullMethod, code(err).String()).Inc()
		if !info.IsClientStream {
			g.metrics.duration.WithLabelValues(info.FullMethod).Observe(time.Since(start).Seconds())
		}
	}()
	if err := g.admit(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	if !info.IsClientStream {
		return handler(service, stream)
	}
	ending := newEndingStream(stream, g.stopping)
	defer ending.close()
	err = handler(service, ending)
	if err == nil && ending.ended.Load() {
		err = errStopping
	}
	return err
}

// admit refuses the calls of other clusters.
func (g *guard) admit(ctx context.Context, method string) error {
	names := metadata.ValueFromIncomingContext(ctx, clusterHeader)
	switch {
	case len(names) == 1 && names[0] == g.cluster:
		return nil
	case len(names) == 0 && strings.HasPrefix(method, healthPrefix):
		return nil // a probe, which belongs to no cluster
	}
	theirs := strings.Join(names, ", ")
	g.metrics.foreign.Inc()
	if unsaid, ok := g.foreign.Allow(); ok {
		g.logger.Warn("A node of another cluster called and was refused. Correct its cluster.name, or where it looks for peers.",
			"peer", address(ctx), "its_cluster", theirs, "this_cluster", g.cluster, "method", method, "not_logged", unsaid)
	}
	return status.Errorf(codes.PermissionDenied,
		"the call comes from cluster %q and this node belongs to cluster %q: correct cluster.name, or the addresses of the peers", theirs, g.cluster)
}

func (g *guard) panicked(ctx context.Context, method string, failure any) error {
	g.metrics.panics.Inc()
	g.logger.Error("A call panicked and was answered with an internal error. This is a bug; please report it with the stack.",
		"method", method, "peer", address(ctx), "panic", failure, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "the call panicked; the log of the server has the details")
}

func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return "unknown"
}

// code returns what the other side will be told. The library turns the errors of
// contexts that a handler returns into their codes.
func code(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
}
