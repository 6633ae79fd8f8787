package querier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// replica is an ingester of a cluster: real TSDBs behind a real gRPC server, whose
// policies the test decides.
type replica struct {
	queryv1.UnimplementedRecentServiceServer
	*edge
	rec      cluster.Record
	server   *grpc.Server
	listener *bufconn.Listener

	mu struct {
		sync.Mutex
		asked      int
		before     func(context.Context) error // of each answer; nil: nothing
		placements []wire.PlacementRef
		defined    map[uint64]*cluster.Placement
		heldFrom   int64
		blocks     []ulid.ULID
		heldMin    int64
	}
}

func (r *replica) set(change func(*replica)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// answers makes the replica do something before each answer.
func (r *replica) answers(before func(context.Context) error) {
	r.set(func(r *replica) { r.mu.before = before })
}

func (r *replica) timesAsked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.asked
}

func (r *replica) holding(ctx context.Context) (*queryv1.Holding, error) {
	r.mu.Lock()
	r.mu.asked++
	before := r.mu.before
	h := wire.Holding{
		Instance: r.rec.ID, Generation: r.rec.Generation,
		Placements: r.mu.placements, HeldFrom: r.mu.heldFrom, Blocks: r.mu.blocks, HeldMin: r.mu.heldMin,
	}
	r.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return nil, wire.GRPCError(err)
		}
	}
	return wire.HoldingToProto(h), nil
}

func (r *replica) Select(req *queryv1.SelectRequest, stream grpc.ServerStreamingServer[queryv1.SelectResponse]) error {
	holding, err := r.holding(stream.Context())
	if err != nil {
		return err
	}
	if err := stream.Send(&queryv1.SelectResponse{Holding: holding}); err != nil {
		return err
	}
	matchers, err := wire.MatchersFromProto(req.GetMatchers())
	if err != nil {
		return wire.GRPCError(err)
	}
	q, err := r.ChunkQuerier(tenant.ID(req.GetTenant()), req.GetMinMs(), req.GetMaxMs())
	if err != nil {
		return err
	}
	defer q.Close()
	hints := &storage.SelectHints{Start: req.GetMinMs(), End: req.GetMaxMs(), Limit: int(req.GetLimit()), DisableTrimming: true}
	if req.GetLabelsOnly() {
		hints.Func = seriesFunc
	}
	set := q.Select(stream.Context(), true, hints, matchers...)
	var w frame.SelectWriter
	var it chunks.Iterator
	for set.Next() {
		var metas []chunks.Meta
		if !req.GetLabelsOnly() {
			for it = set.At().Iterator(it); it.Next(); {
				metas = append(metas, it.At())
			}
		}
		if err := w.Add(set.At().Labels(), metas); err != nil {
			return err
		}
		if w.Len() > 2000 {
			if err := stream.Send(&queryv1.SelectResponse{Frame: slices.Clone(w.Bytes())}); err != nil {
				return err
			}
			w.Reset()
		}
	}
	if err := set.Err(); err != nil {
		return err
	}
	return stream.Send(&queryv1.SelectResponse{Frame: slices.Clone(w.Bytes())})
}

func (r *replica) Labels(ctx context.Context, req *queryv1.LabelsRequest) (*queryv1.LabelsResponse, error) {
	holding, err := r.holding(ctx)
	if err != nil {
		return nil, err
	}
	matchers, err := wire.MatchersFromProto(req.GetMatchers())
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	q, err := r.Querier(tenant.ID(req.GetTenant()), req.GetMinMs(), req.GetMaxMs())
	if err != nil {
		return nil, err
	}
	defer q.Close()
	hints := &storage.LabelHints{Limit: int(req.GetLimit())}
	var values []string
	if req.GetName() == "" {
		values, _, err = q.LabelNames(ctx, hints, matchers...)
	} else {
		values, _, err = q.LabelValues(ctx, req.GetName(), hints, matchers...)
	}
	return &queryv1.LabelsResponse{Holding: holding, Values: values}, err
}

func (r *replica) Exemplars(ctx context.Context, req *queryv1.ExemplarsRequest) (*queryv1.ExemplarsResponse, error) {
	holding, err := r.holding(ctx)
	if err != nil {
		return nil, err
	}
	selectors, err := wire.SelectorsFromProto(req.GetSelectors())
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	q, err := r.ExemplarQuerier(ctx, tenant.ID(req.GetTenant()))
	if err != nil {
		return nil, err
	}
	found, err := q.Select(req.GetMinMs(), req.GetMaxMs(), selectors...)
	return &queryv1.ExemplarsResponse{Holding: holding, Series: wire.ExemplarsToProto(found)}, err
}

