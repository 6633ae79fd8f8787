package querier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

var errNoIngester = errors.New("no ingester of the cluster is known yet, so recent samples cannot be read: try again in a moment")

// Conns are connections to the other processes of a cluster, by address.
type Conns interface {
	Conn(address string) (grpc.ClientConnInterface, error)
}

// ClusterIngester is the Edge of a querier in a cluster: it asks ingesters over gRPC, so
// many that their answers have every sample that was acknowledged. One that fails or is
// slow is replaced by those that were spared; if that is not enough, the query fails
// and says who is missing. It is safe for concurrent use by one Querier.
type ClusterIngester struct {
	src     cluster.Source
	conns   Conns
	limits  tenant.LimitsFunc
	logger  *slog.Logger
	metrics *ingesterMetrics
	memory  *memory
	pace    *pace
	views   *views // set by attach

	complaints struct {
		sync.Mutex
		last map[string]time.Time // by instance
	}
}

// NewClusterIngester returns a ClusterIngester that asks the ingesters that src knows.
func NewClusterIngester(src cluster.Source, conns Conns, limits tenant.LimitsFunc, logger *slog.Logger, reg prometheus.Registerer) *ClusterIngester {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c := &ClusterIngester{
		src:     src,
		conns:   conns,
		limits:  limits,
		logger:  logger,
		metrics: newIngesterMetrics(reg),
		memory:  newMemory(),
		pace:    &pace{},
	}
	c.complaints.last = map[string]time.Time{}
	return c
}

// complain logs that an ingester failed a request, once per minute and ingester.
func (c *ClusterIngester) complain(instance string, err error) {
	c.complaints.Lock()
	last, before := c.complaints.last[instance]
	often := before && time.Since(last) < time.Minute
	if !often {
		c.complaints.last[instance] = time.Now()
	}
	c.complaints.Unlock()
	if !often {
		c.logger.Warn("An ingester failed to answer a query; others are asked in its place", "ingester", instance, "err", err)
	}
}

func (c *ClusterIngester) attach(v *views) { c.views = v }

func (c *ClusterIngester) ready() error {
	if len(c.src.View().Registry.Readable()) == 0 {
		return errNoIngester
	}
	return nil
}

func (c *ClusterIngester) observe() { c.memory.observe(c.src.View().Registry) }

