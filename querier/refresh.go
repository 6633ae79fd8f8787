package querier

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/tsdb"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	// listers is how many tenants are listed at once.
	listers = 8
	// firstRetry is how soon a first listing that failed is tried again: until it
	// succeeds no query is answered.
	firstRetry = time.Second
)

// errNotLoaded says that the bucket, or a tenant's part of it, was never listed.
// It is a tsdb.ErrNotReady to Prometheus's API, which then says "unavailable".
var errNotLoaded error = notLoadedError{}

type notLoadedError struct{}

func (notLoadedError) Error() string {
	return "the view of the bucket is not loaded yet, so an answer would be incomplete: try again in a moment"
}

func (notLoadedError) Is(target error) bool { return target == tsdb.ErrNotReady }

// views is the view of the bucket: which blocks of which tenants are read. Reads
// are safe for concurrent use and never wait; only one goroutine refreshes.
type views struct {
	store     *blockstore.Store
	limits    tenant.LimitsFunc
	metrics   *metrics
	deletions *deletions
	current   atomic.Pointer[bucketView]
	fault     atomic.Pointer[error] // of the last refresh; nil: none

	wake chan struct{} // capacity 1: there are hints
	mu   struct {
		sync.Mutex
		hints map[tenant.ID]struct{}
		// changed is closed when there is a view newer than current.
		changed chan struct{}
	}
}

// bucketView is immutable.
type bucketView struct {
	tenants map[tenant.ID]*tenantView
	// pending are tenants in the bucket whose blocks could never be listed.
	pending map[tenant.ID]struct{}
	taken   time.Time // when the last listing of all tenants began
}

func newViews(store *blockstore.Store, limits tenant.LimitsFunc, fenced bool, m *metrics) *views {
	v := &views{store: store, limits: limits, metrics: m, wake: make(chan struct{}, 1)}
	v.deletions = &deletions{store: store, fenced: fenced}
	v.mu.hints = map[tenant.ID]struct{}{}
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

// age returns the seconds since all tenants were listed, and 0 before the first time.
func (v *views) age() float64 {
	current := v.current.Load()
	if current == nil {
		return 0
	}
	return time.Since(current.taken).Seconds()
}

// listedSince waits until the view of a tenant comes from a listing that began at since
// or later, and reports whether it does before ctx ends. It asks for such a listing;
// those that wait at the same time share one.
func (v *views) listedSince(ctx context.Context, id tenant.ID, since time.Time) bool {
	for asked := false; ; {
		v.mu.Lock()
		changed := v.mu.changed
		v.mu.Unlock()
		if view, err := v.of(id); err == nil && !view.listed.Before(since) {
			return true
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

func (v *views) hint(id tenant.ID) {
	v.mu.Lock()
	v.mu.hints[id] = struct{}{}
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default: // it is awake already
	}
}

func (v *views) takeHints() []tenant.ID {
	v.mu.Lock()
	defer v.mu.Unlock()
	ids := make([]tenant.ID, 0, len(v.mu.hints))
	for id := range v.mu.hints {
		ids = append(ids, id)
	}
	clear(v.mu.hints)
	return ids
}

// refresh lists all tenants. Of a tenant that cannot be listed the old view stays.
func (v *views) refresh(ctx context.Context) error {
	// First of all: what is deleted must not be seen with the first listing.
	if err := v.deletions.refresh(ctx); err != nil {
		return v.failed(err)
	}
	begun := time.Now()
	ids, err := v.store.Tenants(ctx)
	if err != nil {
		return v.failed(err)
	}
	next := &bucketView{
		tenants: make(map[tenant.ID]*tenantView, len(ids)),
		pending: map[tenant.ID]struct{}{},
		taken:   begun,
	}
	listed, err := v.list(ctx, ids)
	old := v.current.Load()
	for _, id := range ids {
		switch {
		case listed[id] != nil:
			next.tenants[id] = listed[id]
		case old != nil && old.tenants[id] != nil:
			next.tenants[id] = old.tenants[id]
		default:
			next.pending[id] = struct{}{}
		}
	}
	v.publish(next)
	return v.failed(err)
}

// refreshTenants lists some tenants only.
func (v *views) refreshTenants(ctx context.Context, ids []tenant.ID) error {
	old := v.current.Load()
	if old == nil {
		return v.refresh(ctx)
	}
	listed, err := v.list(ctx, ids)
	next := &bucketView{tenants: maps.Clone(old.tenants), pending: maps.Clone(old.pending), taken: old.taken}
	for id, view := range listed {
		next.tenants[id] = view
		delete(next.pending, id)
	}
	v.publish(next)
	return v.failed(err)
}

// list returns the views of those tenants that can be listed, and what went wrong
// with the others.
func (v *views) list(ctx context.Context, ids []tenant.ID) (map[tenant.ID]*tenantView, error) {
	var (
		mu    sync.Mutex
		found = make(map[tenant.ID]*tenantView, len(ids))
		errs  []error
		group errgroup.Group
	)
	group.SetLimit(listers)
	for _, id := range ids {
		group.Go(func() error {
			begun := time.Now()
			blocks, _, err := v.store.Blocks(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("list blocks of tenant %q: %w", id, err))
				return nil
			}
			found[id] = newTenantView(blocks, begun)
			return nil
		})
	}
	_ = group.Wait() // the functions return nil: one tenant must not stop the others
	return found, errors.Join(errs...)
}

func (v *views) publish(next *bucketView) {
	visible := 0
	for _, t := range next.tenants {
		visible += len(t.blocks)
	}
	v.metrics.blocksVisible.Set(float64(visible))
	v.current.Store(next)
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.mu.changed)
	v.mu.changed = make(chan struct{})
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
	timer := time.NewTimer(0)
	defer timer.Stop()
	var complaint complaint
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
		case <-q.views.wake:
			err = q.views.refreshTenants(ctx, q.views.takeHints())
		}
		if err != nil && ctx.Err() == nil && complaint.isNew(err) {
			if q.views.loaded() != nil {
				q.logger.Warn("The bucket could not be listed; queries are refused until it can", "err", err)
			} else {
				q.logger.Warn("The bucket could not be listed; queries go on with the blocks that were seen before", "err", err)
			}
		}
		if view := q.views.current.Load(); view != nil {
			if err := q.blocks.trim(view); err != nil {
				q.logger.Warn("A block that is no longer read could not be removed; its files stay until the next start", "err", err)
			}
		}
	}
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
