package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// maxAhead is how far in the future a sample may lie (what Prometheus allows).
const maxAhead = 10 * time.Minute

// appendState is what pushes to one open TSDB use again and again.
type appendState struct {
	table   table
	hasher  *write.Hasher
	refused write.Refusals
	turn    write.CheckTurn
	scratch labels.ScratchBuilder
	late    []lateSample
	// evicting is told what is appended while series are evicted; nil: none are.
	evicting *eviction
	warmed   uint64 // the sum of what table.warm read, so that it is read
}

func newAppendState() appendState {
	return appendState{hasher: write.NewHasher(), scratch: labels.NewScratchBuilder(32)}
}

// lateSample is a sample of a batch that is not newer than its series' newest, or too old for
// the TSDB as long as that takes no out-of-order samples.
type lateSample struct {
	series    int
	index     uint32 // into the batch's Samples or Histograms
	histogram bool
}

// push appends b. The caller sees errClosed if the tenant was closed meanwhile.
// placed is nil outside of a cluster.
func (t *tenantDB) push(ctx context.Context, b *write.Batch, placed *Placed) (write.Result, error) {
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		if result, ok := t.nothingValid(b); ok {
			return result, nil // Garbage opens no TSDB.
		}
		if why := t.ing.refuseNew(t.id); why != nil {
			t.forgetUnopened()
			return refused(b, why)
		}
		if err := t.open(); err != nil {
			return write.Result{}, err
		}
		db, release, err = t.acquire()
	}
	if err != nil {
		return write.Result{}, err
	}
	defer release()
	t.lastPush.Store(t.ing.now().UnixNano())
	if placed != nil {
		if t.placements == nil {
			return write.Result{}, errNoMember
		}
		if err := t.placements.use(*placed, t.ing.now()); err != nil {
			return write.Result{}, wire.Unavailable(err, 10*time.Second)
		}
		// Once more when the samples are there, for those that tidy meanwhile.
		defer func() { t.placements.touch(placed.ref()) }()
	}
	t.meta.add(b.Metadata)
	if len(b.Series) == 0 {
		return write.Result{}, nil
	}

	result, err := t.append(ctx, db, b)
	t.mapChunksIfDue(db, result.Written.Samples+result.Written.Histograms)
	return result, err
}

// append appends b. use is held shared.
func (t *tenantDB) append(ctx context.Context, db *tsdb.DB, b *write.Batch) (write.Result, error) {
	for {
		result, err := t.appendInTurn(ctx, db, b)
		if !errors.Is(err, errNoLateLog) {
			return result, err
		}
		if err := t.openLateLog(ctx, db); err != nil {
			return write.Result{}, err
		}
		// What is stored of b is recognised now.
	}
}

// appendInTurn appends b when it is its turn. With errNoLateLog it is to be called again
// after openLateLog.
func (t *tenantDB) appendInTurn(ctx context.Context, db *tsdb.DB, b *write.Batch) (write.Result, error) {
	if err := t.appending.take(ctx); err != nil {
		return write.Result{}, fmt.Errorf("wait for other writes of tenant %s: %w", t.id, err)
	}
	defer t.appending.give()
	if err := t.ing.takesWrites(); err != nil {
		return write.Result{}, err // Asked again here: who empties the ingester takes this turn afterwards.
	}
	if t.broken.Load() {
		t.ing.metrics.refused.WithLabelValues("wal").Inc()
		return write.Result{}, wire.Unavailable(fmt.Errorf("tenant %s: %w; it is opened anew as soon as the disk takes writes", t.id, errBroken), 10*time.Second)
	}
	p := pusher{t: t, db: db, b: b, limits: t.ing.deps.Limits(t.id), maxT: t.ing.now().Add(maxAhead).UnixMilli()}
	p.some, _ = b.Source.(write.PartialSource)
	t.app.refused.Under(p.limits)
	p.clock = db.Head().MaxTime()
	p.now = minuteOf(p.clock)
	p.setBounds()
	return p.run()
}

