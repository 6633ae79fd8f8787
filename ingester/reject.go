package ingester

import (
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/write"
)

// item names sample k of a batch, or its histogram k if there is a histogram.
func item(k uint32, h *histogram.Histogram, fh *histogram.FloatHistogram) write.Item {
	if h != nil || fh != nil {
		return write.Item{Kind: write.KindHistogram, Index: k}
	}
	return write.Item{Kind: write.KindSample, Index: k}
}

// itemsOf names the samples and histograms of series i, or the series itself if it
// has none.
func itemsOf(i int, ser *write.Series) []write.Item {
	if ser.Samples.Len+ser.Histograms.Len+ser.Exemplars.Len == 0 {
		return []write.Item{{Kind: write.KindSeries, Index: uint32(i)}}
	}
	items := appendItems(nil, write.KindSample, ser.Samples)
	return appendItems(items, write.KindHistogram, ser.Histograms)
}

func appendItems(items []write.Item, kind write.Kind, span write.Span) []write.Item {
	for k := span.Off; k < span.End(); k++ {
		items = append(items, write.Item{Kind: kind, Index: k})
	}
	return items
}

// owns reports whether x is series i or one of its elements.
func owns(i int, ser *write.Series, x write.Item) bool {
	within := func(span write.Span) bool { return x.Index >= span.Off && x.Index < span.End() }
	switch x.Kind {
	case write.KindSample:
		return within(ser.Samples)
	case write.KindHistogram:
		return within(ser.Histograms)
	case write.KindExemplar:
		return within(ser.Exemplars)
	default:
		return x.Index == uint32(i)
	}
}

// rejectErr turns an error of one sample into a rejection, or returns it if it
// is none.
func (p *pusher) rejectErr(i int, x write.Item, err error) error {
	var (
		series *write.SeriesError
		hist   histogram.Error
	)
	switch {
	case errors.As(err, &series):
		p.result.RejectItems(series, x)
		return nil
	case errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds):
		p.reject(i, x, write.ReasonTooOld, err.Error)
		return nil
	case errors.Is(err, storage.ErrOutOfOrderSample):
		p.reject(i, x, write.ReasonOutOfOrder, err.Error)
		return nil
	case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
		p.reject(i, x, write.ReasonDuplicateTimestamp, err.Error)
		return nil
	case errors.As(err, &hist):
		p.reject(i, x, write.ReasonInvalidHistogram, err.Error)
		return nil
	}
	return err
}

func (p *pusher) rejectTooOld(i int, x write.Item, t int64) {
	p.reject(i, x, write.ReasonTooOld, func() string {
		return fmt.Sprintf("the sample's time %s is before %s: the newest sample of tenant %s less its limit out_of_order_window of %s",
			formatTime(t), formatTime(p.minT), p.t.id, p.limits.OutOfOrderWindow)
	})
}

// rejectDoubled rejects a late sample of a doubled series, which part is tried for again.
func (p *pusher) rejectDoubled(i int, x write.Item, t int64) {
	p.reject(i, x, write.ReasonLateSamplesUnavailable, func() string {
		return fmt.Sprintf("the sample's time %s is not after the newest, and after a crash the ingester could not write the series as a block yet, without which it could lose its late samples in the next crash; send it again", formatTime(t))
	})
}

// reject notes one rejected element of series i. The message is made for the first
// of each reason only: there may be thousands.
func (p *pusher) reject(i int, x write.Item, reason write.Reason, detail func() string) {
	for k := range p.result.Rejected {
		if rej := &p.result.Rejected[k]; rej.Reason == reason {
			rej.Count++
			rej.Items = append(rej.Items, x)
			return
		}
	}
	e := &write.SeriesError{Reason: reason, Detail: detail()}
	if ls, err := p.labelsOf(i); err == nil {
		e.Labels = write.Clip(ls.String())
	}
	p.result.RejectItems(e, x)
}

// labelsOf returns the labels of series i, which is the one at hand.
func (p *pusher) labelsOf(i int) (labels.Labels, error) {
	ls, _, err := p.b.Resolve(i, p.limits, &p.t.app.scratch, p.t.app.hasher)
	if errors.Is(err, write.ErrNoLabels) {
		return p.headLabels(p.at().ref())
	}
	return ls, err
}

// headLabels returns the labels that the head has for a reference, or
// write.ErrNoLabels if it has dropped the series.
func (p *pusher) headLabels(ref storage.SeriesRef) (labels.Labels, error) {
	if ref == 0 {
		return labels.EmptyLabels(), write.ErrNoLabels
	}
	index, err := p.db.Head().Index()
	if err != nil {
		return labels.EmptyLabels(), err
	}
	err = index.Series(ref, &p.t.app.scratch, nil)
	if closing := index.Close(); err == nil {
		err = closing
	}
	if errors.Is(err, storage.ErrNotFound) {
		return labels.EmptyLabels(), write.ErrNoLabels
	}
	if err != nil {
		return labels.EmptyLabels(), err
	}
	return p.t.app.scratch.Labels(), nil
}

// rejectSeries notes that all samples of series i are rejected because of err, or
// that the series is unknown; it returns what is no fault of the series.
func (p *pusher) rejectSeries(i int, err error) error {
	if errors.Is(err, write.ErrNoLabels) {
		p.unknown(i)
		return nil
	}
	var series *write.SeriesError
	if !errors.As(err, &series) {
		return err
	}
	// A series that can't be decoded is one fault even without samples. Its exemplars
	// are rejected for their own reason, later.
	ser := &p.b.Series[i]
	items := itemsOf(i, ser)
	if len(items) == 0 {
		items = []write.Item{{Kind: write.KindSeries, Index: uint32(i)}}
	}
	p.result.RejectItems(series, items...)
	return nil
}

// unknown notes that series i has to be sent again with its labels, and takes back
// what was said of it: all of it comes again.
func (p *pusher) unknown(i int) {
	if p.unknownSeries == nil {
		p.unknownSeries = map[int]bool{}
	}
	p.unknownSeries[i] = true
	p.result.Unknown = append(p.result.Unknown, uint32(i))
	ser := &p.b.Series[i]
	kept := p.result.Rejected[:0]
	for _, rej := range p.result.Rejected {
		rej.Items = slices.DeleteFunc(rej.Items, func(x write.Item) bool { return owns(i, ser, x) })
		if rej.Count = len(rej.Items); rej.Count > 0 {
			kept = append(kept, rej)
		}
	}
	p.result.Rejected = kept
}
