package querier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// tally is a bucket that notes the blocks of which parts are read.
type tally struct {
	objstore.Bucket
	mu   sync.Mutex
	read map[string]int // by <tenant>/<ULID>
}

func (b *tally) note(name string) {
	elements := strings.Split(name, "/")
	if strings.HasSuffix(name, ".json") || len(elements) < 3 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read[elements[0]+"/"+elements[1]]++
}

func (b *tally) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	b.note(name)
	return b.Bucket.Get(ctx, name)
}

func (b *tally) GetRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	b.note(name)
	return b.Bucket.GetRange(ctx, name, offset, length)
}

// blocks returns the blocks of which parts were read.
func (b *tally) blocks() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var blocks []string
	for block := range b.read {
		blocks = append(blocks, block)
	}
	slices.Sort(blocks)
	return blocks
}

// sharer is one of several queriers, each with its own cache, over one bucket.
type sharer struct {
	*rig
	id       string
	tally    *tally
	server   *grpc.Server
	listener *bufconn.Listener
	hang     chan struct{} // while it is open, nothing is answered; nil: it does not hang
}

// sharing is several queriers that share the blocks of a bucket.
type sharing struct {
	t       testing.TB
	files   objstore.Bucket
	store   *blockstore.Store // to upload to
	sharers []*sharer

	mu struct {
		sync.Mutex
		view  *cluster.View
		conns map[string]*grpc.ClientConn
	}
}

func newSharing(t testing.TB, n int) *sharing {
	t.Helper()
	files, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	return newSharingOf(t, files, n)
}

// lend lets other queriers own all the blocks that r reads.
func (r *rig) lend() *sharing {
	r.t.Helper()
	s := newSharingOf(r.t, r.bucket.Bucket, 3)
	r.Share(member{s, "asker"}, member{s, "asker"}, nil)
	return s
}

func newSharingOf(t testing.TB, files objstore.Bucket, n int) *sharing {
	t.Helper()
	s := &sharing{t: t, files: files, store: blockstore.New(blocktest.NewFaulty(files), nil)}
	s.mu.view = &cluster.View{}
	s.mu.conns = map[string]*grpc.ClientConn{}
	t.Cleanup(func() {
		for _, conn := range s.mu.conns {
			require.NoError(t, conn.Close())
		}
		for _, q := range s.sharers {
			q.server.Stop()
		}
	})
	for range n {
		s.add()
	}
	return s
}

// member is what one of the sharers sees of the cluster.
type member struct {
	*sharing
	self string
}

func (m member) View() *cluster.View {
	m.mu.Lock()
	defer m.mu.Unlock()
	view := *m.mu.view
	view.Self = cluster.Peer{ID: m.self}
	return &view
}

func (member) Changed() <-chan struct{} { return nil }

func (m member) Conn(address string) (grpc.ClientConnInterface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if conn := m.mu.conns[address]; conn != nil {
		return conn, nil
	}
	for _, q := range m.sharers {
		if q.id == address {
			conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return q.listener.DialContext(ctx) }))
			if err == nil {
				m.mu.conns[address] = conn
			}
			return conn, err
		}
	}
	return nil, errors.New("nobody listens at " + address)
}

func (s *sharing) add() *sharer {
	s.t.Helper()
	q := &sharer{id: fmt.Sprintf("querier-%d", len(s.sharers)), tally: &tally{Bucket: s.files, read: map[string]int{}}, listener: bufconn.Listen(1 << 20)}
	q.rig = newRig(s.t, rigOption{bucket: q.tally})
	q.Share(member{s, q.id}, member{s, q.id}, nil)
	// Stop waits for calls, which write below the test's folder.
	q.server = grpc.NewServer(grpc.WaitForHandlers(true), grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if q.hang != nil {
			select {
			case <-q.hang:
			case <-stream.Context().Done():
			}
		}
		return handler(srv, stream)
	}))
	q.RegisterBlocks(q.server)
	go func() { _ = q.server.Serve(q.listener) }() // it ends with Stop
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sharers = append(s.sharers, q)
	view := *s.mu.view
	view.Peers = append(slices.Clone(view.Peers), cluster.Peer{ID: q.id, GRPC: q.id, Roles: []cluster.Role{cluster.RoleQuerier}})
	s.mu.view = &view
	return q
}

