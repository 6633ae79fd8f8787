package ingester

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// dial serves f's ingester and returns a connection to it, good until it restarts.
func (f *fixture) dial() *grpc.ClientConn { return f.dialAs(i0) }

func (f *fixture) dialAs(self Member) *grpc.ClientConn {
	f.t.Helper()
	listener := bufconn.Listen(1 << 20)
	const most = 64 << 20
	server := grpc.NewServer(grpc.MaxRecvMsgSize(most), grpc.MaxSendMsgSize(most))
	f.Register(server, self)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most)))
	require.NoError(f.t, err)
	f.t.Cleanup(func() {
		require.NoError(f.t, conn.Close())
		server.Stop()
		require.NoError(f.t, <-served)
	})
	return conn
}

// pushClient is a push stream of a distributor.
type pushClient struct {
	t       testing.TB
	stream  grpc.BidiStreamingClient[ingestv1.PushRequest, ingestv1.PushResponse]
	placed  Placed
	defined bool
	id      uint64
}

func (f *fixture) pushClient(conn *grpc.ClientConn) *pushClient {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(cancel)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(ctx)
	require.NoError(f.t, err)
	return &pushClient{t: f.t, stream: stream, placed: placedAmong("i1", "i2")}
}

// frameOf encodes b, with labels or by identity alone.
func frameOf(t testing.TB, b *write.Batch, labelled bool) []byte {
	t.Helper()
	var w frame.PushWriter
	scratch, hasher := labels.NewScratchBuilder(8), write.NewHasher()
	for i := range b.Series {
		ls, id, err := b.Resolve(i, tenant.Limits{}, &scratch, hasher)
		require.NoError(t, err)
		if !labelled {
			ls = labels.EmptyLabels()
		}
		w.Add(b, i, id, ls)
	}
	w.AddMetadata(b.Metadata)
	return w.Bytes()
}

func (c *pushClient) request(id tenant.ID, frames ...[]byte) *ingestv1.PushRequest {
	c.id++
	req := &ingestv1.PushRequest{
		Id: c.id, Tenant: string(id), Frames: frames, Seed: write.SeedFingerprint(),
		Placement: c.placed.Placement.Hash(), Shard: uint32(c.placed.Shard), Instance: i0.Instance,
	}
	if !c.defined {
		req.PlacementDefinition = c.placed.Placement.Encode(nil)
		c.defined = true
	}
	return req
}

// call sends a request and returns its answer.
func (c *pushClient) call(req *ingestv1.PushRequest) (write.Result, error) {
	c.t.Helper()
	require.NoError(c.t, c.stream.Send(req))
	resp, err := c.stream.Recv()
	require.NoError(c.t, err)
	require.Equal(c.t, req.GetId(), resp.GetId())
	return wire.ResultFromProto(resp)
}

func (c *pushClient) push(id tenant.ID, frames ...[]byte) write.Result {
	c.t.Helper()
	result, err := c.call(c.request(id, frames...))
	require.NoError(c.t, err)
	return result
}

func TestPushedFramesAreStoredAndSeriesLearned(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	c := f.pushClient(f.dial())
	one, two, three := batch(sample{"a", 0, 1}), batch(sample{"a", time.Second, 2}, sample{"b", 0, 3}), batch(sample{"a", 2 * time.Second, 4})
	require.Equal(t, []uint32{0}, c.push(acme, frameOf(t, one, false)).Unknown)
	require.Equal(t, 1, c.push(acme, frameOf(t, one, true)).Written.Samples)
	result := c.push(acme, frameOf(t, one, false), frameOf(t, two, false))
	require.Equal(t, 2, result.Written.Samples, "one of them once more")
	require.Equal(t, []uint32{2}, result.Unknown, "counted through all frames")
	require.Equal(t, []wire.PlacementRef{c.placed.ref()}, f.Holding(acme).Placements)

	f.restart()
	c = f.pushClient(f.dial())
	require.Equal(t, 1, c.push(acme, frameOf(t, three, false)).Written.Samples, "it is known still")
	require.Equal(t, map[string][]string{"a": {"0s 1", "1s 2", "2s 4"}}, f.stored(acme))
	require.Len(t, f.Holding(acme).Placements, 1)
}

