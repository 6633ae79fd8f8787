package loadgen

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// tickRange is the ticks [from, to).
type tickRange struct{ from, to int64 }

// ticksOf returns the ticks that a run of cfg sends. A live run begins with the
// tick that has begun, and its last tick is not known yet.
func ticksOf(cfg Config) tickRange {
	interval := cfg.Interval.Milliseconds()
	if cfg.Span == 0 {
		return tickRange{from: floorDiv(time.Now().UnixMilli(), interval), to: math.MaxInt64 / interval}
	}
	to := floorDiv(cfg.End.UnixMilli(), interval)
	return tickRange{from: to - cfg.Span.Milliseconds()/interval, to: to}
}

// plan says which sender sends which series, and in which order: tick by tick,
// and within a tick by position. The position of a series is that of its pod
// plus its slot. The plan is immutable.
type plan struct {
	ticks   tickRange
	senders [][]run // by sender; no sender is without runs
	places  []place // by pod
}

// run is a list of pods that are sent one after the other under one tenant.
type run struct {
	tenant string
	pods   []int
	due    int64 // ms into the tick after which all of them have been scraped
}

// place is where a pod stands in the plan.
type place struct {
	sender   int
	position int // of its first series
}

// liveDeadline is how long a live run holds samples back to fill a request, as
// Prometheus does by default.
const liveDeadline = 5 * time.Second

func newPlan(w *world, cfg Config, ticks tickRange) *plan {
	p := &plan{ticks: ticks, places: make([]place, w.pods())}
	pods := make([][]int, cfg.Senders)
	for pod := range w.pods() {
		s := senderOf(pod, w.Tenants, cfg.Senders)
		pods[s] = append(pods[s], pod)
	}
	for _, mine := range pods {
		if len(mine) == 0 {
			continue
		}
		runs := newRuns(w, mine, cfg.Span == 0)
		position := 0
		for _, r := range runs {
			for _, pod := range r.pods {
				p.places[pod] = place{sender: len(p.senders), position: position}
				position += w.podSeries(pod)
			}
		}
		p.senders = append(p.senders, runs)
	}
	return p
}

// senderOf keeps each tenant with one sender if there are enough tenants, so
// that requests fill up.
func senderOf(pod, tenants, senders int) int {
	switch {
	case tenants == 0:
		return pod % senders
	case tenants >= senders:
		return pod % tenants % senders
	default:
		return (pod%tenants + pod/tenants*tenants) % senders
	}
}

func newRuns(w *world, pods []int, live bool) []run {
	byTenant := map[string][]int{}
	for _, pod := range pods {
		byTenant[w.tenant(pod)] = append(byTenant[w.tenant(pod)], pod)
	}
	var runs []run
	for tenant, mine := range byTenant {
		slices.SortFunc(mine, func(a, b int) int {
			return cmp.Or(cmp.Compare(w.offset(a), w.offset(b)), cmp.Compare(a, b))
		})
		for len(mine) > 0 {
			n := len(mine)
			if live {
				end := w.offset(mine[0]) + liveDeadline.Milliseconds()
				n = slices.IndexFunc(mine, func(pod int) bool { return w.offset(pod) > end })
				if n < 0 {
					n = len(mine)
				}
			}
			runs = append(runs, run{tenant: tenant, pods: mine[:n], due: w.offset(mine[n-1])})
			mine = mine[n:]
		}
	}
	slices.SortFunc(runs, func(a, b run) int {
		return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.pods[0], b.pods[0]))
	})
	return runs
}

// Cursor is a point in what a sender sends: before the series at Position in Tick.
type Cursor struct {
	Tick     int64 `json:"tick"`
	Position int   `json:"position"`
}

func (c Cursor) before(other Cursor) bool {
	return c.Tick < other.Tick || c.Tick == other.Tick && c.Position < other.Position
}

// Range is what a sender sends from From until before To.
type Range struct {
	From Cursor `json:"from"`
	To   Cursor `json:"to"`
}

// Lead bounds how far senders may be apart: a fast one would otherwise make the
// samples of a slow one out of order, or too old.
const (
	maxLead     = 8 // ticks from the slowest sender to the fastest
	requestSpan = 4 // ticks in one request
)

// pace holds senders together. It is safe for concurrent use.
type pace struct {
	mu      sync.Mutex
	at      []int64 // the tick that each sender is in
	slowest int64
	moved   chan struct{} // closed when slowest rises
}

func newPace(senders int, first int64) *pace {
	p := &pace{at: make([]int64, senders), slowest: first, moved: make(chan struct{})}
	for i := range p.at {
		p.at[i] = first
	}
	return p
}

// enter says that the sender goes on with tick k, once the others are near enough.
func (p *pace) enter(ctx context.Context, sender int, k int64) error {
	p.mu.Lock()
	p.at[sender] = k
	if slowest := slices.Min(p.at); slowest > p.slowest {
		p.slowest = slowest
		close(p.moved)
		p.moved = make(chan struct{})
	}
	for k < math.MaxInt64 && k-p.slowest > maxLead {
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
	return nil
}

// leave says that the sender has nothing more to send.
func (p *pace) leave(sender int) {
	_ = p.enter(context.Background(), sender, math.MaxInt64) // does not wait
}
