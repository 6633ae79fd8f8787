// Package cluster tests distributor, ingesters and querier together, over gRPC in one
// process: what any of them promises the others is what those rely on.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hundredfold/hundredfold/distributor"
	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	registry "github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
	"github.com/hundredfold/hundredfold/querier/queriertest"
)

const acme tenant.ID = "acme"

func limitsOf(tenant.ID) tenant.Limits { return tenant.DefaultLimits() }

// network is the registry, who is alive, and the connections between all.
type network struct {
	mu      sync.Mutex
	view    *registry.View
	changed chan struct{}
	listen  map[string]*bufconn.Listener
	conns   map[string]*grpc.ClientConn
	others  []registry.Peer // that are no ingesters
}

func newNetwork(t *testing.T) *network {
	n := &network{
		view:    &registry.View{Placement: registry.NewPlacement(3, nil)},
		changed: make(chan struct{}), listen: map[string]*bufconn.Listener{}, conns: map[string]*grpc.ClientConn{},
	}
	t.Cleanup(func() {
		for _, conn := range n.conns {
			require.NoError(t, conn.Close())
		}
	})
	return n
}

// View and Changed make it a Source for all.
func (n *network) View() *registry.View {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

func (n *network) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Conn makes it Conns for all.
func (n *network) Conn(address string) (grpc.ClientConnInterface, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if conn := n.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			n.mu.Lock()
			listener := n.listen[address]
			n.mu.Unlock()
			if listener == nil {
				return nil, errors.New("nobody listens at " + address)
			}
			return listener.DialContext(ctx)
		}))
	if err == nil {
		n.conns[address] = conn
	}
	return conn, err
}

// publish makes a view with a record, in which those without a listener are dead.
func (n *network) publish(t *testing.T, records ...registry.Record) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	merged, _, err := n.view.Registry.Merge(records...)
	require.NoError(t, err)
	next := &registry.View{Registry: merged, Placement: merged.Placement(3), Peers: slices.Clone(n.others)}
	for _, rec := range merged.Records() {
		if n.listen[rec.Address] != nil {
			next.Peers = append(next.Peers, registry.Peer{ID: rec.ID, Roles: []registry.Role{registry.RoleIngester}, GRPC: rec.Address, Incarnation: rec.Incarnation})
		}
	}
	slices.SortFunc(next.Peers, func(a, b registry.Peer) int { return strings.Compare(a.ID, b.ID) })
	n.view = next
	close(n.changed)
	n.changed = make(chan struct{})
}

// node is one ingester and its gRPC server.
type node struct {
	*ingester.Ingester
	rec       registry.Record
	dir       string
	deletions hanging
	stop      func() // of its server
	end       func() // of the ingester itself
}

// world is a cluster of three ingesters, and one process alone that gets the same.
type world struct {
	t       *testing.T
	net     *network
	store   *blockstore.Store
	nodes   []*node
	querier *querier.Querier
	pushed  *queriertest.Storage
	alone   *queriertest.Storage
	metrics *prometheus.Registry // of the distributor
	start   int64
	// skew is how far the clocks of the next ingesters to be opened are ahead.
	skew []time.Duration
	// keep is how long ingesters keep blocks that they have uploaded, at least.
	keep time.Duration
	// seldom says that ingesters and queriers look only rarely at what there is to do.
	seldom bool
	files  *blockstore.Filesystem
}

func newWorld(t *testing.T, skew ...time.Duration) *world {
	w := (&world{t: t, skew: skew}).begin()
	empty, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	own := blockstore.New(empty, nil)
	ing, _ := w.openIngester(own, t.TempDir(), nil)
	w.alone = &queriertest.Storage{Tenant: acme, Queryable: w.newQuerier(querier.Direct(ing), own).Queryable(), Push: ing.Push}
	return w
}

// begin starts the cluster.
func (w *world) begin() *world {
	t := w.t
	files, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	w.net, w.files, w.store = newNetwork(t), files, blockstore.New(files, nil)
	w.metrics = prometheus.NewRegistry()
	w.start = time.Now().Add(-2*time.Hour).UnixMilli() / 60_000 * 60_000
	for i := range 3 {
		w.join(i)
	}
	replicator, err := distributor.NewReplicator(distributor.DefaultReplicatorConfig(), w.net, w.net, limitsOf, nil, w.metrics)
	require.NoError(t, err)
	w.run(replicator.Run)
	require.NoError(t, eventually(replicator.Ready))

	w.querier = w.newQuerier(querier.NewClusterIngester(w.net, w.net, limitsOf, nil, nil), w.store)
	w.pushed = &queriertest.Storage{Tenant: acme, Queryable: w.querier.Queryable(), Push: replicator.Push}
	return w
}

