package wire

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

// ResultToProto returns the answer to the request of the given id: result, or err if
// that is not nil. A rejection goes as the items that it names; if it counts more than
// that, nobody could tell what was stored, so the whole becomes a failure.
func ResultToProto(id uint64, result write.Result, err error) *ingestv1.PushResponse {
	if err != nil {
		return &ingestv1.PushResponse{Id: id, Failure: failureToProto(err)}
	}
	m := &ingestv1.PushResponse{
		Id:         id,
		Samples:    uint64(result.Written.Samples),
		Histograms: uint64(result.Written.Histograms),
		Exemplars:  uint64(result.Written.Exemplars),
		Unknown:    result.Unknown,
	}
	for _, rejection := range result.Rejected {
		if rejection.Count != len(rejection.Items) {
			return &ingestv1.PushResponse{Id: id, Failure: failureToProto(fmt.Errorf(
				"BUG: %d were rejected as %s, but %d are named", rejection.Count, rejection.Reason, len(rejection.Items)))}
		}
		m.Rejected = append(m.Rejected, rejectionToProto(rejection))
	}
	return m
}

func rejectionToProto(r write.Rejection) *ingestv1.Rejection {
	m := &ingestv1.Rejection{
		Reason: text(string(r.Reason)),
		Class:  classToProto(r.Class()),
		Detail: text(r.Example.Detail),
		Labels: text(r.Example.Labels),
	}
	for _, item := range r.Items {
		switch item.Kind {
		case write.KindSample:
			m.Samples = append(m.Samples, item.Index)
		case write.KindHistogram:
			m.Histograms = append(m.Histograms, item.Index)
		case write.KindExemplar:
			m.Exemplars = append(m.Exemplars, item.Index)
		case write.KindSeries:
			m.Series = append(m.Series, item.Index)
		}
	}
	return m
}

func classToProto(c write.Class) ingestv1.RejectionClass {
	switch c {
	case write.ClassInvalid:
		return ingestv1.RejectionClass_REJECTION_CLASS_INVALID
	case write.ClassLimited:
		return ingestv1.RejectionClass_REJECTION_CLASS_LIMITED
	case write.ClassUnavailable:
		return ingestv1.RejectionClass_REJECTION_CLASS_UNAVAILABLE
	default:
		return ingestv1.RejectionClass_REJECTION_CLASS_UNSPECIFIED
	}
}

// classFromProto takes a class that this release does not know for one that keeps the
// samples: they are sent again.
func classFromProto(c ingestv1.RejectionClass) write.Class {
	switch c {
	case ingestv1.RejectionClass_REJECTION_CLASS_INVALID:
		return write.ClassInvalid
	case ingestv1.RejectionClass_REJECTION_CLASS_LIMITED:
		return write.ClassLimited
	default:
		return write.ClassUnavailable
	}
}

// ResultFromProto returns what m says became of a request: a result, or the error with
// which it failed. Indexes are as the peer sent them: CheckItems before using them.
func ResultFromProto(m *ingestv1.PushResponse) (write.Result, error) {
	if f := m.GetFailure(); f != nil {
		return write.Result{}, failureFromProto(f)
	}
	result := write.Result{
		Written: write.Counts{
			Samples:    count(m.GetSamples()),
			Histograms: count(m.GetHistograms()),
			Exemplars:  count(m.GetExemplars()),
		},
		Unknown: m.GetUnknown(),
	}
	for _, rejected := range m.GetRejected() {
		example := &write.SeriesError{
			Reason: write.Reason(rejected.GetReason()),
			Detail: rejected.GetDetail(),
			Labels: rejected.GetLabels(),
		}
		if class := classFromProto(rejected.GetClass()); class != example.Reason.Class() {
			example.Class = class
		}
		result.RejectItems(example, itemsFromProto(rejected)...)
	}
	return result, nil
}

func itemsFromProto(m *ingestv1.Rejection) []write.Item {
	items := make([]write.Item, 0, len(m.GetSamples())+len(m.GetHistograms())+len(m.GetExemplars())+len(m.GetSeries()))
	add := func(kind write.Kind, indexes []uint32) {
		for _, i := range indexes {
			items = append(items, write.Item{Kind: kind, Index: i})
		}
	}
	add(write.KindSample, m.GetSamples())
	add(write.KindHistogram, m.GetHistograms())
	add(write.KindExemplar, m.GetExemplars())
	add(write.KindSeries, m.GetSeries())
	return items
}

// CheckItems checks that the elements that r names are among those that were sent: so
// many series, with the elements that sent counts.
func CheckItems(r write.Result, series int, sent write.Counts) error {
	for _, rejection := range r.Rejected {
		for _, item := range rejection.Items {
			most := series
			switch item.Kind {
			case write.KindSample:
				most = sent.Samples
			case write.KindHistogram:
				most = sent.Histograms
			case write.KindExemplar:
				most = sent.Exemplars
			case write.KindSeries:
			}
			if uint64(item.Index) >= uint64(most) {
				return fmt.Errorf("the answer rejects element %d of %d that were sent", item.Index, most)
			}
		}
	}
	for _, i := range r.Unknown {
		if uint64(i) >= uint64(series) {
			return fmt.Errorf("the answer does not know series %d of %d that were sent", i, series)
		}
	}
	return nil
}

// count turns a count from a peer into one that fits.
func count(n uint64) int { return int(min(n, math.MaxInt32)) }

func failureToProto(err error) *ingestv1.Failure {
	f := &ingestv1.Failure{Message: text(err.Error())}
	switch classOf(err) {
	case invalid, limited, noTenant, invalidTenant:
		f.Permanent = true
	case unavailable, canceled, timedOut:
		f.Unavailable = true
	case internal:
	}
	if delay, ok := RetryAfter(err); ok {
		ms := delay / time.Millisecond
		if delay%time.Millisecond > 0 {
			ms++ // never too early
		}
		f.RetryAfterMs = uint32(min(ms, math.MaxUint32))
	}
	return f
}

func failureFromProto(f *ingestv1.Failure) error {
	cause := errors.New(f.GetMessage())
	switch {
	case f.GetPermanent():
		return Invalid(cause)
	case f.GetUnavailable():
		return Unavailable(cause, time.Duration(f.GetRetryAfterMs())*time.Millisecond)
	default:
		return cause
	}
}