func TestRejectedElementsAreNamedThroughAllFrames(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	c := f.pushClient(f.dial())
	result := c.push(acme, frameOf(t, batch(sample{"a", 0, 1}), true), frameOf(t, batch(sample{"b", 0, 1}, sample{"c", time.Hour, 1}), true))
	require.Equal(t, 2, result.Written.Samples)
	require.Equal(t, map[write.Reason][]string{write.ReasonFuture: {"sample 2"}}, rejected(result))
}

func TestFaultyPushesFailAlone(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	c := f.pushClient(f.dial())
	good := frameOf(t, batch(sample{"a", 0, 1}), true)
	var (
		invalid     *wire.InvalidError
		unavailable *wire.UnavailableError
	)
	require.Equal(t, 1, c.push(acme, good).Written.Samples)
	for name, spoil := range map[string]func(*ingestv1.PushRequest){
		"tenant":     func(r *ingestv1.PushRequest) { r.Tenant = "../x" },
		"frame":      func(r *ingestv1.PushRequest) { r.Frames = [][]byte{{99}} },
		"size":       func(r *ingestv1.PushRequest) { r.Frames = [][]byte{make([]byte, maxRequestBytes+1)} },
		"placement":  func(r *ingestv1.PushRequest) { r.Placement = 0 },
		"definition": func(r *ingestv1.PushRequest) { r.PlacementDefinition = placedAmong("x", "y").Placement.Encode(nil) },
		"garbage":    func(r *ingestv1.PushRequest) { r.PlacementDefinition = []byte{1} },
	} {
		req := c.request(acme, good)
		spoil(req)
		_, err := c.call(req)
		require.ErrorAs(t, err, &invalid, name)
	}
	req := c.request(acme, good)
	req.Seed++
	_, err := c.call(req)
	require.ErrorAs(t, err, &unavailable)
	require.ErrorContains(t, err, "seed")

	c.defined = false
	require.Equal(t, 1, c.push(acme, good).Written.Samples)
	f.draining.Store(true)
	_, err = c.call(c.request(acme, good))
	require.ErrorAs(t, err, &unavailable)
	require.ErrorContains(t, err, errDraining.Error())
}

// Addresses are used again. A vote of the wrong ingester would count as a replica.
func TestPushForAnotherIngesterIsRefused(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	c := f.pushClient(f.dial())
	req := c.request(acme, frameOf(t, batch(sample{"a", 0, 1}), true))
	req.Instance = "i1"
	_, err := c.call(req)
	var unavailable *wire.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	require.ErrorContains(t, err, `it is for "i1", and this is "i0"`)
	require.Empty(t, f.stored(acme))
}

func TestPanicFailsOneRequest(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.push(acme, sample{"a", 0, 1})
	c := f.pushClient(f.dial())
	good := frameOf(t, batch(sample{"a", time.Second, 1}), true)
	limits := f.deps.Limits
	f.deps.Limits = func(tenant.ID) tenant.Limits { panic("BUG: for a test") }
	_, err := c.call(c.request(acme, good))
	f.deps.Limits = limits
	require.ErrorContains(t, err, errPanic.Error())
	require.Equal(t, 1, c.push(acme, good).Written.Samples)
}

func TestUndefinedPlacementEndsTheStreamSoThatTheNextDefinesIt(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	c := f.pushClient(f.dial())
	c.defined = true
	_, err := c.call(c.request(acme, frameOf(t, batch(sample{"a", 0, 1}), true)))
	var unavailable *wire.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	_, err = c.stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Empty(t, f.stored(acme))
}

func TestRequestsOfATenantAreAppendedInTheirOrder(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := newFixture(t, withCluster(i0, time.Hour), func(f *fixture) { f.registry = registry })
	c := f.pushClient(f.dial())
	tenants := []tenant.ID{"one", "two", "three"}
	const each = 200
	var requests []*ingestv1.PushRequest
	for n := range each {
		encoded := frameOf(t, batch(sample{"a", time.Duration(n) * time.Second, float64(n)}), true)
		for _, id := range tenants {
			requests = append(requests, c.request(id, encoded))
		}
	}
	go func() {
		for _, req := range requests {
			if err := c.stream.Send(req); err != nil {
				t.Error(err)
			}
		}
		if err := c.stream.CloseSend(); err != nil {
			t.Error(err)
		}
	}()
	for range each * len(tenants) {
		resp, err := c.stream.Recv()
		require.NoError(t, err)
		require.EqualValues(t, 1, resp.GetSamples(), "%s", resp)
	}
	for _, id := range tenants {
		require.Len(t, f.stored(id)["a"], each)
	}
	require.Zero(t, testutil.ToFloat64(f.metrics.compared), "none came late")
}

