// Package write holds the domain types of the write path: the Batch that a
// distributor hands to an ingester, the Identity of a series, and the Result
// that says what became of each sample. Every protocol is decoded into a Batch,
// and nothing behind the decoders knows protocols. The package neither receives
// nor stores anything.
package write

import (
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Batch is what one request wants stored for one tenant. Series refer to their
// samples by Span into the slices of the batch, so that a batch is a handful of
// allocations that can be used again.
//
// A Batch and all it refers to belong to the caller of Push and may be reused
// as soon as Push has returned; whoever keeps a string or a slice longer copies
// it. Histograms are the exception: storage keeps the *histogram.Histogram and
// *histogram.FloatHistogram, so every batch needs fresh ones.
type Batch struct {
	Series     []Series
	Samples    []Sample
	Histograms []Histogram
	Exemplars  []exemplar.Exemplar
	Metadata   []Metadata

	// Source yields the labels of the series as they were sent.
	Source LabelSource
}

// Series is one series of a Batch: who it is and which samples are its own.
type Series struct {
	// ID is the Identity of the labels as sent. If they were sent in canonical
	// order it is the identity of the series; else it is no series' identity, and
	// Batch.Resolve finds the true one.
	ID Identity
	// Err is set by a decoder that could not make sense of this series alone
	// (say, a symbol reference out of range). All its samples are rejected: for
	// the reason it gives if it is a *SeriesError, else as malformed.
	Err error

	Samples, Histograms, Exemplars Span
}

// Span is a part of one of a Batch's slices.
type Span struct{ Off, Len uint32 }

// End is the offset behind the span's last element.
func (s Span) End() uint32 { return s.Off + s.Len }

// Sample is a float sample. Times are in milliseconds since the epoch.
type Sample struct {
	T  int64
	ST int64 // start timestamp, 0 if unknown
	V  float64
}

// Histogram is a native histogram sample: exactly one of Int and Float is set.
type Histogram struct {
	T     int64
	ST    int64
	Int   *histogram.Histogram
	Float *histogram.FloatHistogram
}

// Metadata describes the metric family Metric.
type Metadata struct {
	Metric string
	metadata.Metadata
}

// maxMetadataBytes bounds each text of metadata that is kept.
const maxMetadataBytes = 1024

// Kept returns what is kept of m: its help up to 1 KiB. ok is false if nothing is, since
// there is no metric, or its name or unit is longer than that.
func (m Metadata) Kept() (kept Metadata, ok bool) {
	if m.Metric == "" || len(m.Metric) > maxMetadataBytes || len(m.Unit) > maxMetadataBytes {
		return Metadata{}, false
	}
	if len(m.Help) > maxMetadataBytes {
		m.Help = strings.ToValidUTF8(m.Help[:maxMetadataBytes], "")
	}
	return m, true
}

// ErrNoLabels is what a LabelSource returns for a series that was sent by its identity
// alone, because its labels should be known where it is pushed.
var ErrNoLabels = errors.New("the series was sent without labels")

// LabelSource yields labels as they were sent: in any order, perhaps invalid.
type LabelSource interface {
	// AppendLabels adds the labels of series i to b. Strings may alias the
	// request's memory. An error says that the series cannot be decoded.
	AppendLabels(i int, b *labels.ScratchBuilder) error
}

// PartialSource is a LabelSource that has the labels of some series only.
type PartialSource interface {
	LabelSource
	// Labelled reports whether it has those of series i. It costs next to nothing.
	Labelled(i int) bool
}

// Labels is a LabelSource over decoded label sets.
type Labels []labels.Labels

// AppendLabels implements LabelSource.
func (l Labels) AppendLabels(i int, b *labels.ScratchBuilder) error {
	l[i].Range(func(lb labels.Label) { b.Add(lb.Name, lb.Value) })
	return nil
}

// Resolve returns the valid, canonical labels of series i and their identity:
// sorted, without empty values, checked against limits. The labels do not alias
// the batch. The error is a *SeriesError, or ErrNoLabels.
func (b *Batch) Resolve(i int, limits tenant.Limits, scratch *labels.ScratchBuilder, h *Hasher) (labels.Labels, Identity, error) {
	if err := b.Series[i].Err; err != nil {
		var reason *SeriesError
		if !errors.As(err, &reason) {
			reason = &SeriesError{Reason: ReasonMalformedSeries, Detail: err.Error()}
		}
		return labels.EmptyLabels(), Identity{}, reason
	}
	scratch.Reset()
	if err := b.Source.AppendLabels(i, scratch); errors.Is(err, ErrNoLabels) {
		return labels.EmptyLabels(), Identity{}, err
	} else if err != nil {
		return labels.EmptyLabels(), Identity{}, &SeriesError{Reason: ReasonMalformedSeries, Detail: err.Error()}
	}
	scratch.Sort()
	ls := scratch.Labels()
	// An empty value means the same as no label at all (Prometheus data model).
	ls = ls.WithoutEmpty()
	if err := ValidateLabels(ls, limits); err != nil {
		return labels.EmptyLabels(), Identity{}, err
	}
	return ls, h.Labels(ls), nil
}

// Add appends a series with decoded labels to a batch whose Source is a Labels
// (or nil): the way in for everything that does not come off the wire.
func (b *Batch) Add(h *Hasher, ls labels.Labels, samples []Sample, histograms []Histogram, exemplars []exemplar.Exemplar) {
	src, _ := b.Source.(Labels)
	b.Source = append(src, ls)
	b.Series = append(b.Series, Series{
		ID:         h.Labels(ls),
		Samples:    Span{Off: uint32(len(b.Samples)), Len: uint32(len(samples))},
		Histograms: Span{Off: uint32(len(b.Histograms)), Len: uint32(len(histograms))},
		Exemplars:  Span{Off: uint32(len(b.Exemplars)), Len: uint32(len(exemplars))},
	})
	b.Samples = append(b.Samples, samples...)
	b.Histograms = append(b.Histograms, histograms...)
	b.Exemplars = append(b.Exemplars, exemplars...)
}

// Reset empties b and keeps its memory.
func (b *Batch) Reset() {
	clear(b.Series) // drops errors
	clear(b.Histograms)
	clear(b.Exemplars)
	clear(b.Metadata)
	*b = Batch{
		Series:     b.Series[:0],
		Samples:    b.Samples[:0],
		Histograms: b.Histograms[:0],
		Exemplars:  b.Exemplars[:0],
		Metadata:   b.Metadata[:0],
	}
}

// Counts returns how many float samples, histograms and exemplars b holds.
func (b *Batch) Counts() Counts {
	return Counts{Samples: len(b.Samples), Histograms: len(b.Histograms), Exemplars: len(b.Exemplars)}
}

// Counts counts float samples, histograms and exemplars.
type Counts struct{ Samples, Histograms, Exemplars int }

// String implements fmt.Stringer.
func (c Counts) String() string {
	return fmt.Sprintf("%d samples, %d histograms, %d exemplars", c.Samples, c.Histograms, c.Exemplars)
}
