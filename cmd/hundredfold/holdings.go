package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/ui"
)

// bucketFreshness is how old the home page's view of the bucket may be. Listing
// a bucket costs requests, and anybody may reload a page.
const bucketFreshness = 15 * time.Second

// holdings sums up what the process holds, for the home page. Safe for
// concurrent use.
type holdings struct {
	store *blockstore.Store

	mu struct {
		sync.Mutex
		ingester *ingester.Ingester
	}
	// listing lets one request at a time list the bucket; it guards what follows.
	listing chan struct{}
	listed  time.Time
	bucket  bucketHoldings
}

type bucketHoldings struct {
	tenants        map[tenant.ID]struct{}
	blocks         int
	oldest, newest int64 // ms; oldest > newest: none
}

func newHoldings(store *blockstore.Store) *holdings {
	return &holdings{store: store, listing: make(chan struct{}, 1)}
}

// attach says that the ingester is open.
func (h *holdings) attach(i *ingester.Ingester) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.ingester = i
}

func (h *holdings) summary(ctx context.Context) (s ui.Summary, ok bool, err error) {
	h.mu.Lock()
	ing := h.mu.ingester
	h.mu.Unlock()
	if ing == nil {
		return ui.Summary{}, false, nil
	}
	bucket, err := h.inBucket(ctx)
	tenants := map[tenant.ID]struct{}{}
	for id := range bucket.tenants {
		tenants[id] = struct{}{}
	}
	span := timeSpan{oldest: bucket.oldest, newest: bucket.newest, known: bucket.blocks > 0}
	s.BucketBlocks = bucket.blocks
	for _, t := range ing.Summaries() {
		tenants[t.Tenant] = struct{}{}
		s.Series += t.Series
		s.LocalBlocks += t.LocalBlocks
		span.add(t.MinTime, t.MaxTime)
	}
	s.Tenants = len(tenants)
	if span.known {
		s.Oldest, s.Newest = time.UnixMilli(span.oldest), time.UnixMilli(span.newest)
	}
	return s, true, err
}

// inBucket returns what was listed lately, or lists. With an error it returns
// what was known before.
func (h *holdings) inBucket(ctx context.Context) (bucketHoldings, error) {
	select {
	case h.listing <- struct{}{}:
		defer func() { <-h.listing }()
	case <-ctx.Done():
		return bucketHoldings{}, fmt.Errorf("list the bucket: %w", ctx.Err())
	}
	if time.Since(h.listed) < bucketFreshness {
		return h.bucket, nil
	}
	fresh, err := list(ctx, h.store)
	if err != nil {
		return h.bucket, fmt.Errorf("list the bucket: %w", err)
	}
	h.bucket, h.listed = fresh, time.Now()
	return fresh, nil
}

func list(ctx context.Context, store *blockstore.Store) (bucketHoldings, error) {
	tenants, err := store.Tenants(ctx)
	if err != nil {
		return bucketHoldings{}, err
	}
	b := bucketHoldings{tenants: map[tenant.ID]struct{}{}}
	var span timeSpan
	for _, id := range tenants {
		var blocks map[ulid.ULID]blockstore.Block
		if blocks, _, err = store.Blocks(ctx, id); err != nil {
			return bucketHoldings{}, err
		}
		b.tenants[id] = struct{}{}
		for _, block := range blocks {
			if block.Deletion != nil {
				continue // waits to be removed; its samples are in others, or past retention
			}
			b.blocks++
			span.add(block.Meta.MinTime, block.Meta.MaxTime-1) // a block's end is exclusive
		}
	}
	b.oldest, b.newest = span.oldest, span.newest
	return b, nil
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