func TestOneTenantsQueueIsBounded(t *testing.T) {
	p := &pushStream{}
	p.mu.lines = map[tenant.ID]line{}
	var queue []*queued
	for range maxPerTenant {
		queue = append(queue, &queued{tenant: acme, done: make(chan struct{})})
		require.True(t, p.enqueue(queue[len(queue)-1]))
	}
	require.False(t, p.enqueue(&queued{tenant: acme, done: make(chan struct{})}))
	require.True(t, p.enqueue(&queued{tenant: "other", done: make(chan struct{})}))
	require.Nil(t, queue[decodeAhead-1].decodable)
	require.Equal(t, (<-chan struct{})(queue[0].done), queue[decodeAhead].decodable)
	require.Equal(t, (<-chan struct{})(queue[6].done), queue[7].before)
	for _, q := range queue {
		p.finish(q)
	}
	require.NotContains(t, p.mu.lines, acme)
}

// selected is what a Select answered.
type selected struct {
	holding  wire.Holding
	messages int
	order    []labels.Labels
	samples  map[string][]string // by the label s, as fixture.stored has them
}

func (f *fixture) selectFrom(conn *grpc.ClientConn, req *queryv1.SelectRequest) selected {
	f.t.Helper()
	stream, err := queryv1.NewRecentServiceClient(conn).Select(context.Background(), req)
	require.NoError(f.t, err)
	out := selected{samples: map[string][]string{}}
	for {
		resp, err := stream.Recv()
		if err != nil {
			require.ErrorContains(f.t, err, "EOF")
			return out
		}
		if out.messages == 0 {
			out.holding, err = wire.HoldingFromProto(resp.GetHolding())
			require.NoError(f.t, err)
		}
		out.messages++
		r := frame.NewSelectReader(resp.GetFrame())
		for r.Next() {
			ls := r.Labels()
			out.order = append(out.order, ls)
			out.samples[ls.Get("s")] = append(out.samples[ls.Get("s")], f.samplesOf(r.Chunks(), req.GetMinMs(), req.GetMaxMs())...)
		}
		require.NoError(f.t, r.Err())
	}
}

func (f *fixture) samplesOf(list []frame.Chunk, mint, maxt int64) (out []string) {
	f.t.Helper()
	if len(list) == 0 {
		return nil
	}
	var iterators []chunkenc.Iterator
	for _, c := range list {
		meta, err := c.Meta()
		require.NoError(f.t, err)
		require.LessOrEqual(f.t, c.MinTime, maxt)
		require.GreaterOrEqual(f.t, c.MaxTime, mint)
		require.NotEqual(f.t, int64(math.MaxInt64), c.MaxTime, "the end of the open chunk is known")
		iterators = append(iterators, meta.Chunk.Iterator(nil))
	}
	it := storage.ChainSampleIteratorFromIterators(nil, iterators)
	for typ := it.Next(); typ != chunkenc.ValNone; typ = it.Next() {
		if it.AtT() >= mint && it.AtT() <= maxt {
			out = append(out, describe(it, typ))
		}
	}
	require.NoError(f.t, it.Err())
	return out
}

