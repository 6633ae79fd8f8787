package ingester

import (
	"fmt"
	"sync"
	"time"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Opening is how far Open is, for those who wait for it. A nil Opening is one that
// nobody asks. It is safe for concurrent use.
type Opening struct {
	now func() time.Time

	mu struct {
		sync.Mutex
		began  time.Time
		shares map[tenant.ID]float64 // of each tenant's log that has been replayed
	}
}

// NewOpening returns an Opening that has not begun. now is the clock.
func NewOpening(now func() time.Time) *Opening { return &Opening{now: now} }

// begin is called once, with all tenants that will be opened.
func (o *Opening) begin(ids []tenant.ID) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.began = o.now()
	o.mu.shares = make(map[tenant.ID]float64, len(ids))
	for _, id := range ids {
		o.mu.shares[id] = 0
	}
}

// reached says how much of the tenant's log has been replayed. Tenants that begin did
// not name, which come later, are of no interest.
func (o *Opening) reached(id tenant.ID, share float64) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.mu.shares[id]; ok {
		o.mu.shares[id] = share
	}
}

// replaying returns what is to be told each segment of the tenant's log that has been
// replayed, and which segment is the last. Logs begin at any number.
func (o *Opening) replaying(id tenant.ID) func(segment, last int64) {
	first := int64(-1)
	return func(segment, last int64) {
		if first < 0 {
			first = segment
		}
		if last >= segment {
			o.reached(id, float64(segment-first+1)/float64(last-first+1))
		}
	}
}

// meaningful is what must have been replayed before anything follows from its pace: what
// comes before the first log takes its time, too.
const meaningful = 0.05

// progress returns the share of all logs that has been replayed, of how many tenants,
// and the time that the rest will take at this pace, or 0 if that cannot be said.
func (o *Opening) progress() (share float64, tenants int, left time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	tenants = len(o.mu.shares)
	if tenants == 0 {
		return 0, 0, 0
	}
	for _, s := range o.mu.shares {
		share += s
	}
	share /= float64(tenants)
	if share >= meaningful {
		left = time.Duration(float64(o.now().Sub(o.mu.began)) * (1 - share) / share)
	}
	return share, tenants, left
}

// Left returns how long the replay will take from now on; 0: it is not known, or over.
func (o *Opening) Left() time.Duration {
	_, _, left := o.progress()
	return left
}

// String says how far it is.
func (o *Opening) String() string {
	share, tenants, left := o.progress()
	text := fmt.Sprintf("replaying the write-ahead logs of %d tenants", tenants)
	if share > 0 {
		text += fmt.Sprintf(", %.0f%% done", share*100)
	}
	if left = left.Round(time.Second); left > 0 {
		text += fmt.Sprintf(", about %s left", left)
	}
	return text
}
