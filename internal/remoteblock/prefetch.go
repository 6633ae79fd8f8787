package remoteblock

import (
	"context"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
)

// prefetchBytes bounds the chunks that one Prefetch loads: whoever needs more of one
// block waits for the network, and not for round trips.
const prefetchBytes = 64 << 20

// Prefetch makes resident what a Select of the times from mint to maxt (in ms, both
// inclusive) needs of the series that match: all of the index, and of the chunks the first
// 64 MiB. It holds nothing of them in memory when it returns.
func (r *Reader) Prefetch(ctx context.Context, mint, maxt int64, matchers ...*labels.Matcher) error {
	if r.local {
		return nil
	}
	sel := r.Select(ctx, mint, maxt, true)
	ix, err := sel.Index()
	if err != nil {
		return err
	}
	found, err := tsdb.PostingsForMatchers(ctx, ix, slices.Clone(matchers)...) // it sorts them
	if err == nil {
		found = ix.SortedPostings(found)
		for found.Next() { // each batch adds its chunks to the plan
		}
		err = found.Err()
	}
	if err == nil {
		err = sel.loadSpans(sel.plan.first(prefetchBytes))
	}
	if err != nil {
		return err
	}
	return ix.Close()
}

// first returns the spans that come first and together have that many bytes.
func (p *plan) first(bytes int64) []chunkSpan {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := 0
	for end < len(p.mu.spans) && bytes > 0 {
		bytes -= p.mu.spans[end].End - p.mu.spans[end].Start
		end++
	}
	return slices.Clone(p.mu.spans[:end])
}
