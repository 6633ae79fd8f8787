package write

import (
	"errors"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Refusals remembers series of one tenant whose labels were refused, by their identity as
// sent, so that their labels need not be looked at for every sample. It is bounded; its
// zero value is ready for use. One goroutine.
type Refusals struct {
	limits [3]int
	// places has a power of two of them, each for the identities that end in its index.
	places []refusal
}

type refusal struct {
	id     Identity
	reason Reason
}

// The least and the most places of Refusals: 8 and 512 KiB.
const (
	minRefusals = 256
	maxRefusals = 16384
)

// Under says which limits apply from now on. Under others everything is looked at again.
func (r *Refusals) Under(l tenant.Limits) {
	if now := [...]int{l.MaxLabelsPerSeries, l.MaxLabelNameBytes, l.MaxLabelValueBytes}; now != r.limits {
		r.limits, r.places = now, nil
	}
}

// Find returns why the series was refused before, as far as soFar has an example of that
// reason already: otherwise its labels are wanted for one.
func (r *Refusals) Find(id Identity, soFar *Result) *SeriesError {
	if len(r.places) == 0 {
		return nil
	}
	known := &r.places[id.Lo&uint64(len(r.places)-1)]
	if known.id != id || id.IsZero() {
		return nil
	}
	return soFar.Example(known.reason)
}

// Note remembers err if it is about the labels of the series.
func (r *Refusals) Note(id Identity, err error) {
	var fault *SeriesError
	if id.IsZero() || !errors.As(err, &fault) || !fault.Reason.ofLabels() {
		return
	}
	if r.places == nil {
		r.places = make([]refusal, minRefusals)
	}
	for r.at(id).reason != "" && r.at(id).id != id && len(r.places) < maxRefusals {
		old := r.places
		r.places = make([]refusal, 2*len(old))
		for _, known := range old {
			if known.reason != "" {
				*r.at(known.id) = known
			}
		}
	}
	*r.at(id) = refusal{id: id, reason: fault.Reason}
}

func (r *Refusals) at(id Identity) *refusal { return &r.places[id.Lo&uint64(len(r.places)-1)] }
