package distributor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// ballot holds what ingesters said of single series and samples. An item is a sample,
// histogram, exemplar or series of the batch. It is empty as long as all ingesters
// accept everything, which is nearly always.
type ballot struct {
	used   bool
	series []seriesVotes
	items  [write.KindSeries + 1][]itemVotes
	faults []*write.SeriesError
}

// seriesVotes counts the ingesters of a series that answered and did not know it.
type seriesVotes struct {
	waiting uint8 // those that were sent the labels and have not answered again
	missed  uint8 // those that will not
	doubted bool  // some ingester did not store all of it
}

// itemVotes counts the ingesters that answered and did not store an item.
type itemVotes struct {
	invalid, limited, missed uint8
	// firstInvalid and firstLimited are positions in faults, from 1.
	firstInvalid, firstLimited uint16
}

// use makes room for a batch.
func (v *ballot) use(series int, n write.Counts) {
	if v.used {
		return
	}
	v.used = true
	v.series = zeroed(v.series, series)
	for kind, length := range [...]int{
		write.KindSample: n.Samples, write.KindHistogram: n.Histograms, write.KindExemplar: n.Exemplars, write.KindSeries: series,
	} {
		v.items[kind] = zeroed(v.items[kind], length)
	}
}

func zeroed[T any](s []T, n int) []T {
	s = slices.Grow(s[:0], n)[:n]
	clear(s)
	return s
}

// doubted reports whether some ingester did not store all of series i.
func (v *ballot) doubted(i uint32) bool { return v.used && v.series[i].doubted }

func (v *ballot) retained() int {
	n := 3 * cap(v.series)
	for _, items := range v.items {
		n += 8 * cap(items)
	}
	return n
}

func (v *ballot) reset() {
	clear(v.faults)
	v.used, v.faults = false, v.faults[:0]
}

// reject counts a vote against an item because of the fault that faults ends with.
func (v *ballot) reject(item write.Item, class write.Class) {
	votes := &v.items[item.Kind][item.Index]
	// More faults than that are not told apart; there are two dozen reasons.
	fault := uint16(min(len(v.faults), 1<<16-1))
	switch class {
	case write.ClassInvalid:
		if votes.invalid++; votes.firstInvalid == 0 {
			votes.firstInvalid = fault
		}
	case write.ClassLimited:
		if votes.limited++; votes.firstLimited == 0 {
			votes.firstLimited = fault
		}
	case write.ClassUnavailable:
		votes.missed++
	}
}

// verdict is what the votes so far make of an item.
type verdict uint8

const (
	verdictOpen     verdict = iota
	verdictWritten          // a quorum accepts it
	verdictRejected         // so many reject it that there can be no quorum
	verdictLost             // there can be no quorum, and it is not the item's fault
)

// judge counts the votes on an item of a series of g.
func (c *call) judge(g *group, series uint32, item write.Item) (verdict, *write.SeriesError) {
	var sv seriesVotes
	var iv itemVotes
	if c.mu.votes.used {
		sv, iv = c.mu.votes.series[series], c.mu.votes.items[item.Kind][item.Index]
	}
	rf, quorum := c.routes.rf(), c.routes.quorum()
	missed := g.missed + int(sv.missed) + int(iv.missed)
	against := int(iv.invalid) + int(iv.limited)
	accepted := g.accepted - int(sv.waiting) - int(sv.missed) - int(iv.missed) - against
	// open is how many have yet to say something.
	open := rf - accepted - against - missed
	switch {
	case accepted >= quorum:
		return verdictWritten, nil
	case int(iv.invalid) > rf-quorum:
		return verdictRejected, c.mu.votes.faults[iv.firstInvalid-1]
	case against > rf-quorum && iv.limited > 0:
		return verdictRejected, c.mu.votes.faults[iv.firstLimited-1]
	case accepted+open < quorum && against+open <= rf-quorum:
		// Rejecting is out of reach, too. Otherwise it is worth waiting for: a sample
		// that can never be stored must not come again and again.
		return verdictLost, nil
	default:
		return verdictOpen, nil
	}
}

// items lists what is in a delivery, in the order of its frames, as items of the batch.
type items struct {
	series []uint32
	// at and of are an item's position in the batch and its series, by kind.
	at, of [write.KindSeries][]uint32
}