// nothingValid reports whether b holds nothing that a tenant without a TSDB could
// store, and why: no series is known there.
func (t *tenantDB) nothingValid(b *write.Batch) (result write.Result, ok bool) {
	if len(b.Metadata) > 0 {
		return write.Result{}, false
	}
	limits, scratch, hasher := t.ing.deps.Limits(t.id), labels.NewScratchBuilder(32), write.NewHasher()
	for i := range b.Series {
		_, _, err := b.Resolve(i, limits, &scratch, hasher)
		var invalid *write.SeriesError
		switch {
		case errors.Is(err, write.ErrNoLabels):
			result.Unknown = append(result.Unknown, uint32(i))
		case errors.As(err, &invalid):
			items := itemsOf(i, &b.Series[i])
			result.RejectItems(invalid, appendItems(items, write.KindExemplar, b.Series[i].Exemplars)...)
		default:
			return write.Result{}, false
		}
	}
	return result, true
}

// pusher appends one batch. It runs with the tenant's appending held.
type pusher struct {
	t      *tenantDB
	db     *tsdb.DB
	b      *write.Batch
	some   write.PartialSource // b's source, if it has labels of some series only
	limits tenant.Limits
	minT   int64  // samples before are too old
	maxT   int64  // samples after are in the future
	clock  int64  // the time of the head's newest sample
	now    minute // the same
	app    storage.AppenderV2
	result write.Result
	// comparing is set in the pass that compares late samples with what is stored.
	comparing bool
	// unknownSeries are the series in result.Unknown.
	unknownSeries map[int]bool
	// unopened are the local blocks that this push could not open, and why.
	unopened map[*localBlock]error

	// The series at hand: its place in the table if it has one yet, and its
	// labels if they had to be looked at.
	entry *entry
	fresh entry
	ls    labels.Labels
}

// setBounds sets the time before which samples are too old.
func (p *pusher) setBounds() {
	p.minT = p.t.oldestLate(p.db)
}

// run appends the batch. Whoever serves the request survives a panic; the tenant is
// broken by it.
func (p *pusher) run() (write.Result, error) {
	ended := false
	defer func() {
		if !ended { // It panics. The head may hold series that the log lacks.
			p.t.app.table = table{}
			p.t.broken.Store(true)
		}
	}()
	result, err := p.passes()
	ended = true
	return result, err
}

// passes appends in three passes, each committed before the next: the samples that
// are newer than all of their series; the late ones, which are compared with what
// is stored, their batch included; the exemplars, which need their series.
func (p *pusher) passes() (write.Result, error) {
	p.t.app.late = p.t.app.late[:0]
	p.t.app.warmed += p.t.app.table.warm(p.b.Series)
	p.app = p.db.Head().AppenderV2(context.Background())
	for i := range p.b.Series {
		if err := p.series(i); err != nil {
			return p.abort(err)
		}
	}
	if err := p.commit(); err != nil {
		return p.broke(err)
	}
	if len(p.t.app.late) > 0 {
		p.comparing = true
		needed := p.lateSamples()
		if needed != nil && !errors.Is(needed, errNoLateLog) {
			return p.abort(needed)
		}
		if err := p.commit(); err != nil {
			return p.broke(err)
		}
		if needed != nil {
			return write.Result{}, needed
		}
	}
	if len(p.b.Exemplars) > 0 {
		if err := p.exemplars(); errors.Is(err, errNoLateLog) {
			return write.Result{}, err
		} else if err != nil {
			return p.broke(err)
		}
	}
	slices.Sort(p.result.Unknown)
	return p.result, nil
}

// commit stores what was appended, or nothing of it is sure to be stored.
func (p *pusher) commit() error {
	if err := p.app.Commit(); err != nil {
		return err
	}
	if p.t.lateLogFailed.Load() {
		return errLateLog
	}
	return nil
}

