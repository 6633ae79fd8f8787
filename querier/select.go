package querier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// maxTime is later than any sample, in ms.
const maxTime = math.MaxInt64

var (
	errQuerierClosed = errors.New("BUG: a querier is used after Close")
	errTenantChanged = errors.New("BUG: one querier is used for two tenants")
)

// Queryable returns the samples of the ingesters and of the bucket as one storage.
// The tenant is that of the context of Select, LabelValues and LabelNames; without
// one they fail with tenant.ErrNoTenant. One querier serves one tenant.
func (q *Querier) Queryable() storage.SampleAndChunkQueryable { return queryable{q: q} }

type queryable struct {
	q   *Querier
	pin *pin // nil: none
}

func (qa queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	s := newSession(qa.q, timeRange{mint, maxt}, qa.q.edge.samples, tsdb.NewBlockQuerier, readOwnedSamples, maskSamples)
	if qa.pin != nil && maxt < qa.pin.oldest {
		s.ofRecent = func(tenant.ID, timeRange) (recent[storage.Querier], error) { return nothingRecent{}, nil }
		s.mu.view = qa.pin.view
	}
	return &sampleQuerier{session: s}, nil
}

func (qa queryable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &chunkQuerier{session: newSession(qa.q, timeRange{mint, maxt}, qa.q.edge.chunks, tsdb.NewBlockChunkQuerier, readOwnedChunks, maskChunks)}, nil
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
	ofOwned  func(ownedBlock, func(context.Context) (R, error)) R
	mask     func(R, []mask.Filter) R

	// background counts the goroutines that read blocks for Selects.
	background sync.WaitGroup
	mu         struct {
		sync.Mutex
		tenant  tenant.ID // "": nothing is open
		edge    recent[R]
		view    *tenantView // the last one; nil: none yet
		blocks  map[ulid.ULID]*openBlock
		cancels []context.CancelFunc // of what was begun
		closers []func() error       // of readers of blocks
		closed  bool
	}
}

// holders is what has the samples that a call needs.
type holders[R reader] struct {
	recent R
	blocks []blockstore.Block      // by MinTime
	view   *tenantView             // that the blocks are of
	notes  annotations.Annotations // of what is missing, in a partial answer
}

func newSession[R reader](q *Querier, within timeRange, ofRecent func(tenant.ID, timeRange) (recent[R], error), ofBlock func(tsdb.BlockReader, int64, int64) (R, error),
	ofOwned func(ownedBlock, func(context.Context) (R, error)) R, masked func(R, []mask.Filter) R,
) *session[R] {
	s := &session[R]{q: q, timeRange: within, ofRecent: ofRecent, ofBlock: ofBlock, ofOwned: ofOwned, mask: masked}
	s.mu.blocks = map[ulid.ULID]*openBlock{}
	return s
}

