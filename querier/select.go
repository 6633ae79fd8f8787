package querier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/externallabels"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// openers is how many blocks one query opens at once.
const openers = 4

var (
	errQuerierClosed = errors.New("BUG: a querier is used after Close")
	errTenantChanged = errors.New("BUG: one querier is used for two tenants")
)

// Queryable returns the samples of the ingesters and of the bucket as one storage.
// The tenant is that of the context of Select, LabelValues and LabelNames; without
// one they fail with tenant.ErrNoTenant. One querier serves one tenant.
func (q *Querier) Queryable() storage.SampleAndChunkQueryable { return queryable{q} }

type queryable struct{ q *Querier }

func (qa queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	return &sampleQuerier{session: newSession(qa.q, timeRange{mint, maxt}, qa.q.edge.samples, tsdb.NewBlockQuerier, maskSamples)}, nil
}

func (qa queryable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &chunkQuerier{session: newSession(qa.q, timeRange{mint, maxt}, qa.q.edge.chunks, tsdb.NewBlockChunkQuerier, maskChunks)}, nil
}

// timeRange is in milliseconds, both ends inclusive.
type timeRange struct{ mint, maxt int64 }

// reader is a storage.Querier or a storage.ChunkQuerier.
type reader interface{ storage.LabelQuerier }

// session is one query's hold on the storage: on the recent samples, and on the blocks
// that the query has needed so far. It opens nothing before the first Select, since
// only that says who asks.
type session[R reader] struct {
	timeRange
	q        *Querier
	ofRecent func(tenant.ID, timeRange) (recent[R], error)
	ofBlock  func(tsdb.BlockReader, int64, int64) (R, error)
	mask     func(R, []mask.Filter) R

	// mu makes the calls of one query wait for each other while blocks are opened:
	// they all need them.
	mu struct {
		sync.Mutex
		tenant tenant.ID // "": nothing is open
		edge   recent[R]
		view   *tenantView // the last one; nil: none yet
		blocks map[ulid.ULID]openReader[R]
		closed bool
	}
}

type openReader[R reader] struct {
	reader  R
	release func() error
}

func newSession[R reader](q *Querier, within timeRange, ofRecent func(tenant.ID, timeRange) (recent[R], error), ofBlock func(tsdb.BlockReader, int64, int64) (R, error), masked func(R, []mask.Filter) R) *session[R] {
	s := &session[R]{q: q, timeRange: within, ofRecent: ofRecent, ofBlock: ofBlock, mask: masked}
	s.mu.blocks = map[ulid.ULID]openReader[R]{}
	return s
}

// begin begins to read what a call needs of ctx's tenant. wait returns what holds it;
// the readers belong to the session.
func (s *session[R]) begin(ctx context.Context, ask request) (wait func() ([]R, error)) {
	ask.mint, ask.maxt = max(ask.mint, s.mint), min(ask.maxt, s.maxt)
	id, err := tenant.FromContext(ctx)
	if err == nil {
		err = s.start(id)
	}
	if err != nil {
		return func() ([]R, error) { return nil, reported(ctx, err) }
	}
	edge := s.mu.edge.begin(ctx, ask)
	return func() ([]R, error) {
		readers, err := s.readers(ctx, ask, edge)
		return readers, reported(ctx, err)
	}
}

// start opens the recent samples, once.
func (s *session[R]) start(id tenant.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.closed:
		return errQuerierClosed
	case s.mu.tenant == id:
		return nil
	case s.mu.tenant != "":
		return errTenantChanged
	}
	edge, err := s.ofRecent(id, s.timeRange)
	if err != nil {
		return fmt.Errorf("read recent samples: %w", err)
	}
	s.mu.tenant, s.mu.edge = id, edge
	return nil
}

