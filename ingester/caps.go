package ingester

import (
	"fmt"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	// bytesPerSeries is what a series costs in resident memory at the very worst
	// that was measured (see docs/operating.md); the cap on series that follows
	// from the memory limit leaves half of it to queries and cuts.
	bytesPerSeries = 8 << 10

	// Above nearFull of a cap the fastest-growing tenant gets no new series; at the
	// cap nobody does. Live heap is measured against the Go memory limit, which
	// is itself a tenth below the cgroup's.
	nearFull     = 0.9
	heapNearFull = 0.75
	heapFull     = 0.85
)

// caps protects the process from more series than its memory can hold. New
// series are refused in two steps, known series never (design.md section 3).
type caps struct {
	maxSeries int64 // 0: no cap
	maxHeap   int64 // live bytes; 0: no cap
	series    atomic.Int64
	state     atomic.Pointer[capState]
}

// capState is the verdict that creation of series looks up.
type capState struct {
	full    write.Reason // not empty: no new series for anybody
	near    write.Reason // not empty: no new series for fastest
	fastest tenant.ID
	detail  string
}

// newCaps returns the caps of this process: maxSeries as configured, or what
// the memory limit has room for.
func newCaps(maxSeries int) *caps {
	c := &caps{maxSeries: int64(maxSeries)}
	const unlimited = 1 << 62
	if limit := debug.SetMemoryLimit(-1); limit < unlimited {
		c.maxHeap = limit
		if c.maxSeries == 0 {
			c.maxSeries = limit / bytesPerSeries
		}
	}
	c.state.Store(&capState{})
	return c
}

// update decides anew. growth says how many series each tenant created lately.
func (c *caps) update(growth map[tenant.ID]int64) {
	c.decide(growth, liveHeap())
}

func (c *caps) decide(growth map[tenant.ID]int64, heap int64) {
	next := capState{}
	series := c.series.Load()
	if c.maxSeries > 0 && float64(series) >= nearFull*float64(c.maxSeries) {
		next.near = write.ReasonInstanceSeriesLimit
		next.detail = fmt.Sprintf("the process holds %d series, its limit ingester.max_series is %d", series, c.maxSeries)
	}
	if c.maxHeap > 0 && float64(heap) >= heapNearFull*float64(c.maxHeap) {
		next.near = write.ReasonInstanceHeapLimit
		next.detail = fmt.Sprintf("the live heap is %d bytes, the memory limit of the process (GOMEMLIMIT) is %d", heap, c.maxHeap)
		if float64(heap) >= heapFull*float64(c.maxHeap) {
			next.full = write.ReasonInstanceHeapLimit
		}
	}
	var most int64
	for id, n := range growth {
		if n > most || (n == most && n > 0 && id < next.fastest) {
			most, next.fastest = n, id
		}
	}
	c.state.Store(&next)
}

// check says whether tenant id may create a series now.
func (c *caps) check(id tenant.ID) *write.SeriesError {
	if n := c.series.Load(); c.maxSeries > 0 && n >= c.maxSeries {
		return &write.SeriesError{
			Reason: write.ReasonInstanceSeriesLimit,
			Detail: fmt.Sprintf("new series of tenant %s are refused for now: the process holds %d series and its limit ingester.max_series is %d", id, n, c.maxSeries),
		}
	}
	s := c.state.Load()
	switch {
	case s.full != "":
		return &write.SeriesError{Reason: s.full, Detail: fmt.Sprintf("new series of tenant %s are refused for now: %s", id, s.detail)}
	case s.near != "" && s.fastest == id:
		return &write.SeriesError{
			Reason: write.ReasonTenantGrowthLimit,
			Detail: fmt.Sprintf("new series of tenant %s are dropped because it grows fastest while the process is nearly full: %s", id, s.detail),
		}
	}
	return nil
}

func liveHeap() int64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// gate is a TSDB's SeriesLifecycleCallback: it applies the caps and the
// tenant's own limit to series that are about to be created, and counts them.
type gate struct {
	id     tenant.ID
	limits tenant.LimitsFunc
	caps   *caps

	// open is set once the write-ahead log is replayed: what it holds was
	// acknowledged, so no cap may drop it.
	open    atomic.Bool
	series  atomic.Int64
	created atomic.Int64 // since the last decay

	replayed *sightings // until open is set
}

// PreCreation implements tsdb.SeriesLifecycleCallback. The error is a *write.SeriesError.
func (g *gate) PreCreation(ls labels.Labels) error {
	if !g.open.Load() {
		g.replayed.announced(ls)
		return nil
	}
	if limit := g.limits(g.id).MaxSeries; limit > 0 && g.series.Load() >= int64(limit) {
		return &write.SeriesError{
			Reason: write.ReasonTenantSeriesLimit,
			Detail: fmt.Sprintf("tenant %s has reached its limit max_series of %d series in memory", g.id, limit),
		}
	}
	if err := g.caps.check(g.id); err != nil {
		return err
	}
	return nil
}

// PostCreation implements tsdb.SeriesLifecycleCallback.
func (g *gate) PostCreation(ls labels.Labels) {
	if !g.open.Load() {
		g.replayed.created(ls)
	}
	g.series.Add(1)
	g.created.Add(1)
	g.caps.series.Add(1)
}

// PostDeletion implements tsdb.SeriesLifecycleCallback.
func (g *gate) PostDeletion(deleted map[chunks.HeadSeriesRef]labels.Labels) {
	g.series.Add(-int64(len(deleted)))
	g.caps.series.Add(-int64(len(deleted)))
}

// release takes the series of a closed TSDB out of the count.
func (g *gate) release() {
	g.caps.series.Add(-g.series.Swap(0))
}

// growth returns how many series were created lately: the count halves at every call.
func (g *gate) growth() int64 {
	n := g.created.Load()
	g.created.Add(-(n + 1) / 2)
	return n
}
