package cluster

import (
	"context"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	clusterv1 "github.com/hundredfold/hundredfold/proto/cluster/v1"
)

// pipes are gRPC connections in memory, by address.
type pipes map[string]*bufconn.Listener

func (p pipes) Conn(address string) (grpc.ClientConnInterface, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			listener, ok := p[address]
			if !ok {
				return nil, errUnreachable
			}
			return listener.DialContext(ctx)
		}))
}

// closing closes the connections that it yields when the test ends.
type closing struct {
	t testing.TB
	Conns
}

func (c closing) Conn(address string) (grpc.ClientConnInterface, error) {
	conn, err := c.Conns.Conn(address)
	if closer, ok := conn.(*grpc.ClientConn); ok {
		c.t.Cleanup(func() { require.NoError(c.t, closer.Close()) })
	}
	return conn, err
}

// serve runs the node, and its gRPC server at address if listener is not nil.
func serve(t testing.TB, node *Node, listener net.Listener) {
	t.Helper()
	server := grpc.NewServer()
	node.Register(server)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	if listener != nil {
		go func() { _ = server.Serve(listener) }()
	}
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		server.Stop()
	})
}

func await(t testing.TB, n *Node, cond func(*View) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		changed := n.Changed()
		if cond(n.View()) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("never: %+v", n.Status())
		}
	}
}

func TestListedPeersExchangeRegistriesByGRPC(t *testing.T) {
	listeners := pipes{"a:9095": bufconn.Listen(1 << 16), "b:9095": bufconn.Listen(1 << 16)}
	open := func(id string) *Node {
		cfg := DefaultConfig()
		cfg.Zone = id
		cfg.Peers = []string{"a:9095", "b:9095"}
		tune := defaultTuning()
		tune.patience, tune.settle = time.Millisecond, 100*time.Millisecond
		n, err := open(t.Context(), cfg, Deps{
			ID: id, Roles: []Role{RoleIngester}, GRPC: id + ":9095", Dir: t.TempDir(), Conns: closing{t, listeners},
		}, tune)
		require.NoError(t, err)
		serve(t, n, listeners[id+":9095"])
		return n
	}
	a, b := open("a"), open("b")
	require.NoError(t, a.SetState(t.Context(), Active))
	require.NoError(t, b.SetState(t.Context(), Active))
	for _, n := range []*Node{a, b} {
		await(t, n, func(v *View) bool { return agreed(2)(v) && len(v.Placement.Members()) == 2 })
	}
	require.Equal(t, a.View().Placement.Hash(), b.View().Placement.Hash())
}

func TestNodesGossipOverTheNetwork(t *testing.T) {
	open := func(id string, join ...string) *Node {
		cfg := DefaultConfig()
		cfg.Zone = id
		cfg.Gossip.ListenAddress, cfg.Gossip.Join = "127.0.0.1:0", join
		tune := defaultTuning()
		tune.settle = 100 * time.Millisecond
		n, err := open(t.Context(), cfg, Deps{
			ID: id, Roles: []Role{RoleIngester}, GRPC: id + ":9095", Dir: t.TempDir(), Conns: closing{t, pipes{}},
			Secret: []byte("a secret that both of them share"),
		}, tune)
		require.NoError(t, err)
		serve(t, n, nil)
		require.NoError(t, n.SetState(t.Context(), Active))
		return n
	}
	a := open("a")
	b := open("b", a.gossip.address())
	for _, n := range []*Node{a, b} {
		await(t, n, func(v *View) bool { return len(v.Peers) == 2 && len(v.Placement.Members()) == 2 })
	}
	require.Equal(t, a.View().Placement.Hash(), b.View().Placement.Hash())
}

func TestExchangeRefusesWhatItCannotRead(t *testing.T) {
	scene(t, func(t *testing.T, w *network) {
		a := w.ingester(1, "a", "z").start()
		server := exchangeServer{node: a.node}
		_, err := server.Exchange(t.Context(), &clusterv1.ExchangeRequest{Node: []byte{9}})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		// Damaged records are dropped; who sends them is answered all the same.
		stranger := process{Peer: Peer{ID: "s", Incarnation: 1}}
		resp, err := server.Exchange(t.Context(), &clusterv1.ExchangeRequest{Node: stranger.encode(nil), Registry: []byte{codecVersion, 99}})
		require.NoError(t, err)
		records, err := Decode(resp.GetRegistry())
		require.NoError(t, err)
		require.Len(t, records, 1)
		// Who agrees is told nothing.
		stranger.View = a.node.hash()
		resp, err = server.Exchange(t.Context(), &clusterv1.ExchangeRequest{Node: stranger.encode(nil)})
		require.NoError(t, err)
		require.Empty(t, resp.GetRegistry())
		a.stop()
	})
}

// Clocks of different nodes differ, so that no node may go by another's.
func TestNothingThatNodesTellEachOtherIsATime(t *testing.T) {
	for _, told := range []any{Record{}, process{}, Peer{}, Placed{}} {
		typ := reflect.TypeOf(told)
		for i := range typ.NumField() {
			require.NotContains(t, typ.Field(i).Type.String(), "time.", "%s.%s", typ, typ.Field(i).Name)
		}
	}
}