func (r *replica) Metadata(ctx context.Context, req *queryv1.MetadataRequest) (*queryv1.MetadataResponse, error) {
	holding, err := r.holding(ctx)
	if err != nil {
		return nil, err
	}
	return &queryv1.MetadataResponse{
		Holding: holding, Metadata: wire.MetadataToProto(r.edge.Metadata(tenant.ID(req.GetTenant()), req.GetMetric())),
	}, nil
}

func (r *replica) Stats(ctx context.Context, req *queryv1.StatsRequest) (*queryv1.StatsResponse, error) {
	holding, err := r.holding(ctx)
	if err != nil {
		return nil, err
	}
	stats, _ := r.edge.Stats(tenant.ID(req.GetTenant()), req.GetLabel(), int(req.GetLimit()))
	answer := wire.StatsToProto(stats)
	answer.Holding = holding
	return answer, nil
}

func (r *replica) Placements(_ context.Context, req *queryv1.PlacementsRequest) (*queryv1.PlacementsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := &queryv1.PlacementsResponse{}
	for _, hash := range req.GetHashes() {
		if p := r.mu.defined[hash]; p != nil {
			answer.Definitions = append(answer.Definitions, p.Encode(nil))
		}
	}
	return answer, nil
}

// clusterRig is a rig whose Querier asks the replicas of a cluster.
type clusterRig struct {
	*rig
	recent   *ClusterIngester
	replicas []*replica
	rf       int

	mu struct {
		sync.Mutex
		view    *cluster.View
		changed chan struct{}
		conns   map[string]*grpc.ClientConn
	}
}

// newClusterRig returns a cluster of n ingesters in three zones.
func newClusterRig(t testing.TB, rf, n int) *clusterRig {
	t.Helper()
	c := &clusterRig{rf: rf}
	c.mu.changed = make(chan struct{})
	c.mu.conns = map[string]*grpc.ClientConn{}
	t.Cleanup(func() {
		for _, conn := range c.mu.conns {
			require.NoError(t, conn.Close())
		}
		for _, r := range c.replicas {
			r.server.Stop()
		}
	})
	c.mu.view = &cluster.View{Placement: cluster.NewPlacement(rf, nil)}
	c.recent = NewClusterIngester(c, c, func(tenant.ID) tenant.Limits { return *c.limits }, nil, nil)
	c.rig = newRig(t, rigOption{edge: c.recent})
	for i := range n {
		c.join(t, i, cluster.Active)
	}
	return c
}

// View and Changed make it a cluster.Source.
func (c *clusterRig) View() *cluster.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.view
}

func (c *clusterRig) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.changed
}

// Conn makes it Conns.
func (c *clusterRig) Conn(address string) (grpc.ClientConnInterface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.mu.conns[address]; conn != nil {
		return conn, nil
	}
	for _, r := range c.replicas {
		if r.rec.Address != address {
			continue
		}
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.listener.DialContext(ctx) }))
		if err != nil {
			return nil, err
		}
		c.mu.conns[address] = conn
		return conn, nil
	}
	return nil, errors.New("nobody listens at " + address)
}

// join adds an ingester.
func (c *clusterRig) join(t testing.TB, i int, state cluster.State) *replica {
	t.Helper()
	r := &replica{
		edge: newEdge(t), server: grpc.NewServer(), listener: bufconn.Listen(1 << 20),
		rec: cluster.Record{
			ID: fmt.Sprintf("i%d", i), Zone: string(rune('a' + i%3)), Rank: i / 3, Address: fmt.Sprintf("i%d:9095", i),
			State: state, Epoch: 1, Incarnation: 1, Generation: uint64(100 + i),
		},
	}
	r.mu.heldFrom = math.MinInt64
	r.mu.defined = map[uint64]*cluster.Placement{}
	queryv1.RegisterRecentServiceServer(r.server, r)
	go func() { _ = r.server.Serve(r.listener) }() // it ends with Stop
	c.replicas = append(c.replicas, r)
	c.update(t, func(*cluster.View) {}, r.rec)
	return r
}

