package distributor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

// replica is an ingester at the other end of a real gRPC connection. It knows series
// once it was told their labels, and forgets them when it restarts.
type replica struct {
	ingestv1.UnimplementedIngestServiceServer
	id string

	mu       sync.Mutex
	server   *grpc.Server
	listener *bufconn.Listener
	known    map[string]map[write.Identity]string // by tenant
	points   map[string]map[string][]write.Sample // by tenant and series
	metadata []string
	labelled int // series that came with labels
	unknown  int // series that it did not know
	requests int
	largest  int             // request, in bytes
	defined  map[uint64]bool // placements, since the start of the stream
	faults   []string        // what it found wrong with requests

	// judge, if set, rejects items.
	judge func(series string, s write.Sample) *write.SeriesError
	// fail, if set, is what all pushes meet.
	fail error
	// hold, if set, keeps answers back until it is closed.
	hold chan struct{}
	// holdLabelled is like hold, for requests with the labels of all series. told are the bytes of their
	// frames, each.
	holdLabelled chan struct{}
	told         []int
	// twist, if set, changes answers.
	twist func(*ingestv1.PushResponse)
	// mute makes it swallow requests.
	mute bool
	// arrived gets an element per request, if there is room.
	arrived chan struct{}
}

func newReplica(id string) *replica {
	return &replica{id: id, arrived: make(chan struct{}, 100), points: map[string]map[string][]write.Sample{}}
}

// start makes the replica serve. It knows no series.
func (r *replica) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = map[string]map[write.Identity]string{}
	r.listener = bufconn.Listen(1 << 20)
	r.server = grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	ingestv1.RegisterIngestServiceServer(r.server, r)
	server, listener := r.server, r.listener
	go server.Serve(listener)
}

// kill ends the replica at once.
func (r *replica) kill() {
	r.mu.Lock()
	server := r.server
	r.server, r.listener = nil, nil
	r.mu.Unlock()
	if server != nil {
		server.Stop()
	}
}

func (r *replica) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *replica) dial(ctx context.Context) (net.Conn, error) {
	r.mu.Lock()
	l := r.listener
	r.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	return l.DialContext(ctx)
}

// Push implements ingestv1.IngestServiceServer.
func (r *replica) Push(stream grpc.BidiStreamingServer[ingestv1.PushRequest, ingestv1.PushResponse]) error {
	r.set(func() { r.defined = map[uint64]bool{} })
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case r.arrived <- struct{}{}:
		default:
		}
		r.mu.Lock()
		hold, mute := r.hold, r.mute
		r.mu.Unlock()
		if mute {
			continue
		}
		if bytes := labelledBytes(req); bytes > 0 {
			r.mu.Lock()
			r.told = append(r.told, bytes)
			if hold == nil {
				hold = r.holdLabelled
			}
			r.mu.Unlock()
		}
		if hold != nil {
			select {
			case <-hold:
			case <-stream.Context().Done():
				return nil
			}
		}
		resp := r.answer(req)
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// labelledBytes returns the bytes of the frames if all series come with their labels, else 0:
// one in a thousand always does.
func labelledBytes(req *ingestv1.PushRequest) (bytes int) {
	var b write.Batch
	if frame.DecodePush(&b, req.GetFrames()...) != nil {
		return 0
	}
	for i := range b.Series {
		scratch := labels.NewScratchBuilder(0)
		if b.Source.AppendLabels(i, &scratch) != nil {
			return 0
		}
	}
	for _, f := range req.GetFrames() {
		bytes += len(f)
	}
	return bytes
}

func (r *replica) answer(req *ingestv1.PushRequest) *ingestv1.PushResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	r.largest = max(r.largest, proto.Size(req))
	r.inspect(req)
	if r.fail != nil {
		return wire.ResultToProto(req.GetId(), write.Result{}, r.fail)
	}
	var b write.Batch
	if err := frame.DecodePush(&b, req.GetFrames()...); err != nil {
		r.faults = append(r.faults, err.Error())
		return wire.ResultToProto(req.GetId(), write.Result{}, err)
	}
	result := r.store(req.GetTenant(), &b)
	resp := wire.ResultToProto(req.GetId(), result, nil)
	if r.twist != nil {
		r.twist(resp)
	}
	return resp
}