// readers waits for the recent samples and opens the blocks that hold the others.
func (s *session[R]) readers(ctx context.Context, ask request, edge func() (R, covered, error)) ([]R, error) {
	// The order matters. An ingester drops a block once queriers read the bucket's
	// copy. If it has dropped one before it was asked, the view that is loaded after
	// that has the block: so no gap. Samples that both have are merged.
	recent, covered, err := edge()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, errQuerierClosed
	}
	if s.mu.view == nil || !covered.snapshot {
		if s.mu.view, err = s.q.views.viewFor(ctx, s.mu.tenant, covered.check); err != nil {
			return nil, err
		}
	}
	blocks := slices.DeleteFunc(s.mu.view.overlapping(ask.mint, ask.maxt), func(b blockstore.Block) bool { return covered.has(&b.Meta) })
	if err := s.openLocked(ctx, blocks); err != nil {
		return nil, err
	}
	readers := []R{s.mask(recent, s.mu.view.deletions.Recent())}
	for i := range blocks {
		readers = append(readers, s.mu.blocks[blocks[i].Meta.ULID].reader)
	}
	return readers, nil
}

// openLocked opens those of the blocks that are not open in this session. What it
// has opened before an error belongs to the session.
func (s *session[R]) openLocked(ctx context.Context, blocks []blockstore.Block) error {
	missing := slices.DeleteFunc(slices.Clone(blocks), func(b blockstore.Block) bool {
		_, ok := s.mu.blocks[b.Meta.ULID]
		return ok
	})
	opened := make([]*openReader[R], len(missing))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(openers)
	for i := range missing {
		group.Go(func() (err error) {
			opened[i], err = s.open(groupCtx, s.mu.tenant, &missing[i])
			return err
		})
	}
	err := group.Wait()
	for i, o := range opened {
		if o != nil {
			s.mu.blocks[missing[i].Meta.ULID] = *o
		}
	}
	return err
}

func (s *session[R]) open(ctx context.Context, id tenant.ID, b *blockstore.Block) (*openReader[R], error) {
	block, release, err := s.q.blocks.acquire(ctx, id, &b.Meta)
	if err != nil {
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			s.q.views.hint(id) // the view is out of date: the next query shall have a better one
		}
		return nil, err
	}
	r, err := s.ofBlock(mask.Block(externallabels.Add(block, b.Extension.ExternalLabels), s.mu.view.filters(b)...), s.mint, s.maxt)
	if err != nil {
		key := blockKey{tenant: id, block: b.Meta.ULID}
		return nil, errors.Join(&blockError{key: key, err: err}, release())
	}
	return &openReader[R]{reader: r, release: release}, nil
}

// Close closes everything that the session has opened. Only the first call counts.
func (s *session[R]) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil
	}
	s.mu.closed = true
	var errs []error
	if s.mu.tenant != "" {
		errs = append(errs, s.mu.edge.close())
	}
	for _, o := range s.mu.blocks {
		errs = append(errs, o.reader.Close(), o.release())
	}
	return errors.Join(errs...)
}

// span returns the time range that hints ask for. Samples outside of it are not
// returned, so blocks outside of it need not be opened.
func (s *session[R]) span(hints *storage.SelectHints) timeRange {
	if hints == nil {
		return s.timeRange
	}
	return timeRange{hints.Start, hints.End}
}

// ofLabels is a request for labels in all of the session's time range.
func (s *session[R]) ofLabels(kind requestKind, name string, hints *storage.LabelHints, matchers []*labels.Matcher) request {
	ask := request{timeRange: s.timeRange, kind: kind, name: name, matchers: matchers}
	if hints != nil {
		ask.limit = hints.Limit
	}
	return ask
}

func (s *session[R]) labelValues(ctx context.Context, merge func([]R) storage.LabelQuerier, name string, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	readers, err := s.begin(ctx, s.ofLabels(labelValues, name, hints, matchers))()
	if err != nil {
		return nil, nil, err
	}
	values, warnings, err := merge(readers).LabelValues(ctx, name, hints, matchers...)
	return values, warnings, causeOf(ctx, err)
}

