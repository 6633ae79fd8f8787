package compactor

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// heartbeat is how often a visitor shows that it is still at work.
	heartbeat = 30 * time.Second
	// abandonedAfter is how long a visit must stand still before it counts as left by
	// one that died: long enough for a few heartbeats that a slow bucket swallows.
	abandonedAfter = 4 * heartbeat
	// endTimeout bounds the removal of a visit, also during a shutdown.
	endTimeout = 5 * time.Second
)

// errVisited says that another compactor works on the tenant.
var errVisited = errors.New("another compactor works on the tenant")

// visits are this compactor's visits to tenants, of which it makes one at a time, and
// what it has seen of those of others.
//
// A visit spares the work of doing a job twice. It does not exclude it: two that begin
// at the same moment both think that they are alone until the next heartbeat, when the
// one whose visit was overwritten gives up.
type visits struct {
	store  *blockstore.Store
	self   blockstore.Visit
	logger *slog.Logger
	seen   map[tenant.ID]seenVisit
}

// seenVisit is a visit of another compactor, and since when it looks like that, by this
// process's monotonic clock. No other clock is trusted.
type seenVisit struct {
	visit blockstore.Visit
	since time.Time
}

func newVisits(store *blockstore.Store, instance string, logger *slog.Logger) *visits {
	return &visits{
		store:  store,
		self:   blockstore.Visit{Instance: instance, Incarnation: rand.Text()},
		logger: logger,
		seen:   map[tenant.ID]seenVisit{},
	}
}

// begin begins a visit, or returns errVisited. The context that it returns ends with
// errVisited as its cause when another compactor takes over. end must be called.
func (v *visits) begin(ctx context.Context, id tenant.ID) (visit context.Context, end func() error, err error) {
	other, found, err := v.store.Visit(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if found && v.isOther(other) && !v.isAbandoned(id, other) {
		v.logger.Debug("a tenant is left to the compactor that works on it", "tenant", id, "instance", other.Instance)
		return nil, nil, errVisited
	}
	delete(v.seen, id)
	mine := v.self
	mine.Count = 1
	if err := v.store.PutVisit(ctx, id, mine); err != nil {
		return nil, nil, err
	}
	visit, cancel := context.WithCancelCause(ctx)
	var beating sync.WaitGroup
	beating.Go(func() { v.beat(visit, cancel, id, mine) })
	return visit, func() error {
		lost := errors.Is(context.Cause(visit), errVisited)
		cancel(nil)
		beating.Wait()
		if lost {
			return nil
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		return v.store.RemoveVisit(last, id)
	}, nil
}

// isOther tells whether a visit is another process's. One of this instance from before
// its restart is not.
func (v *visits) isOther(visit blockstore.Visit) bool { return visit.Instance != v.self.Instance }

// isAbandoned tells whether the visit of another compactor has stood still for so long
// that its visitor must be dead.
func (v *visits) isAbandoned(id tenant.ID, visit blockstore.Visit) bool {
	seen, ok := v.seen[id]
	if !ok || seen.visit != visit {
		v.seen[id] = seenVisit{visit: visit, since: time.Now()}
		return false
	}
	if time.Since(seen.since) < abandonedAfter {
		return false
	}
	v.logger.Warn("a compactor has stopped working on a tenant without saying so; this one takes over", "tenant", id, "instance", visit.Instance)
	return true
}

// forget drops what was seen of tenants that are none of this compactor's.
func (v *visits) forget(present map[tenant.ID]struct{}) {
	for id := range v.seen {
		if _, ok := present[id]; !ok {
			delete(v.seen, id)
		}
	}
}

// beat shows that the visit goes on, until ctx ends. It ends it if another compactor
// has put its own in the place. What the bucket refuses is tried again next time.
func (v *visits) beat(ctx context.Context, lose context.CancelCauseFunc, id tenant.ID, visit blockstore.Visit) {
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		there, found, err := v.store.Visit(ctx, id)
		if err == nil && found && v.isOther(there) {
			v.logger.Info("a tenant is left to another compactor that has taken over", "tenant", id, "instance", there.Instance)
			lose(errVisited)
			return
		}
		if err == nil {
			visit.Count++
			err = v.store.PutVisit(ctx, id, visit)
		}
		if err != nil && ctx.Err() == nil {
			v.logger.Warn("a visit cannot be kept up; another compactor may take the tenant over", "tenant", id, "err", err)
		}
	}
}