func (r *replica) inspect(req *ingestv1.PushRequest) {
	if definition := req.GetPlacementDefinition(); len(definition) > 0 {
		p, err := cluster.DecodePlacement(definition)
		if err != nil || p.Hash() != req.GetPlacement() {
			r.faults = append(r.faults, fmt.Sprintf("definition of %x: %v", req.GetPlacement(), err))
		}
		r.defined[req.GetPlacement()] = true
	}
	if !r.defined[req.GetPlacement()] {
		r.faults = append(r.faults, fmt.Sprintf("placement %x was never defined", req.GetPlacement()))
	}
	if req.GetSeed() != write.SeedFingerprint() {
		r.faults = append(r.faults, "another seed")
	}
	if req.GetInstance() != r.id {
		r.faults = append(r.faults, "a request for "+req.GetInstance()+" comes to "+r.id)
	}
}

func (r *replica) store(id string, b *write.Batch) write.Result {
	var result write.Result
	for _, m := range b.Metadata {
		r.metadata = append(r.metadata, string([]byte(m.Metric)))
	}
	if r.known[id] == nil {
		r.known[id] = map[write.Identity]string{}
	}
	if r.points[id] == nil {
		r.points[id] = map[string][]write.Sample{}
	}
	scratch, hasher := labels.NewScratchBuilder(0), write.NewHasher()
	for i, s := range b.Series {
		ls, canonical, err := b.Resolve(i, tenant.DefaultLimits(), &scratch, hasher)
		switch {
		case err == nil:
			r.labelled++
			if canonical != s.ID {
				r.faults = append(r.faults, "labels and identity differ: "+ls.String())
			}
			r.known[id][s.ID] = ls.String()
		case !errors.Is(err, write.ErrNoLabels):
			r.faults = append(r.faults, err.Error())
		}
		name, ok := r.known[id][s.ID]
		if !ok {
			r.unknown++
			result.Unknown = append(result.Unknown, uint32(i))
			continue
		}
		for k := s.Samples.Off; k < s.Samples.End(); k++ {
			if r.judge != nil {
				if fault := r.judge(name, b.Samples[k]); fault != nil {
					result.RejectItems(fault, write.Item{Kind: write.KindSample, Index: k})
					continue
				}
			}
			result.Written.Samples++
			if !slices.Contains(r.points[id][name], b.Samples[k]) {
				r.points[id][name] = append(r.points[id][name], b.Samples[k])
			}
		}
		result.Written.Histograms += int(s.Histograms.Len)
		result.Written.Exemplars += int(s.Exemplars.Len)
	}
	return result
}

// has reports whether all samples of b are stored for the tenant.
func (r *replica) has(id tenant.ID, series string, s write.Sample) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.points[string(id)][series], s)
}

func (r *replica) count(id tenant.ID) (samples int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, points := range r.points[string(id)] {
		samples += len(points)
	}
	return samples
}

// viewSource is a cluster.Source whose view a test decides.
type viewSource struct {
	mu      sync.Mutex
	view    *cluster.View
	changed chan struct{}
}

func (s *viewSource) View() *cluster.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

func (s *viewSource) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *viewSource) set(v *cluster.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = v
	close(s.changed)
	s.changed = make(chan struct{})
}

// ring is a cluster of replicas and a Replicator that sends to them.
type ring struct {
	*Replicator
	t        testing.TB
	rf       int
	source   *viewSource
	replicas map[string]*replica
	dead     map[string]bool
	records  map[string]cluster.Record
	limits   map[tenant.ID]tenant.Limits
	registry *prometheus.Registry

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

// newRing starts n replicas, in three zones, and a Replicator.
func newRing(t testing.TB, rf, n int, change ...func(*Replicator)) *ring {
	t.Helper()
	r := &ring{
		t: t, rf: rf, source: &viewSource{changed: make(chan struct{})},
		replicas: map[string]*replica{}, dead: map[string]bool{}, records: map[string]cluster.Record{},
		limits: map[tenant.ID]tenant.Limits{}, conns: map[string]*grpc.ClientConn{}, registry: prometheus.NewRegistry(),
	}
	for i := range n {
		r.join(i)
	}
	r.publish()
	var err error
	r.Replicator, err = NewReplicator(DefaultReplicatorConfig(), r.source, r, r.limitsOf, nil, r.registry)
	require.NoError(t, err)
	for _, f := range change {
		f(r.Replicator)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		for _, rep := range r.replicas {
			rep.set(func() { rep.release() })
		}
		cancel()
		require.NoError(t, <-done)
		for _, rep := range r.replicas {
			rep.kill()
			require.Empty(t, rep.faults)
		}
		for _, conn := range r.conns {
			conn.Close()
		}
	})
	r.awaitConnected(n)
	return r
}

// release lets held answers go. r.mu is held.
func (r *replica) release() {
	if r.hold != nil {
		close(r.hold)
		r.hold = nil
	}
	r.mute = false
}

