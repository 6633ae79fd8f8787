package pagefile

import (
	"math/bits"
	"slices"
	"sync"
	"time"
)

const (
	// hedgeHistory is how many requests of a class of sizes are remembered, and
	// hedgeHistoryLeast how many there must be before any is called slow.
	hedgeHistory      = 128
	hedgeHistoryLeast = 32
	// hedgeBurst is how many requests may be made twice at once after a quiet time, as
	// when one server of the store hangs.
	hedgeBurst = 8
)

// hedger knows how long requests take and says when one has taken too long. It is safe
// for concurrent use.
type hedger struct {
	tuning tuning

	mu struct {
		sync.Mutex
		tokens  float64 // how many more requests may be made twice
		classes [3]durations
	}
}

// durations are those of the latest requests of about the same size.
type durations struct {
	latest []time.Duration // a ring
	next   int
	slow   time.Duration // the quantile; 0: not known yet
}

func newHedger(t tuning) *hedger {
	h := &hedger{tuning: t}
	h.mu.tokens = hedgeBurst
	return h
}

// sizeClass tells sizes apart whose transfer, and not only the store's delay, counts:
// up to 256 KiB, up to 1 MiB, more.
func sizeClass(n int64) int {
	return max(0, min(bits.Len64(uint64(n-1)>>18), 3)+1) / 2
}

// begin counts a request of n bytes. It returns after how long it is slow; ok is false if
// too little is known.
func (h *hedger) begin(n int64) (after time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.tokens = min(h.mu.tokens+h.tuning.hedgeShare, hedgeBurst)
	slow := h.mu.classes[sizeClass(n)].slow
	// Where all requests take about the same time, that is no reason to ask twice.
	return max(slow+slow/4, h.tuning.hedgeAfter), slow > 0
}

// take reports whether one more request may be made a second time.
func (h *hedger) take() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.tokens < 1 {
		return false
	}
	h.mu.tokens--
	return true
}

// observe notes that a request of n bytes was answered.
func (h *hedger) observe(n int64, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := &h.mu.classes[sizeClass(n)]
	if len(d.latest) < hedgeHistory {
		d.latest = append(d.latest, took)
	} else {
		d.latest[d.next%hedgeHistory] = took
	}
	d.next++
	if len(d.latest) >= hedgeHistoryLeast && d.next%(hedgeHistoryLeast/2) == 0 {
		sorted := slices.Sorted(slices.Values(d.latest))
		d.slow = sorted[int(h.tuning.hedgeQuantile*float64(len(sorted)-1))]
	}
}
