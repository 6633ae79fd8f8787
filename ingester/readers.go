package ingester

import (
	"context"
	"sync"
	"time"
)

// readers lets one wait until nobody reads, and keep everybody from reading for a moment.
// It is safe for concurrent use; one at a time may shut it.
type readers struct {
	mu struct {
		sync.Mutex
		open int
		// idles counts the times that the last reader left.
		idles uint64
		// idle is closed when the last reader leaves; nil: nobody waits for that.
		idle chan struct{}
		// shut keeps readers out until it is closed; nil: they are let in.
		shut chan struct{}
	}
}

// enter begins a read, which leave ends. It waits while readers are kept out.
func (r *readers) enter() {
	for {
		r.mu.Lock()
		shut := r.mu.shut
		if shut == nil {
			r.mu.open++
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		<-shut
	}
}

func (r *readers) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.open--; r.mu.open > 0 {
		return
	}
	r.mu.idles++
	if r.mu.idle != nil {
		close(r.mu.idle)
		r.mu.idle = nil
	}
}

// idledSince reports whether there was a moment without readers since idles was asked
// for, and asks for it.
func (r *readers) idledSince(idles uint64) (bool, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.open == 0 || r.mu.idles != idles, r.mu.idles
}

// shut keeps readers out, once there are none. It waits for a moment when there are none
// for as long as patience; then it lets no more in, and waits for those that are there
// for as long as last. If it returns true, open lets readers in again.
func (r *readers) shut(ctx context.Context, patience, last time.Duration) bool {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	ending := false
	for {
		r.mu.Lock()
		if r.mu.open == 0 {
			if r.mu.shut == nil {
				r.mu.shut = make(chan struct{})
			}
			r.mu.Unlock()
			return true
		}
		if r.mu.idle == nil {
			r.mu.idle = make(chan struct{})
		}
		idle := r.mu.idle
		r.mu.Unlock()
		select {
		case <-idle:
			continue
		case <-limit.C:
		case <-ctx.Done():
			ending = true
		}
		if ending {
			r.open()
			return false
		}
		ending = true
		limit.Reset(last)
		r.mu.Lock()
		r.mu.shut = make(chan struct{})
		r.mu.Unlock()
	}
}

// open lets readers in again.
func (r *readers) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.shut != nil {
		close(r.mu.shut)
		r.mu.shut = nil
	}
}
