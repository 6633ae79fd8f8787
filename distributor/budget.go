package distributor

import (
	"fmt"
	"sync"
	"time"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// admissionDelay is what a sender is told to wait when the budget is used up.
// Requests last milliseconds, so the shortest delay that HTTP can express will do.
const admissionDelay = time.Second

// budget is the memory that the requests being received may take: all together,
// and those of one tenant. It is safe for concurrent use.
type budget struct {
	total, share int64
	mu           struct {
		sync.Mutex
		used    int64
		tenants map[tenant.ID]int64 // none at 0
	}
}

func newBudget(total int64) *budget {
	b := &budget{total: total, share: total / 2}
	b.mu.tenants = map[tenant.ID]int64{}
	return b
}

// inUse returns how many bytes are reserved.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.used
}

// reserve returns an empty reservation for a request of tenant id.
func (b *budget) reserve(id tenant.ID) *reservation { return &reservation{budget: b, id: id} }

// reservation is the part of a budget that one request holds. One goroutine.
type reservation struct {
	budget *budget
	id     tenant.ID
	held   int64
}

// grow reserves n more bytes. It fails if they are not free now, to be tried
// again, or if the request could never be served.
func (r *reservation) grow(n int64) error {
	b := r.budget
	if r.held+n > b.share {
		return wire.Invalid(fmt.Errorf("the request needs more than %d bytes of memory, which is half of max_inflight_bytes (%d) and what tenant %s may use; send smaller requests", b.share, b.total, r.id))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.mu.used+n > b.total:
		return wire.Unavailable(fmt.Errorf("requests in flight reach max_inflight_bytes (%d)", b.total), admissionDelay)
	case b.mu.tenants[r.id]+n > b.share:
		return wire.Unavailable(fmt.Errorf("requests of tenant %s in flight reach %d bytes, half of max_inflight_bytes (%d)", r.id, b.share, b.total), admissionDelay)
	}
	r.addLocked(n)
	return nil
}

// force reserves n more bytes that are taken already, whether they are free or not.
func (r *reservation) force(n int64) {
	r.budget.mu.Lock()
	defer r.budget.mu.Unlock()
	r.addLocked(n)
}

// release gives everything back.
func (r *reservation) release() {
	r.budget.mu.Lock()
	defer r.budget.mu.Unlock()
	r.addLocked(-r.held)
}

func (r *reservation) addLocked(n int64) {
	b := r.budget
	r.held += n
	b.mu.used += n
	if b.mu.tenants[r.id] += n; b.mu.tenants[r.id] == 0 {
		delete(b.mu.tenants, r.id)
	}
}