// forget takes a querier out of the view of all.
func (s *sharing) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	view := *s.mu.view
	view.Peers = slices.DeleteFunc(slices.Clone(view.Peers), func(p cluster.Peer) bool { return p.ID == id })
	s.mu.view = &view
}

func (s *sharing) upload(id tenant.ID, hours int) (blocks []ulid.ULID) {
	s.t.Helper()
	for i := range int64(hours) {
		dir := blocktest.Write(s.t, s.t.TempDir(), i*hour, (i+1)*hour,
			blocktest.Floats("a", i*hour, (i+1)*hour, minute), blocktest.Floats("b", i*hour, (i+1)*hour, minute))
		require.NoError(s.t, s.store.Upload(context.Background(), id, dir))
		blocks = append(blocks, ulid.MustParse(filepath.Base(dir)))
	}
	s.refresh()
	return blocks
}

func (s *sharing) refresh() {
	for _, q := range s.sharers {
		require.NoError(s.t, q.views.refresh(context.Background()))
	}
}

// owners returns the queriers that own a block, the first one first.
func (s *sharing) owners(id tenant.ID, block ulid.ULID) []*sharer {
	var out []*sharer
	for _, p := range (member{s, ""}).View().Owners(cluster.RoleQuerier, string(id)+"/"+block.String(), 2) {
		out = append(out, s.sharers[slices.IndexFunc(s.sharers, func(q *sharer) bool { return q.id == p.ID })])
	}
	return out
}

// stranger returns a querier that does not own the block.
func (s *sharing) stranger(id tenant.ID, block ulid.ULID) *sharer {
	owners := s.owners(id, block)
	for _, q := range s.sharers {
		if !slices.Contains(owners, q) {
			return q
		}
	}
	s.t.Fatal("all queriers own the block")
	return nil
}

func (q *sharer) requireCount(t testing.TB, metric string, mint, maxt int64, want int) {
	t.Helper()
	got, err := count(t, as(alice), q.Queryable(), metric, mint, maxt)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func (r *rig) fallbacks(reason string) int {
	return int(testutil.ToFloat64(r.owners.metrics.fallbacks.WithLabelValues(reason)))
}

func TestEachBlockIsFetchedByItsOwnersAlone(t *testing.T) {
	s := newSharing(t, 5)
	blocks := s.upload(alice, 12)
	for _, q := range s.sharers {
		q.requireCount(t, "a", 0, 12*hour-1, 12*60)
		q.requireCount(t, "b", 90*minute, 5*hour-1, 210)
	}
	readers := map[string]int{}
	for _, q := range s.sharers {
		for _, read := range q.tally.blocks() {
			readers[read]++
		}
		require.Zero(t, q.fallbacks(fallbackFailed))
	}
	for _, block := range blocks {
		owners := s.owners(alice, block)
		name := string(alice) + "/" + block.String()
		for _, q := range s.sharers {
			require.Equal(t, slices.Contains(owners, q), slices.Contains(q.tally.blocks(), name), "%s reads %s", q.id, name)
		}
		require.Equal(t, 2, readers[name])
	}
}

func TestWhileAnOwnerIsDownTheOtherOneIsAsked(t *testing.T) {
	s := newSharing(t, 4)
	block := s.upload(alice, 1)[0]
	owners, asker := s.owners(alice, block), s.stranger(alice, block)
	asker.requireCount(t, "a", 0, hour-1, 60)
	require.Empty(t, owners[1].tally.blocks(), "the first one is asked alone")

	owners[0].server.Stop() // nobody has noticed yet
	asker.requireCount(t, "a", 0, hour-1, 60)
	require.NotEmpty(t, owners[1].tally.blocks())
	require.Empty(t, asker.tally.blocks())
	require.Equal(t, 1, int(testutil.ToFloat64(asker.owners.metrics.requests.WithLabelValues("error"))))
	asker.requireCount(t, "b", 0, hour-1, 60)
	require.Equal(t, 1, int(testutil.ToFloat64(asker.owners.metrics.requests.WithLabelValues("error"))), "it is not asked again so soon")
}

func TestBlockWhoseOwnersAreAllDownIsReadByWhoeverNeedsIt(t *testing.T) {
	s := newSharing(t, 4)
	block := s.upload(alice, 1)[0]
	owners, asker := s.owners(alice, block), s.stranger(alice, block)
	for _, q := range owners {
		q.server.Stop()
	}
	asker.requireCount(t, "a", 0, hour-1, 60)
	require.Equal(t, []string{string(alice) + "/" + block.String()}, asker.tally.blocks())
	require.Equal(t, 1, asker.fallbacks(fallbackFailed))
	got := asker.get(alice, "/api/v1/label/__name__/values")
	require.JSONEq(t, `["a","b"]`, string(got.Data))
}

func TestBlocksOfAQuerierThatHasGoneHaveOtherOwners(t *testing.T) {
	s := newSharing(t, 4)
	blocks := s.upload(alice, 6)
	before := map[ulid.ULID][]*sharer{}
	for _, block := range blocks {
		before[block] = s.owners(alice, block)
	}
	gone := s.sharers[1]
	gone.server.Stop()
	s.forget(gone.id)
	for _, q := range s.sharers {
		if q != gone {
			q.requireCount(t, "a", 0, 6*hour-1, 360)
			require.Zero(t, q.fallbacks(fallbackFailed))
		}
	}
	for _, block := range blocks {
		if !slices.Contains(before[block], gone) {
			require.Equal(t, before[block], s.owners(alice, block), "the caches of the others are as good as before")
		}
	}
}

func TestQuerierThatHangsIsReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a querier that hangs")
	}
	s := newSharing(t, 4)
	block := s.upload(alice, 1)[0]
	owners, asker := s.owners(alice, block), s.stranger(alice, block)
	owners[0].hang = make(chan struct{})
	defer close(owners[0].hang)
	asker.requireCount(t, "a", 0, hour-1, 60)
	require.NotEmpty(t, owners[1].tally.blocks())
	require.Equal(t, 1, int(testutil.ToFloat64(asker.owners.metrics.hedges)))
	require.Empty(t, asker.tally.blocks())
}