// run runs a component until the test ends, before those that were started earlier end.
func (w *world) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-ended)
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) newQuerier(edge querier.Edge, store *blockstore.Store) *querier.Querier {
	cfg := querier.Default()
	cfg.Dir = filepath.Join(w.t.TempDir(), "querier")
	if w.seldom {
		cfg.RefreshInterval = model.Duration(15 * time.Minute)
	}
	q, err := querier.New(cfg, edge, store, limitsOf, nil, nil)
	require.NoError(w.t, err)
	w.run(q.Run)
	require.NoError(w.t, eventually(q.Ready))
	return q
}

func (w *world) openIngester(store *blockstore.Store, dir string, member *ingester.Member) (ing *ingester.Ingester, end func()) {
	cfg := ingester.DefaultConfig()
	cfg.Dir = dir
	if w.seldom {
		cfg.MaintenanceInterval = 2 * time.Minute
	}
	ahead := time.Duration(0)
	if len(w.skew) > 0 {
		ahead, w.skew = w.skew[0], w.skew[1:]
	}
	ing, err := ingester.Open(w.t.Context(), cfg, ingester.Deps{
		Store: store, Limits: limitsOf, Cluster: member,
		Visible:  func(id tenant.ID, block ulid.ULID) bool { return w.querier != nil && w.querier.Visible(id, block) },
		Uploaded: func(tenant.ID, ulid.ULID) {}, KeepUploaded: w.keep,
		Now: func() time.Time { return time.Now().Add(ahead) },
	})
	require.NoError(w.t, err)
	return ing, w.run(ing.Run)
}

// join adds an ingester to the cluster.
func (w *world) join(i int) *node {
	w.t.Helper()
	rec := registry.Record{
		ID: fmt.Sprintf("i%d", i), Zone: string(rune('a' + i%3)), Rank: i / 3, Address: fmt.Sprintf("i%d:9095", i),
		State: registry.Active, Epoch: 1, Incarnation: 1, Generation: uint64(7 + i),
	}
	n := &node{rec: rec, dir: w.t.TempDir()}
	w.serve(n)
	w.nodes = append(w.nodes, n)
	w.net.publish(w.t, rec)
	return n
}

// serve opens an ingester and its server.
func (w *world) serve(n *node) {
	rec := n.rec
	member := ingester.Member{
		Instance: rec.ID, Generation: rec.Generation,
		Current: func() *registry.Placement { return w.net.View().Placement },
	}
	n.Ingester, n.end = w.openIngester(w.store, n.dir, &member)
	listener, server := bufconn.Listen(1<<20), grpc.NewServer(grpc.UnaryInterceptor(n.deletions.intercept))
	n.Register(server, member)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(listener) }()
	n.stop = sync.OnceFunc(func() { server.Stop(); <-ended })
	w.t.Cleanup(n.stop)
	w.net.mu.Lock()
	w.net.listen[rec.Address] = listener
	w.net.mu.Unlock()
}

// kill makes an ingester unreachable; everybody notices.
func (w *world) kill(n *node) {
	w.t.Helper()
	n.stop()
	w.net.mu.Lock()
	delete(w.net.listen, n.rec.Address)
	w.net.mu.Unlock()
	w.net.publish(w.t)
}

// become moves an ingester through states.
func (w *world) become(n *node, states ...registry.State) {
	w.t.Helper()
	for _, s := range states {
		next, err := n.rec.Next(s)
		require.NoError(w.t, err)
		n.rec = next
		w.net.publish(w.t, next)
	}
}

// write stores the same samples, from one minute to another, in both.
func (w *world) write(from, to int64) {
	w.t.Helper()
	for _, s := range []*queriertest.Storage{w.pushed, w.alone} {
		app := s.AppenderV2(w.t.Context())
		for at := w.start + from*60_000; at < w.start+to*60_000; at += 15_000 {
			for i := range 40 {
				pod := fmt.Sprint(i)
				_, err := app.Append(0, labels.FromStrings("__name__", "requests_total", "pod", pod), 0, at, float64(at%1_000_000+int64(i)), nil, nil, storage.AOptions{})
				require.NoError(w.t, err)
				h := tsdbutil.GenerateTestHistogram(at / 15_000 % 100)
				_, err = app.Append(0, labels.FromStrings("__name__", "latency", "pod", pod), 0, at, 0, h, nil, storage.AOptions{})
				require.NoError(w.t, err)
			}
		}
		require.NoError(w.t, app.Commit())
	}
}

