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
	return &sampleQuerier{session: newSession(qa.q, mint, maxt, qa.q.ingester.Querier, tsdb.NewBlockQuerier)}, nil
}

func (qa queryable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &chunkQuerier{session: newSession(qa.q, mint, maxt, qa.q.ingester.ChunkQuerier, tsdb.NewBlockChunkQuerier)}, nil
}

// timeRange is in milliseconds, both ends inclusive.
type timeRange struct{ mint, maxt int64 }

// reader is a storage.Querier or a storage.ChunkQuerier.
type reader interface{ storage.LabelQuerier }

// session is one query's hold on the storage: a querier of the ingester, the view
// of the bucket that was current right after, and readers of the blocks that the
// query has needed so far. It opens nothing before the first Select, since only
// that says who asks.
type session[R reader] struct {
	timeRange
	q          *Querier
	ofIngester func(tenant.ID, int64, int64) (R, error)
	ofBlock    func(tsdb.BlockReader, int64, int64) (R, error)

	// mu makes the calls of one query wait for each other, also while blocks are
	// opened: they all need them.
	mu struct {
		sync.Mutex
		tenant tenant.ID // "": nothing is open
		edge   R
		local  []ulid.ULID // blocks that edge reads
		view   *tenantView
		blocks map[ulid.ULID]openReader[R]
		closed bool
	}
}

type openReader[R reader] struct {
	reader  R
	release func() error
}

func newSession[R reader](q *Querier, mint, maxt int64, ofIngester func(tenant.ID, int64, int64) (R, error), ofBlock func(tsdb.BlockReader, int64, int64) (R, error)) *session[R] {
	s := &session[R]{q: q, timeRange: timeRange{mint, maxt}, ofIngester: ofIngester, ofBlock: ofBlock}
	s.mu.blocks = map[ulid.ULID]openReader[R]{}
	return s
}

