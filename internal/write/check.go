package write

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// checkEvery is how many series that were found by identity there are to one whose labels
// are looked at all the same. It is a prime, so that no request size makes it the same
// series each time.
const checkEvery = 1021

// CheckTurn says whose turn it is to be checked. One goroutine.
type CheckTurn struct{ since uint32 }

// Next reports whether the next series is to be checked.
func (c *CheckTurn) Next() bool {
	if c.since++; c.since < checkEvery {
		return false
	}
	c.since = 0
	return true
}

// Checks counts comparisons of what an identity stands for with the labels of a series,
// and reports those that fail. It is safe for concurrent use.
type Checks struct {
	done, failed prometheus.Counter
	logger       *slog.Logger
	series       atomic.Uint32 // that turns were given for
	lastReport   atomic.Int64  // when a failure was last logged, in ns since the epoch
}

// reportEvery is how often failed checks are logged: one that fails may fail for each sample.
const reportEvery = time.Minute

// NewChecks returns Checks of a role, which is a label of their metrics.
func NewChecks(role string, logger *slog.Logger, reg prometheus.Registerer) *Checks {
	f := promauto.With(reg)
	where := prometheus.Labels{"role": role}
	return &Checks{
		logger: logger,
		done: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_identity_checks_total", ConstLabels: where,
			Help: "Series found by their identity whose labels were compared all the same.",
		}),
		failed: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_identity_mismatches_total", ConstLabels: where,
			Help: "Those of hundredfold_identity_checks_total that were found to be another series. Anything above 0 is a bug.",
		}),
	}
}

// Turn returns the turn of a request of n series, which goes on where that of the request
// before ends.
func (c *Checks) Turn(n int) CheckTurn {
	return CheckTurn{since: (c.series.Add(uint32(n)) - uint32(n)) % checkEvery}
}

// Passed counts a check that found what it should.
func (c *Checks) Passed() { c.done.Inc() }

// Failed counts a check that found another series, and says so once in a while: what was
// sent, and what its identity stood for.
func (c *Checks) Failed(id tenant.ID, sent, found string) {
	c.done.Inc()
	c.failed.Inc()
	now, last := time.Now().UnixNano(), c.lastReport.Load()
	if last != 0 && now-last < int64(reportEvery) || !c.lastReport.CompareAndSwap(last, now) {
		return
	}
	c.logger.Error("A series was taken for another one; it is found by its labels from now on, but earlier samples of it may be in the other; please report this",
		"tenant", id, "sent", Clip(sent), "found", Clip(found))
}