func TestOwnerReadsBlocksThatItHasNotHeardOf(t *testing.T) {
	s := newSharing(t, 4)
	dir := blocktest.Write(t, t.TempDir(), 0, hour, blocktest.Floats("a", 0, hour, minute))
	require.NoError(t, s.store.Upload(context.Background(), alice, dir))
	block := ulid.MustParse(filepath.Base(dir))
	asker := s.stranger(alice, block)
	s.refresh()
	for _, q := range s.owners(alice, block) {
		q.views.current.Store(&bucketView{}) // as if it had listed the bucket before
	}
	asker.requireCount(t, "a", 0, hour-1, 60)
	require.Empty(t, asker.tally.blocks())
	require.Zero(t, asker.fallbacks(fallbackFailed))
}

func TestBlockThatIsGoneFailsTheQueryAndSaysSo(t *testing.T) {
	s := newSharing(t, 4)
	block := s.upload(alice, 1)[0]
	asker := s.stranger(alice, block)
	require.NoError(t, s.store.Delete(context.Background(), alice, block))
	_, err := count(t, as(alice), asker.Queryable(), "a", 0, hour-1)
	require.ErrorContains(t, err, block.String())
	require.ErrorIs(t, err, blockstore.ErrBlockNotFound)
	require.Len(t, asker.owners.of(alice, block), 2, "the owners are not to blame")
}

func TestWhatOwnersSendAndFetchIsChargedToTheQuery(t *testing.T) {
	s := newSharing(t, 4)
	block := s.upload(alice, 1)[0]
	asker := s.stranger(alice, block)
	a := newAccount(alice, tenant.Limits{})
	_, err := count(t, withAccount(as(alice), a), asker.Queryable(), "a", 0, hour-1)
	require.NoError(t, err)
	require.Positive(t, a.held.Load())
	require.Positive(t, a.fetched.Load())

	for _, limits := range []tenant.Limits{{MaxQueryBytes: 10}, {MaxQueryFetchedBytes: 1}} {
		block := s.upload(bob, 1)[0]
		asker := s.stranger(bob, block)
		_, err = count(t, withAccount(as(bob), newAccount(bob, limits)), asker.Queryable(), "a", 0, hour-1)
		var limit *limitError
		require.ErrorAs(t, err, &limit)
		require.Zero(t, asker.fallbacks(fallbackFailed))
		require.NoError(t, s.store.Delete(context.Background(), bob, block))
	}
}

