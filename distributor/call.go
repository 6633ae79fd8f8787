package distributor

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/zeebo/xxh3"

	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

const (
	// partBytes is about how large a frame may grow before the next one is begun, and
	// deliveryBytes how much goes into one message. A single series may exceed both.
	partBytes     = 4 << 20
	deliveryBytes = 16 << 20
	// seriesMost bounds a series with its samples, so that ingesters take the message.
	seriesMost = 32 << 20
	// keptPerSeries is what a call keeps of a series besides its frame, in bytes.
	keptPerSeries = 16 + sightingSize + 8
	// nowhere is the group of a series that is not sent.
	nowhere = -1
)

var (
	errAnswer       = errors.New("its answer makes no sense")
	errStillUnknown = errors.New("it says that it does not know series that came with their labels")
)

// part is a frame and which series of the batch are in it, in order.
type part struct {
	series []uint32
	frame  frame.PushWriter
}

func (p *part) reset() {
	p.series = p.series[:0]
	p.frame.Reset()
}

// group is what goes to one replica set: the same bytes to all of its members.
type group struct {
	part
	members []int // indexes into routes.nodes
	// accepted counts the members that answered, whatever they said of single series
	// and samples; missed those that did not, or never will.
	accepted, missed int
	decided          bool
}

// needed reports whether the request fails without a quorum for g. Metadata that comes
// along with samples is not worth sending them again: it comes again by itself.
func (g *group) needed(alone bool) bool { return alone || len(g.series) > 0 }

// delivery is what goes to one ingester in one message: the frames of the groups that
// it is a member of, or the series that it did not know, once again with labels.
type delivery struct {
	call   *call
	node   int
	groups []*group
	again  *part
	bytes  int64 // of the frames; once it is sent, all that waits for the answer
	why    error // why votes are missing; guarded by call.mu
	open   bool  // no answer yet; guarded by call.mu
	learns bool  // the ingester may well not know series
	lesson int64 // bytes that again takes of what lessons may take

	// Of the link.
	id    uint64
	since time.Time
	link  *link
}

// answer is one that needs a closer look.
type answer struct {
	d    *delivery
	resp *ingestv1.PushResponse
	err  error
}

// call is one Push on its way. Its memory, frames included, is used until the last
// ingester has been sent its part and has answered it, which may be long after Push
// has returned; of the batch nothing is used after that.
type call struct {
	r      *Replicator
	routes *routes
	layout *layout
	tenant tenant.ID
	shard  int
	seed   uint64
	// refs counts who uses the call: Push, each delivery that may still be sent, and
	// each that may still be answered.
	refs   atomic.Int32
	signal chan struct{} // has an element if there is something to look at

	// Of the goroutine in Push.
	keys       []write.Identity // of the sightings, by series
	seen       []sighting       // by series
	groupOf    []int32          // by series: index into groups, or nowhere
	openOf     []int32          // by replica set: the group that is being filled, or nowhere
	deliveryOf []int32          // by node: the delivery that is being filled, or nowhere
	fresh      []uint32         // series that were sent with labels
	charged    int64            // bytes of labels and metadata in Replicator.labelled
	uncharged  int64            // and not yet there
	counts     write.Counts     // of the batch
	alone      bool             // there is nothing but metadata
	local      write.Result     // what was rejected here
	scratch    labels.ScratchBuilder
	hasher     *write.Hasher
	turn       write.CheckTurn
	place      items

	mu struct {
		sync.Mutex
		groups      []*group
		deliveries  []*delivery // one or more per node
		resends     []*delivery
		lessons     []lesson // that wait
		outstanding int      // deliveries without an answer
		learners    int      // those of them to ingesters that are learning series
		open        int      // groups that are needed and undecided
		inbox       []answer
		detached    bool // Push has returned
		// votes has what ingesters said of single series and samples, if anybody did.
		votes ballot
		// forget are series that an ingester did not know when it was too late to
		// send it their labels; unsure says that it rejected something then.
		forget []uint32
		unsure bool
	}
}

func newCall(r *Replicator) *call {
	return &call{
		r: r, signal: make(chan struct{}, 1),
		scratch: labels.NewScratchBuilder(32), hasher: write.NewHasher(),
	}
}

