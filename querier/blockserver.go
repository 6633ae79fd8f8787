package querier

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/externallabels"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

const (
	// servedAtOnce is how many blocks are read at the same time for other queriers. It
	// bounds the memory that this takes; more of them wait, and say so.
	servedAtOnce = 64
	// atWorkEvery is how often a querier that reads a block for another one says that it
	// is at work when it has nothing else to say.
	atWorkEvery = time.Second
)

var errBackwards = errors.New("the range ends before it begins")

// blockQuestion is what another querier asks of a block.
type blockQuestion struct {
	tenant   tenant.ID
	block    blockstore.Block
	within   timeRange
	matchers []*labels.Matcher
}

// questioned is what requests for a block have in common.
type questioned interface {
	GetTenant() string
	GetBlock() *queryv1.Block
	GetMinMs() int64
	GetMaxMs() int64
	GetMatchers() []*queryv1.Matcher
}

func blockQuestionFrom(req questioned) (q blockQuestion, err error) {
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
	q.block, err = blockFromProto(req.GetBlock())
	return q, err
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
// as it is asked for, or it is not in the bucket any more, which is an error.
func (s *blocksServer) open(ctx context.Context, q blockQuestion, budget remoteblock.Budget) (block *remoteblock.Reader, done func() error, err error) {
	select {
	case s.serving <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	block, err = s.q.blocks.Open(ctx, q.tenant, q.block, budget)
	if err != nil {
		<-s.serving
		return nil, nil, err
	}
	return block, func() error {
		defer func() { <-s.serving }()
		return block.Close()
	}, nil
}

// SelectBlock implements queryv1.BlocksServiceServer.
func (s *blocksServer) SelectBlock(req *queryv1.SelectBlockRequest, stream grpc.ServerStreamingServer[queryv1.SelectBlockResponse]) error {
	q, err := blockQuestionFrom(req)
	if err != nil {
		return wire.GRPCError(err)
	}
	answer := &blockAnswer{stream: stream}
	stop := answer.sayAtWork()
	rest, warnings, err := s.selectBlock(req, q, answer)
	stop()
	if err == nil {
		err = answer.send(&queryv1.SelectBlockResponse{Frame: rest, Warnings: warnings, Last: true})
	}
	return wire.GRPCError(err)
}

func (s *blocksServer) selectBlock(req *queryv1.SelectBlockRequest, q blockQuestion, answer *blockAnswer) (rest []byte, warnings []string, err error) {
	ctx := answer.stream.Context()
	reader, done, err := s.open(ctx, q, &answer.fetched)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	out := frame.SelectStream{
		Send:    func(frame []byte) error { return answer.send(&queryv1.SelectBlockResponse{Frame: frame}) },
		MinTime: q.within.mint, MaxTime: q.within.maxt, Limit: int(req.GetLimit()),
	}
	hints := &storage.SelectHints{
		Start: q.within.mint, End: q.within.maxt, Limit: int(req.GetLimit()),
		ShardIndex: req.GetShardIndex(), ShardCount: req.GetShardCount(),
		// Whoever asks leaves out what lies outside of the range: nothing is encoded anew.
		DisableTrimming: true,
	}
	if req.GetLabelsOnly() {
		hints.Func = seriesFunc
	}
	block := externallabels.Add(reader.Select(ctx, q.within.mint, q.within.maxt, !req.GetLabelsOnly()), q.block.Extension.ExternalLabels)
	if req.GetLabelsOnly() {
		r, err := tsdb.NewBlockQuerier(block, q.within.mint, q.within.maxt)
		if err != nil {
			return nil, nil, err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return out.Labels(ctx, r.Select(ctx, true, hints, q.matchers...))
	}
	r, err := tsdb.NewBlockChunkQuerier(block, q.within.mint, q.within.maxt)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return out.Chunks(ctx, r.Select(ctx, true, hints, q.matchers...))
}

// blockAnswer is an answer that is being sent.
type blockAnswer struct {
	stream  grpc.ServerStreamingServer[queryv1.SelectBlockResponse]
	fetched fetchedBytes
	sending sync.Mutex // a stream takes one message at a time
}

// send sends a part of the answer; it is encoded when send returns.
func (a *blockAnswer) send(m *queryv1.SelectBlockResponse) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	m.FetchedBytes = a.fetched.take()
	return a.stream.Send(m)
}

// sayAtWork says every atWorkEvery, until stop, that the querier is at work, so
// that a block that takes long to fetch is not mistaken for a querier that hangs.
func (a *blockAnswer) sayAtWork() (stop func()) {
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
			if a.send(&queryv1.SelectBlockResponse{}) != nil {
				return // who asks is gone, which the rest will notice
			}
		}
	})
	return func() {
		close(stopped)
		running.Wait()
	}
}

// LabelsOfBlock implements queryv1.BlocksServiceServer.
func (s *blocksServer) LabelsOfBlock(ctx context.Context, req *queryv1.LabelsOfBlockRequest) (*queryv1.LabelsOfBlockResponse, error) {
	resp, err := s.labelsOfBlock(ctx, req)
	return resp, wire.GRPCError(err)
}

func (s *blocksServer) labelsOfBlock(ctx context.Context, req *queryv1.LabelsOfBlockRequest) (resp *queryv1.LabelsOfBlockResponse, err error) {
	q, err := blockQuestionFrom(req)
	if err != nil {
		return nil, err
	}
	var fetched fetchedBytes
	reader, done, err := s.open(ctx, q, &fetched)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	r, err := tsdb.NewBlockQuerier(externallabels.Add(reader.Select(ctx, q.within.mint, q.within.maxt, false), q.block.Extension.ExternalLabels), q.within.mint, q.within.maxt)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	hints := &storage.LabelHints{Limit: int(req.GetLimit())}
	resp = &queryv1.LabelsOfBlockResponse{}
	var warnings annotations.Annotations
	if req.GetName() == "" {
		resp.Values, warnings, err = r.LabelNames(ctx, hints, q.matchers...)
	} else {
		resp.Values, warnings, err = r.LabelValues(ctx, req.GetName(), hints, q.matchers...)
	}
	for _, warning := range warnings.AsErrors() {
		resp.Warnings = append(resp.Warnings, warning.Error())
	}
	resp.FetchedBytes = fetched.take()
	return resp, err
}
