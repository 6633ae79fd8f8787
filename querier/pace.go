package querier

import (
	"slices"
	"sync"
	"time"
)

const (
	// minHedge is how long an ingester may at least be silent before others are asked in
	// its place; beyond maxHedge nobody waits for one that is slow.
	minHedge = 200 * time.Millisecond
	maxHedge = 5 * time.Second
	// stalledAfter is how long an ingester may be silent before it counts as failed.
	stalledAfter = 30 * time.Second
)

// pace is how fast ingesters have answered lately: the time to the first part of an
// answer, since a long answer is not a slow one. It is safe for concurrent use.
type pace struct {
	mu struct {
		sync.Mutex
		recent [128]time.Duration
		n      int // of all time
	}
}

func (p *pace) observe(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.recent[p.mu.n%len(p.mu.recent)] = d
	p.mu.n++
}

// hedgeAfter returns how long to wait for an ingester before others are asked, too:
// longer than all but the slowest of late.
func (p *pace) hedgeAfter() time.Duration {
	p.mu.Lock()
	sorted := slices.Clone(p.mu.recent[:min(p.mu.n, len(p.mu.recent))])
	p.mu.Unlock()
	if len(sorted) == 0 {
		return minHedge
	}
	slices.Sort(sorted)
	return min(max(sorted[len(sorted)*95/100], minHedge), maxHedge)
}