func TestBlocksOfOthersAreAnsweredAsOwnOnes(t *testing.T) {
	s := newSharing(t, 6)
	series := func(from int64) []blocktest.Series {
		var out []blocktest.Series
		for pod := range 30 {
			one := blocktest.Floats("requests", from, from+2*hour, minute)
			one.Labels = labels.FromStrings(model.MetricNameLabel, "requests", "pod", fmt.Sprint(pod))
			out = append(out, one)
		}
		return append(out, blocktest.Floats("up", from, from+2*hour, minute/2))
	}
	for i := range int64(4) {
		dir := blocktest.Write(t, t.TempDir(), 2*i*hour, 2*(i+1)*hour, series(2*i*hour)...)
		if i%2 == 1 {
			extend(t, dir, blockstore.Extension{Version: 1, ExternalLabels: map[string]string{"cluster": "eu"}})
		}
		require.NoError(t, s.store.Upload(context.Background(), alice, dir))
	}
	alone := newRig(t, rigOption{bucket: s.files})
	alone.refresh()
	s.refresh()
	match := func(m labels.MatchType, name, value string) *labels.Matcher {
		return labels.MustNewMatcher(m, name, value)
	}
	for _, q := range s.sharers {
		for _, span := range []timeRange{{0, 8 * hour}, {30 * minute, 3*hour + 1}, {5*hour + 7, 5*hour + 8*minute}, {9 * hour, 10 * hour}} {
			for _, matchers := range [][]*labels.Matcher{
				{match(labels.MatchEqual, "__name__", "requests")},
				{match(labels.MatchRegexp, "pod", "1.*"), match(labels.MatchNotEqual, "pod", "13")},
				{match(labels.MatchEqual, "cluster", "eu")},
				{match(labels.MatchEqual, "cluster", ""), match(labels.MatchEqual, "__name__", "up")},
				{match(labels.MatchEqual, "__name__", "nothing")},
			} {
				for _, hints := range []*storage.SelectHints{nil, {Start: span.mint, End: span.maxt}, {Start: span.mint + 10*minute, End: span.maxt - 3}, {Start: span.mint, End: span.maxt, ShardIndex: 1, ShardCount: 3}, {Start: span.mint, End: span.maxt, Func: seriesFunc}} {
					requireSame(t, alone, q.rig, span, hints, matchers)
				}
			}
		}
	}
}

func TestWhatIsHiddenInBlocksOfOthersIsHiddenByWhoAsks(t *testing.T) {
	r := newRig(t, rigOption{})
	s := r.lend()
	now := time.Now().Truncate(time.Hour).UnixMilli()
	const day = 24 * hour
	start := (now - 10*day) / day * day
	r.upload(alice, start, start+day, blocktest.Floats("a", start, start+day, hour), blocktest.Floats("b", start, start+day, hour))
	r.settle(alice, r.accept(alice, start, start+5*hour-1, `b`))
	r.limits.RetentionRules = []tenant.RetentionRule{{Selector: `a`, Retention: model.Duration(10 * 24 * time.Hour)}}
	r.refresh() // the others have heard of neither
	found := r.counts(alice, start, start+day)
	require.Equal(t, 19, found["b"])
	require.InDelta(t, int((start+day-(now-10*day))/hour), found["a"], 1, "the clock may have struck the hour meanwhile")
	chunks, err := r.Queryable().ChunkQuerier(start, start+day)
	require.NoError(t, err)
	defer chunks.Close()
	b := labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "b")
	for _, samples := range samplesOf(t, storage.NewSeriesSetFromChunkSeriesSet(chunks.Select(as(alice), true, nil, b))) {
		require.Len(t, samples, 19)
	}
	for _, q := range s.sharers {
		q.server.Stop() // the same, read here
	}
	require.Equal(t, found, r.counts(alice, start, start+day))
	require.Positive(t, r.fallbacks(fallbackFailed))
}

// extend puts an extension into the meta.json of a block.
func extend(t *testing.T, dir string, e blockstore.Extension) {
	t.Helper()
	name := filepath.Join(dir, "meta.json")
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	text, err = blockstore.AddExtension(text, e)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(name, text, 0o666))
}