// readers returns what holds samples of ctx's tenant in a part of the session's time
// range. They belong to the session.
func (s *session[R]) readers(ctx context.Context, within timeRange) ([]R, error) {
	id, err := tenant.FromContext(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.startLocked(id); err != nil {
		return nil, err
	}
	metas := slices.DeleteFunc(s.mu.view.overlapping(max(within.mint, s.mint), min(within.maxt, s.maxt)),
		func(m tsdb.BlockMeta) bool { return slices.Contains(s.mu.local, m.ULID) })
	if err := s.openLocked(ctx, metas); err != nil {
		return nil, err
	}
	readers := []R{s.mu.edge}
	for i := range metas {
		readers = append(readers, s.mu.blocks[metas[i].ULID].reader)
	}
	return readers, nil
}

func (s *session[R]) startLocked(id tenant.ID) error {
	switch {
	case s.mu.closed:
		return errQuerierClosed
	case s.mu.tenant == id:
		return nil
	case s.mu.tenant != "":
		return errTenantChanged
	}
	// The order matters. An ingester drops a block once Visible says that the bucket's
	// copy is read. If it has dropped one before its querier is opened here, the view
	// that is loaded after that has the block: so no gap. Samples that both have are
	// merged.
	edge, err := s.ofIngester(id, s.mint, s.maxt)
	if err != nil {
		return fmt.Errorf("read recent samples: %w", err)
	}
	view, err := s.q.views.of(id)
	if err != nil {
		return errors.Join(err, edge.Close())
	}
	s.mu.tenant, s.mu.edge, s.mu.view = id, edge, view
	// Asked after edge was opened: what has been cut since, edge reads from the head.
	s.mu.local = s.q.ingester.LocalBlocks(id)
	return nil
}

// openLocked opens those of the blocks that are not open in this session. What it
// has opened before an error belongs to the session.
func (s *session[R]) openLocked(ctx context.Context, metas []tsdb.BlockMeta) error {
	missing := slices.DeleteFunc(slices.Clone(metas), func(m tsdb.BlockMeta) bool {
		_, ok := s.mu.blocks[m.ULID]
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
			s.mu.blocks[missing[i].ULID] = *o
		}
	}
	return err
}

func (s *session[R]) open(ctx context.Context, id tenant.ID, meta *tsdb.BlockMeta) (*openReader[R], error) {
	block, release, err := s.q.blocks.acquire(ctx, id, meta)
	if err != nil {
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			s.q.views.hint(id) // the view is out of date: the next query shall have a better one
		}
		return nil, err
	}
	r, err := s.ofBlock(block, s.mint, s.maxt)
	if err != nil {
		key := blockKey{tenant: id, block: meta.ULID}
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
		errs = append(errs, s.mu.edge.Close())
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

func (s *session[R]) labelValues(ctx context.Context, merged storage.LabelQuerier, name string, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	values, warnings, err := merged.LabelValues(ctx, name, hints, matchers...)
	return values, warnings, causeOf(ctx, err)
}

func (s *session[R]) labelNames(ctx context.Context, merged storage.LabelQuerier, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	names, warnings, err := merged.LabelNames(ctx, hints, matchers...)
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

func (q *sampleQuerier) merged(ctx context.Context, within timeRange) (storage.Querier, error) {
	readers, err := q.readers(ctx, within)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	// All are primaries: an error of a secondary would be a mere warning.
	return storage.NewMergeQuerier(readers, nil, storage.ChainedSeriesMerge), nil
}

func (q *sampleQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	merged, err := q.merged(ctx, q.span(hints))
	if err != nil {
		return storage.ErrSeriesSet(err)
	}
	set := &stoppable[storage.Series, storage.SeriesSet]{ctx: ctx, set: merged.Select(ctx, sortSeries, hints, matchers...)}
	if hints != nil && hints.Func == seriesFunc {
		return q.listing.bound(set)
	}
	return set
}

func (q *sampleQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merged, err := q.merged(ctx, q.timeRange)
	if err != nil {
		return nil, nil, err
	}
	return q.labelValues(ctx, merged, name, hints, matchers)
}

func (q *sampleQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merged, err := q.merged(ctx, q.timeRange)
	if err != nil {
		return nil, nil, err
	}
	return q.labelNames(ctx, merged, hints, matchers)
}

type chunkQuerier struct {
	*session[storage.ChunkQuerier]
}

func (q *chunkQuerier) merged(ctx context.Context, within timeRange) (storage.ChunkQuerier, error) {
	readers, err := q.readers(ctx, within)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	merge := storage.NewCompactingChunkSeriesMerger(storage.ChainedSeriesMerge)
	return storage.NewMergeChunkQuerier(readers, nil, merge), nil
}

func (q *chunkQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	merged, err := q.merged(ctx, q.span(hints))
	if err != nil {
		return storage.ErrChunkSeriesSet(err)
	}
	return &stoppable[storage.ChunkSeries, storage.ChunkSeriesSet]{ctx: ctx, set: merged.Select(ctx, sortSeries, hints, matchers...)}
}

func (q *chunkQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merged, err := q.merged(ctx, q.timeRange)
	if err != nil {
		return nil, nil, err
	}
	return q.labelValues(ctx, merged, name, hints, matchers)
}

func (q *chunkQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	merged, err := q.merged(ctx, q.timeRange)
	if err != nil {
		return nil, nil, err
	}
	return q.labelNames(ctx, merged, hints, matchers)
}

// stoppable is a series set that ends with an error when ctx does, and says why.
type stoppable[T any, S interface {
	Next() bool
	At() T
	Err() error
	Warnings() annotations.Annotations
}] struct {
	ctx context.Context //nolint:containedctx // the context of one Select, for the life of its result
	set S
	err error
}

func (s *stoppable[T, S]) Next() bool {
	if s.err != nil {
		return false
	}
	if s.err = s.ctx.Err(); s.err != nil {
		return false
	}
	return s.set.Next()
}

func (s *stoppable[T, S]) At() T { return s.set.At() }

func (s *stoppable[T, S]) Err() error {
	if s.err != nil {
		return causeOf(s.ctx, s.err)
	}
	return causeOf(s.ctx, s.set.Err())
}

func (s *stoppable[T, S]) Warnings() annotations.Annotations { return s.set.Warnings() }