// begin prepares c for a batch.
func (c *call) begin(rt *routes, l *layout, id tenant.ID, shard int, b *write.Batch) {
	c.routes, c.layout, c.tenant, c.shard, c.seed = rt, l, id, shard, write.SeedFingerprint()
	c.refs.Store(1)
	c.counts, c.alone = b.Counts(), len(b.Series) == 0
	n := len(b.Series)
	c.keys = slices.Grow(c.keys[:0], n)[:n]
	c.seen = slices.Grow(c.seen[:0], n)[:n]
	c.groupOf = slices.Grow(c.groupOf[:0], n)[:n]
	c.openOf, c.deliveryOf = c.openOf[:0], c.deliveryOf[:0]
	for range l.sets {
		c.openOf = append(c.openOf, nowhere)
	}
	for range rt.nodes {
		c.deliveryOf = append(c.deliveryOf, nowhere)
	}
}

// fill places the series and metadata of b and encodes them. Nobody else has c yet.
func (c *call) fill(b *write.Batch, salt xxh3.Uint128, tenantHash uint64, limits tenant.Limits) error {
	for i := range b.Series {
		id := &b.Series[i].ID
		c.keys[i] = write.Identity{Hi: id.Hi ^ salt.Hi, Lo: id.Lo ^ salt.Lo}
	}
	hits := c.r.sightings.lookup(c.keys, c.seen)
	c.turn = c.r.checks.Turn(len(c.keys))
	c.r.metrics.hits.Add(float64(hits))
	c.r.metrics.misses.Add(float64(len(c.keys) - hits))
	for i := range b.Series {
		seen := &c.seen[i]
		ls, mark := labels.EmptyLabels(), seen.mark
		if b.Series[i].Err != nil || seen.mark&(sighted|acknowledged|aging) != sighted|acknowledged || c.turn.Next() {
			var err error
			if ls, err = c.sight(b, i, tenantHash, limits); err != nil {
				var fault *write.SeriesError
				if !errors.As(err, &fault) {
					return err
				}
				c.local.RejectItems(fault, itemsOf(b, i)...)
				c.groupOf[i] = nowhere
				continue
			}
		}
		at, g := c.group(c.layout.of(seen.slot))
		c.groupOf[i] = at
		g.series = append(g.series, uint32(i))
		before := g.frame.Len()
		if g.frame.Add(b, i, seen.id, ls); g.frame.Len()-before > seriesMost {
			return errSeriesTooLarge(b, i, g.frame.Len()-before, &c.scratch)
		}
		if !ls.IsEmpty() {
			c.fresh = append(c.fresh, uint32(i))
			size := ls.ByteSize()
			c.r.metrics.labelled.of(mark).Inc()
			c.r.metrics.labelBytes.of(mark).Add(float64(size) * float64(len(g.members)))
			if err := c.charge(int64(size)); err != nil {
				return err
			}
		}
	}
	return c.fillMetadata(b, tenantHash)
}

// charge accounts for n bytes of labels or metadata until discharge, or says that they are too many.
// What is kept after Push, until the last ingester has answered, is bounded by the queues.
func (c *call) charge(n int64) error {
	if c.uncharged += n; c.uncharged < chargeStep {
		return nil
	}
	c.charged += c.uncharged
	total := c.r.labelled.Add(c.uncharged)
	c.uncharged = 0
	if total > c.r.labelMost {
		return wire.Unavailable(fmt.Errorf("the labels and metadata of requests being received take %d bytes, and %d are allowed at a time; try again later, or send fewer series at once", total, c.r.labelMost), defaultDelay)
	}
	return nil
}

func (c *call) discharge() {
	c.r.labelled.Add(-c.charged)
	c.charged, c.uncharged = 0, 0
}

// errSeriesTooLarge says that series i takes so many bytes in a frame.
func errSeriesTooLarge(b *write.Batch, i, bytes int, scratch *labels.ScratchBuilder) error {
	scratch.Reset()
	name := ""
	if err := b.Source.AppendLabels(i, scratch); err == nil {
		scratch.Sort()
		name = write.Clip(scratch.Labels().String())
	}
	return wire.Invalid(fmt.Errorf("series %s takes %d bytes with its samples and exemplars, and %d are allowed in a request; send fewer of them at once", name, bytes, seriesMost))
}

