package distributor

import (
	"time"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Series are sent to ingesters by their identities. One that does not know some of them
// says so, and is sent the same samples once more, with labels. After a restart that is
// none, since it finds the series in its own head; with an empty disk it is all of them,
// ten times the bytes of ordinary traffic, and each is work for the ingester. So:
//
//  1. At most lessonBytes of that are under way to an ingester.
//  2. A request that has its quorum without it does not wait for more. What it could not
//     teach, another one will: the series come again with the next samples.
//  3. A request that needs it for its quorum waits for its turn, and so does its sender.
//
// All replicas get the same bytes, and only the ingester knows what it knows; so it is
// asked first even if its disk is known to be new. Asking takes a tenth of telling.
const (
	// lessonBytes is what an ingester works on for about 100 ms: longer than a message is on
	// its way, so that nobody is idle, and short for the ordinary requests behind it.
	lessonBytes = 8 << 20
	// lessonParts is how many messages that is, at least.
	lessonParts = 8

	// lateSeriesRate is how many series per second are sent with labels to all of their
	// ingesters, since one of them said that it does not know them when the request that had
	// the labels was over.
	lateSeriesRate = 20_000
)

// lesson is series of the batch that an ingester does not know and was not yet told.
type lesson struct {
	from   *delivery
	series []uint32
}

// reserveLesson takes so many of the bytes that lessons may take. If they are not free,
// signal gets an element once it is worth trying again.
func (l *link) reserveLesson(bytes int64, signal chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.lessons > 0 && l.mu.lessons+bytes > l.lessonMost {
		l.mu.pupils = append(l.mu.pupils, signal)
		return false
	}
	l.mu.lessons += bytes
	l.gaugeLocked()
	return true
}

// taught gives back what was reserved; less than nothing makes it more.
func (l *link) taught(bytes int64) {
	l.mu.Lock()
	l.mu.lessons -= bytes
	l.gaugeLocked()
	pupils := l.mu.pupils
	l.mu.pupils = nil
	l.mu.Unlock()
	for _, signal := range pupils {
		select {
		case signal <- struct{}{}: // Whoever has it now looks in vain at worst.
		default:
		}
	}
}

// lateLessons says how many series may be sent to all because of one ingester.
type lateLessons struct {
	allowed float64
	at      time.Time
}

// take returns how many of n series may be, at so many per second.
func (l *lateLessons) take(n int, rate float64, now time.Time) int {
	l.allowed = min(rate, l.allowed+rate*now.Sub(l.at).Seconds())
	l.at = now
	taken := min(n, int(l.allowed))
	l.allowed -= float64(taken)
	return taken
}

// plan makes a lesson of series of d that the ingester does not know. c.mu is held.
func (c *call) plan(d *delivery, unknown []uint32) {
	l := lesson{from: d, series: make([]uint32, len(unknown))}
	for k, at := range unknown {
		l.series[k] = c.place.series[at]
		c.mu.votes.series[l.series[k]].waiting++
	}
	c.mu.lessons = append(c.mu.lessons, l)
}

// teachLocked gives as much of the lessons that wait as may be under way.
func (c *call) teachLocked(b *write.Batch) {
	waiting := c.mu.lessons[:0]
	for _, l := range c.mu.lessons {
		most := c.r.lessonMost / lessonParts
		for len(l.series) > 0 && l.from.link.reserveLesson(most, c.signal) {
			var again *part
			again, l.series = c.encode(l, b, int(most))
			if again == nil {
				l.from.link.taught(most)
				continue
			}
			d := &delivery{call: c, node: l.from.node, link: l.from.link, again: again, bytes: int64(again.frame.Len())}
			d.lesson = max(d.bytes, 1)
			d.link.taught(most - d.lesson)
			d.link.metrics.resent.Add(float64(len(again.series)))
			c.r.metrics.labelled.unknown.Add(float64(len(again.series)))
			c.mu.resends = append(c.mu.resends, d)
			c.sendLocked(d)
		}
		if len(l.series) > 0 {
			waiting = append(waiting, l)
		}
	}
	clear(c.mu.lessons[len(waiting):])
	c.mu.lessons = waiting
}

// encode returns a part of a lesson, of about so many bytes unless one series has more,
// and the series that are left.
func (c *call) encode(l lesson, b *write.Batch, most int) (again *part, left []uint32) {
	limits := c.r.limits(c.tenant)
	for k, i := range l.series {
		ls, id, err := b.Resolve(int(i), limits, &c.scratch, c.hasher)
		if err != nil {
			// It was valid a moment ago: a limit was lowered since.
			c.mu.votes.series[i].waiting--
			c.mu.votes.series[i].missed++
			l.from.why = err
			continue
		}
		if again == nil {
			again = &part{}
		}
		c.r.metrics.labelBytes.unknown.Add(float64(ls.ByteSize()))
		again.series = append(again.series, i)
		if again.frame.Add(b, int(i), id, ls); again.frame.Len() >= most {
			return again, l.series[k+1:]
		}
	}
	return again, nil
}

// putOffLocked drops the lessons that wait: the series come again.
func (c *call) putOffLocked() {
	for _, l := range c.mu.lessons {
		l.from.link.metrics.putOff.Add(float64(len(l.series)))
		for _, i := range l.series {
			sv := &c.mu.votes.series[i]
			sv.waiting, sv.missed, sv.doubted = sv.waiting-1, sv.missed+1, true
		}
	}
	clear(c.mu.lessons)
	c.mu.lessons = c.mu.lessons[:0]
}

// teachLateLocked is for series that an ingester did not know when Push had returned: their
// labels are sent with the next samples, to all replicas.
func (c *call) teachLateLocked(d *delivery, unknown []uint32) {
	var series []uint32
	for p := range d.parts() {
		series = append(series, p.series...)
	}
	d.link.metrics.unknownSeries.Add(float64(len(unknown)))
	d.link.mu.Lock()
	taken := d.link.mu.late.take(len(unknown), c.r.lateRate, time.Now())
	d.link.mu.Unlock()
	d.link.metrics.putOff.Add(float64(len(unknown) - taken))
	for _, k := range unknown[:taken] {
		if int(k) < len(series) {
			c.mu.forget = append(c.mu.forget, series[k])
		}
	}
}

// giveUpTeaching makes answers not wait for the ingesters that kept this one waiting.
func (c *call) giveUpTeaching() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.mu.deliveries {
		if d.open && d.learns {
			d.link.learning.Store(false)
		}
	}
}
