package querier

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

var errCutShort = errors.New("its answer ended before it was whole")

// ownedBlock is one block of which other queriers are asked. Each call of a reader's
// method is one request; if it fails, the block is read here.
type ownedBlock struct {
	owners *owners
	peers  []cluster.Peer // whom to ask, the first one first
	tenant tenant.ID
	block  *blockstore.Block
	within timeRange
}

// ownedSamples and ownedChunks are readers of an ownedBlock. own opens the block here;
// what it returns is closed with the query, and not by the reader.
type ownedSamples struct {
	ownedLabels
	own func(ctx context.Context) (storage.Querier, error)
}

type ownedChunks struct {
	ownedLabels
	own func(ctx context.Context) (storage.ChunkQuerier, error)
}

func readOwnedSamples(b ownedBlock, own func(context.Context) (storage.Querier, error)) storage.Querier {
	return ownedSamples{newOwnedLabels(b, own), own}
}

func readOwnedChunks(b ownedBlock, own func(context.Context) (storage.ChunkQuerier, error)) storage.ChunkQuerier {
	return ownedChunks{newOwnedLabels(b, own), own}
}

// Select implements storage.Querier. It returns when the answer is there, as a whole: the
// answers of all blocks that a Select reads are in memory at once, encoded, and max_query_bytes is
// what bounds them.
func (r ownedSamples) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	got, err := r.selectSeries(ctx, hints, matchers)
	if err == nil {
		return answeredSamples{answeredLabels{got}}.Select(ctx, sorted, hints, matchers...)
	}
	if err := r.fallBack(ctx, err); err != nil {
		return storage.ErrSeriesSet(err)
	}
	q, err := r.own(ctx)
	if err != nil {
		return storage.ErrSeriesSet(err)
	}
	return q.Select(ctx, sorted, hints, matchers...)
}

// Select implements storage.ChunkQuerier, as that of ownedSamples.
func (r ownedChunks) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	got, err := r.selectSeries(ctx, hints, matchers)
	if err == nil {
		return answeredChunks{answeredLabels{got}}.Select(ctx, sorted, hints, matchers...)
	}
	if err := r.fallBack(ctx, err); err != nil {
		return storage.ErrChunkSeriesSet(err)
	}
	q, err := r.own(ctx)
	if err != nil {
		return storage.ErrChunkSeriesSet(err)
	}
	return q.Select(ctx, sorted, hints, matchers...)
}

// fallBack returns nil if the block is to be read here, since its owners failed with err.
func (b ownedBlock) fallBack(ctx context.Context, err error) error {
	var refused overdrawn
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &refused):
		return refused.error
	}
	b.owners.metrics.fallbacks.Inc()
	return nil
}

// charge charges the query for what an owner has sent, and has fetched for that.
func (b ownedBlock) charge(ctx context.Context, received int, fetched uint64) error {
	b.owners.metrics.received.Add(float64(received))
	budget := budgetOf(ctx)
	if budget == nil {
		return nil
	}
	err := budget.Hold(int64(received))
	if fetched > 0 {
		err = errors.Join(err, budget.Fetch(int64(fetched))) //nolint:gosec // less than there is in the bucket
	}
	if err != nil {
		return overdrawn{err}
	}
	return nil
}

func (b ownedBlock) selectSeries(ctx context.Context, hints *storage.SelectHints, matchers []*labels.Matcher) (*answer, error) {
	req := &queryv1.SelectBlockRequest{
		Tenant: string(b.tenant), Block: blockToProto(b.block), MinMs: b.within.mint, MaxMs: b.within.maxt, Matchers: wire.MatchersToProto(matchers),
	}
	if hints != nil {
		req.MinMs, req.MaxMs = max(req.GetMinMs(), hints.Start), min(req.GetMaxMs(), hints.End)
		req.Limit = uint32(max(hints.Limit, 0)) //nolint:gosec // a bound above 4 G is none
		req.LabelsOnly = hints.Func == seriesFunc
		req.ShardIndex, req.ShardCount = hints.ShardIndex, hints.ShardCount
	}
	out := &answer{within: timeRange{req.GetMinMs(), req.GetMaxMs()}, dropped: func(int) {}}
	if out.within.mint > out.within.maxt {
		return out, nil // hints may lie outside of the block
	}
	got, err := askOwners(ctx, b.owners, b.peers, patience{limit: silentAfter, blame: true}, func(ctx context.Context, client queryv1.BlocksServiceClient, heard func()) (part, error) {
		return b.receive(ctx, client, req, heard)
	})
	if err != nil {
		return nil, err
	}
	out.streams = [][][]byte{got.frames}
	for _, text := range got.warnings {
		out.warnings.Add(errors.New(text))
	}
	return out, nil
}