func (p *items) retained() int {
	n := cap(p.series)
	for kind := range p.at {
		n += cap(p.at[kind]) + cap(p.of[kind])
	}
	return 4 * n
}

// list replaces p by the items of d.
func (p *items) list(b *write.Batch, d *delivery) {
	p.series = p.series[:0]
	for kind := range p.at {
		p.at[kind], p.of[kind] = p.at[kind][:0], p.of[kind][:0]
	}
	for part := range d.parts() {
		p.series = append(p.series, part.series...)
	}
	for _, i := range p.series {
		for kind, span := range spansOf(&b.Series[i]) {
			for k := span.Off; k < span.End(); k++ {
				p.at[kind], p.of[kind] = append(p.at[kind], k), append(p.of[kind], i)
			}
		}
	}
}

// find returns the item of the batch, and its series, for an item of the delivery.
func (p *items) find(item write.Item) (write.Item, uint32) {
	if item.Kind == write.KindSeries {
		i := p.series[item.Index]
		return write.Item{Kind: write.KindSeries, Index: i}, i
	}
	return write.Item{Kind: item.Kind, Index: p.at[item.Kind][item.Index]}, p.of[item.Kind][item.Index]
}

// spansOf returns the spans of a series by kind.
func spansOf(s *write.Series) [write.KindSeries]write.Span {
	return [...]write.Span{write.KindSample: s.Samples, write.KindHistogram: s.Histograms, write.KindExemplar: s.Exemplars}
}

// itemsOf returns the items of series i: all that it has, or if that is nothing, itself.
func itemsOf(b *write.Batch, i int) []write.Item {
	var all []write.Item
	for kind, span := range spansOf(&b.Series[i]) {
		for k := span.Off; k < span.End(); k++ {
			all = append(all, write.Item{Kind: write.Kind(kind), Index: k})
		}
	}
	if all == nil {
		return []write.Item{{Kind: write.KindSeries, Index: uint32(i)}}
	}
	return all
}

// consider counts the votes of an answer that is more than "all is stored", and sends
// the series that the ingester does not know once more.
func (c *call) consider(a answer, b *write.Batch) {
	d := a.d
	var result write.Result
	err := a.err
	if err == nil {
		if result, err = wire.ResultFromProto(a.resp); err == nil {
			err = c.check(d, result, b)
		}
	}
	d.link.metrics.judged(result, err)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.votes.use(len(b.Series), c.counts)
	if err != nil {
		c.missLocked(d, err)
		return
	}
	c.acceptLocked(d)
	for _, rej := range result.Rejected {
		class := rej.Class()
		c.mu.votes.faults = append(c.mu.votes.faults, rej.Example)
		if class == write.ClassUnavailable && d.why == nil {
			d.why = rej.Example
		}
		for _, local := range rej.Items {
			item, series := c.place.find(local)
			c.mu.votes.reject(item, class)
			c.mu.votes.series[series].doubted = true
		}
	}
	if len(result.Unknown) == 0 {
		d.link.learning.Store(false)
		return
	}
	if d.again != nil {
		d.why = errStillUnknown
		for _, k := range result.Unknown {
			sv := &c.mu.votes.series[c.place.series[k]]
			sv.missed, sv.doubted = sv.missed+1, true
		}
		return
	}
	d.link.learning.Store(true)
	d.link.metrics.unknownSeries.Add(float64(len(result.Unknown)))
	c.plan(d, result.Unknown)
}

// check reports what is wrong with the answer to d. It sets c.place.
func (c *call) check(d *delivery, result write.Result, b *write.Batch) error {
	c.place.list(b, d)
	sent := d.counts()
	if err := wire.CheckItems(result, len(c.place.series), sent); err != nil {
		return fmt.Errorf("%w: %w", errAnswer, err)
	}
	told := result.Written
	for _, rej := range result.Rejected {
		for _, item := range rej.Items {
			switch item.Kind {
			case write.KindSample:
				told.Samples++
			case write.KindHistogram:
				told.Histograms++
			case write.KindExemplar, write.KindSeries:
			}
		}
	}
	for _, k := range result.Unknown {
		s := &b.Series[c.place.series[k]]
		told.Samples += int(s.Samples.Len)
		told.Histograms += int(s.Histograms.Len)
	}
	if told.Samples != sent.Samples || told.Histograms != sent.Histograms {
		return fmt.Errorf("%w: %d samples and %d histograms were sent, and it speaks of %d and %d",
			errAnswer, sent.Samples, sent.Histograms, told.Samples, told.Histograms)
	}
	return nil
}