// begin begins to read what a call needs of ctx's tenant. wait returns what holds it;
// the reader of recent samples belongs to the session.
func (s *session[R]) begin(ctx context.Context, ask request) (wait func() (holders[R], error)) {
	ask.mint, ask.maxt = max(ask.mint, s.mint), min(ask.maxt, s.maxt)
	id, err := tenant.FromContext(ctx)
	if err == nil {
		err = s.start(id)
	}
	if err != nil {
		return func() (holders[R], error) { return holders[R]{}, reported(ctx, err) }
	}
	edge := s.mu.edge.begin(s.untilClosed(ctx), ask)
	return func() (holders[R], error) {
		found, err := s.holders(ctx, ask, edge)
		return found, reported(ctx, err)
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

// holders waits for the recent samples, and finds the blocks that hold the others.
func (s *session[R]) holders(ctx context.Context, ask request, edge func() (R, covered, error)) (found holders[R], err error) {
	// The order matters. An ingester drops a block once queriers read the bucket's
	// copy. If it has dropped one before it was asked, the view that is loaded after
	// that has the block: so no gap. Samples that both have are merged.
	recent, covered, err := edge()
	if err != nil {
		if recent, found.notes, err = withoutRecent[R](ctx, err); err != nil {
			return found, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return found, errQuerierClosed
	}
	if err := s.lookLocked(ctx, &covered, &found.notes); err != nil {
		return found, err
	}
	found.view = s.mu.view
	found.recent = s.mask(recent, s.mu.view.recent(ask.mint))
	found.blocks = slices.DeleteFunc(s.mu.view.overlapping(ask.mint, ask.maxt), func(b blockstore.Block) bool { return covered.has(&b.Meta) })
	found.blocks = partialOf(ctx).without(found.blocks, &found.notes)
	return found, nil
}

// lookLocked loads the view of the bucket, unless the present one is good for all calls.
func (s *session[R]) lookLocked(ctx context.Context, covered *covered, notes *annotations.Annotations) error {
	if s.mu.view != nil && covered.snapshot {
		return nil
	}
	view, err := s.q.views.viewFor(ctx, s.mu.tenant, covered.check)
	if view == nil || err != nil && (partialOf(ctx) == nil || !passable(ctx, err)) {
		return err
	}
	if err != nil {
		notes.Add(fmt.Errorf("partial response: %w", err))
	}
	s.mu.view = view
	return nil
}

// untilClosed returns a context that ends with the session, too.
func (s *session[R]) untilClosed(ctx context.Context) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.untilClosedLocked(ctx)
}

func (s *session[R]) untilClosedLocked(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	if s.mu.closed {
		cancel()
	}
	s.mu.cancels = append(s.mu.cancels, cancel)
	return ctx
}

// inBackground calls f at once, for a Select whose result is waited for later; the
// session's end ends it.
func (s *session[R]) inBackground(ctx context.Context, f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx = s.untilClosedLocked(ctx)
	s.background.Go(func() { f(ctx) })
}

// closeLater calls f when the session is closed.
func (s *session[R]) closeLater(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closers = append(s.mu.closers, f)
}

// Close ends all that the session has begun, and closes what it has opened. Only the
// first call counts.
func (s *session[R]) Close() error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return nil
	}
	s.mu.closed = true
	for _, cancel := range s.mu.cancels {
		cancel()
	}
	s.mu.Unlock()
	s.background.Wait()

	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.mu.tenant != "" {
		errs = append(errs, s.mu.edge.close())
	}
	for _, f := range s.mu.closers {
		errs = append(errs, f())
	}
	for _, b := range s.mu.blocks {
		if b.reader != nil {
			errs = append(errs, b.reader.Close())
			s.q.metrics.blocksOpen.Dec()
		}
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

func (s *session[R]) labelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	return s.labelCall(ctx, s.ofLabels(labelValues, name, hints, matchers), func(ctx context.Context, r R) ([]string, annotations.Annotations, error) {
		return r.LabelValues(ctx, name, hints, slices.Clone(matchers)...)
	})
}

func (s *session[R]) labelNames(ctx context.Context, hints *storage.LabelHints, matchers []*labels.Matcher) ([]string, annotations.Annotations, error) {
	return s.labelCall(ctx, s.ofLabels(labelNames, "", hints, matchers), func(ctx context.Context, r R) ([]string, annotations.Annotations, error) {
		return r.LabelNames(ctx, hints, slices.Clone(matchers)...)
	})
}

// labelCall makes a call of labels to all that have some, and merges what they say.
func (s *session[R]) labelCall(ctx context.Context, ask request, call func(context.Context, R) ([]string, annotations.Annotations, error)) ([]string, annotations.Annotations, error) {
	found, err := s.begin(ctx, ask)()
	if err != nil {
		return nil, nil, err
	}
	all, warnings, err := call(ctx, found.recent)
	if err != nil {
		return nil, nil, causeOf(ctx, err)
	}
	// Prometheus's API encodes them after it has closed the querier, when the mapped memory
	// that those of the ingester may lie in is gone.
	all = slices.Clone(all)
	for i, text := range all {
		all[i] = strings.Clone(text)
	}
	asked, stop := askOwners(ctx, s, found, ask)
	defer stop()
	ofBlocks, err := labelsOfBlocks(asked, s, found, ask, func(ctx context.Context, r R) ([]string, error) {
		values, _, err := call(ctx, r)
		return values, err
	})
	if err != nil {
		return nil, nil, reported(ctx, err)
	}
	warnings.Merge(found.notes)
	for _, some := range ofBlocks {
		all = append(all, some...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if ask.limit > 0 && len(all) > ask.limit {
		all = all[:ask.limit]
	}
	return all, warnings, nil
}

// selectFrom begins to select series, and returns the merged set of all that have
// some. begin selects from one.
func selectFrom[R reader, T labelled](ctx context.Context, s *session[R], hints *storage.SelectHints, matchers []*labels.Matcher,
	begin func(context.Context, R, *storage.SelectHints, []*labels.Matcher) seriesSet[T], merge func([]fragment[T]) T,
) *awaited[T] {
	ask := request{timeRange: s.span(hints), hints: hints, matchers: matchers}
	wait := s.begin(ctx, ask)
	set := &awaited[T]{ctx: ctx, ready: make(chan struct{})}
	ask.mint, ask.maxt = max(ask.mint, s.mint), min(ask.maxt, s.maxt)
	s.inBackground(ctx, func(background context.Context) {
		defer close(set.ready)
		found, err := wait()
		if err != nil {
			set.err = err
			return
		}
		asked, stop := askOwners(background, s, found, ask)
		defer stop()
		sources, err := selectBlocks(asked, s, found, ask, func(r R, hints *storage.SelectHints, ms []*labels.Matcher) seriesSet[T] {
			return begin(asked, r, hints, ms)
		})
		if err != nil {
			set.err = reported(ctx, err)
			return
		}
		limit := 0
		if hints != nil {
			limit = hints.Limit
		}
		set.notes = found.notes
		set.open = func() seriesSet[T] {
			recent := &seriesSource[T]{set: begin(ctx, found.recent, hints, slices.Clone(matchers)), recent: true, order: len(sources)}
			return newMergedSet(append(sources, recent), limit, merge)
		}
	})
	return set
}

type sampleQuerier struct {
	*session[storage.Querier]
	listing listing
}

func (q *sampleQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	begin := func(ctx context.Context, r storage.Querier, hints *storage.SelectHints, ms []*labels.Matcher) seriesSet[storage.Series] {
		return r.Select(ctx, true, hints, ms...) // sorted, to be merged
	}
	set := selectFrom(ctx, q.session, hints, matchers, begin, concatSamples)
	if hints != nil && hints.Func == seriesFunc {
		return q.listing.bound(set)
	}
	return set
}

func (q *sampleQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.labelValues(ctx, name, hints, matchers)
}

func (q *sampleQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.labelNames(ctx, hints, matchers)
}

type chunkQuerier struct {
	*session[storage.ChunkQuerier]
}

func (q *chunkQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	begin := func(ctx context.Context, r storage.ChunkQuerier, hints *storage.SelectHints, ms []*labels.Matcher) seriesSet[storage.ChunkSeries] {
		return r.Select(ctx, true, hints, ms...)
	}
	return selectFrom(ctx, q.session, hints, matchers, begin, concatChunks)
}

func (q *chunkQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.labelValues(ctx, name, hints, matchers)
}

func (q *chunkQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.labelNames(ctx, hints, matchers)
}

// awaited is a series set that is prepared in the background, so that all selectors of an
// expression are read at the same time, and waited for when it is first looked at. It
// ends with an error when ctx does, and says why.
type awaited[T labelled] struct {
	ctx   context.Context //nolint:containedctx // the context of one Select, for the life of its result
	ready chan struct{}   // closed once err or open is set
	open  func() seriesSet[T]
	set   seriesSet[T]            // nil until it was opened
	notes annotations.Annotations // besides those of set
	err   error
}

func (s *awaited[T]) Next() bool {
	select {
	case <-s.ready:
	case <-s.ctx.Done():
		return false
	}
	if s.err != nil || s.ctx.Err() != nil {
		return false
	}
	if s.set == nil {
		s.set = s.open()
	}
	return s.set.Next()
}

func (s *awaited[T]) At() T { return s.set.At() }

func (s *awaited[T]) Err() error {
	switch {
	case s.set != nil && s.set.Err() != nil:
		return reported(s.ctx, s.set.Err())
	case s.ctx.Err() != nil:
		return causeOf(s.ctx, s.ctx.Err())
	case s.set != nil:
		return nil
	}
	select {
	case <-s.ready:
		return s.err
	default:
		return nil
	}
}

func (s *awaited[T]) Warnings() annotations.Annotations {
	if s.set == nil {
		return nil
	}
	warnings := s.set.Warnings()
	return warnings.Merge(s.notes)
}