// receive returns the series that one owner sends.
func (b ownedBlock) receive(ctx context.Context, client queryv1.BlocksServiceClient, req *queryv1.SelectBlockRequest, heard func()) (got part, err error) {
	stream, err := client.SelectBlock(ctx, req)
	if err != nil {
		return got, err
	}
	for last := false; ; {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !last {
				err = errCutShort
			} else {
				err = nil
			}
			return got, err
		}
		if err != nil {
			return got, err
		}
		heard()
		last = message.GetLast()
		got.warnings = append(got.warnings, message.GetWarnings()...)
		frame := message.GetFrame()
		if err := b.charge(ctx, len(frame), message.GetFetchedBytes()); err != nil {
			return got, err
		}
		if len(frame) > 0 {
			got.frames = append(got.frames, frame)
		}
	}
}

// ownedLabels answers for labels.
type ownedLabels struct {
	ownedBlock
	ownLabels func(ctx context.Context) (storage.LabelQuerier, error)
}

func newOwnedLabels[R storage.LabelQuerier](b ownedBlock, own func(context.Context) (R, error)) ownedLabels {
	return ownedLabels{b, func(ctx context.Context) (storage.LabelQuerier, error) { return own(ctx) }}
}

// LabelValues implements storage.LabelQuerier.
func (r ownedLabels) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	values, warnings, err := r.ask(ctx, name, hints, matchers)
	if err == nil {
		return values, warnings, nil
	}
	q, err := r.labelsHere(ctx, err)
	if err != nil {
		return nil, nil, err
	}
	return q.LabelValues(ctx, name, hints, matchers...)
}

// LabelNames implements storage.LabelQuerier.
func (r ownedLabels) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	values, warnings, err := r.ask(ctx, "", hints, matchers)
	if err == nil {
		return values, warnings, nil
	}
	q, err := r.labelsHere(ctx, err)
	if err != nil {
		return nil, nil, err
	}
	return q.LabelNames(ctx, hints, matchers...)
}

// Close implements storage.LabelQuerier. There is nothing to close.
func (ownedLabels) Close() error { return nil }

// labelsHere opens the block here, if it is to be, after its owners failed with err.
func (r ownedLabels) labelsHere(ctx context.Context, err error) (storage.LabelQuerier, error) {
	if err := r.fallBack(ctx, err); err != nil {
		return nil, err
	}
	return r.ownLabels(ctx)
}

func (b ownedBlock) ask(ctx context.Context, name string, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	req := &queryv1.LabelsOfBlockRequest{
		Tenant: string(b.tenant), Block: blockToProto(b.block), MinMs: b.within.mint, MaxMs: b.within.maxt,
		Name: name, Matchers: wire.MatchersToProto(matchers),
	}
	if hints != nil {
		req.Limit = uint32(max(hints.Limit, 0)) //nolint:gosec // a bound above 4 G is none
	}
	got, err := askOwners(ctx, b.owners, b.peers, patience{limit: labelsAfter}, func(ctx context.Context, client queryv1.BlocksServiceClient, _ func()) (part, error) {
		message, err := client.LabelsOfBlock(ctx, req)
		if err != nil {
			return part{}, err
		}
		size := 0
		for _, value := range message.GetValues() {
			size += len(value)
		}
		return part{values: message.GetValues(), warnings: message.GetWarnings()}, b.charge(ctx, size, message.GetFetchedBytes())
	})
	if err != nil {
		return nil, nil, err
	}
	var warnings annotations.Annotations
	for _, text := range got.warnings {
		warnings.Add(errors.New(text))
	}
	return slices.Clip(got.values), warnings, nil
}
