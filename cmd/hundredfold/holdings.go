package main

import (
	"sync/atomic"
	"time"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/ui"
	"github.com/hundredfold/hundredfold/querier"
)

// holdings sums up what the process holds, for the home page. It asks the roles
// for what they know already, because anybody may reload a page: the bucket is
// not listed for it. Safe for concurrent use.
type holdings struct {
	roles atomic.Pointer[holders]
}

// holders are nil where the process lacks the role.
type holders struct {
	ingester *ingester.Ingester
	querier  *querier.Querier
}

// attach says that the roles are there; either may be nil.
func (h *holdings) attach(ing *ingester.Ingester, q *querier.Querier) {
	h.roles.Store(&holders{ingester: ing, querier: q})
}

// summary is a ui.Deps.Summary.
func (h *holdings) summary() (s ui.Summary, ok bool, err error) {
	roles := h.roles.Load()
	if roles == nil {
		return ui.Summary{}, false, nil
	}
	tenants := map[tenant.ID]struct{}{}
	var span timeSpan
	if roles.querier != nil {
		err = roles.querier.Ready()
		for _, t := range roles.querier.Summaries() {
			tenants[t.Tenant] = struct{}{}
			s.BucketBlocks += t.Blocks
			span.add(t.MinTime, t.MaxTime)
		}
	}
	if roles.ingester != nil {
		for _, t := range roles.ingester.Summaries() {
			tenants[t.Tenant] = struct{}{}
			s.Series += t.Series
			s.LocalBlocks += t.LocalBlocks
			span.add(t.MinTime, t.MaxTime)
		}
	}
	s.Tenants = len(tenants)
	if span.known {
		s.Oldest, s.Newest = time.UnixMilli(span.oldest), time.UnixMilli(span.newest)
	}
	return s, true, err
}

// timeSpan is from the oldest to the newest sample, in ms.
type timeSpan struct {
	oldest, newest int64
	known          bool
}

func (s *timeSpan) add(oldest, newest int64) {
	switch {
	case oldest > newest: // none
	case !s.known:
		*s = timeSpan{oldest: oldest, newest: newest, known: true}
	default:
		s.oldest, s.newest = min(s.oldest, oldest), max(s.newest, newest)
	}
}