func everything(id tenant.ID) *queryv1.SelectRequest {
	return &queryv1.SelectRequest{
		Tenant: string(id), MinMs: 0, MaxMs: math.MaxInt64,
		Matchers: wire.MatchersToProto([]*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")}),
	}
}

// TestSelectAnswersAsALocalQuery pushes any samples in any order, between cuts and
// restarts, and compares what a querier gets with what a query in this process gets.
func TestSelectAnswersAsALocalQuery(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			f := newFixture(t, withCluster(i0, time.Hour))
			f.seeAll = false
			hasher := write.NewHasher()
			var clock time.Duration
			for range 60 {
				clock += time.Duration(rng.IntN(6)) * time.Minute
				f.mu.Lock()
				f.now = noon.Add(clock)
				f.mu.Unlock()
				b := &write.Batch{}
				for range 1 + rng.IntN(20) {
					n := rng.IntN(6)
					at := noon.Add(clock - time.Duration(rng.IntN(170))*time.Minute*time.Duration(rng.IntN(2))).UnixMilli()
					h := testHistogram(1 + int64(rng.IntN(100)))
					switch {
					case n < 3 || rng.IntN(20) == 0:
						b.Add(hasher, seriesLabels(fmt.Sprint(n)), []write.Sample{{T: at, V: rng.Float64()}}, nil, nil)
					case n < 5:
						b.Add(hasher, seriesLabels(fmt.Sprint(n)), nil, []write.Histogram{{T: at, Int: h}}, nil)
					default:
						b.Add(hasher, seriesLabels(fmt.Sprint(n)), nil, []write.Histogram{{T: at, Float: h.ToFloat(nil)}}, nil)
					}
				}
				f.offer(acme, b)
				switch rng.IntN(15) {
				case 0:
					require.NoError(t, f.Flush(context.Background(), acme))
				case 1:
					f.round(acme)
				case 2:
					f.restart()
				}
			}
			conn := f.dial()
			got := f.selectFrom(conn, everything(acme))
			require.Equal(t, f.stored(acme), got.samples)
			require.Equal(t, f.LocalBlocks(acme), got.holding.Blocks)

			req := everything(acme)
			req.MinMs, req.MaxMs = noon.Add(clock/3).UnixMilli(), noon.Add(clock/2).UnixMilli()
			q, err := f.Querier(acme, req.GetMinMs(), req.GetMaxMs())
			require.NoError(t, err)
			want := f.drain(q)
			require.NoError(t, q.Close())
			part := f.selectFrom(conn, req).samples
			for name, s := range part {
				if len(s) == 0 {
					delete(part, name) // Only its chunk overlaps the range.
				}
			}
			require.Equal(t, want, part)
		})
	}
}

// pushMany stores one sample of each of so many series with long labels.
func (f *fixture) pushMany(series int) {
	f.t.Helper()
	b := &write.Batch{}
	hasher := write.NewHasher()
	for n := range series {
		ls := labels.FromStrings("__name__", "m", "s", fmt.Sprintf("%05d", series-n), "padding", strings.Repeat("x", 1000))
		b.Add(hasher, ls, []write.Sample{{T: noon.UnixMilli(), V: 1}}, nil, nil)
	}
	require.NoError(f.t, resultErr(f.offer(acme, b)))
}

func TestManySeriesAreSentSortedInSeveralMessages(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.pushMany(3000)
	conn := f.dial()
	all := f.selectFrom(conn, everything(acme))
	require.Greater(t, all.messages, 3, "the holding, and 3 MB of series")
	require.Len(t, all.order, 3000)
	require.True(t, slices.IsSortedFunc(all.order, labels.Compare))

	limited := everything(acme)
	limited.Limit = 7
	require.Equal(t, all.order[:7], f.selectFrom(conn, limited).order)

	bare := everything(acme)
	bare.LabelsOnly = true
	only := f.selectFrom(conn, bare)
	require.Equal(t, all.order, only.order)
	require.Empty(t, only.samples["00001"])

	seen := map[string]int{}
	for shard := range uint64(4) {
		req := everything(acme)
		req.ShardIndex, req.ShardCount = shard, 4
		for _, ls := range f.selectFrom(conn, req).order {
			require.Equal(t, shard, labels.StableHash(ls)%4)
			seen[ls.Get("s")]++
		}
	}
	require.Len(t, seen, 3000)
}

func TestCanceledSelectLetsGoOfTheSamples(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.pushMany(5000)
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := queryv1.NewRecentServiceClient(f.dial()).Select(ctx, everything(acme))
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	cancel()
	for err == nil {
		_, err = stream.Recv()
	}
	require.Equal(t, codes.Canceled, status.Code(err))
	require.NoError(t, f.Flush(context.Background(), acme), "a cut waits for the queries that read what it drops")
}

