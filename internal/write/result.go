package write

import (
	"fmt"
	"slices"
	"strings"
)

// Reason is the stable identifier of why samples were not stored. It stands in
// messages, in metric labels and in docs/operating.md.
type Reason string

// The reasons, by what the sender should do about them.
const (
	// The data is at fault; sending it again cannot help.
	ReasonMalformedSeries    Reason = "malformed_series"
	ReasonMissingName        Reason = "missing_metric_name"
	ReasonInvalidLabel       Reason = "invalid_label"
	ReasonDuplicateLabel     Reason = "duplicate_label_name"
	ReasonTooManyLabels      Reason = "too_many_labels"
	ReasonLabelTooLong       Reason = "label_too_long"
	ReasonNoSamples          Reason = "series_without_samples"
	ReasonInvalidHistogram   Reason = "invalid_histogram"
	ReasonTooOld             Reason = "sample_too_old"
	ReasonOutOfOrder         Reason = "sample_out_of_order"
	ReasonFuture             Reason = "sample_in_the_future"
	ReasonDuplicateTimestamp Reason = "duplicate_timestamp"
	ReasonInvalidExemplar    Reason = "invalid_exemplar"

	// A limit of the tenant is reached; the samples are dropped because of it.
	ReasonTenantSeriesLimit Reason = "tenant_series_limit"
	// The process is nearly full and this tenant grows fastest.
	ReasonTenantGrowthLimit Reason = "tenant_growth_limit"

	// The process protects itself; the same request will succeed later.
	ReasonInstanceSeriesLimit Reason = "instance_series_limit"
	ReasonInstanceHeapLimit   Reason = "instance_heap_limit"
	ReasonInstanceTenantLimit Reason = "instance_tenant_limit"
	// What a late sample has to be compared with can't be read at present.
	ReasonLocalBlockUnavailable Reason = "local_block_unavailable"
	// A crash would lose late samples of the series at present.
	ReasonLateSamplesUnavailable Reason = "late_samples_unavailable"
)

// Class says what a sender should do about a rejection.
type Class int

// The classes, in rising order of precedence for the answer to a request.
const (
	ClassInvalid     Class = iota + 1 // 400: do not send again
	ClassLimited                      // 429: dropped, the tenant is over a limit
	ClassUnavailable                  // 503: send again later
)

// Class returns the class of r.
func (r Reason) Class() Class {
	switch r {
	case ReasonTenantSeriesLimit, ReasonTenantGrowthLimit:
		return ClassLimited
	case ReasonInstanceSeriesLimit, ReasonInstanceHeapLimit, ReasonInstanceTenantLimit, ReasonLocalBlockUnavailable,
		ReasonLateSamplesUnavailable:
		return ClassUnavailable
	default:
		return ClassInvalid
	}
}

// LabelReasons are the reasons for which a series is refused because of its labels and the
// tenant's limits on these alone: again each time.
func LabelReasons() []Reason {
	return []Reason{ReasonMissingName, ReasonInvalidLabel, ReasonDuplicateLabel, ReasonTooManyLabels, ReasonLabelTooLong}
}

// ofLabels reports whether r is one of LabelReasons.
func (r Reason) ofLabels() bool { return slices.Contains(LabelReasons(), r) }

// SeriesError says why a series or one of its samples was rejected.
type SeriesError struct {
	Reason Reason
	// Class is that of a reason which only another release knows; 0: Reason.Class.
	Class  Class
	Detail string // a sentence without the reason
	Labels string // the series, clipped; empty if unknown
}

// Error implements error.
func (e *SeriesError) Error() string {
	if e.Labels == "" {
		return fmt.Sprintf("%s: %s", e.Reason, e.Detail)
	}
	return fmt.Sprintf("%s: %s (series %s)", e.Reason, e.Detail, e.Labels)
}

func (e *SeriesError) class() Class {
	if e.Class != 0 {
		return e.Class
	}
	return e.Reason.Class()
}

// Kind is what an Item is one of.
type Kind uint8

// The kinds of items, one for each of a Batch's slices.
const (
	KindSample Kind = iota
	KindHistogram
	KindExemplar
	// KindSeries is for a series that is at fault itself and has no samples.
	KindSeries
)

// Item is one element of a Batch.
type Item struct {
	Kind  Kind
	Index uint32 // into the Batch's slice of that kind
}

// Rejection is one reason for which samples of a batch were rejected.
type Rejection struct {
	Reason  Reason
	Count   int          // samples, histograms and exemplars
	Example *SeriesError // the first one
	// Items are the rejected elements, as far as they were in the batch: what was
	// refused before it got into one has none.
	Items []Item
}

// Class says what a sender should do about r.
func (r Rejection) Class() Class { return r.Example.class() }

// Result says what became of a Batch: what was written, and what was rejected
// and why. A sample that was stored before with the same value counts as written.
type Result struct {
	Written  Counts
	Rejected []Rejection
	// Unknown are the series (indexes into Batch.Series) that came without labels
	// (ErrNoLabels) and are not known where they were pushed: nothing of them was
	// written, and nothing rejected.
	Unknown []uint32
}

// Reject adds count samples that were rejected because of e before they got into a batch.
func (r *Result) Reject(e *SeriesError, count int) { r.rejection(e).Count += count }

// RejectItems adds elements of the batch that were rejected because of e.
func (r *Result) RejectItems(e *SeriesError, items ...Item) {
	rej := r.rejection(e)
	rej.Count += len(items)
	rej.Items = append(rej.Items, items...)
}

// Example returns the example of a reason, nil if there is none yet.
func (r *Result) Example(reason Reason) *SeriesError {
	for i := range r.Rejected {
		if r.Rejected[i].Reason == reason {
			return r.Rejected[i].Example
		}
	}
	return nil
}

// rejection returns the rejection for the reason and class of e. The pointer is good until the
// next call.
func (r *Result) rejection(e *SeriesError) *Rejection {
	for i := range r.Rejected {
		if rej := &r.Rejected[i]; rej.Reason == e.Reason && rej.Class() == e.class() {
			return rej
		}
	}
	r.Rejected = append(r.Rejected, Rejection{Reason: e.Reason, Example: e})
	return &r.Rejected[len(r.Rejected)-1]
}

// Merge adds what other says of other samples to r. Its items and unknown series are
// of another batch and are left out.
func (r *Result) Merge(other Result) {
	r.Written.Samples += other.Written.Samples
	r.Written.Histograms += other.Written.Histograms
	r.Written.Exemplars += other.Written.Exemplars
	for _, rej := range other.Rejected {
		r.Reject(rej.Example, rej.Count)
	}
}

// Class returns the gravest class among the rejections, 0 and false if there are none.
func (r *Result) Class() (c Class, ok bool) {
	for _, rej := range r.Rejected {
		c = max(c, rej.Class())
	}
	return c, len(r.Rejected) > 0
}

// Err describes the rejections in one short sentence each, or returns nil.
func (r *Result) Err() error {
	if len(r.Rejected) == 0 {
		return nil
	}
	return &RejectedError{Rejected: r.Rejected}
}

// RejectedError says that some samples of a request were rejected; the others
// were written.
type RejectedError struct{ Rejected []Rejection }

// Error implements error. The text goes to the sender, who logs it verbatim.
func (e *RejectedError) Error() string {
	var b strings.Builder
	for i, rej := range e.Rejected {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%d rejected, for example %s", rej.Count, rej.Example)
	}
	return b.String()
}
