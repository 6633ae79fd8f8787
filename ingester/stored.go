package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/write"
)

// point is a stored sample of any type.
type point struct {
	t     int64
	v     float64
	int   *histogram.Histogram
	float *histogram.FloatHistogram
}

// same reports whether a sample with these values is what is stored: float
// samples by their bits, histograms by their buckets whatever their layout, and
// a stale marker by being one, since the TSDB gives it the type of its series.
func (p point) same(v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) bool {
	if p.stale() {
		return (point{v: v, int: h, float: fh}).stale()
	}
	switch {
	case h != nil:
		return p.int != nil && p.int.Copy().Compact(0).Equals(h.Copy().Compact(0))
	case fh != nil:
		return p.float != nil && p.float.Copy().Compact(0).Equals(fh.Copy().Compact(0))
	default:
		return p.int == nil && p.float == nil && math.Float64bits(p.v) == math.Float64bits(v)
	}
}

// validate finds fault with histograms that can't be compared, nor stored.
func (p point) validate() error {
	switch {
	case p.int != nil:
		return p.int.Validate()
	case p.float != nil:
		return p.float.Validate()
	default:
		return nil
	}
}

func (p point) stale() bool {
	switch {
	case p.int != nil:
		return value.IsStaleNaN(p.int.Sum)
	case p.float != nil:
		return value.IsStaleNaN(p.float.Sum)
	default:
		return value.IsStaleNaN(p.v)
	}
}

// seriesTime identifies a sample of a TSDB.
type seriesTime struct {
	id write.Identity
	t  int64
}