// sight sets c.seen[i] to what series i is by its labels, and remembers it. It returns the
// labels, if they have to be sent: also those of a series that is known, so that its
// ingesters check it, too.
func (c *call) sight(b *write.Batch, i int, tenantHash uint64, limits tenant.Limits) (labels.Labels, error) {
	seen := &c.seen[i]
	if b.Series[i].Err == nil && seen.mark&aging != 0 {
		c.r.sightings.add(c.keys[i], *seen)
		if seen.mark&acknowledged != 0 {
			return labels.EmptyLabels(), nil
		}
	}
	if b.Series[i].Err == nil && seen.mark&refused != 0 {
		// One example of each reason is enough.
		if why := c.local.Example(write.LabelReasons()[seen.id.Lo]); why != nil {
			return labels.EmptyLabels(), why
		}
	}
	ls, id, err := b.Resolve(i, limits, &c.scratch, c.hasher)
	if err != nil {
		switch {
		case b.Series[i].Err != nil, seen.mark&refused != 0:
		case seen.mark == 0:
			c.refuse(i, err)
		default:
			c.r.checks.Failed(c.tenant, err.Error(), seen.String())
			c.r.sightings.acknowledge(c.keys[i], false) // It is looked at each time from now on.
		}
		return ls, err
	}
	truth := sighting{id: id, slot: slotOf(ls, tenantHash)}
	switch {
	case seen.mark == 0:
		c.r.sightings.add(c.keys[i], truth)
	case seen.mark&refused != 0:
		c.r.sightings.correct(c.keys[i], truth)
	case seen.id == truth.id && seen.slot == truth.slot:
		c.r.checks.Passed()
		return ls, nil
	default:
		c.r.checks.Failed(c.tenant, ls.String(), seen.String())
		c.r.sightings.correct(c.keys[i], truth)
	}
	*seen = truth
	return ls, nil
}

// refuse remembers that the labels of series i are not valid.
func (c *call) refuse(i int, err error) {
	var fault *write.SeriesError
	if !errors.As(err, &fault) {
		return
	}
	if reason := slices.Index(write.LabelReasons(), fault.Reason); reason >= 0 {
		c.r.sightings.add(c.keys[i], sighting{id: write.Identity{Lo: uint64(reason)}, mark: refused})
	}
}

// fillMetadata gives each metric's metadata to its replica set.
func (c *call) fillMetadata(b *write.Batch, tenantHash uint64) error {
	for _, m := range b.Metadata {
		m, ok := m.Kept()
		if !ok {
			continue // Many may share one text of a megabyte.
		}
		set := 0
		if len(c.layout.sets) > 1 {
			set = c.layout.of(metadataSlot(tenantHash, m.Metric))
		}
		_, g := c.group(set)
		g.frame.AddMetadata([]write.Metadata{m})
		if err := c.charge(int64(len(m.Metric) + len(m.Unit) + len(m.Help))); err != nil {
			return err
		}
	}
	return nil
}

// group returns the group that is being filled for a replica set.
func (c *call) group(set int) (int32, *group) {
	at := c.openOf[set]
	if at != nowhere && c.mu.groups[at].frame.Len() < partBytes {
		return at, c.mu.groups[at]
	}
	at = int32(len(c.mu.groups))
	g := regrow(&c.mu.groups)
	g.members = c.layout.sets[set]
	c.openOf[set] = at
	return at, g
}

// regrow lengthens s by an element, one that it had before if possible.
func regrow[T any](s *[]*T) *T {
	if n := len(*s); n < cap(*s) {
		*s = (*s)[:n+1]
		if (*s)[n] == nil {
			(*s)[n] = new(T)
		}
		return (*s)[n]
	}
	e := new(T)
	*s = append(*s, e)
	return e
}

// dispatch sends everything.
func (c *call) dispatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.mu.groups {
		g.missed = c.routes.rf() - len(g.members)
		if g.needed(c.alone) {
			c.mu.open++
		}
		for _, node := range g.members {
			d := c.deliveryLocked(node, int64(g.frame.Len()))
			d.groups = append(d.groups, g)
			d.bytes += int64(g.frame.Len())
		}
	}
	for _, d := range c.mu.deliveries {
		c.sendLocked(d)
	}
	for _, g := range c.mu.groups {
		c.decideLocked(g)
	}
	c.wakeLocked()
}