func (s *session[R]) labelNames(ctx context.Context, merge func([]R) storage.LabelQuerier, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	readers, err := s.begin(ctx, s.ofLabels(labelNames, "", hints, matchers))()
	if err != nil {
		return nil, nil, err
	}
	names, warnings, err := merge(readers).LabelNames(ctx, hints, matchers...)
	// Prometheus's API encodes the names after it has closed the querier, when the
	// mapped memory that they may lie in is gone.
	for i, name := range names {
		names[i] = strings.Clone(name)
	}
	return names, warnings, causeOf(ctx, err)
}

type sampleQuerier struct {
	*session[storage.Querier]
	listing listing
}

func mergeSamples(readers []storage.Querier) storage.Querier {
	// All are primaries: an error of a secondary would be a mere warning.
	return storage.NewMergeQuerier(readers, nil, storage.ChainedSeriesMerge)
}

func (q *sampleQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	wait := q.begin(ctx, request{timeRange: q.span(hints), hints: hints, matchers: matchers})
	set := &awaited[storage.Series, storage.SeriesSet]{ctx: ctx, open: func() (storage.SeriesSet, error) {
		readers, err := wait()
		if err != nil {
			return nil, err
		}
		return mergeSamples(readers).Select(ctx, sortSeries, hints, matchers...), nil
	}}
	if hints != nil && hints.Func == seriesFunc {
		return q.listing.bound(set)
	}
	return set
}

func (q *sampleQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merge := func(readers []storage.Querier) storage.LabelQuerier { return mergeSamples(readers) }
	return q.labelValues(ctx, merge, name, hints, matchers)
}

func (q *sampleQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merge := func(readers []storage.Querier) storage.LabelQuerier { return mergeSamples(readers) }
	return q.labelNames(ctx, merge, hints, matchers)
}

type chunkQuerier struct {
	*session[storage.ChunkQuerier]
}

func mergeChunks(readers []storage.ChunkQuerier) storage.ChunkQuerier {
	merge := storage.NewCompactingChunkSeriesMerger(storage.ChainedSeriesMerge)
	return storage.NewMergeChunkQuerier(readers, nil, merge)
}

func (q *chunkQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	wait := q.begin(ctx, request{timeRange: q.span(hints), hints: hints, matchers: matchers})
	return &awaited[storage.ChunkSeries, storage.ChunkSeriesSet]{ctx: ctx, open: func() (storage.ChunkSeriesSet, error) {
		readers, err := wait()
		if err != nil {
			return nil, err
		}
		return mergeChunks(readers).Select(ctx, sortSeries, hints, matchers...), nil
	}}
}

func (q *chunkQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merge := func(readers []storage.ChunkQuerier) storage.LabelQuerier { return mergeChunks(readers) }
	return q.labelValues(ctx, merge, name, hints, matchers)
}

func (q *chunkQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merge := func(readers []storage.ChunkQuerier) storage.LabelQuerier { return mergeChunks(readers) }
	return q.labelNames(ctx, merge, hints, matchers)
}

// awaited is a series set that is waited for when it is first looked at, so that all
// selectors of an expression are read at the same time. It ends with an error when ctx
// does, and says why.
type awaited[T any, S interface {
	comparable
	Next() bool
	At() T
	Err() error
	Warnings() annotations.Annotations
}] struct {
	ctx  context.Context //nolint:containedctx // the context of one Select, for the life of its result
	open func() (S, error)
	set  S // nil until it was opened
	err  error
}

func (s *awaited[T, S]) Next() bool {
	if s.err != nil {
		return false
	}
	if s.err = s.ctx.Err(); s.err != nil {
		return false
	}
	if s.open != nil {
		s.set, s.err = s.open()
		s.open = nil
		if s.err != nil {
			return false
		}
	}
	return s.set.Next()
}

func (s *awaited[T, S]) At() T { return s.set.At() }

func (s *awaited[T, S]) Err() error {
	var none S
	if s.err != nil || s.set == none {
		return causeOf(s.ctx, s.err)
	}
	return causeOf(s.ctx, s.set.Err())
}

func (s *awaited[T, S]) Warnings() annotations.Annotations {
	var none S
	if s.set == none {
		return nil
	}
	return s.set.Warnings()
}
