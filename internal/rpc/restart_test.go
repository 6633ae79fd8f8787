package rpc

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	clusterv1 "github.com/hundredfold/hundredfold/proto/cluster/v1"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

func TestCallsToADeadPeerFailAtOnceAndItsReturnIsNoticedSoon(t *testing.T) {
	security := secured(t, loopback(), secret)
	first := serve(t, loopback(), security, &echo{})
	p := pool(t, security, "prod")
	_, err := call(t, p, first.Address(), "hello")
	require.NoError(t, err)
	require.NoError(t, first.stop())

	// Long enough dead that the pauses between attempts have grown.
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for dead := time.Now(); time.Since(dead) < 2*maxBackoff; <-again.C {
		start := time.Now()
		_, err = call(t, p, first.Address(), "hello")
		requireCode(t, codes.Unavailable, err)
		require.Less(t, time.Since(start), time.Second)
	}

	second := serve(t, Config{ListenAddress: first.Address()}, security, &echo{})
	start := time.Now()
	for ; err != nil; <-again.C {
		_, err = call(t, p, second.Address(), "hello")
		require.Less(t, time.Since(start), 2*maxBackoff)
	}
}

func TestTheFirstCallToAnAddressThatDoesNotAnswerEndsSoon(t *testing.T) {
	// A listener that accepts nobody: the kernel does, and no handshake follows.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	p := pool(t, secured(t, loopback(), secret), "prod")
	start := time.Now()
	_, err = call(t, p, silent.Addr().String(), "hello")
	requireCode(t, codes.Unavailable, err)
	require.Less(t, time.Since(start), 2*connectTimeout)
	start = time.Now()
	_, err = call(t, p, silent.Addr().String(), "hello")
	requireCode(t, codes.Unavailable, err)
	require.Less(t, time.Since(start), connectTimeout/2, "it is known by now")
}

func TestAStopLetsCallsFinish(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	security := secured(t, loopback(), secret)
	n := serve(t, loopback(), security, &echo{
		exchange: func(context.Context, *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error) {
			close(begun)
			<-finish
			return &clusterv1.ExchangeResponse{}, nil
		},
	})
	conn, err := pool(t, security, "prod").Conn(n.Address())
	require.NoError(t, err)
	called := make(chan error, 1)
	go func() {
		_, err := clusterv1.NewClusterServiceClient(conn).Exchange(t.Context(), &clusterv1.ExchangeRequest{})
		called <- err
	}()
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- n.stop() }()
	<-n.stopping
	close(finish)
	require.NoError(t, <-called)
	require.NoError(t, <-stopped)
}

func TestAStopEndsIdleStreamsAtOnceAndAnswersWhatWasTaken(t *testing.T) {
	taken, answer := make(chan struct{}), make(chan struct{})
	security := secured(t, loopback(), secret)
	n := serve(t, loopback(), security, &echo{push: func(stream ingestv1.IngestService_PushServer) error {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		close(taken)
		<-answer
		if err := stream.Send(&ingestv1.PushResponse{Id: request.GetId()}); err != nil {
			return err
		}
		if _, err = stream.Recv(); err == io.EOF { //nolint:errorlint // it is returned as it is
			return nil
		}
		return err
	}})
	conn, err := pool(t, security, "prod").Conn(n.Address())
	require.NoError(t, err)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&ingestv1.PushRequest{Id: 7}))
	<-taken
	start := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- n.stop() }()
	<-n.stopping
	close(answer)
	response, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, uint64(7), response.GetId())
	_, err = stream.Recv()
	requireCode(t, codes.Unavailable, err)
	require.ErrorContains(t, err, "the server is stopping")
	require.NoError(t, <-stopped)
	require.Less(t, time.Since(start), drainTimeout)
}

func TestAStreamThatIsUsedIsNotDisturbed(t *testing.T) {
	security := secured(t, loopback(), secret)
	n := serve(t, loopback(), security, &echo{})
	conn, err := pool(t, security, "prod").Conn(n.Address())
	require.NoError(t, err)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(t.Context())
	require.NoError(t, err)
	for id := range uint64(1000) {
		require.NoError(t, stream.Send(&ingestv1.PushRequest{Id: id}))
		response, err := stream.Recv()
		require.NoError(t, err)
		require.Equal(t, id, response.GetId())
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF, "a stream that the caller ends, ends well")
}

func TestAHandlerMayLeaveAReceiverBehind(t *testing.T) {
	left := make(chan error, 1)
	security := secured(t, loopback(), secret)
	n := serve(t, loopback(), security, &echo{push: func(stream ingestv1.IngestService_PushServer) error {
		first := make(chan struct{})
		go func() {
			for received := 0; ; received++ {
				if _, err := stream.Recv(); err != nil {
					left <- err
					return
				}
				if received == 0 {
					close(first)
				}
			}
		}()
		<-first
		return nil
	}})
	conn, err := pool(t, security, "prod").Conn(n.Address())
	require.NoError(t, err)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&ingestv1.PushRequest{}))
	require.Error(t, <-left)
	_, err = stream.Recv()
	require.ErrorIs(t, err, io.EOF)
}

func TestAServerThatNeverRunsIsClosed(t *testing.T) {
	s, err := NewServer(loopback(), secured(t, loopback(), secret), "prod", nil, nil)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	again, err := NewServer(Config{ListenAddress: s.Address()}, secured(t, loopback(), secret), "prod", nil, nil)
	require.NoError(t, err)
	_, err = NewServer(Config{ListenAddress: s.Address()}, secured(t, loopback(), secret), "prod", nil, nil)
	require.ErrorContains(t, err, "choose another with --grpc.listen-address")
	require.NoError(t, again.Close())
}

func TestAStopBeforeTheServerHasBegunToServeEndsItToo(t *testing.T) {
	s, err := NewServer(loopback(), secured(t, loopback(), secret), "prod", nil, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Run(ctx))
	_, err = net.Dial("tcp", s.Address())
	require.Error(t, err)
}

func TestAClosedPoolCallsNobody(t *testing.T) {
	security := secured(t, loopback(), secret)
	n := serve(t, loopback(), security, &echo{})
	p := NewPool(security, "prod", nil, nil)
	conn, err := p.Conn(n.Address())
	require.NoError(t, err)
	require.NoError(t, p.Close())
	_, err = clusterv1.NewClusterServiceClient(conn).Exchange(t.Context(), &clusterv1.ExchangeRequest{})
	requireCode(t, codes.Canceled, err)
	_, err = p.Conn(n.Address())
	require.ErrorIs(t, err, errPoolClosed)
}