// deliveryLocked returns the delivery for a node that has room for more bytes.
func (c *call) deliveryLocked(node int, more int64) *delivery {
	if at := c.deliveryOf[node]; at != nowhere {
		if d := c.mu.deliveries[at]; d.bytes+more <= deliveryBytes {
			return d
		}
	}
	c.deliveryOf[node] = int32(len(c.mu.deliveries))
	d := regrow(&c.mu.deliveries)
	d.call, d.node, d.link = c, node, c.routes.nodes[node].link
	return d
}

// sendLocked sends d, or counts its votes as missing.
func (c *call) sendLocked(d *delivery) {
	if d.link == nil {
		c.r.metrics.skipped(c.routes.nodes[d.node].id)
		c.missLocked(d, c.routes.nodes[d.node].why)
		return
	}
	for p := range d.parts() {
		d.bytes += int64(len(p.series)) * keptPerSeries
	}
	c.refs.Add(2)
	c.mu.outstanding++
	d.open = true
	if d.learns = d.again == nil && d.link.learning.Load(); d.learns {
		c.mu.learners++
	}
	if err := d.link.send(d); err != nil {
		c.refs.Add(-2)
		c.closeLocked(d)
		d.link.metrics.refused(err)
		c.missLocked(d, err)
	}
}

func (c *call) closeLocked(d *delivery) {
	c.mu.outstanding--
	d.open = false
	if d.learns {
		c.mu.learners--
	}
	if d.again != nil {
		d.link.taught(d.lesson)
	}
}

// missLocked notes that the votes of d will not come because of err.
func (c *call) missLocked(d *delivery, err error) {
	if d.why == nil {
		d.why = err
	}
	for _, g := range d.groups {
		g.missed++
		c.decideLocked(g)
	}
	if d.again != nil {
		for _, i := range d.again.series {
			c.mu.votes.series[i].waiting--
			c.mu.votes.series[i].missed++
		}
	}
}

// decideLocked notes whether more answers can still matter to g as a whole.
func (c *call) decideLocked(g *group) {
	if g.decided || !g.needed(c.alone) {
		return
	}
	rf, quorum := c.routes.rf(), c.routes.quorum()
	if g.accepted >= quorum || g.missed > rf-quorum {
		g.decided = true
		c.mu.open--
	}
}

