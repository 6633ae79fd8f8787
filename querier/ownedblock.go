package querier

import (
	"context"
	"errors"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

type inquiryKey struct{}

// askOwners asks the owners of all blocks that a call needs, at once. Readers of these blocks
// that are used for this call with the context find the answers there. stop ends what is still
// asked.
func askOwners[R reader](ctx context.Context, s *session[R], found holders[R], ask request) (asked context.Context, stop func()) {
	o := s.q.owners
	if o == nil {
		return ctx, func() {}
	}
	if ask.hints != nil {
		ask.timeRange = s.span(ask.hints)
	}
	in, ahead := newInquiry(ctx, o, s.mu.tenant, ask), askedAhead(ctx, ask)
	for i := range found.blocks {
		block := &found.blocks[i]
		if ahead != nil && ahead.answers[block.Meta.ULID] != nil && !ahead.answers[block.Meta.ULID].isTooLarge() {
			continue
		}
		if peers := o.of(s.mu.tenant, block.Meta.ULID); len(peers) > 0 {
			in.add(block, peers)
		}
	}
	if len(in.order) == 0 || ask.mint > ask.maxt {
		return ctx, func() {}
	}
	return context.WithValue(ctx, inquiryKey{}, in), in.begin(ctx)
}

// askedPeers returns whom a call has asked for a block already: they are still its owners if
// they have failed meanwhile, and the failure counts. nil: nobody was asked.
func askedPeers(ctx context.Context, block ulid.ULID) []cluster.Peer {
	if in, ok := ctx.Value(inquiryKey{}).(*inquiry); ok && in.answers[block] != nil {
		return in.answers[block].peers
	}
	return nil
}

// ownedBlock is one block of which other queriers are asked. If they fail, the block is
// read here.
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
// answers of all blocks that a Select reads are in memory at once, encoded, up to
// maxOwnedBytes for a query.
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
	reason := fallbackFailed
	if errors.Is(err, errTooLarge) {
		reason = fallbackSize
	}
	b.owners.metrics.fallbacks.WithLabelValues(reason).Inc()
	return nil
}

func (b ownedBlock) selectSeries(ctx context.Context, hints *storage.SelectHints, matchers []*labels.Matcher) (*answer, error) {
	ask := request{timeRange: b.within, hints: hints, matchers: matchers}
	if hints != nil {
		ask.mint, ask.maxt = max(ask.mint, hints.Start), min(ask.maxt, hints.End)
	}
	if ask.mint > ask.maxt {
		return &answer{dropped: func(int) {}}, nil // hints may lie outside of the block
	}
	return b.answer(ctx, ask)
}

// answer returns what owners say: what they were asked for ahead or for the whole call, or are
// now.
func (b ownedBlock) answer(ctx context.Context, ask request) (*answer, error) {
	if ahead := askedAhead(ctx, ask); ahead != nil {
		if a := ahead.answers[b.block.Meta.ULID]; a != nil {
			out, err := a.wait(ctx, ask.timeRange)
			if err == nil {
				out.wider = true
			}
			if !errors.Is(err, errTooLarge) {
				return out, err
			}
		}
	}
	if in, ok := ctx.Value(inquiryKey{}).(*inquiry); ok {
		if a := in.answers[b.block.Meta.ULID]; a != nil {
			return a.wait(ctx, ask.timeRange)
		}
	}
	in := newInquiry(ctx, b.owners, b.tenant, ask) // its owners have changed since
	a := in.add(b.block, b.peers)
	defer in.begin(ctx)()
	return a.wait(ctx, ask.timeRange)
}

// wait returns the answer once it is settled, without samples outside of a range.
func (a *ownedAnswer) wait(ctx context.Context, within timeRange) (*answer, error) {
	select {
	case <-a.settled:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a.err != nil {
		return nil, a.err
	}
	out := &answer{within: within, values: a.got.values, streams: [][][]byte{a.got.frames}, dropped: func(int) {}}
	for _, text := range a.got.warnings {
		out.warnings.Add(errors.New(text))
	}
	return out, nil
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
	got, err := r.labels(ctx, labelValues, name, hints, matchers)
	if err == nil {
		return slices.Clip(got.values), got.warnings, nil
	}
	q, err := r.labelsHere(ctx, err)
	if err != nil {
		return nil, nil, err
	}
	return q.LabelValues(ctx, name, hints, matchers...)
}

// LabelNames implements storage.LabelQuerier.
func (r ownedLabels) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	got, err := r.labels(ctx, labelNames, "", hints, matchers)
	if err == nil {
		return slices.Clip(got.values), got.warnings, nil
	}
	q, err := r.labelsHere(ctx, err)
	if err != nil {
		return nil, nil, err
	}
	return q.LabelNames(ctx, hints, matchers...)
}

// Close implements storage.LabelQuerier. There is nothing to close.
func (ownedLabels) Close() error { return nil }

// labels asks for the names or values of labels.
func (b ownedBlock) labels(ctx context.Context, kind requestKind, name string, hints *storage.LabelHints, matchers []*labels.Matcher) (*answer, error) {
	ask := request{timeRange: b.within, kind: kind, name: name, matchers: matchers}
	if hints != nil {
		ask.limit = hints.Limit
	}
	return b.answer(ctx, ask)
}

// labelsHere opens the block here, if it is to be, after its owners failed with err.
func (r ownedLabels) labelsHere(ctx context.Context, err error) (storage.LabelQuerier, error) {
	if err := r.fallBack(ctx, err); err != nil {
		return nil, err
	}
	return r.ownLabels(ctx)
}