// learnPlacements asks for the definitions of those placements that are not known here.
func (c *ClusterIngester) learnPlacements(ctx context.Context, client queryv1.RecentServiceClient, refs []wire.PlacementRef) error {
	var unknown []uint64
	for _, ref := range refs {
		if !c.memory.knows(ref.Hash) && !slices.Contains(unknown, ref.Hash) {
			unknown = append(unknown, ref.Hash)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	answer, err := client.Placements(ctx, &queryv1.PlacementsRequest{Hashes: unknown})
	if err != nil {
		return wire.FromGRPC(err)
	}
	for _, definition := range answer.GetDefinitions() {
		p, err := cluster.DecodePlacement(definition)
		if err != nil {
			return fmt.Errorf("a placement that its samples were written under: %w", err)
		}
		c.memory.define(p)
		unknown = slices.DeleteFunc(unknown, func(hash uint64) bool { return hash == p.Hash() })
	}
	if len(unknown) > 0 {
		return fmt.Errorf("it does not know placement %016x that its samples were written under", unknown[0])
	}
	return nil
}

// answer is what was gathered for one call of a querier's method.
type answer struct {
	covered  covered
	warnings annotations.Annotations
	values   []string    // of labels, sorted
	streams  [][][]byte  // of series: the frames of each ingester
	within   timeRange   // of series: samples outside are left out
	wider    bool        // of series: some may have no samples within
	dropped  func(n int) // of series: is told of chunks that were there already
}

// clusterRecent is one query's hold on the ingesters: none but on what they sent.
type clusterRecent[R reader] struct {
	c       *ClusterIngester
	id      tenant.ID
	account *account // is charged if there is none in a call's context
	reader  func(*answer) R

	running sync.WaitGroup
	mu      struct {
		sync.Mutex
		cancels []context.CancelFunc
		closed  bool
	}
}

func (c *ClusterIngester) samples(id tenant.ID, _ timeRange) (recent[storage.Querier], error) {
	return &clusterRecent[storage.Querier]{
		c: c, id: id, account: newAccount(id, c.limits(id)),
		reader: func(a *answer) storage.Querier { return answeredSamples{answeredLabels{a}} },
	}, nil
}

func (c *ClusterIngester) chunks(id tenant.ID, _ timeRange) (recent[storage.ChunkQuerier], error) {
	return &clusterRecent[storage.ChunkQuerier]{
		c: c, id: id, account: newAccount(id, c.limits(id)),
		reader: func(a *answer) storage.ChunkQuerier { return answeredChunks{answeredLabels{a}} },
	}, nil
}

// begin implements recent: it asks at once, and wait waits for the answers.
func (r *clusterRecent[R]) begin(ctx context.Context, ask request) func() (R, covered, error) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.cancels = append(r.mu.cancels, cancel)
	var (
		got  *answer
		err  error
		done = make(chan struct{})
	)
	if r.mu.closed {
		err = errQuerierClosed
		cancel()
		close(done)
	} else {
		r.running.Go(func() {
			defer close(done)
			got, err = r.ask(ctx, ask)
		})
	}
	return func() (R, covered, error) {
		<-done
		if err != nil {
			var none R
			return none, covered{}, err
		}
		return r.reader(got), got.covered, nil
	}
}

// close implements recent: what is still asked is not wanted any more.
func (r *clusterRecent[R]) close() error {
	r.mu.Lock()
	r.mu.closed = true
	for _, cancel := range r.mu.cancels {
		cancel()
	}
	r.mu.Unlock()
	r.running.Wait()
	return nil
}

func (r *clusterRecent[R]) ask(ctx context.Context, ask request) (*answer, error) {
	if ask.mint > ask.maxt {
		return &answer{dropped: func(int) {}}, nil // hints may lie outside of the query's range
	}
	if ask.kind == selectSeries {
		return r.selectSeries(ctx, ask)
	}
	got, err := gather(ctx, r.c, r.id, false, r.askLabels(ask))
	if err != nil {
		return nil, err
	}
	return &answer{covered: coveredFrom(got, ask), warnings: warningsOf(got), values: mergeValues(got.replies, ask.limit)}, nil
}

// coveredFrom returns what a request's answers cover.
func coveredFrom[T any](got *gathered[T], ask request) covered {
	covered := got.covered
	covered.check = viewCheck(ask.mint, covered.from, covered.generation)
	return covered
}

// part is one ingester's part of an answer.
type part struct {
	frames   [][]byte // of series
	values   []string // of labels
	warnings []string
}

func warningsOf(got *gathered[part]) annotations.Annotations {
	warnings := got.warnings
	for _, reply := range got.replies {
		for _, text := range reply.value.warnings {
			warnings.Add(errors.New(text))
		}
	}
	return warnings
}

func (r *clusterRecent[R]) selectSeries(ctx context.Context, ask request) (*answer, error) {
	req := &queryv1.SelectRequest{
		Tenant: string(r.id), MinMs: ask.mint, MaxMs: ask.maxt, Matchers: wire.MatchersToProto(ask.matchers),
	}
	if h := ask.hints; h != nil {
		req.Limit = uint32(max(h.Limit, 0)) //nolint:gosec // a bound above 4 G is none
		req.LabelsOnly = h.Func == seriesFunc
		req.ShardIndex, req.ShardCount = h.ShardIndex, h.ShardCount
	}
	got, err := gather(ctx, r.c, r.id, false, r.askSeries(req))
	if err != nil {
		return nil, err
	}
	out := &answer{
		covered:  coveredFrom(got, ask),
		warnings: warningsOf(got),
		within:   ask.timeRange,
		dropped:  func(n int) { r.c.metrics.duplicates.Add(float64(n)) },
	}
	for _, reply := range got.replies {
		out.streams = append(out.streams, reply.value.frames)
	}
	return out, nil
}

func (r *clusterRecent[R]) askSeries(req *queryv1.SelectRequest) asking[part] {
	return func(ctx context.Context, client queryv1.RecentServiceClient, heard func()) (holding wire.Holding, got part, err error) {
		stream, err := client.Select(ctx, req)
		if err != nil {
			return holding, got, err
		}
		for first := true; ; first = false {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) && !first {
				return holding, got, nil
			}
			if err != nil {
				return holding, got, err
			}
			heard()
			if first {
				if holding, err = wire.HoldingFromProto(message.GetHolding()); err != nil {
					return holding, got, err
				}
			}
			got.warnings = append(got.warnings, message.GetWarnings()...)
			frame := message.GetFrame()
			if len(frame) == 0 {
				continue
			}
			r.c.metrics.bytes.Add(float64(len(frame)))
			if err := r.charge(ctx, len(frame)); err != nil {
				return holding, got, err
			}
			got.frames = append(got.frames, frame)
		}
	}
}

// charge charges the query for what an ingester has sent, which stays until its end.
func (r *clusterRecent[R]) charge(ctx context.Context, bytes int) error {
	a := accountOf(ctx)
	if a == nil {
		a = r.account
	}
	return a.Hold(int64(bytes))
}

func (r *clusterRecent[R]) askLabels(ask request) asking[part] {
	req := &queryv1.LabelsRequest{
		Tenant: string(r.id), MinMs: ask.mint, MaxMs: ask.maxt, Name: ask.name, Matchers: wire.MatchersToProto(ask.matchers),
		Limit: uint32(max(ask.limit, 0)), //nolint:gosec // a bound above 4 G is none
	}
	return func(ctx context.Context, client queryv1.RecentServiceClient, heard func()) (holding wire.Holding, got part, err error) {
		message, err := client.Labels(ctx, req)
		if err != nil {
			return holding, got, err
		}
		heard()
		size := 0
		for _, value := range message.GetValues() {
			size += len(value)
		}
		r.c.metrics.bytes.Add(float64(size))
		if err := r.charge(ctx, size); err != nil {
			return holding, got, err
		}
		holding, err = wire.HoldingFromProto(message.GetHolding())
		return holding, part{values: message.GetValues(), warnings: message.GetWarnings()}, err
	}
}

// mergeValues returns the values of all replies, sorted, each once; with a limit, the
// first of them.
func mergeValues(replies []reply[part], limit int) []string {
	var all []string
	for _, reply := range replies {
		all = append(all, reply.value.values...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	return all
}
