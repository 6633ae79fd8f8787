package querier

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/deletion"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/retention"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// deletionsInterval is how often the deletions in the bucket are listed where they can
	// be asked for. Who accepts one tells all queriers besides.
	deletionsInterval = 10 * time.Second
	// maxDeletionsAge is how old the list of deletions may be. Who has accepted a deletion,
	// and could not tell a querier of it, knows that it is obeyed after this time.
	maxDeletionsAge = 30 * time.Second
	// cutoffStep is in what steps the time moves before which a retention rule hides
	// samples, so that results can be kept for a while.
	cutoffStep = time.Hour
)

// deletions are the active deletions of all tenants, as the bucket lists them. It is safe
// for concurrent use.
type deletions struct {
	store *blockstore.Store
	// fenced says that queries fail while the list is older than maxDeletionsAge. Where
	// nobody can ask for a deletion, the list does not age.
	fenced  bool
	current atomic.Pointer[deletionsView]
	listing chan struct{} // capacity 1: holds one while there is a listing
}

func newDeletions(store *blockstore.Store, fenced bool) *deletions {
	return &deletions{store: store, fenced: fenced, listing: make(chan struct{}, 1)}
}

// deletionsView is immutable.
type deletionsView struct {
	sets   map[tenant.ID]deletion.Set
	faults map[tenant.ID]error
	taken  time.Time // when the listing began
}

// refresh lists the deletions. What was recorded before it is called is obeyed once it
// has returned without an error. It takes deletionsInterval at most: a bucket that hangs
// must not keep the next attempt from being made. Those that wait for a listing share the
// next one.
func (d *deletions) refresh(ctx context.Context) error {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, deletionsInterval)
	defer cancel()
	select {
	case d.listing <- struct{}{}:
		defer func() { <-d.listing }()
	case <-ctx.Done():
		return fmt.Errorf("another listing of the deletions in the bucket does not end: %w", ctx.Err())
	}
	if view := d.current.Load(); view != nil && view.taken.After(asked) {
		return nil
	}
	next := &deletionsView{sets: map[tenant.ID]deletion.Set{}, faults: map[tenant.ID]error{}, taken: time.Now()}
	all, err := d.store.Deletions(ctx)
	if err != nil {
		return err
	}
	for id, of := range all {
		set, err := deletion.NewSet(of.Active)
		if err = errors.Join(of.Fault, err); err != nil {
			next.faults[id] = err
			continue
		}
		if !set.Empty() {
			next.sets[id] = set
		}
	}
	d.current.Store(next)
	return nil
}

// of returns the deletions of a tenant, or why nobody can tell what they are.
func (d *deletions) of(id tenant.ID) (deletion.Set, error) {
	view := d.current.Load()
	if view == nil {
		return deletion.Set{}, errNotLoaded
	}
	if age := time.Since(view.taken); d.fenced && age > maxDeletionsAge {
		return deletion.Set{}, unavailable(fmt.Errorf("the deletions in the bucket were last listed %s ago, so samples that were deleted since might be shown", age.Round(time.Second)))
	}
	if err := view.faults[id]; err != nil {
		return deletion.Set{}, fmt.Errorf("nobody can tell which samples of tenant %s are deleted: %w", id, err)
	}
	return view.sets[id], nil
}

// keepDeletions lists the deletions every deletionsInterval until ctx ends. Where nobody
// can ask for one, those that there are go as the view of the bucket is refreshed.
func (q *Querier) keepDeletions(ctx context.Context) {
	if !q.views.deletions.fenced {
		return
	}
	ticker := time.NewTicker(deletionsInterval)
	defer ticker.Stop()
	var complaint complaint
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := q.views.deletions.refresh(ctx)
		if err != nil && ctx.Err() == nil && complaint.isNew(err) {
			q.logger.Warn("The deletions could not be listed; queries are refused after 30 s of this, since they might show what was deleted", "err", err)
		}
	}
}

// hiding is what is hidden of a tenant, in the blocks that a tenantView lists and elsewhere.
type hiding struct {
	deletions deletion.Set
	policy    retention.Policy
	now       time.Time // in steps of cutoffStep
}

// hidingOf returns what is hidden of a tenant at this moment.
func (v *views) hidingOf(id tenant.ID) (hiding, error) {
	set, err := v.deletions.of(id)
	if err != nil {
		return hiding{}, err
	}
	h := hiding{deletions: set, now: time.Now().Truncate(cutoffStep)}
	if l := v.limits(id); len(l.RetentionRules) > 0 {
		h.policy, err = retention.New(l)
	}
	return h, err
}

// filters returns what hides samples of a block.
func (h *hiding) filters(b *blockstore.Block) []mask.Filter {
	filters, _ := h.deletions.Of(b)
	if old := h.policy.Filter(b.Meta.MinTime, h.now); old != nil {
		filters = append(filters, deletion.ForBlock(old, b))
	}
	return filters
}

// recent returns what hides samples at or after mint, in ms, in the answers of ingesters.
// What they hold is as old as the oldest block that was not dropped yet, which may be one of
// a Prometheus whose directory was adopted.
func (h *hiding) recent(mint int64) []mask.Filter {
	filters := h.deletions.Recent()
	if old := h.policy.Filter(mint, h.now); old != nil {
		filters = append(filters, old)
	}
	return filters
}

// version adds to a fingerprint what is hidden from mint to maxt in blocks.
func (h *hiding) version(write func([]byte), mint, maxt int64, blocks []blockstore.Block) {
	h.deletions.Fingerprint(write, mint, maxt, blocks)
	for i := range blocks {
		if h.policy.Filter(blocks[i].Meta.MinTime, h.now) != nil {
			write(h.now.AppendFormat(nil, time.RFC3339))
			write([]byte(h.policy.Key()))
			return
		}
	}
}

func maskSamples(r storage.Querier, filters []mask.Filter) storage.Querier {
	return mask.Querier(r, filters...)
}

func maskChunks(r storage.ChunkQuerier, filters []mask.Filter) storage.ChunkQuerier {
	return mask.ChunkQuerier(r, filters...)
}