// wakeLocked makes Push look, if there is anything to look at.
func (c *call) wakeLocked() {
	if c.mu.detached {
		return
	}
	if c.mu.open > 0 && c.mu.outstanding > 0 && len(c.mu.inbox) == 0 && !c.mu.votes.used {
		return
	}
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// message returns what is sent; defined are the placements that the stream knows.
func (d *delivery) message(defined map[uint64]bool) *ingestv1.PushRequest {
	c := d.call
	msg := &ingestv1.PushRequest{
		Id: d.id, Tenant: string(c.tenant), Seed: c.seed, Instance: d.link.id,
		Placement: c.routes.placement.Hash(), Shard: uint32(c.shard),
		Frames: make([][]byte, 0, len(d.groups)+1),
	}
	for _, g := range d.groups {
		msg.Frames = append(msg.Frames, g.frame.Bytes())
	}
	if d.again != nil {
		msg.Frames = append(msg.Frames, d.again.frame.Bytes())
	}
	if !defined[msg.Placement] {
		if len(defined) >= maxDefinitions {
			clear(defined)
		}
		defined[msg.Placement] = true
		msg.PlacementDefinition = c.routes.placement.Encode(nil)
	}
	return msg
}

// sent says that nothing of d is going to be sent any more.
func (d *delivery) sent() { d.call.release() }

// answered takes the answer to d, or the error that says that none will come.
func (d *delivery) answered(resp *ingestv1.PushResponse, err error) {
	c := d.call
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(d)
	switch {
	case err == nil && c.isClean(d, resp):
		d.link.metrics.accepted.Inc()
		d.link.learning.Store(false)
		c.acceptLocked(d)
	case c.mu.detached:
		c.lateLocked(d, resp, err)
	default:
		c.mu.inbox = append(c.mu.inbox, answer{d: d, resp: resp, err: err})
	}
	c.wakeLocked()
}

// isClean reports whether everything of d was stored.
func (c *call) isClean(d *delivery, resp *ingestv1.PushResponse) bool {
	if resp.GetFailure() != nil || len(resp.GetRejected()) > 0 || len(resp.GetUnknown()) > 0 {
		return false
	}
	sent := d.counts()
	return uint64(sent.Samples) == resp.GetSamples() && uint64(sent.Histograms) == resp.GetHistograms()
}

// counts returns what d asks to store.
func (d *delivery) counts() write.Counts {
	var n write.Counts
	for p := range d.parts() {
		more := p.frame.Counts()
		n.Samples += more.Samples
		n.Histograms += more.Histograms
		n.Exemplars += more.Exemplars
	}
	return n
}

// parts yields the parts of d in the order of its frames.
func (d *delivery) parts() func(yield func(*part) bool) {
	return func(yield func(*part) bool) {
		for _, g := range d.groups {
			if !yield(&g.part) {
				return
			}
		}
		if d.again != nil {
			yield(d.again)
		}
	}
}

// acceptLocked counts the votes of an ingester that answered.
func (c *call) acceptLocked(d *delivery) {
	for _, g := range d.groups {
		g.accepted++
		c.decideLocked(g)
	}
	if d.again != nil {
		for _, i := range d.again.series {
			c.mu.votes.series[i].waiting--
		}
	}
}

// lateLocked takes an answer that came after Push had returned. It changes nothing but
// what is known of the ingester: the batch is gone, and so are the labels.
func (c *call) lateLocked(d *delivery, resp *ingestv1.PushResponse, err error) {
	var result write.Result
	if err == nil {
		result, err = wire.ResultFromProto(resp)
	}
	d.link.metrics.judged(result, err)
	c.mu.unsure = true
	if err != nil {
		return
	}
	if len(result.Unknown) == 0 {
		return
	}
	if time.Since(d.since) < c.r.teaching {
		d.link.learning.Store(true) // Waiting for it would have helped.
	}
	c.teachLateLocked(d, result.Unknown)
}

// release ends one use of c. The last one remembers what the ingesters know now, and
// gives the memory back.
func (c *call) release() {
	if c.refs.Add(-1) > 0 {
		return
	}
	if !c.mu.unsure {
		for _, i := range c.fresh {
			if c.mu.groups[c.groupOf[i]].accepted > 0 && !c.mu.votes.doubted(i) {
				c.r.sightings.acknowledge(c.keys[i], true)
			}
		}
	}
	for _, i := range c.mu.forget {
		c.r.sightings.acknowledge(c.keys[i], false)
	}
	if c.retained() <= keptBytes {
		c.reset()
		c.r.calls.Put(c)
	}
}

// retained returns about how much memory c keeps.
func (c *call) retained() int {
	n := 16*cap(c.keys) + int(sightingSize)*cap(c.seen) + 4*cap(c.groupOf) + c.mu.votes.retained() + c.place.retained()
	for _, g := range c.mu.groups[:cap(c.mu.groups)] {
		if g != nil {
			n += 4*cap(g.series) + g.frame.Retained()
		}
	}
	return n
}

// reset drops everything but memory to be used again.
func (c *call) reset() {
	c.routes, c.layout, c.tenant = nil, nil, ""
	c.fresh, c.local = c.fresh[:0], write.Result{}
	c.scratch.Reset()
	for _, g := range c.mu.groups {
		part := g.part
		part.reset()
		*g = group{part: part}
	}
	for _, d := range c.mu.deliveries {
		clear(d.groups)
		*d = delivery{groups: d.groups[:0]}
	}
	clear(c.mu.resends)
	clear(c.mu.inbox)
	c.mu.groups, c.mu.deliveries, c.mu.resends, c.mu.inbox = c.mu.groups[:0], c.mu.deliveries[:0], c.mu.resends[:0], c.mu.inbox[:0]
	clear(c.mu.lessons)
	c.mu.lessons = c.mu.lessons[:0]
	c.mu.outstanding, c.mu.learners, c.mu.open = 0, 0, 0
	c.mu.detached, c.mu.unsure = false, false
	c.mu.forget = c.mu.forget[:0]
	c.mu.votes.reset()
	select {
	case <-c.signal:
	default:
	}
}