// update makes a new view: with those records, and what change does to who is alive.
func (c *clusterRig) update(t testing.TB, change func(*cluster.View), records ...cluster.Record) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	registry, _, err := c.mu.view.Registry.Merge(records...)
	require.NoError(t, err)
	next := &cluster.View{Registry: registry, Placement: registry.Placement(c.rf)}
	for _, rec := range registry.Records() {
		if rec.State != cluster.Left {
			next.Peers = append(next.Peers, cluster.Peer{ID: rec.ID, Roles: []cluster.Role{cluster.RoleIngester}, GRPC: rec.Address})
		}
	}
	change(next)
	c.mu.view = next
	close(c.mu.changed)
	c.mu.changed = make(chan struct{})
}

// dead is a change by which ingesters are not alive.
func dead(ids ...string) func(*cluster.View) {
	return func(v *cluster.View) {
		v.Peers = slices.DeleteFunc(v.Peers, func(p cluster.Peer) bool { return slices.Contains(ids, p.ID) })
	}
}

// transition moves an ingester through states.
func (c *clusterRig) transition(t testing.TB, r *replica, states ...cluster.State) {
	t.Helper()
	for _, s := range states {
		next, err := r.rec.Next(s)
		require.NoError(t, err)
		r.rec = next
		c.update(t, func(*cluster.View) {}, next)
	}
}

// owners returns the replicas of a series under the current placement.
func (c *clusterRig) owners(t testing.TB, id tenant.ID, ls labels.Labels) []*replica {
	t.Helper()
	hash := hashring.TenantHash(string(id))
	ring, err := c.View().Placement.Ring(hash, c.limits.ShardSize)
	require.NoError(t, err)
	var out []*replica
	for _, at := range ring.Owners(hashring.SlotOf(labels.StableHash(ls), hash)) {
		for _, r := range c.replicas {
			if r.rec.ID == ring.Members()[at].ID {
				out = append(out, r)
			}
		}
	}
	return out
}

// note makes a replica remember the current placement for what it is sent.
func (c *clusterRig) note(r *replica) {
	p := c.View().Placement
	ref := wire.PlacementRef{Hash: p.Hash(), Shard: c.limits.ShardSize}
	r.set(func(r *replica) {
		r.mu.defined[p.Hash()] = p
		if !slices.Contains(r.mu.placements, ref) {
			r.mu.placements = append(r.mu.placements, ref)
		}
	})
}

// writer sends samples to their replicas as a distributor does. Each sample that lost
// says so misses one of its replicas, any.
type writer struct {
	t       testing.TB
	cluster *clusterRig
	id      tenant.ID
	lost    func() bool
	rng     *rand.Rand
	apps    map[*replica]storage.AppenderV2
}

func (c *clusterRig) writer(t testing.TB, id tenant.ID, rng *rand.Rand, lost func() bool) *writer {
	return &writer{t: t, cluster: c, id: id, rng: rng, lost: lost, apps: map[*replica]storage.AppenderV2{}}
}

func (w *writer) add(ls labels.Labels, st, at int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) {
	w.t.Helper()
	owners := w.cluster.owners(w.t, w.id, ls)
	missing := -1
	if len(owners) > 2 && w.lost != nil && w.lost() {
		missing = w.rng.IntN(len(owners))
	}
	for i, r := range owners {
		if i == missing {
			continue
		}
		w.cluster.note(r)
		if w.apps[r] == nil {
			w.apps[r] = r.open(w.id).AppenderV2(context.Background())
		}
		var hCopy *histogram.Histogram
		var fhCopy *histogram.FloatHistogram
		if h != nil {
			hCopy = h.Copy()
		}
		if fh != nil {
			fhCopy = fh.Copy()
		}
		_, err := w.apps[r].Append(0, ls, st, at, v, hCopy, fhCopy, storage.AOptions{})
		require.NoError(w.t, err)
	}
}

func (w *writer) commit() {
	w.t.Helper()
	for r, app := range w.apps {
		require.NoError(w.t, app.Commit())
		delete(w.apps, r)
	}
}

// write stores floats of a metric with so many pods, a sample per minute.
func (c *clusterRig) write(t testing.TB, id tenant.ID, metric string, pods int, mint, maxt int64) {
	t.Helper()
	w := c.writer(t, id, nil, nil)
	for at := mint; at < maxt; at += minute {
		for pod := range pods {
			w.add(labels.FromStrings("__name__", metric, "pod", fmt.Sprint(pod)), 0, at, float64(at), nil, nil)
		}
	}
	w.commit()
}
