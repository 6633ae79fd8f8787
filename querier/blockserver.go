package querier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/externallabels"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

const (
	// servedAtOnce is how many blocks are read at the same time for other queriers, and
	// servedOfOne how many for one request of them. It bounds the memory that this takes; more of
	// them wait, and say so.
	servedAtOnce = 64
	servedOfOne  = 32
	// fetchedAtOnce is how many blocks are fetched ahead for other queriers at the same time.
	// They have places of their own, so that nobody who waits for an answer waits for them.
	fetchedAtOnce = 16
	// atWorkEvery is how often a querier that reads blocks for another one says that it
	// is at work when it has nothing else to say.
	atWorkEvery = time.Second
	// maxPart bounds a part of an answer, in bytes, below what a message may have. A series is
	// never split, so one alone may be too large; then its block is read by who asks.
	maxPart = 48 << 20
	// valuesPart is how many bytes of label values a part has, roughly.
	valuesPart = 1 << 20
)

var (
	errBackwards   = errors.New("the range ends before it begins")
	errManyBlocks  = fmt.Errorf("more than %d blocks are asked for at once", maxAskedBlocks)
	errUnknownKind = errors.New("what is asked of the blocks is unknown to this release")
	errLargeSeries = fmt.Errorf("one series has more than %d bytes of chunks", maxPart)
)

// blocksQuestion is what another querier asks of blocks.
type blocksQuestion struct {
	req      *queryv1.ReadBlocksRequest
	tenant   tenant.ID
	blocks   []blockstore.Block
	within   timeRange
	matchers []*labels.Matcher
}

func blocksQuestionFrom(req *queryv1.ReadBlocksRequest) (q blocksQuestion, err error) {
	q.req = req
	if q.tenant, err = tenant.Parse(req.GetTenant()); err != nil {
		return q, err
	}
	if q.matchers, err = wire.MatchersFromProto(req.GetMatchers()); err != nil {
		return q, err
	}
	q.within = timeRange{req.GetMinMs(), req.GetMaxMs()}
	if q.within.mint > q.within.maxt {
		return q, wire.Invalid(errBackwards)
	}
	if len(req.GetBlocks()) > maxAskedBlocks {
		return q, wire.Invalid(errManyBlocks)
	}
	switch req.GetKind() {
	case queryv1.ReadBlocksRequest_KIND_CHUNKS, queryv1.ReadBlocksRequest_KIND_SERIES,
		queryv1.ReadBlocksRequest_KIND_LABEL_NAMES, queryv1.ReadBlocksRequest_KIND_LABEL_VALUES,
		queryv1.ReadBlocksRequest_KIND_PAGES:
	default:
		return q, wire.Invalid(errUnknownKind)
	}
	q.blocks = make([]blockstore.Block, len(req.GetBlocks()))
	for i, b := range req.GetBlocks() {
		if q.blocks[i], err = blockFromProto(b); err != nil {
			return q, err
		}
	}
	return q, nil
}

// blockToProto returns what an owner has to know of a block to read it.
func blockToProto(b *blockstore.Block) *queryv1.Block {
	return &queryv1.Block{
		Id:    b.Meta.ULID[:],
		MinMs: b.Meta.MinTime, MaxMs: b.Meta.MaxTime,
		Series: b.Meta.Stats.NumSeries, Chunks: b.Meta.Stats.NumChunks,
		ExternalLabels: wire.LabelsToProto(labels.FromMap(b.Extension.ExternalLabels)),
	}
}

func blockFromProto(m *queryv1.Block) (blockstore.Block, error) {
	ids, err := wire.ULIDsFromProto([][]byte{m.GetId()})
	if err != nil {
		return blockstore.Block{}, wire.Invalid(err)
	}
	external, err := wire.LabelsFromProto(m.GetExternalLabels())
	if err != nil {
		return blockstore.Block{}, wire.Invalid(err)
	}
	b := blockstore.Block{Meta: tsdb.BlockMeta{
		ULID: ids[0], MinTime: m.GetMinMs(), MaxTime: m.GetMaxMs(), Version: 1,
		Stats: tsdb.BlockStats{NumSeries: m.GetSeries(), NumChunks: m.GetChunks()},
	}}
	if !external.IsEmpty() {
		b.Extension.ExternalLabels = external.Map()
	}
	return b, nil
}

