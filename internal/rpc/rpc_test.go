package rpc

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/hundredfold/hundredfold/proto/cluster/v1"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	secret      = "a secret that is long enough"
	otherSecret = "a secret that somebody else has"
)

// echo answers with what it is sent, unless it is told otherwise.
type echo struct {
	clusterv1.UnimplementedClusterServiceServer
	ingestv1.UnimplementedIngestServiceServer
	exchange func(context.Context, *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error)
	push     func(ingestv1.IngestService_PushServer) error
}

func (e *echo) Exchange(ctx context.Context, request *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error) {
	if e.exchange != nil {
		return e.exchange(ctx, request)
	}
	return &clusterv1.ExchangeResponse{Node: request.GetNode()}, nil
}

func (e *echo) Push(stream ingestv1.IngestService_PushServer) error {
	if e.push != nil {
		return e.push(stream)
	}
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the caller sends no more, or is gone
		}
		if err := stream.Send(&ingestv1.PushResponse{Id: request.GetId()}); err != nil {
			return err
		}
	}
}

// node is a running Server.
type node struct {
	*Server
	registry *prometheus.Registry
	log      *buffer
	stop     func() error
}

// buffer is a bytes.Buffer that is safe for concurrent use.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func loopback() Config { return Config{ListenAddress: "127.0.0.1:0"} }

func secured(t testing.TB, cfg Config, secret string) *Security {
	t.Helper()
	security, err := NewSecurity(cfg, []byte(secret))
	require.NoError(t, err)
	return security
}

func serve(t testing.TB, cfg Config, security *Security, service *echo) *node {
	t.Helper()
	n := &node{registry: prometheus.NewRegistry(), log: &buffer{}}
	var err error
	n.Server, err = NewServer(cfg, security, "prod", slog.New(slog.NewTextHandler(n.log, nil)), n.registry)
	require.NoError(t, err)
	clusterv1.RegisterClusterServiceServer(n.Registrar(), service)
	ingestv1.RegisterIngestServiceServer(n.Registrar(), service)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { require.NoError(t, n.stop()) })
	return n
}

func pool(t testing.TB, security *Security, cluster string) *Pool {
	t.Helper()
	p := NewPool(security, cluster, nil, nil)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// call calls the server at address and returns what it answers.
func call(t testing.TB, p *Pool, address, what string) (string, error) {
	t.Helper()
	conn, err := p.Conn(address)
	require.NoError(t, err)
	response, err := clusterv1.NewClusterServiceClient(conn).Exchange(t.Context(), &clusterv1.ExchangeRequest{Node: []byte(what)})
	return string(response.GetNode()), err
}

func requireCode(t testing.TB, want codes.Code, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want.String(), status.Code(err).String(), "%v", err)
}

func TestPeersWithTheSameSecretCallEachOther(t *testing.T) {
	n := serve(t, loopback(), secured(t, loopback(), secret), &echo{})
	p := pool(t, secured(t, loopback(), secret), "prod")
	answer, err := call(t, p, n.Address(), "hello")
	require.NoError(t, err)
	require.Equal(t, "hello", answer)
	require.Equal(t, 1.0, testutil.ToFloat64(p.metrics.calls.WithLabelValues(clusterv1.ClusterService_Exchange_FullMethodName, "OK")))
	require.NoError(t, n.stop())
	require.NoError(t, testutil.GatherAndCompare(n.registry, strings.NewReader(`
# HELP hundredfold_grpc_requests_total Calls from other nodes answered, by method and gRPC code. A stream counts when it ends.
# TYPE hundredfold_grpc_requests_total counter
hundredfold_grpc_requests_total{code="OK",method="/hundredfold.cluster.v1.ClusterService/Exchange"} 1
`), "hundredfold_grpc_requests_total"))
}