func (r *ring) limitsOf(id tenant.ID) tenant.Limits {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l, ok := r.limits[id]; ok {
		return l
	}
	return tenant.DefaultLimits()
}

// join adds the replica number i to the registry and starts it.
func (r *ring) join(i int) *replica {
	id := fmt.Sprintf("ingester-%02d", i)
	rep := newReplica(id)
	rep.start()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replicas[id] = rep
	r.records[id] = cluster.Record{
		ID: id, Zone: fmt.Sprint("zone-", i%3), Rank: i / 3, Address: id, State: cluster.Active, Epoch: 1, Incarnation: 1, Generation: 1,
	}
	return rep
}

// publish makes a view of what is.
func (r *ring) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	registry, _, err := cluster.Registry{}.Merge(slices.Collect(maps.Values(r.records))...)
	require.NoError(r.t, err)
	v := &cluster.View{Registry: registry, Placement: registry.Placement(r.rf)}
	for _, rec := range registry.Records() {
		if !r.dead[rec.ID] {
			v.Peers = append(v.Peers, cluster.Peer{ID: rec.ID, Roles: []cluster.Role{cluster.RoleIngester}, GRPC: rec.Address, Incarnation: rec.Incarnation})
		}
	}
	r.source.set(v)
}

// Conn implements Conns.
func (r *ring) Conn(address string) (grpc.ClientConnInterface, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if conn := r.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			r.mu.Lock()
			rep := r.replicas[address]
			r.mu.Unlock()
			return rep.dial(ctx)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond},
			// Without it a connection has 5 ms to come about, and is closed after them.
			MinConnectTimeout: time.Minute,
		}))
	if err == nil {
		r.conns[address] = conn
	}
	return conn, err
}

// at returns replica number i.
func (r *ring) at(i int) *replica { return r.replicas[fmt.Sprintf("ingester-%02d", i)] }

// die kills replica number i. Everybody hears of it.
func (r *ring) die(i int) {
	rep := r.at(i)
	rep.kill()
	r.dead[rep.id] = true
	r.publish()
	r.eventually(func() bool { return errors.Is(r.reached(rep.id), errDead) })
	// Once it is revived, a stream must not begin on the connection to what has died.
	r.mu.Lock()
	conn := r.conns[r.records[rep.id].Address]
	r.mu.Unlock()
	r.eventually(func() bool { return conn.GetState() != connectivity.Ready })
}

// revive starts replica number i again.
func (r *ring) revive(i int) {
	rep := r.at(i)
	rep.start()
	delete(r.dead, rep.id)
	rec := r.records[rep.id]
	rec.Incarnation++
	rec.Epoch++
	r.records[rep.id] = rec
	r.publish()
	r.eventually(func() bool { return r.reached(rep.id) == nil })
}

// reached returns why a replica cannot be written to.
func (r *ring) reached(id string) error {
	for _, n := range r.routes.Load().nodes {
		if n.id == id {
			if n.link == nil {
				return n.why
			}
			return n.link.ready()
		}
	}
	return errors.New("it is not placed")
}

// awaitConnected waits until there are streams to n replicas.
func (r *ring) awaitConnected(n int) {
	r.t.Helper()
	r.eventually(func() bool {
		rt := r.routes.Load()
		if rt == nil || len(rt.nodes) != n {
			return false
		}
		for _, node := range rt.nodes {
			if r.reached(node.id) != nil {
				return false
			}
		}
		return true
	})
}

func (r *ring) eventually(condition func() bool) {
	r.t.Helper()
	require.Eventually(r.t, condition, 20*time.Second, time.Millisecond)
}

// setOf returns the replicas of a series.
func (r *ring) setOf(id tenant.ID, ls labels.Labels) []*replica {
	rt := r.routes.Load()
	l, err := rt.layouts.get(hashring.TenantHash(string(id)), r.limitsOf(id).ShardSize)
	require.NoError(r.t, err)
	var set []*replica
	for _, node := range l.sets[l.of(slotOf(ls, hashring.TenantHash(string(id))))] {
		set = append(set, r.replicas[rt.nodes[node].id])
	}
	return set
}

func seriesName(i int) labels.Labels {
	return labels.FromStrings("__name__", "metric", "n", fmt.Sprint(i))
}

// batchOf returns a batch with a sample of each of n series, at time t.
func batchOf(n int, t int64) *write.Batch {
	b, h := &write.Batch{}, write.NewHasher()
	for i := range n {
		b.Add(h, seriesName(i), []write.Sample{{T: t, V: float64(i)}}, nil, nil)
	}
	return b
}
