package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/hundredfold/hundredfold/proto/cluster/v1"
)

// network connects nodes in memory, so that tests run on synctest's clock. Each node
// has a host; hosts can be cut off from each other.
type network struct {
	t  testing.TB
	mu struct {
		sync.Mutex
		hosts map[string]*host     // by IP
		sides map[string]int       // by IP; hosts of different sides don't reach each other
		nodes map[string]*testNode // by gRPC address
		known map[string]*prometheus.Registry
	}
}

func newNetwork(t testing.TB) *network {
	w := &network{t: t}
	w.mu.hosts, w.mu.sides, w.mu.nodes = map[string]*host{}, map[string]int{}, map[string]*testNode{}
	return w
}

// scene runs f on a clock of its own, which jumps on whenever everybody waits.
func scene(t *testing.T, f func(t *testing.T, w *network)) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork(t)
		defer pass(time.Minute) // memberlist ends pings and streams that are under way
		defer w.end()
		f(t, w)
	})
}

// end stops what a test that failed left running.
func (w *network) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.mu.nodes {
		n.cancel()
	}
}

// pass lets time pass on a scene's clock.
func pass(d time.Duration) { <-time.After(d) }

// host is the transport of one process. It implements memberlist.Transport.
type host struct {
	net     *network
	ip      string
	packets chan *memberlist.Packet
	streams chan net.Conn
}

func (w *network) host(ip string) *host {
	h := &host{net: w, ip: ip, packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 64)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.hosts[ip] = h
	return h
}

var errUnreachable = errors.New("unreachable")

// reach returns the host at ip, if from reaches it.
func (w *network) reach(from *host, ip string) (*host, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to := w.mu.hosts[ip]
	if to == nil || w.mu.hosts[from.ip] != from || w.mu.sides[ip] != w.mu.sides[from.ip] {
		return nil, errUnreachable
	}
	return to, nil
}

// cut puts hosts on a side of their own; without any it heals all partitions.
func (w *network) cut(ips ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.mu.sides)
	for _, ip := range ips {
		w.mu.sides[ip] = 1
	}
}

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.ParseIP(h.ip).To4(), 7946, nil
}
func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }
func (h *host) StreamCh() <-chan net.Conn           { return h.streams }

func (h *host) WriteTo(b []byte, addr string) (time.Time, error) {
	ip, _, err := net.SplitHostPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	if to, err := h.net.reach(h, ip); err == nil {
		select {
		case to.packets <- &memberlist.Packet{Buf: append([]byte(nil), b...), From: &net.UDPAddr{IP: net.ParseIP(h.ip), Port: 7946}, Timestamp: time.Now()}:
		default: // as UDP does
		}
	}
	return time.Now(), nil
}

func (h *host) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	ip, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	to, err := h.net.reach(h, ip)
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	to.streams <- theirs
	return ours, nil
}

func (h *host) Shutdown() error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.mu.hosts[h.ip] == h {
		delete(h.net.mu.hosts, h.ip)
	}
	return nil
}

// conns are the connections of one process.
type conns struct {
	net  *network
	from string
}

func (c conns) Conn(address string) (grpc.ClientConnInterface, error) {
	return conn{conns: c, to: address}, nil
}

type conn struct {
	conns
	to string
}

// Invoke calls the node that serves at c.to. Messages go through their encoding, as
// on the wire.
func (c conn) Invoke(ctx context.Context, _ string, args, reply any, _ ...grpc.CallOption) error {
	c.net.mu.Lock()
	n := c.net.mu.nodes[c.to]
	reachable := n != nil && n.node != nil && c.net.mu.sides[n.ip] == c.net.mu.sides[c.from]
	c.net.mu.Unlock()
	if !reachable {
		return status.Error(codes.Unavailable, "connection refused")
	}
	req := proto.Clone(args.(proto.Message)).(*clusterv1.ExchangeRequest)
	resp, err := exchangeServer{node: n.node}.Exchange(ctx, req)
	if err != nil {
		return err
	}
	proto.Merge(reply.(proto.Message), resp)
	return nil
}

func (conn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams here")
}

// testNode is a process with its data directory.
type testNode struct {
	net  *network
	t    testing.TB
	cfg  Config
	deps Deps
	tune tuning
	ip   string
	node *Node
	log  *logBuffer

	cancel context.CancelFunc
	ended  chan error
}