func TestANodeOfAnotherClusterIsToldSoAndLogged(t *testing.T) {
	n := serve(t, loopback(), secured(t, loopback(), secret), &echo{})
	p := pool(t, secured(t, loopback(), secret), "staging")
	for range 3 {
		_, err := call(t, p, n.Address(), "hello")
		requireCode(t, codes.PermissionDenied, err)
		require.ErrorContains(t, err, `the call comes from cluster "staging" and this node belongs to cluster "prod"`)
	}
	conn, err := p.Conn(n.Address())
	require.NoError(t, err)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	requireCode(t, codes.PermissionDenied, err)
	require.Equal(t, 1, strings.Count(n.log.String(), "A node of another cluster called and was refused."), "the log is not flooded")
	require.NoError(t, testutil.GatherAndCompare(n.registry, strings.NewReader(`
# HELP hundredfold_grpc_foreign_calls_total Calls refused because they came from a node of another cluster, by its name.
# TYPE hundredfold_grpc_foreign_calls_total counter
hundredfold_grpc_foreign_calls_total 4
`), "hundredfold_grpc_foreign_calls_total"))
}

func TestAProbeNeedsNoClusterName(t *testing.T) {
	n := serve(t, loopback(), secured(t, loopback(), ""), &echo{})
	p := pool(t, secured(t, loopback(), ""), "")
	direct, err := p.get(n.Address())
	require.NoError(t, err)
	response, err := grpc_health_v1.NewHealthClient(direct).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, response.GetStatus())
	_, err = clusterv1.NewClusterServiceClient(direct).Exchange(t.Context(), &clusterv1.ExchangeRequest{})
	requireCode(t, codes.PermissionDenied, err)
}

func TestAPanicIsAnsweredAndTheServerGoesOn(t *testing.T) {
	service := &echo{
		exchange: func(context.Context, *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error) { panic("unary") },
		push:     func(ingestv1.IngestService_PushServer) error { panic("stream") },
	}
	n := serve(t, loopback(), secured(t, loopback(), secret), service)
	p := pool(t, secured(t, loopback(), secret), "prod")
	_, err := call(t, p, n.Address(), "")
	requireCode(t, codes.Internal, err)
	conn, err := p.Conn(n.Address())
	require.NoError(t, err)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	requireCode(t, codes.Internal, err)
	require.Contains(t, n.log.String(), "panic=unary")
	require.Contains(t, n.log.String(), "panic=stream")
	require.Contains(t, n.log.String(), "rpc_test.go", "the stack says where")
}

func TestMessagesAreBoundedOnBothSides(t *testing.T) {
	service := &echo{exchange: func(_ context.Context, request *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error) {
		return &clusterv1.ExchangeResponse{Node: make([]byte, maxMessage)}, nil
	}}
	n := serve(t, loopback(), secured(t, loopback(), secret), service)
	p := pool(t, secured(t, loopback(), secret), "prod")
	_, err := call(t, p, n.Address(), strings.Repeat("x", maxMessage))
	requireCode(t, codes.ResourceExhausted, err)
	require.ErrorContains(t, err, "trying to send message larger than max")
	_, err = call(t, p, n.Address(), "small")
	requireCode(t, codes.ResourceExhausted, err)
	service.exchange = nil
	large := strings.Repeat("x", maxMessage-100)
	answer, err := call(t, p, n.Address(), large)
	require.NoError(t, err)
	require.True(t, large == answer) //nolint:testifylint // a failure must not print 128 MiB
}

func TestAUnaryCallWithoutADeadlineGetsOne(t *testing.T) {
	left := make(chan time.Duration, 1)
	n := serve(t, loopback(), secured(t, loopback(), secret), &echo{
		exchange: func(ctx context.Context, _ *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error) {
			deadline, _ := ctx.Deadline()
			left <- time.Until(deadline)
			return &clusterv1.ExchangeResponse{}, nil
		},
	})
	_, err := call(t, pool(t, secured(t, loopback(), secret), "prod"), n.Address(), "")
	require.NoError(t, err)
	require.InDelta(t, unaryTimeout.Seconds(), (<-left).Seconds(), 10)
}