// abort ends a push that met an error which is no sample's fault. Nothing of the
// open appender is stored, so what the table learned from it is void.
func (p *pusher) abort(cause error) (write.Result, error) {
	if err := p.app.Rollback(); err != nil { // It writes the new series to the log.
		return p.broke(errors.Join(cause, err))
	}
	p.unlearn()
	return write.Result{}, fmt.Errorf("append to the head of tenant %s: %w", p.t.id, cause)
}

// unlearn has the table know of the batch's series what the head has.
func (p *pusher) unlearn() {
	elsewhere := newestElsewhere(p.db, p.t.blocks)
	for i := range p.b.Series {
		e := p.t.app.table.find(p.b.Series[i].ID)
		if e == nil { // It may have been sent with an identity that is not its own.
			_, id, err := p.b.Resolve(i, p.limits, &p.t.app.scratch, p.t.app.hasher)
			if err != nil {
				continue // Then nothing of it was appended.
			}
			if e = p.t.app.table.find(id); e == nil {
				continue
			}
		}
		newest, err := p.newest(e.ref())
		if err != nil {
			newest = math.MaxInt64 // Unknown: have every sample compared.
		}
		if lastT := max(newest, elsewhere); lastT < e.lastT {
			e.lastT, e.state = lastT, guessed
		}
	}
}

// broke ends a push whose commit failed: see tenantDB.broken.
func (p *pusher) broke(cause error) (write.Result, error) {
	p.t.app.table = table{}
	p.t.broken.Store(true)
	p.t.ing.metrics.walFailures.Inc()
	p.t.log.Error("The write-ahead log can't be written; the tenant refuses writes until its TSDB is opened anew, which happens by itself once the disk takes writes", "err", cause)
	return write.Result{}, wire.Unavailable(fmt.Errorf("tenant %s: %w: %w", p.t.id, errBroken, cause), 10*time.Second)
}

// series appends the samples of series i that are newer than its newest, and
// notes the others as late.
func (p *pusher) series(i int) error {
	ser := &p.b.Series[i]
	if ser.Samples.Len+ser.Histograms.Len == 0 && ser.Err == nil {
		return nil // Its exemplars come later.
	}
	if err := p.find(i); err != nil {
		return p.rejectSeries(i, err)
	}
	for k := ser.Samples.Off; k < ser.Samples.End(); k++ {
		s := &p.b.Samples[k]
		if err := p.sample(i, k, s.ST, s.T, s.V, nil, nil); err != nil {
			return p.rejectSeries(i, err)
		}
	}
	for k := ser.Histograms.Off; k < ser.Histograms.End(); k++ {
		h := &p.b.Histograms[k]
		if err := p.sample(i, k, h.ST, h.T, 0, h.Int, h.Float); err != nil {
			return p.rejectSeries(i, err)
		}
	}
	return nil
}

// find sets p.entry, or p.fresh and p.ls, to series i. The error is a
// *write.SeriesError or write.ErrNoLabels.
func (p *pusher) find(i int) error {
	ser := &p.b.Series[i]
	p.ls = labels.EmptyLabels()
	if ser.Err == nil {
		if p.entry = p.t.app.table.find(ser.ID); p.entry != nil && (!p.due(i) || p.holds(i)) {
			return nil
		}
		if why := p.t.app.refused.Find(ser.ID, &p.result); why != nil {
			return why
		}
	}
	ls, id, err := p.b.Resolve(i, p.limits, &p.t.app.scratch, p.t.app.hasher)
	if err != nil {
		if ser.Err == nil {
			p.t.app.refused.Note(ser.ID, err)
		}
		return err
	}
	p.ls = ls
	if p.entry = p.t.app.table.find(id); p.entry != nil {
		return nil
	}
	ref, lastT := p.sight(ls)
	p.fresh = newEntry(id, ref, lastT)
	if ref != 0 {
		p.entry = p.t.app.table.insert(p.fresh)
	}
	return nil
}