// lateSamples compares the late samples with what is stored. What is there with
// the same value counts as written; with another value it is rejected; what is
// not there is appended out of order.
func (p *pusher) lateSamples() error {
	p.app = p.db.Head().AppenderV2(context.Background())
	p.setBounds()                      // The first pass may have moved the newest sample.
	appended := map[seriesTime]point{} // in this pass, so not to be found in storage yet
	p.t.ing.metrics.compared.Add(float64(len(p.t.app.late)))
	for _, late := range p.t.app.late {
		if p.unknownSeries[late.series] {
			continue
		}
		if err := p.lateSample(late, appended); errors.Is(err, write.ErrNoLabels) {
			p.unknown(late.series)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// lateSample does so for one. appended has the samples of this pass so far.
func (p *pusher) lateSample(late lateSample, appended map[seriesTime]point) error {
	if err := p.find(late.series); err != nil {
		return err // It was found in the first pass.
	}
	if err := p.resolveKnown(late.series); err != nil {
		return err
	}
	var (
		st  int64
		x   point
		who = write.Item{Kind: write.KindSample, Index: late.index}
	)
	if late.histogram {
		h := p.b.Histograms[late.index]
		st, x = h.ST, point{t: h.T, int: h.Int, float: h.Float}
		who.Kind = write.KindHistogram
	} else {
		s := p.b.Samples[late.index]
		st, x = s.ST, point{t: s.T, v: s.V}
	}
	if err := x.validate(); err != nil {
		p.reject(late.series, who, write.ReasonInvalidHistogram, err.Error)
		return nil
	}
	key := seriesTime{p.at().id, x.t}
	known, ok := appended[key]
	if !ok {
		var (
			err    error
			unread *unreadError
		)
		known, ok, err = p.stored(x.t)
		switch {
		case err == nil:
		case !errors.As(err, &unread):
			return fmt.Errorf("compare a late sample with what is stored: %w", err)
		case unread.passing:
			p.reject(late.series, who, write.ReasonLocalBlockUnavailable, func() string {
				return fmt.Sprintf("a block on the ingester's disk may have a sample of the time %s and can't be read at present; send it again, and see the runbook of the alert HundredfoldLocalBlockUnreadable: %s", formatTime(x.t), unread)
			})
			return nil
		default: // A damaged block is one that is not there (ADR 024).
			p.t.ing.metrics.uncompared.Inc()
		}
	}
	switch {
	case ok && known.same(x.v, x.int, x.float):
		p.t.ing.metrics.duplicates.Inc()
		if late.histogram {
			p.result.Written.Histograms++
		} else {
			p.result.Written.Samples++
		}
	case ok:
		p.reject(late.series, who, write.ReasonDuplicateTimestamp, func() string {
			return fmt.Sprintf("a sample with time %s and another value is stored already", formatTime(x.t))
		})
	case p.limits.OutOfOrderWindow == 0:
		p.reject(late.series, who, write.ReasonOutOfOrder, func() string {
			return fmt.Sprintf("the sample's time %s is not after the newest of its series, and out_of_order_window of tenant %s is 0", formatTime(x.t), p.t.id)
		})
	default:
		before := p.result.Written
		if err := p.append(late.series, late.index, st, x.t, x.v, x.int, x.float); err != nil {
			return err
		}
		if p.result.Written != before {
			appended[key] = x
		}
	}
	return nil
}

// stored returns the sample of the series at hand at time t, if there is one. The error is
// an *unreadError if a local block may have it that can't be read.
func (p *pusher) stored(t int64) (point, bool, error) {
	if ref := p.at().ref(); ref != 0 {
		pt, ok, err := p.storedInOrder(ref, t)
		if ok || err != nil {
			return pt, ok, err
		}
	}
	if !p.mayBeElsewhere(t) {
		return point{}, false, nil
	}
	q, err := p.db.Querier(t, t)
	if err != nil {
		return point{}, false, err
	}
	if pt, ok, err := p.sampleIn(q, t); ok || err != nil {
		return pt, ok, err
	}
	// The head first: what is cut from it meanwhile is in a block then.
	return p.storedInBlocks(t)
}

// mayBeElsewhere reports whether a sample at t may be in a local block or among
// the head's out-of-order samples.
func (p *pusher) mayBeElsewhere(t int64) bool {
	head := p.db.Head()
	if head.MinOOOTime() <= t && t <= head.MaxOOOTime() {
		return true
	}
	return p.t.blocks.overlaps(t, t)
}

// storedInOrder looks for a sample among the in-order samples of the head.
func (p *pusher) storedInOrder(ref storage.SeriesRef, t int64) (pt point, ok bool, err error) {
	err = p.readSeries(ref, func(r *headReader) error {
		return r.eachChunk(func(meta chunks.Meta, c chunkenc.Chunk) bool {
			if t < meta.MinTime || t > meta.MaxTime {
				return true
			}
			it := c.Iterator(nil)
			pt, ok = seek(it, t)
			return !ok
		})
	})
	return pt, ok, err
}

// sight returns what is known of a series that the table lacks: its reference, if
// the head has it, and a bound for the times of its stored samples.
func (p *pusher) sight(ls labels.Labels) (storage.SeriesRef, int64) {
	lastT := newestElsewhere(p.db, p.t.blocks)
	getter, ok := p.app.(storage.GetRef)
	if !ok {
		return 0, lastT
	}
	ref, _ := getter.GetRef(ls, ls.Hash())
	if ref == 0 {
		return 0, lastT
	}
	newest, err := p.newest(ref)
	if err != nil {
		return ref, math.MaxInt64 // Unknown: have every sample compared.
	}
	return ref, max(lastT, newest)
}

// newest is headReader.newest for a series of the head.
func (p *pusher) newest(ref storage.SeriesRef) (t int64, err error) {
	t = math.MinInt64
	err = p.readSeries(ref, func(r *headReader) (err error) {
		t, _, err = r.newest()
		return err
	})
	return t, err
}

// readSeries calls f with a reader of a series, if the head has it.
func (p *pusher) readSeries(ref storage.SeriesRef, f func(*headReader) error) (err error) {
	r, err := readHead(p.db.Head())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.series(ref, &p.t.app.scratch); err != nil {
		if errors.Is(err, storage.ErrNotFound) {
			return nil // Dropped from the head: it has no samples there.
		}
		return err
	}
	return f(r)
}

// seek returns the sample at exactly t.
func seek(it chunkenc.Iterator, t int64) (point, bool) {
	typ := it.Seek(t)
	if typ == chunkenc.ValNone || it.AtT() != t {
		return point{}, false
	}
	return pointAt(it, typ), true
}

// pointAt returns the sample at hand, which is of that type.
func pointAt(it chunkenc.Iterator, typ chunkenc.ValueType) (pt point) {
	switch typ {
	case chunkenc.ValFloat:
		pt.t, pt.v = it.At()
	case chunkenc.ValHistogram:
		pt.t, pt.int = it.AtHistogram(nil)
	case chunkenc.ValFloatHistogram:
		pt.t, pt.float = it.AtFloatHistogram(nil)
	}
	return pt
}