// fetchedBytes is what was fetched for another querier, whose account it goes to.
type fetchedBytes struct{ atomic.Int64 }

// Fetch implements remoteblock.Budget.
func (f *fetchedBytes) Fetch(bytes int64) error {
	f.Add(bytes)
	return nil
}

// Hold implements remoteblock.Budget: it is memory of this process, which servedAtOnce
// bounds.
func (*fetchedBytes) Hold(int64) error { return nil }

// take returns what was fetched since it was called last.
func (f *fetchedBytes) take() uint64 { return uint64(f.Swap(0)) } //nolint:gosec // it only grows

// open opens a block for another querier. It need not be in this one's view: it is read
// as it is asked for, or it is not in the bucket any more, which is an error. It takes one of the
// places until done.
func (s *blocksServer) open(ctx context.Context, places chan struct{}, id tenant.ID, block blockstore.Block, budget remoteblock.Budget) (reader *remoteblock.Reader, done func() error, err error) {
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	reader, err = s.q.blocks.Open(ctx, id, block, budget)
	if err != nil {
		<-places
		return nil, nil, err
	}
	return reader, func() error {
		defer func() { <-places }()
		return reader.Close()
	}, nil
}

// ReadBlocks implements queryv1.BlocksServiceServer. Blocks are begun in the order of the request,
// and answered as they are read.
func (s *blocksServer) ReadBlocks(req *queryv1.ReadBlocksRequest, stream grpc.ServerStreamingServer[queryv1.ReadBlocksResponse]) error {
	q, err := blocksQuestionFrom(req)
	if err != nil {
		return wire.GRPCError(err)
	}
	answer := &blocksAnswer{stream: stream}
	stop := answer.sayAtWork()
	defer stop()
	group, ctx := errgroup.WithContext(stream.Context())
	group.SetLimit(servedOfOne)
	for i := range q.blocks {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			err := s.readBlock(ctx, q, i, answer)
			if err == nil || ctx.Err() != nil {
				return err
			}
			return answer.send(i, &queryv1.ReadBlocksResponse{Failure: err.Error()})
		})
	}
	return wire.GRPCError(group.Wait())
}