// at returns the entry of the series at hand.
func (p *pusher) at() *entry {
	if p.entry != nil {
		return p.entry
	}
	return &p.fresh
}

// sample appends a sample that is newer than its series' newest, or notes it as late.
func (p *pusher) sample(i int, k uint32, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) error {
	switch {
	case t < 0:
		p.reject(i, item(k, h, fh), write.ReasonTooOld, func() string {
			return fmt.Sprintf("the sample's time of %d ms is before 1970", t)
		})
		return nil
	case t > p.maxT:
		p.reject(i, item(k, h, fh), write.ReasonFuture, func() string {
			return fmt.Sprintf("the sample's time %s is more than %s ahead of the clock here", formatTime(t), maxAhead)
		})
		return nil
	case t <= p.at().lastT:
		p.noteLate(i, k, h, fh)
		return nil
	}
	return p.append(i, k, st, t, v, h, fh)
}

func (p *pusher) noteLate(i int, k uint32, h *histogram.Histogram, fh *histogram.FloatHistogram) {
	p.t.app.late = append(p.t.app.late, lateSample{series: i, index: k, histogram: h != nil || fh != nil})
}

// append gives one sample to the TSDB. Only errors that are not the sample's
// fault are returned; the others are rejections. write.ErrNoLabels says that the
// head needs the series' labels and that they were not sent.
func (p *pusher) append(i int, k uint32, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) error {
	if t < p.minT {
		p.rejectTooOld(i, item(k, h, fh), t)
		return nil
	}
	e := p.at()
	if e.ref() == 0 {
		if err := p.resolve(i); err != nil {
			return p.rejectErr(i, item(k, h, fh), err)
		}
	}
	options := storage.AOptions{RejectOutOfOrder: p.t.doubled.has(e.id)}
	ref, err := p.app.Append(e.ref(), p.ls, st, t, v, h, fh, options)
	if err != nil && p.ls.IsEmpty() && errors.Is(err, tsdb.ErrInvalidSample) {
		// The head has dropped the series since; its labels bring it back.
		if err := p.resolve(i); err != nil {
			return p.rejectErr(i, item(k, h, fh), err)
		}
		ref, err = p.app.Append(0, p.ls, st, t, v, h, fh, options)
	}
	switch {
	case err == nil:
	case options.RejectOutOfOrder && errors.Is(err, storage.ErrOutOfOrderSample):
		p.rejectDoubled(i, item(k, h, fh), t)
		return nil
	case p.lateLogLacks(err) && p.comparing:
		return errNoLateLog
	case p.lateLogLacks(err):
		p.noteLate(i, k, h, fh)
		return nil
	default:
		return p.rejectErr(i, item(k, h, fh), err)
	}
	if err := p.t.refs.reserve(ref); err != nil {
		return err
	}
	if t > p.clock {
		p.clock, p.now = t, minuteOf(t)
	}
	if p.t.app.evicting != nil {
		p.t.app.evicting.touch(ref, t)
	}
	e.setRef(ref)
	e.appended(t, (point{v: v, int: h, float: fh}).stale(), p.now)
	if p.entry == nil {
		p.entry = p.t.app.table.insert(p.fresh)
	}
	if h != nil || fh != nil {
		p.result.Written.Histograms++
	} else {
		p.result.Written.Samples++
	}
	return nil
}

// resolve sets p.ls to the labels of series i.
func (p *pusher) resolve(i int) error {
	if !p.ls.IsEmpty() {
		return nil
	}
	ls, _, err := p.b.Resolve(i, p.limits, &p.t.app.scratch, p.t.app.hasher)
	p.ls = ls
	return err
}

// resolveKnown is like resolve for a series that need not be created: labels that
// were not sent are taken from the head.
func (p *pusher) resolveKnown(i int) error {
	if !p.ls.IsEmpty() {
		return nil
	}
	var err error
	p.ls, err = p.labelsOf(i)
	return err
}

func formatTime(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}
