package querier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	// lookers is how many tenants are looked at once in a refresh, nearly all by their
	// indexes, which are small: 10,000 take 3 s with round trips of 20 ms. listers is how
	// many are listed at once, and how many blocks are looked for by name.
	lookers = 64
	listers = 16
	// firstRetry is how soon a first look at the bucket that failed is tried again: until
	// it succeeds no query is answered.
	firstRetry = time.Second
	// verifyAfter is how old the last listing of a tenant becomes before there is another,
	// and up to as much again, so that they do not come all at once. It must end within
	// maxViewAge. In between, indexes and upload notices tell what there is.
	verifyAfter = 10 * time.Minute
	// verifyTick is how often it is looked for tenants that must be listed, and after a
	// failure verifyPause.
	verifyTick  = 5 * time.Second
	verifyPause = 30 * time.Second
	// lookTimeout bounds each look at the bucket that others wait for, as for the tenants
	// that there are: 10,000 take a second. listTimeout bounds a listing of one tenant's
	// blocks and reading what is new of them; what was read stays known if it takes longer. A
	// request that is never answered must not be the last one.
	lookTimeout = time.Minute
	listTimeout = 5 * time.Minute
	// listPatience is how long a query waits for a listing that it cannot do without.
	listPatience = 15 * time.Second
	// noticed bounds the upload notices that wait to be looked into. Those beyond are
	// dropped, as any notice may be.
	noticed = 4096
	// longFault is how long an index may be missing before it is worth a word: that of a new
	// tenant is written within a minute or two.
	longFault = 5 * time.Minute
)

// errNotLoaded says that the bucket, or a tenant's part of it, was never listed.
// It is a tsdb.ErrNotReady to Prometheus's API, which then says "unavailable".
var errNotLoaded error = notLoadedError{}

type notLoadedError struct{}

func (notLoadedError) Error() string {
	return "the view of the bucket is not loaded yet, so an answer would be incomplete: try again in a moment"
}

func (notLoadedError) Is(target error) bool { return target == tsdb.ErrNotReady }

// errNotListed says that a tenant's part of the bucket was not listed since the start.
var errNotListed = errors.New("the blocks in the bucket have not been listed since this querier was started, so samples that were moved there before may be lacking")

// views is the view of the bucket: which blocks of which tenants are read. It is safe for
// concurrent use, refresh apart, of which there is one at a time. Reads never wait.
type views struct {
	store     *blockstore.Store
	limits    tenant.LimitsFunc
	logger    *slog.Logger
	metrics   *metrics
	deletions *deletions
	current   atomic.Pointer[bucketView]
	fault     atomic.Pointer[error] // of the last refresh; nil: none

	sources map[tenant.ID]*source // of refresh alone

	wake chan struct{} // capacity 1: there are hints
	mu   struct {
		sync.Mutex
		// tenants are the views as they will be published; loaded says that all tenants of
		// the bucket have been looked at once.
		tenants map[tenant.ID]*tenantView
		loaded  bool
		ids     []tenant.ID // in the bucket when all were listed last
		taken   time.Time   // when that began
		hints   map[tenant.ID]*hint
		waiting int // upload notices in hints
		// attempts are when the last attempt to list a tenant that has ended began.
		attempts map[tenant.ID]time.Time
		// changed is closed when there is a view newer than current, or an attempt has ended.
		changed chan struct{}
	}
}

// hint says what is to be found out about a tenant.
type hint struct {
	list     bool
	uploaded []ulid.ULID
}

// bucketView is immutable.
type bucketView struct {
	tenants map[tenant.ID]*tenantView
	// pending are tenants in the bucket whose blocks could never be learned.
	pending map[tenant.ID]struct{}
	taken   time.Time // when the last listing of all tenants began
}

func newViews(store *blockstore.Store, limits tenant.LimitsFunc, fenced bool, logger *slog.Logger, m *metrics) *views {
	v := &views{store: store, limits: limits, logger: logger, metrics: m, wake: make(chan struct{}, 1), sources: map[tenant.ID]*source{}}
	v.deletions = newDeletions(store, fenced)
	v.mu.tenants = map[tenant.ID]*tenantView{}
	v.mu.hints = map[tenant.ID]*hint{}
	v.mu.attempts = map[tenant.ID]time.Time{}
	v.mu.changed = make(chan struct{})
	return v
}

func (v *views) loaded() error {
	if v.current.Load() != nil {
		return nil
	}
	if fault := v.fault.Load(); fault != nil {
		return fmt.Errorf("%w; the last attempt: %w", errNotLoaded, *fault)
	}
	return errNotLoaded
}