// readBlock sends what is asked of one block. An error is of this block alone.
func (s *blocksServer) readBlock(ctx context.Context, q blocksQuestion, i int, answer *blocksAnswer) (err error) {
	kind, within := q.req.GetKind(), q.within
	places := s.serving
	if kind == queryv1.ReadBlocksRequest_KIND_PAGES {
		places = s.fetching
	}
	reader, done, err := s.open(ctx, places, q.tenant, q.blocks[i], &answer.fetched)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	last := &queryv1.ReadBlocksResponse{Last: true}
	if kind == queryv1.ReadBlocksRequest_KIND_PAGES {
		if err := reader.Prefetch(ctx, within.mint, within.maxt, q.matchers...); err != nil {
			return err
		}
		return answer.send(i, last)
	}
	withChunks := kind == queryv1.ReadBlocksRequest_KIND_CHUNKS
	block := externallabels.Add(disjoint.Block(reader.Select(ctx, within.mint, within.maxt, withChunks)), q.blocks[i].Extension.ExternalLabels)
	if withChunks {
		r, err := tsdb.NewBlockChunkQuerier(block, within.mint, within.maxt)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		out := q.frames(i, answer)
		if last.Frame, last.Warnings, err = out.Chunks(ctx, r.Select(ctx, true, q.hints(), q.matchersOfOne()...)); err != nil {
			return err
		}
		return answer.send(i, last)
	}
	r, err := tsdb.NewBlockQuerier(block, within.mint, within.maxt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if kind == queryv1.ReadBlocksRequest_KIND_SERIES {
		out := q.frames(i, answer)
		last.Frame, last.Warnings, err = out.Labels(ctx, r.Select(ctx, true, q.hints(), q.matchersOfOne()...))
	} else {
		last.Values, last.Warnings, err = q.sendLabels(ctx, r, i, answer)
	}
	if err != nil {
		return err
	}
	return answer.send(i, last)
}

// hints returns those of a Select. Whoever asks leaves out what lies outside of the range, so
// that nothing is encoded anew.
func (q blocksQuestion) hints() *storage.SelectHints {
	hints := &storage.SelectHints{
		Start: q.within.mint, End: q.within.maxt, Limit: int(q.req.GetLimit()),
		ShardIndex: q.req.GetShardIndex(), ShardCount: q.req.GetShardCount(), DisableTrimming: true,
	}
	if q.req.GetKind() == queryv1.ReadBlocksRequest_KIND_SERIES {
		hints.Func = seriesFunc
	}
	return hints
}

// matchersOfOne returns the matchers for one block: a Select sorts them.
func (q blocksQuestion) matchersOfOne() []*labels.Matcher { return slices.Clone(q.matchers) }

// frames returns what sends the series of one block.
func (q blocksQuestion) frames(i int, answer *blocksAnswer) frame.SelectStream {
	return frame.SelectStream{
		Send:    func(frame []byte) error { return answer.send(i, &queryv1.ReadBlocksResponse{Frame: frame}) },
		MinTime: q.within.mint, MaxTime: q.within.maxt, Limit: int(q.req.GetLimit()),
	}
}

// sendLabels sends label names or values, and returns the rest of them.
func (q blocksQuestion) sendLabels(ctx context.Context, r storage.LabelQuerier, i int, answer *blocksAnswer) (rest, texts []string, err error) {
	hints := &storage.LabelHints{Limit: int(q.req.GetLimit())}
	var warnings annotations.Annotations
	if q.req.GetKind() == queryv1.ReadBlocksRequest_KIND_LABEL_NAMES {
		rest, warnings, err = r.LabelNames(ctx, hints, q.matchersOfOne()...)
	} else {
		rest, warnings, err = r.LabelValues(ctx, q.req.GetName(), hints, q.matchersOfOne()...)
	}
	if err != nil {
		return nil, nil, err
	}
	for size, n := 0, 0; n < len(rest); n++ {
		if size += len(rest[n]); size >= valuesPart {
			if err := answer.send(i, &queryv1.ReadBlocksResponse{Values: rest[:n+1]}); err != nil {
				return nil, nil, err
			}
			rest, size, n = rest[n+1:], 0, -1
		}
	}
	for _, warning := range warnings.AsErrors() {
		texts = append(texts, warning.Error())
	}
	return rest, texts, nil
}

// blocksAnswer is an answer that is being sent.
type blocksAnswer struct {
	stream  grpc.ServerStreamingServer[queryv1.ReadBlocksResponse]
	fetched fetchedBytes
	sending sync.Mutex // a stream takes one message at a time
}

// send sends a part of the answer for a block; it is encoded when send returns.
func (a *blocksAnswer) send(block int, m *queryv1.ReadBlocksResponse) error {
	if len(m.GetFrame()) > maxPart {
		return errLargeSeries
	}
	m.Block = uint32(block) //nolint:gosec // maxAskedBlocks at most
	a.sending.Lock()
	defer a.sending.Unlock()
	m.FetchedBytes = a.fetched.take()
	return a.stream.Send(m)
}

// sayAtWork says every atWorkEvery, until stop, that the querier is at work, so
// that a block that takes long to fetch is not mistaken for a querier that hangs.
func (a *blocksAnswer) sayAtWork() (stop func()) {
	var running sync.WaitGroup
	stopped := make(chan struct{})
	running.Go(func() {
		ticker := time.NewTicker(atWorkEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-stopped:
				return
			}
			if a.send(0, &queryv1.ReadBlocksResponse{}) != nil {
				return // who asks is gone, which the rest will notice
			}
		}
	})
	return func() {
		close(stopped)
		running.Wait()
	}
}
