package querier

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// maxQueueWait is how long a query waits for its turn. Grafana's own timeout is 30 s
// by default; an answer before that tells its user why.
const maxQueueWait = 20 * time.Second

// maxQueue is how many queries of a tenant wait. Each holds a connection and what
// its client has sent, so there must be an end; more than these would hardly get
// their turn within maxQueueWait.
const maxQueue = 1000

// gate bounds how many queries of each tenant run at once and lets the others wait,
// first come, first served. It is safe for concurrent use.
type gate struct {
	mu struct {
		sync.Mutex
		lanes map[tenant.ID]*lane // only of tenants that run or wait
	}
}

type lane struct {
	running int
	waiting []chan struct{} // closed when it is a query's turn, which is running then
}

func newGate() *gate {
	g := &gate{}
	g.mu.lanes = map[tenant.ID]*lane{}
	return g
}

// enter waits for the turn of a query. limit is read whenever a turn may be given,
// so that a change takes effect at once; 0 and less is no limit. The caller calls
// leave once the query has ended.
func (g *gate) enter(ctx context.Context, id tenant.ID, limit func() int) (leave func(), err error) {
	leave = func() { g.leave(id, limit) }
	turn, full := g.join(id, limit())
	switch {
	case full:
		return nil, tooManyWaiting(id, limit())
	case turn == nil:
		return leave, nil
	}
	timer := time.NewTimer(maxQueueWait)
	defer timer.Stop()
	select {
	case <-turn:
		return leave, nil
	case <-timer.C:
		err = tooManyQueries(id, limit(), maxQueueWait)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if !g.giveUp(id, turn) {
		leave() // the turn came at the same moment
	}
	return nil, err
}

// join takes a turn, or returns what to wait for unless the queue is full.
func (g *gate) join(id tenant.ID, limit int) (turn chan struct{}, full bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.mu.lanes[id]
	if l == nil {
		l = &lane{}
		g.mu.lanes[id] = l
	}
	if limit <= 0 || l.running < limit && len(l.waiting) == 0 {
		l.running++
		return nil, false
	}
	if len(l.waiting) >= maxQueue {
		return nil, true
	}
	turn = make(chan struct{})
	l.waiting = append(l.waiting, turn)
	return turn, false
}

// giveUp leaves the queue; it returns false if the turn has been given already.
func (g *gate) giveUp(id tenant.ID, turn chan struct{}) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.mu.lanes[id]
	if l == nil {
		return false
	}
	i := slices.Index(l.waiting, turn)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return true
}

func (g *gate) leave(id tenant.ID, limit func() int) {
	most := limit()
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.mu.lanes[id]
	l.running--
	for len(l.waiting) > 0 && (most <= 0 || l.running < most) {
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
		l.running++
	}
	if l.running == 0 && len(l.waiting) == 0 {
		delete(g.mu.lanes, id)
	}
}