// of returns the view of a tenant's blocks; it is empty if the bucket has none.
func (v *views) of(id tenant.ID) (*tenantView, error) {
	current := v.current.Load()
	if current == nil {
		return nil, errNotLoaded
	}
	if _, ok := current.pending[id]; ok {
		return nil, errNotLoaded
	}
	view := tenantView{listed: current.taken}
	if t, ok := current.tenants[id]; ok {
		view = *t
	}
	var err error
	view.hiding, err = v.hidingOf(id)
	return &view, err
}

// age returns the seconds since all tenants were looked at, and 0 before the first time.
func (v *views) age() float64 {
	current := v.current.Load()
	if current == nil {
		return 0
	}
	return time.Since(current.taken).Seconds()
}

// listedSince waits until the view of a tenant comes from a listing that began at since
// or later, and reports whether it does before ctx ends or such a listing fails. It asks
// for one; those that wait at the same time share it.
func (v *views) listedSince(ctx context.Context, id tenant.ID, since time.Time) bool {
	for asked := false; ; {
		v.mu.Lock()
		changed, attempt := v.mu.changed, v.mu.attempts[id]
		t := v.mu.tenants[id]
		listed := t != nil && !t.listed.Before(since) // and will be published
		v.mu.Unlock()
		if view, err := v.of(id); err == nil && !view.listed.Before(since) {
			return true
		}
		if asked && !listed && !attempt.Before(since) {
			return false
		}
		if !asked {
			v.hint(id)
			asked = true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// hint asks for a listing of a tenant.
func (v *views) hint(id tenant.ID) { v.note(id, func(h *hint) { h.list = true }) }

// notice says that somebody has uploaded a block.
func (v *views) notice(id tenant.ID, block ulid.ULID) {
	v.note(id, func(h *hint) {
		if v.mu.waiting < noticed && !slices.Contains(h.uploaded, block) {
			v.mu.waiting++
			h.uploaded = append(h.uploaded, block)
		}
	})
}

func (v *views) note(id tenant.ID, add func(*hint)) {
	v.mu.Lock()
	h := v.mu.hints[id]
	if h == nil {
		h = &hint{}
		v.mu.hints[id] = h
	}
	add(h)
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default: // it is awake already
	}
}

func (v *views) takeHints() map[tenant.ID]*hint {
	v.mu.Lock()
	defer v.mu.Unlock()
	hints := v.mu.hints
	v.mu.hints, v.mu.waiting = map[tenant.ID]*hint{}, 0
	return hints
}

// known returns the last view of a tenant, which may not be published yet; it may be empty.
func (v *views) known(id tenant.ID) *tenantView {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t := v.mu.tenants[id]; t != nil {
		return t
	}
	return &tenantView{}
}

// change replaces the view of a tenant by one that is made of it. publish lets queries see
// it.
func (v *views) change(id tenant.ID, to func(old *tenantView) *tenantView) {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.mu.tenants[id]
	if old == nil {
		old = &tenantView{}
	}
	v.mu.tenants[id] = to(old)
}

// attempted notes that an attempt to list a tenant has ended, for those who wait for it.
func (v *views) attempted(id tenant.ID, begun time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.attempts[id] = begun
}

// refresh looks at all tenants. Of a tenant that cannot be looked at the old view stays.
func (v *views) refresh(ctx context.Context) error {
	// First of all: what is deleted must not be seen with the first listing.
	if err := v.deletions.refresh(ctx); err != nil {
		return v.failed(err)
	}
	begun := time.Now()
	ids, err := within(ctx, lookTimeout, v.store.Tenants)
	if err != nil {
		return v.failed(err)
	}
	indexes, err := within(ctx, lookTimeout, v.store.Indexes)
	if err != nil {
		return v.failed(err)
	}
	sources := make(map[tenant.ID]*source, len(ids))
	for _, id := range ids {
		if sources[id] = v.sources[id]; sources[id] == nil {
			sources[id] = &source{}
		}
	}
	v.sources = sources
	err = forEach(lookers, ids, func(id tenant.ID) error {
		modified, found := indexes[id]
		return v.reload(ctx, id, sources[id], modified, found)
	})
	v.settle(ids, begun)
	v.publish()
	v.showFaults()
	return v.failed(err)
}

// within looks at the bucket for so long at most.
func within[T any](ctx context.Context, limit time.Duration, look func(context.Context) (T, error)) (T, error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, err := look(bounded)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the bucket has not answered for %s: %w", limit, err)
	}
	return found, err
}

// forEach does something for tenants, so many at once, and joins what goes wrong.
func forEach(atOnce int, ids []tenant.ID, do func(tenant.ID) error) error {
	var (
		mu    sync.Mutex
		errs  []error
		group errgroup.Group
	)
	group.SetLimit(atOnce)
	for _, id := range ids {
		group.Go(func() error {
			if err := do(id); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return nil: one tenant must not stop the others
	return errors.Join(errs...)
}

// settle takes note of which tenants there are. One that has gone goes, unless a block of
// it was uploaded since.
func (v *views) settle(ids []tenant.ID, begun time.Time) {
	present := make(map[tenant.ID]struct{}, len(ids))
	for _, id := range ids {
		present[id] = struct{}{}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.mu.tenants, func(id tenant.ID, t *tenantView) bool {
		if _, ok := present[id]; ok {
			return false
		}
		for _, since := range t.unindexed {
			if since.After(begun) {
				return false
			}
		}
		return true
	})
	maps.DeleteFunc(v.mu.attempts, func(id tenant.ID, _ time.Time) bool {
		_, ok := present[id]
		return !ok
	})
	v.mu.loaded, v.mu.ids, v.mu.taken = true, ids, begun
}

// publish lets queries see the views as they are now, once all tenants were looked at.
func (v *views) publish() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.loaded {
		next := &bucketView{tenants: maps.Clone(v.mu.tenants), pending: map[tenant.ID]struct{}{}, taken: v.mu.taken}
		for _, id := range v.mu.ids {
			if next.tenants[id] == nil {
				next.pending[id] = struct{}{}
			}
		}
		visible := 0
		for _, t := range next.tenants {
			visible += len(t.blocks)
		}
		v.metrics.blocksVisible.Set(float64(visible))
		v.current.Store(next)
	}
	close(v.mu.changed)
	v.mu.changed = make(chan struct{})
}

// relistTenants lists some tenants, whatever their indexes say.
func (v *views) relistTenants(ctx context.Context, ids []tenant.ID) error {
	err := forEach(listers, ids, func(id tenant.ID) error { return v.relist(ctx, id) })
	v.publish()
	return v.failed(err)
}

// heed does what hints ask for. What was uploaded is read by name.
func (v *views) heed(ctx context.Context, hints map[tenant.ID]*hint) error {
	if v.current.Load() == nil {
		return v.refresh(ctx)
	}
	err := forEach(listers, slices.Collect(maps.Keys(hints)), func(id tenant.ID) error {
		if hints[id].list {
			return v.relist(ctx, id) // it shows what was uploaded, too
		}
		return v.learn(ctx, id, hints[id].uploaded)
	})
	v.publish()
	return v.failed(err)
}

// learn looks for blocks that somebody says are in the bucket. One that is not there was
// merged and deleted meanwhile, or never was; the next listing tells.
func (v *views) learn(ctx context.Context, id tenant.ID, blocks []ulid.ULID) error {
	var (
		mu    sync.Mutex
		found []blockstore.Block
	)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(listers)
	view := v.known(id)
	for _, block := range blocks {
		if view.reads(block) {
			continue
		}
		group.Go(func() error {
			b, err := within(groupCtx, lookTimeout, func(ctx context.Context) (blockstore.Block, error) { return v.store.Block(ctx, id, block) })
			if errors.Is(err, blockstore.ErrBlockNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, b)
			return nil
		})
	}
	err := group.Wait()
	if len(found) > 0 {
		v.change(id, func(old *tenantView) *tenantView { return old.uploaded(found, time.Now()) })
	}
	return err
}

// overdue returns the tenants that must be listed: their last listing is older than
// allows, those without any first.
func (v *views) overdue(now time.Time) []tenant.ID {
	current := v.current.Load()
	if current == nil {
		return nil
	}
	var ids []tenant.ID
	for id, t := range current.tenants {
		after := verifyAfter + time.Duration(xxhash.Sum64String(string(id))%uint64(verifyAfter)) //nolint:gosec // it is below a duration
		if t.listed.IsZero() || now.Sub(t.listed) > after {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b tenant.ID) int {
		return cmp.Or(current.tenants[a].listed.Compare(current.tenants[b].listed), cmp.Compare(a, b))
	})
	return ids
}

// verify lists the tenants that are due until ctx ends: indexes are not trusted for ever,
// and no clock but this one says how old a view is.
func (v *views) verify(ctx context.Context) {
	const batch = 4 * listers // tenants; so that queries see them soon
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		v.mu.Lock()
		changed := v.mu.changed
		v.mu.Unlock()
		if v.current.Load() != nil {
			changed = nil // only the first view is waited for
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
		pause := verifyTick
		if ids := v.overdue(time.Now()); len(ids) > 0 {
			for some := range slices.Chunk(ids, batch) {
				if err := v.relistTenants(ctx, some); err != nil {
					pause = verifyPause // the refresh says so in the log
					break
				}
			}
		}
		timer.Reset(pause)
	}
}

// showFaults says which tenants are listed because of their indexes.
func (v *views) showFaults() {
	counts := map[string]int{faultMissing: 0, faultUnreadable: 0, faultRefused: 0, faultStale: 0}
	for _, s := range v.sources {
		if s.fault != "" {
			counts[s.fault]++
		}
	}
	for fault, n := range counts {
		v.metrics.tenantsListed.WithLabelValues(fault).Set(float64(n))
	}
}

// worst returns a complaint about the indexes that cannot be used, or nil. A tenant's
// first one may be missing for a while.
func (v *views) worst(now time.Time) error {
	n := 0
	var example tenant.ID
	for id, s := range v.sources {
		if s.fault == "" || s.fault == faultMissing && now.Sub(s.since) < longFault {
			continue
		}
		if n++; example == "" || id < example {
			example = id
		}
	}
	if n == 0 {
		return nil
	}
	s := v.sources[example]
	return fmt.Errorf("%d tenants, among them %q, whose index is %s: %w", n, example, s.fault, s.why)
}

func (v *views) failed(err error) error {
	if err == nil {
		v.fault.Store(nil)
		return nil
	}
	v.metrics.refreshFailures.Inc()
	v.fault.Store(&err)
	return err
}

// keepFresh refreshes the view every interval and upon hints, and lets go of the
// blocks that no query needs any more.
func (q *Querier) keepFresh(ctx context.Context) {
	var verifying sync.WaitGroup
	verifying.Go(func() { q.views.verify(ctx) })
	defer verifying.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var complaints, indexes complaint
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			q.edge.observe()
			err = q.views.refresh(ctx)
			next := time.Duration(q.cfg.RefreshInterval)
			if q.views.loaded() != nil {
				next = min(next, firstRetry)
			}
			timer.Reset(next)
			if worst := q.views.worst(time.Now()); worst != nil && indexes.isNew(worst) {
				q.logger.Warn("Block indexes cannot be used, so the blocks are listed in the bucket, which is slower; see whether the compactor works", "err", worst)
			}
		case <-q.views.wake:
			err = q.views.heed(ctx, q.views.takeHints())
		}
		if err != nil && ctx.Err() == nil && complaints.isNew(err) {
			if q.views.loaded() != nil {
				q.logger.Warn("The bucket could not be listed; queries are refused until it can", "err", err)
			} else {
				q.logger.Warn("The bucket could not be listed; queries go on with the blocks that were seen before", "err", err)
			}
		}
		if view := q.views.current.Load(); view != nil {
			if err := q.trimBlocks(view); err != nil {
				q.logger.Warn("What is on disk of blocks that are no longer read could not be removed", "err", err)
			}
		}
	}
}

// viewFor returns the view of a tenant that check accepts. If the present one is too old for
// that, it waits for a listing. With an error that only says that the view may lack
// something, it returns the view all the same.
func (v *views) viewFor(ctx context.Context, id tenant.ID, check func(*tenantView) error) (*tenantView, error) {
	view, err := v.of(id)
	if err != nil {
		return v.hidden(id, err)
	}
	if check == nil {
		return view, nil
	}
	fault := check(view)
	if fault == nil {
		return view, nil
	}
	waiting, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	if !v.listedSince(waiting, id, time.Now()) {
		return view, fault
	}
	if view, err = v.of(id); err != nil {
		return v.hidden(id, err)
	}
	return view, check(view)
}

// hidden returns an empty view with err if that says that the blocks are not known. If it
// is not known what must not be seen, there is no view.
func (v *views) hidden(id tenant.ID, err error) (*tenantView, error) {
	if !errors.Is(err, errNotLoaded) {
		return nil, unavailable(err)
	}
	hiding, fault := v.hidingOf(id)
	if fault != nil {
		return nil, unavailable(fault)
	}
	return &tenantView{hiding: hiding}, unavailable(err)
}

// complaint keeps a lasting fault from filling the log. One goroutine.
type complaint struct {
	text string
	at   time.Time
}

// isNew reports whether err is another one than last time, or a minute has passed.
func (c *complaint) isNew(err error) bool {
	if text := err.Error(); text != c.text || time.Since(c.at) >= time.Minute {
		c.text, c.at = text, time.Now()
		return true
	}
	return false
}

// unavailable makes err one that goes away: 503.
func unavailable(err error) error { return wire.Unavailable(err, 5*time.Second) }