type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, line...)
	return len(line), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// ingester returns a process that is not started yet. i is its number: that of its
// host, too. It joins by the host 1, unless it is that itself.
func (w *network) ingester(i int, id, zone string) *testNode {
	n := &testNode{net: w, t: w.t, ip: fmt.Sprintf("10.0.0.%d", i), log: &logBuffer{}, tune: defaultTuning()}
	n.cfg = DefaultConfig()
	n.cfg.Zone = zone
	n.cfg.Gossip.Join = []string{"10.0.0.1:7946"}
	n.deps = Deps{
		ID: id, Generation: uint64(i), Roles: []Role{RoleIngester}, GRPC: fmt.Sprintf("%s:9095", n.ip), HTTP: fmt.Sprintf("%s:9009", n.ip),
		Dir: filepath.Join(w.t.TempDir(), id), Conns: conns{net: w, from: n.ip},
		Logger: slog.New(slog.NewTextHandler(io.Writer(n.log), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return n
}

// open starts the process and returns what Open says.
func (n *testNode) open() error {
	n.tune.transport = n.net.host(n.ip)
	n.deps.Registerer = prometheus.NewRegistry()
	node, err := open(context.Background(), n.cfg, n.deps, n.tune)
	if err != nil {
		return err
	}
	n.net.mu.Lock()
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.ended = make(chan error, 1)
	n.node = node
	n.net.mu.nodes[n.deps.GRPC] = n
	n.net.mu.Unlock()
	go func() { n.ended <- node.Run(ctx) }()
	return nil
}

// start opens the process and takes it to Active, if it is an ingester.
func (n *testNode) start() *testNode {
	n.t.Helper()
	require.NoError(n.t, n.open())
	if n.node.self.Runs(RoleIngester) {
		require.NoError(n.t, n.node.SetState(context.Background(), Active))
	}
	return n
}

// end waits for the process's end, however that comes about.
func (n *testNode) end() error {
	err := <-n.ended
	n.cancel()
	n.net.mu.Lock()
	if n.net.mu.nodes[n.deps.GRPC] == n {
		delete(n.net.mu.nodes, n.deps.GRPC)
	}
	n.net.mu.Unlock()
	return err
}

// stop ends the process by plan.
func (n *testNode) stop() {
	n.t.Helper()
	n.cancel()
	require.NoError(n.t, n.end())
}

// kill ends the process without a word. Its disk holds what it held before.
func (n *testNode) kill() {
	n.t.Helper()
	n.net.mu.Lock()
	delete(n.net.mu.hosts, n.ip)
	n.net.mu.Unlock()
	file := filepath.Join(n.deps.Dir, registryFile)
	before, err := os.ReadFile(file)
	require.NoError(n.t, err)
	n.node.leaving.Store(true)
	n.cancel()
	require.NoError(n.t, n.end())
	require.NoError(n.t, os.WriteFile(file, before, 0o600))
}

// until waits until the node's view is as cond wants it.
func (n *testNode) until(what string, cond func(v *View) bool) {
	n.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		changed := n.node.Changed()
		if cond(n.node.View()) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			n.t.Fatalf("%s: %s: never; the registry is %+v, the peers are %+v\n%s", n.deps.ID, what, n.node.View().Registry.Records(), n.node.View().Peers, n.log)
		}
	}
}

// state returns what the node knows of an ingester's state, 0 if nothing.
func (n *testNode) state(id string) State {
	rec, _ := n.node.registry().Get(id)
	return rec.State
}

func alive(ids ...string) func(v *View) bool {
	return func(v *View) bool {
		for _, id := range ids {
			if _, ok := v.Peer(id); !ok {
				return false
			}
		}
		return len(v.Peers) == len(ids)
	}
}

func in(s State, ids ...string) func(v *View) bool {
	return func(v *View) bool {
		for _, id := range ids {
			if rec, _ := v.Registry.Get(id); rec.State != s {
				return false
			}
		}
		return true
	}
}

// agreed says that all live processes of a view, so many, know what it knows.
func agreed(processes int) func(v *View) bool {
	return func(v *View) bool {
		for _, p := range v.Peers {
			if p.View != v.Self.View {
				return false
			}
		}
		return len(v.Peers) == processes
	}
}