func TestStoppedIngesterDoesNotAnswerWithNothing(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.push(acme, sample{"a", 0, 1})
	c := queryv1.NewRecentServiceClient(f.dial())
	require.NoError(t, f.close())
	stream, err := c.Select(context.Background(), everything(acme))
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	_, err = c.Labels(context.Background(), &queryv1.LabelsRequest{Tenant: "acme", MaxMs: math.MaxInt64})
	require.Equal(t, codes.Unavailable, status.Code(err))
	_, err = c.Exemplars(context.Background(), &queryv1.ExemplarsRequest{Tenant: "acme", MaxMs: math.MaxInt64})
	require.Equal(t, codes.Unavailable, status.Code(err))
}

func TestQuestionsBesidesSelect(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	b := batch(sample{"a", 0, 1}, sample{"b", 0, 1})
	b.Add(write.NewHasher(), seriesLabels("a"), nil, nil, []exemplar.Exemplar{{Labels: labels.FromStrings("trace_id", "x"), Value: 1, Ts: noon.UnixMilli(), HasTs: true}})
	b.Metadata = []write.Metadata{{Metric: "m", Metadata: metadata.Metadata{Type: "counter", Help: "h"}}}
	placed := placedAmong("i1", "i2")
	_, err := f.PushPlaced(context.Background(), acme, b, placed)
	require.NoError(t, err)
	c := queryv1.NewRecentServiceClient(f.dial())
	ctx := context.Background()

	names, err := c.Labels(ctx, &queryv1.LabelsRequest{Tenant: "acme", MaxMs: math.MaxInt64})
	require.NoError(t, err)
	require.Equal(t, []string{"__name__", "s"}, names.GetValues())
	values, err := c.Labels(ctx, &queryv1.LabelsRequest{Tenant: "acme", MaxMs: math.MaxInt64, Name: "s", Limit: 1})
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, values.GetValues())
	found, err := c.Exemplars(ctx, &queryv1.ExemplarsRequest{Tenant: "acme", MaxMs: math.MaxInt64, Selectors: wire.SelectorsToProto([][]*labels.Matcher{{labels.MustNewMatcher(labels.MatchEqual, "s", "a")}})})
	require.NoError(t, err)
	require.Len(t, found.GetSeries(), 1)
	known, err := c.Metadata(ctx, &queryv1.MetadataRequest{Tenant: "acme"})
	require.NoError(t, err)
	require.Equal(t, f.Metadata(acme, ""), wire.MetadataFromProto(known.GetMetadata()))
	stats, err := c.Stats(ctx, &queryv1.StatsRequest{Tenant: "acme", Label: "__name__", Limit: 10})
	require.NoError(t, err)
	require.EqualValues(t, 2, stats.GetSeries())
	defined, err := c.Placements(ctx, &queryv1.PlacementsRequest{Hashes: []uint64{1, placed.Placement.Hash()}})
	require.NoError(t, err)
	require.Len(t, defined.GetDefinitions(), 1)
	decoded, err := cluster.DecodePlacement(defined.GetDefinitions()[0])
	require.NoError(t, err)
	require.Equal(t, placed.Placement.Hash(), decoded.Hash())
	for _, h := range []*queryv1.Holding{names.GetHolding(), values.GetHolding(), found.GetHolding(), known.GetHolding(), stats.GetHolding()} {
		holding, err := wire.HoldingFromProto(h)
		require.NoError(t, err)
		require.Equal(t, f.Holding(acme), holding)
	}

	t.Run("about a tenant without samples", func(t *testing.T) {
		stranger := f.selectFrom(f.dial(), everything("stranger"))
		require.Equal(t, wire.Holding{Instance: "i0", Generation: 7, HeldFrom: noon.Add(maxAhead).UnixMilli(), HeldMin: math.MaxInt64}, stranger.holding)
		require.Empty(t, stranger.order)
		none, err := c.Stats(ctx, &queryv1.StatsRequest{Tenant: "stranger"})
		require.NoError(t, err)
		require.False(t, none.GetPresent())
	})
	t.Run("that make no sense", func(t *testing.T) {
		for _, req := range []*queryv1.SelectRequest{{Tenant: ""}, {Tenant: ".."}, {Tenant: "acme", MinMs: 1}, {Tenant: "acme", Matchers: []*queryv1.Matcher{{Type: 99}}}} {
			stream, err := c.Select(ctx, req)
			require.NoError(t, err)
			_, err = stream.Recv()
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%s", req)
		}
	})
}