// settledLocked reports whether no answer that is still to come can matter.
func (c *call) settledLocked(b *write.Batch) bool {
	if c.mu.outstanding == 0 && len(c.mu.lessons) == 0 {
		return len(c.mu.inbox) == 0
	}
	if !c.mu.votes.used {
		return c.mu.open == 0
	}
	for _, g := range c.mu.groups {
		if len(g.series) == 0 && !g.decided && g.needed(c.alone) {
			return false
		}
		for _, i := range g.series {
			for item := range eachItem(b, i) {
				if v, _ := c.judge(g, i, item); v == verdictOpen {
					return false
				}
			}
		}
	}
	return true
}

// eachItem yields what itemsOf returns.
func eachItem(b *write.Batch, i uint32) func(yield func(write.Item) bool) {
	return func(yield func(write.Item) bool) {
		some := false
		for kind, span := range spansOf(&b.Series[i]) {
			for k := span.Off; k < span.End(); k++ {
				some = true
				if !yield(write.Item{Kind: write.Kind(kind), Index: k}) {
					return
				}
			}
		}
		if !some {
			yield(write.Item{Kind: write.KindSeries, Index: i})
		}
	}
}

// resultLocked returns what became of b. The error says that some of it got no quorum
// and names who is missing.
func (c *call) resultLocked(b *write.Batch, waited error) (write.Result, error) {
	result := c.local
	var failed []*group
	for _, g := range c.mu.groups {
		if !c.countLocked(g, b, &result) {
			failed = append(failed, g)
		}
	}
	if len(failed) == 0 {
		return result, nil
	}
	return result, wire.Unavailable(c.explainLocked(failed, waited), defaultDelay)
}

// countLocked adds what became of g to result, and reports whether all is decided.
func (c *call) countLocked(g *group, b *write.Batch, result *write.Result) bool {
	if !c.mu.votes.used || len(g.series) == 0 {
		if g.accepted < c.routes.quorum() {
			return !g.needed(c.alone)
		}
		n := g.frame.Counts()
		result.Written.Samples += n.Samples
		result.Written.Histograms += n.Histograms
		result.Written.Exemplars += n.Exemplars
		return true
	}
	complete := true
	for _, i := range g.series {
		for item := range eachItem(b, i) {
			switch v, fault := c.judge(g, i, item); {
			case v == verdictRejected:
				result.RejectItems(fault, item)
			case v != verdictWritten:
				complete = false
			case item.Kind == write.KindSample:
				result.Written.Samples++
			case item.Kind == write.KindHistogram:
				result.Written.Histograms++
			case item.Kind == write.KindExemplar:
				result.Written.Exemplars++
			}
		}
	}
	return complete
}

// explainLocked says which replica sets could not take their part and why.
func (c *call) explainLocked(failed []*group, waited error) error {
	const most = 2 // Sets that are named in full; an answer has 1 KiB.
	var b strings.Builder
	sets, named := 0, map[string]bool{}
	for _, g := range failed {
		names := make([]string, len(g.members))
		for i, node := range g.members {
			names[i] = c.routes.nodes[node].id
		}
		set := strings.Join(names, ", ")
		if named[set] {
			continue
		}
		named[set] = true
		if sets++; sets > most {
			continue
		}
		if sets > 1 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "the replica set of %s did not reach its quorum of %d", set, c.routes.quorum())
		if missing := c.routes.rf() - len(g.members); missing > 0 {
			fmt.Fprintf(&b, "; it has %d of %d ingesters", len(g.members), c.routes.rf())
		}
		said := map[int]bool{}
		for _, d := range slices.Concat(c.mu.deliveries, c.mu.resends) {
			if why := d.whyMissing(waited); why != nil && slices.Contains(g.members, d.node) && !said[d.node] {
				said[d.node] = true
				fmt.Fprintf(&b, "; %s: %s", c.routes.nodes[d.node].id, why)
			}
		}
	}
	if sets > most {
		fmt.Fprintf(&b, "; and %d more replica sets", sets-most)
	}
	return errors.New(b.String())
}

// whyMissing returns why votes of d are missing, or nil.
func (d *delivery) whyMissing(waited error) error {
	if d.why == nil && d.open {
		return waited
	}
	return d.why
}
