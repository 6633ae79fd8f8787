package querier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// staleAfter is how long an index may lack a block that is known to be in the bucket. A
// compactor that works writes it within a few minutes.
const staleAfter = 15 * time.Minute

// Why the blocks of a tenant are listed in place of reading its index.
const (
	faultMissing    = "missing"    // there is none
	faultUnreadable = "unreadable" // it cannot be read or understood
	faultRefused    = "refused"    // it lacks what it must have
	faultStale      = "stale"      // it has lacked a block for long
)

// source is what is known of one tenant's index as an object. One goroutine.
type source struct {
	sighting blockstore.IndexSighting
	fault    string // "": the index can be used
	why      error
	since    time.Time // of the fault
	// refused is the index that the view refused; after a listing it may take it.
	refused *blockstore.Index
}

// reload brings a tenant's view up to date by its index, which was modified then if it is
// there. Without an index that can be used, the blocks are listed: once for each call, so
// that the interval between calls bounds how often.
func (v *views) reload(ctx context.Context, id tenant.ID, s *source, modified time.Time, found bool) error {
	if v.store.Follows() {
		return v.relist(ctx, id) // no index lists the blocks of the previous bucket
	}
	v.readIndex(ctx, id, s, modified, found)
	if s.fault == "" {
		return nil
	}
	if err := v.relist(ctx, id); err != nil {
		return err
	}
	if refused := s.refused; refused != nil && v.accept(id, s, *refused) {
		v.logger.Info("A block index that was refused agrees with the bucket after all: the blocks that it lacks are gone", "tenant", id, "generation", refused.Generation)
		s.settle("", nil)
	}
	return nil
}

// readIndex reads the index if it may have changed, and says in s what is wrong with it.
func (v *views) readIndex(ctx context.Context, id tenant.ID, s *source, modified time.Time, found bool) {
	begun := time.Now()
	switch {
	case !found:
		*s = source{fault: s.fault, since: s.since}
		s.settle(faultMissing, errors.New("there is no block index"))
		return
	case s.sighting.Changed(modified, begun):
		var there bool
		index, err := within(ctx, lookTimeout, func(ctx context.Context) (index blockstore.Index, err error) {
			index, there, err = v.store.ReadIndex(ctx, id)
			return index, err
		})
		v.metrics.indexReads.Inc()
		switch {
		case errors.Is(err, blockstore.ErrCorruptIndex):
			s.sighting.Read(begun)
			s.refused = nil
			s.settle(faultUnreadable, err)
			return
		case err != nil:
			s.settle(faultUnreadable, err)
			return
		case !there:
			s.settle(faultMissing, errors.New("there is no block index any more"))
			return
		}
		s.sighting.Read(begun)
		if !v.accept(id, s, index) {
			return
		}
	case s.fault != "" && s.fault != faultStale:
		return // It is as it was.
	}
	fault, why := "", error(nil)
	if lag := v.known(id).lag(begun); lag > staleAfter {
		fault, why = faultStale, fmt.Errorf("the block index has lacked a block that is in the bucket for %s", lag.Round(time.Second))
	}
	s.settle(fault, why)
}

// accept makes an index the base of a tenant's view, unless the view refuses it.
func (v *views) accept(id tenant.ID, s *source, index blockstore.Index) bool {
	var err error
	v.change(id, func(old *tenantView) *tenantView {
		var next *tenantView
		if next, err = old.reindexed(index, time.Now()); err != nil {
			return old
		}
		return next
	})
	if err == nil {
		s.refused = nil
		return true
	}
	var refused *refusal
	if errors.As(err, &refused) && s.refused == nil {
		v.metrics.indexesRefused.WithLabelValues(refused.reason).Inc()
	}
	s.refused = &index
	s.settle(faultRefused, err)
	return false
}

// settle notes what is wrong with the index now.
func (s *source) settle(fault string, why error) {
	if fault != s.fault {
		s.since = time.Now()
	}
	s.fault, s.why = fault, why
}

// relist lists a tenant's blocks. It takes what it knows of them already from the view.
func (v *views) relist(ctx context.Context, id tenant.ID) error {
	begun := time.Now()
	v.metrics.listings.Inc()
	blocks, err := within(ctx, listTimeout, func(ctx context.Context) (map[ulid.ULID]blockstore.Block, error) {
		return v.store.Refresh(ctx, id, v.known(id).all)
	})
	if err != nil {
		v.attempted(id, begun)
		return fmt.Errorf("list blocks of tenant %q: %w", id, err)
	}
	v.change(id, func(old *tenantView) *tenantView { return old.relisted(blocks, begun) })
	v.attempted(id, begun)
	return nil
}
