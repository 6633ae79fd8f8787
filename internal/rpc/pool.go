package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// connectTimeout bounds an attempt to connect, handshake included. It is also the
	// longest that the first call to an address waits where nothing answers; later ones
	// fail at once until it does.
	connectTimeout = 3 * time.Second
	// maxBackoff bounds the pause between attempts, so that a peer that comes back is
	// found at once: it costs a dead one's address a packet per second.
	maxBackoff = time.Second
	// idleAfter is how long a connection without calls lasts.
	idleAfter = 5 * time.Minute
	// forgetAfter is how long an address is kept that nobody calls. It is more than
	// idleAfter.
	forgetAfter = 15 * time.Minute
)

// errPoolClosed says that a call came after Close.
var errPoolClosed = status.Error(codes.Canceled, "the pool of connections is closed")

// Pool has one connection to each peer that is called. Connections are made at the
// first call, kept, made again when they break, and dropped when nobody has called for
// long. Safe for concurrent use.
type Pool struct {
	security *Security
	cluster  string
	logger   *slog.Logger
	metrics  *clientMetrics

	mu struct {
		sync.Mutex
		closed bool
		peers  map[string]*pooled
	}
}

// pooled is the connection to an address.
type pooled struct {
	conn   *grpc.ClientConn
	called time.Time // when it was last asked for
}

// NewPool returns an empty Pool. Its calls say that they come from the cluster of
// that name.
func NewPool(security *Security, cluster string, logger *slog.Logger, reg prometheus.Registerer) *Pool {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{security: security, cluster: cluster, logger: logger, metrics: newClientMetrics(reg)}
	p.mu.peers = map[string]*pooled{}
	return p
}

// Conn returns a connection to address, which is host:port. It never blocks and does
// not connect: the first call does. Calls fail with codes.Unavailable as soon as it is
// known that nobody answers there, rather than wait for somebody who does. A unary
// call without a deadline gets one of a minute.
//
// What is returned is good until Close and may be kept.
func (p *Pool) Conn(address string) (grpc.ClientConnInterface, error) {
	if _, err := p.get(address); err != nil {
		return nil, err
	}
	return &conn{pool: p, address: address}, nil
}

// get returns the connection to address as it is now.
func (p *Pool) get(address string) (*grpc.ClientConn, error) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, errPoolClosed
	}
	if known, ok := p.mu.peers[address]; ok {
		known.called = now
		return known.conn, nil
	}
	p.forgetLocked(now)
	made, err := grpc.NewClient("passthrough:///"+address, p.options()...)
	if err != nil {
		return nil, err
	}
	p.mu.peers[address] = &pooled{conn: made, called: now}
	p.metrics.peers.Set(float64(len(p.mu.peers)))
	return made, nil
}

// forgetLocked drops addresses that nobody calls, which peers leave behind that come
// back at other addresses. An idle connection has no calls. Closing it does not block.
func (p *Pool) forgetLocked(now time.Time) {
	for address, known := range p.mu.peers {
		if now.Sub(known.called) < forgetAfter || known.conn.GetState() != connectivity.Idle {
			continue
		}
		delete(p.mu.peers, address)
		if err := known.conn.Close(); err != nil {
			p.logger.Warn("A connection that nobody uses could not be closed.", "peer", address, "err", err)
		}
	}
}

// Close ends all calls and connections.
func (p *Pool) Close() error {
	p.mu.Lock()
	peers := p.mu.peers
	p.mu.peers, p.mu.closed = nil, true
	p.mu.Unlock()
	p.metrics.peers.Set(0)
	var errs []error
	for _, known := range peers {
		errs = append(errs, known.conn.Close())
	}
	return errors.Join(errs...)
}

func (p *Pool) options() []grpc.DialOption {
	dialer := &net.Dialer{KeepAliveConfig: keepAlive()}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(p.security.client),
		// The dialer resolves names at each attempt, where a resolver of the library
		// would hold on to addresses; and no proxy of the environment gets between peers.
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithIdleTimeout(idleAfter),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}
}

// conn is a grpc.ClientConnInterface to an address, whichever connection leads there
// at the time of a call.
type conn struct {
	pool    *Pool
	address string
}

// Invoke implements grpc.ClientConnInterface.
func (c *conn) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	to, err := c.pool.get(c.address)
	if err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
	}
	err = to.Invoke(c.introduce(ctx), method, args, reply, options...)
	c.pool.metrics.calls.WithLabelValues(method, code(err).String()).Inc()
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, options ...grpc.CallOption) (grpc.ClientStream, error) {
	to, err := c.pool.get(c.address)
	if err != nil {
		return nil, err
	}
	stream, err := to.NewStream(c.introduce(ctx), desc, method, options...)
	c.pool.metrics.calls.WithLabelValues(method, code(err).String()).Inc()
	return stream, err
}

// introduce says with a call which cluster it comes from.
func (c *conn) introduce(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, clusterHeader, c.pool.cluster)
}