// requireSame checks that two queriers say the same of samples, chunks and labels.
func requireSame(t *testing.T, want, got *rig, span timeRange, hints *storage.SelectHints, matchers []*labels.Matcher) {
	t.Helper()
	read := func(r *rig) (samples, chunks map[string][]string, names, pods []string) {
		q, err := r.Queryable().Querier(span.mint, span.maxt)
		require.NoError(t, err)
		defer q.Close()
		samples = samplesOf(t, q.Select(as(alice), true, hints, slices.Clone(matchers)...))
		if hints == nil || hints.Func != seriesFunc {
			c, err := r.Queryable().ChunkQuerier(span.mint, span.maxt)
			require.NoError(t, err)
			defer c.Close()
			chunks = samplesOf(t, storage.NewSeriesSetFromChunkSeriesSet(c.Select(as(alice), true, hints, slices.Clone(matchers)...)))
		}
		names, _, err = q.LabelNames(as(alice), nil, slices.Clone(matchers)...)
		require.NoError(t, err)
		pods, _, err = q.LabelValues(as(alice), "pod", nil, slices.Clone(matchers)...)
		require.NoError(t, err)
		return samples, chunks, names, pods
	}
	wantSamples, wantChunks, wantNames, wantPods := read(want)
	samples, chunks, names, pods := read(got)
	require.Equal(t, wantSamples, samples, "%v %v %v", span, hints, matchers)
	require.Equal(t, wantChunks, chunks, "%v %v %v", span, hints, matchers)
	require.ElementsMatch(t, wantNames, names)
	require.ElementsMatch(t, wantPods, pods)
}

func TestAnswerThatWasCutShortCountsForNothing(t *testing.T) {
	s := newSharing(t, 3)
	block := s.upload(alice, 1)[0]
	owners, asker := s.owners(alice, block), s.stranger(alice, block)
	for _, q := range owners {
		q.server.Stop()
		q.listener = bufconn.Listen(1 << 20)
		q.server = grpc.NewServer()
		queryv1.RegisterBlocksServiceServer(q.server, cutShort{})
		go func() { _ = q.server.Serve(q.listener) }() // it ends with Stop
	}
	asker.requireCount(t, "a", 0, hour-1, 60)
	require.Equal(t, 1, asker.fallbacks(fallbackFailed))
}

func TestAnAnswerThatIsTooLargeIsReadHereAndNobodyIsToBlame(t *testing.T) {
	s := newSharing(t, 4)
	block := s.upload(alice, 1)[0]
	owners, asker := s.owners(alice, block), s.stranger(alice, block)
	for _, q := range owners {
		q.server.Stop()
		q.listener = bufconn.Listen(1 << 20)
		q.server = grpc.NewServer(grpc.MaxSendMsgSize(1))
		q.RegisterBlocks(q.server)
		go func() { _ = q.server.Serve(q.listener) }() // it ends with Stop
	}
	asker.requireCount(t, "a", 0, hour-1, 60)
	got := asker.get(alice, "/api/v1/label/__name__/values")
	require.JSONEq(t, `["a","b"]`, string(got.Data))
	require.Equal(t, 2, asker.fallbacks(fallbackSize))
	require.Equal(t, 2, int(testutil.ToFloat64(asker.owners.metrics.requests.WithLabelValues("error"))), "the second owner could not send it, either")
	require.Len(t, asker.owners.of(alice, block), 2)
}

// cutShort is an owner that ends its answers in the middle, without an error.
type cutShort struct {
	queryv1.UnimplementedBlocksServiceServer
}

func (cutShort) ReadBlocks(_ *queryv1.ReadBlocksRequest, stream grpc.ServerStreamingServer[queryv1.ReadBlocksResponse]) error {
	return stream.Send(&queryv1.ReadBlocksResponse{})
}

// BenchmarkBlocksOfOthers measures a selector of one series in 200 blocks, all pages of
// which are at hand: at this querier, or at others.
func BenchmarkBlocksOfOthers(b *testing.B) {
	for _, lent := range []bool{false, true} {
		b.Run(fmt.Sprintf("lent=%t", lent), func(b *testing.B) {
			r := newRig(b, rigOption{})
			if lent {
				r.lend()
			}
			for i := range int64(200) {
				r.upload(alice, i*hour, (i+1)*hour, blocktest.Floats("a", i*hour, (i+1)*hour, minute))
			}
			r.refresh()
			for b.Loop() {
				n, err := count(b, as(alice), r.Queryable(), "a", 0, 200*hour)
				require.NoError(b, err)
				require.Equal(b, 200*60, n)
			}
		})
	}
}