// requireSame requires that the cluster has all that the one process has.
func (w *world) requireSame() {
	w.t.Helper()
	want := samplesOf(w.t, w.alone)
	require.Len(w.t, want, 80)
	for range 3 { // other zones are spared
		require.Equal(w.t, want, samplesOf(w.t, w.pushed))
	}
}

func samplesOf(t *testing.T, s storage.Queryable) map[string][]string {
	t.Helper()
	q, err := s.Querier(0, math.MaxInt64)
	require.NoError(t, err)
	defer q.Close()
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+"))
	out := map[string][]string{}
	for set.Next() {
		name := set.At().Labels().String()
		require.NotContains(t, out, name)
		it := set.At().Iterator(nil)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			if kind == chunkenc.ValFloat {
				at, v := it.At()
				out[name] = append(out[name], fmt.Sprintf("%d %x", at, math.Float64bits(v)))
				continue
			}
			at, h := it.AtHistogram(&histogram.Histogram{})
			out[name] = append(out[name], fmt.Sprintf("%d %s", at, h))
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	return out
}

func eventually(check func() error) error {
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return err
		case <-tick.C:
		}
	}
}

func TestWhatIsAcknowledgedIsReadWithOneIngesterDead(t *testing.T) {
	w := newWorld(t)
	w.write(0, 20)
	w.requireSame()
	w.kill(w.nodes[1])
	w.requireSame()
	w.write(20, 40) // the dead one misses these
	w.requireSame()

	w.kill(w.nodes[2])
	q, err := w.pushed.Querier(0, math.MaxInt64)
	require.NoError(t, err)
	defer q.Close()
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "latency"))
	require.False(t, set.Next())
	require.ErrorContains(t, set.Err(), "recent samples would be incomplete")
	require.ErrorContains(t, set.Err(), "ingester i1: ")
	require.ErrorContains(t, set.Err(), "ingester i2: ")
}

func TestReadsSeeEverythingWhileBlocksMoveToTheBucket(t *testing.T) {
	w := newWorld(t)
	w.write(0, 30)
	require.NoError(t, w.nodes[0].Flush(t.Context(), acme))
	w.requireSame()
	w.write(30, 60)
	for _, n := range w.nodes {
		require.NoError(t, n.Flush(t.Context(), acme))
		for _, block := range n.LocalBlocks(acme) {
			w.querier.BlockUploaded(acme, block)
		}
		w.requireSame()
	}
	w.write(60, 70)
	w.requireSame()
}

func TestIngestersJoinAndDrainWithoutAGap(t *testing.T) {
	w := newWorld(t)
	w.write(0, 20)
	for i := 3; i < 5; i++ {
		w.join(i)
		w.requireSame()
	}
	w.write(20, 40)
	w.requireSame()
	for _, n := range []*node{w.nodes[3], w.nodes[0]} {
		w.become(n, registry.Draining)
		w.requireSame()
		w.write(40, 50) // again for the second one: nothing changes
		confirm := func(_ context.Context, id tenant.ID, blocks []ulid.ULID) ([]ulid.ULID, error) {
			for _, block := range blocks {
				w.querier.BlockUploaded(id, block)
			}
			return slices.DeleteFunc(slices.Clone(blocks), func(b ulid.ULID) bool { return !w.querier.Visible(id, b) }), nil
		}
		require.NoError(t, n.Drain(t.Context(), confirm, func(ingester.DrainProgress) {}))
		w.requireSame()
		w.become(n, registry.Left)
		w.kill(n)
		w.requireSame()
	}
	w.write(50, 60)
	w.requireSame()
}

// The sender's clock makes the timestamps; those of the ingesters, ten minutes apart
// both ways, decide nothing about what is stored, moved and found.
func TestClocksMayDifferByTenMinutes(t *testing.T) {
	w := newWorld(t, -10*time.Minute, 0, 10*time.Minute)
	w.write(0, 60)
	w.requireSame()
	w.write(60, 125) // up to five minutes ahead of here, fifteen of the first
	w.requireSame()
	for _, n := range w.nodes {
		require.NoError(t, n.Flush(t.Context(), acme))
		w.requireSame()
	}
	w.kill(w.nodes[1]) // the one whose clock is right
	w.requireSame()
}
