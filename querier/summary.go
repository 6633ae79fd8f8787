package querier

import (
	"math"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Summary describes what queries read of one tenant from the bucket.
type Summary struct {
	Tenant  tenant.ID
	Blocks  int
	MinTime int64 // ms, of the oldest sample; above MaxTime if there is none
	MaxTime int64 // ms, of the newest sample
}

// Summaries describes every tenant in the current view of the bucket, in no order.
func (q *Querier) Summaries() []Summary {
	view := q.views.current.Load()
	if view == nil {
		return nil
	}
	out := make([]Summary, 0, len(view.tenants))
	for id, t := range view.tenants {
		s := Summary{Tenant: id, Blocks: len(t.blocks), MinTime: math.MaxInt64, MaxTime: math.MinInt64}
		for i := range t.blocks {
			meta := &t.blocks[i].Meta
			s.MinTime, s.MaxTime = min(s.MinTime, meta.MinTime), max(s.MaxTime, meta.MaxTime-1) // a block's end is exclusive
		}
		out = append(out, s)
	}
	return out
}
