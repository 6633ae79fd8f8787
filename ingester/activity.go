package ingester

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/tsdb"
)

// activeFor is for how long a series is active after a sample. Who scrapes less often than
// that is hardly found; most series that get no sample for as long never get another.
const activeFor = 20

// minute counts time as a tenant's samples tell it: by the newest of its head. So what is
// sent late, or at a hundred times the pace, ages like what is sent as it is scraped. A
// series is seen when a sample of it comes, whatever the time of the sample is. 0: it is not
// known. Minutes repeat after 45 days, long after an entry has left its table.
type minute uint16

const minutes = 1<<16 - 1

// minuteOf returns what time it is for a head whose newest sample is of that time.
func minuteOf(newest int64) minute {
	if newest == math.MinInt64 {
		return 0
	}
	return minute(floorTo(newest, time.Minute.Milliseconds())/time.Minute.Milliseconds()%minutes) + 1
}

// since returns how many minutes have passed since then.
func (m minute) since(then minute) int {
	return (int(m) - int(then) + minutes) % minutes
}

// census is what is known of all series of a table.
type census struct {
	active int // got a sample lately
	gone   int // are in the head, and will probably not get another
}

// count adds an entry to the census. oldest is the least time of a sample in the head.
func (c *census) count(e *entry, now minute, oldest int64) {
	if e.seen == 0 {
		e.seen = now // It was found in the head, who knows how long after its last sample.
	}
	age := now.since(e.seen)
	if e.state&guessed == 0 && age < activeFor {
		c.active++
	}
	if e.lastT >= oldest && e.gone(age) {
		c.gone++
	}
}

// census counts the series of a tenant, holding pushes back for one segment of the table at a
// time: about a millisecond if there are a million. use is held shared.
func (t *tenantDB) census(ctx context.Context, db *tsdb.DB) (c census, err error) {
	err = t.eachSegment(ctx, func(s *segment) {
		now, oldest := minuteOf(db.Head().MaxTime()), db.Head().MinTime()
		s.each(func(e *entry) { c.count(e, now, oldest) })
	})
	if err != nil {
		return census{}, err
	}
	active := c.active
	if t.ing.now().Sub(time.Unix(0, t.lastPush.Load())) >= activeFor*time.Minute {
		active = 0 // No sample has come by which time would pass.
	}
	t.active.Store(int64(active))
	return c, nil
}

// eachSegment calls f with each segment of the table in turn. Pushes come in between.
func (t *tenantDB) eachSegment(ctx context.Context, f func(*segment)) error {
	for i := range tableSegments {
		if err := t.appending.take(ctx); err != nil {
			return err
		}
		f(&t.app.table.segments[i])
		t.appending.give()
	}
	return nil
}

// activeSeries is the metric of active series by tenant. It asks when it is asked, so that a
// tenant that is gone leaves nothing behind.
type activeSeries struct {
	ing  *Ingester
	desc *prometheus.Desc
}

// registerActiveSeries registers the metric, unless reg is nil.
func registerActiveSeries(reg prometheus.Registerer, i *Ingester) {
	if reg == nil {
		return
	}
	reg.MustRegister(activeSeries{ing: i, desc: prometheus.NewDesc("hundredfold_ingester_active_series",
		"Series that got a sample in the last 20 minutes, by tenant.", []string{"tenant"}, nil)})
}

// Describe implements prometheus.Collector.
func (a activeSeries) Describe(out chan<- *prometheus.Desc) { out <- a.desc }

// Collect implements prometheus.Collector.
func (a activeSeries) Collect(out chan<- prometheus.Metric) {
	for _, t := range a.ing.all() {
		out <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, float64(t.active.Load()), string(t.id))
	}
}
