package rechunk

import (
	"math"
	"math/bits"

	"github.com/prometheus/prometheus/model/value"
)

const (
	// newWindow is how many bits a new window takes more than the one before: five for its
	// leading zeros, six for its size, and one that its prefix is longer.
	newWindow = 5 + 6 + 1
	// ahead is how many changes are looked at to choose a window. Beyond a dozen
	// nothing is gained.
	ahead = 12
	// maxLeading is the largest number of leading zeros that a window can state.
	maxLeading = 31
)

// window is the bits of a value that a change is written with: all but the leading and
// the trailing ones.
type window struct{ leading, trailing uint8 }

// windowOf returns the smallest window of the bits in which two values differ, of which
// there is at least one.
func windowOf(diff uint64) window {
	return window{uint8(min(bits.LeadingZeros64(diff), maxLeading)), uint8(bits.TrailingZeros64(diff))}
}

// size returns the number of bits in w.
func (w window) size() int { return 64 - int(w.leading) - int(w.trailing) }

// holds tells whether all bits of other are in w.
func (w window) holds(other window) bool {
	return other.leading >= w.leading && other.trailing >= w.trailing
}

// and returns the smallest window that holds both.
func (w window) and(other window) window {
	return window{min(w.leading, other.leading), min(w.trailing, other.trailing)}
}

// chooseWindows appends to chosen the window that each change of the values is to be
// written with. The format lets a change use the window of the one before, if that holds
// it, or state another one. Prometheus states another one if it must, so that one wide
// change makes all that follow wide. Here a narrower one is stated when that pays within
// the next changes, and one that is wider than it must be when it then serves
// for those. For values that change at random this is within a hundredth of the
// best choice, which takes ten times as long to find, and a tenth smaller than
// without looking ahead.
func chooseWindows(chosen, tight []window, v []float64) (_, scratch []window) {
	tight = tight[:0]
	var base uint64
	if !value.IsStaleNaN(v[0]) {
		base = math.Float64bits(v[0])
	}
	for _, next := range v[1:] {
		if b := math.Float64bits(next); b != base && !value.IsStaleNaN(next) {
			tight = append(tight, windowOf(b^base))
			base = b
		}
	}
	var present window
	for i := range tight {
		present = choose(present, i > 0, tight[i:])
		chosen = append(chosen, present)
	}
	return chosen, tight
}

// choose returns the window for the first of the changes: the one with the fewest bits for
// each change that it serves for, its own description included.
func choose(present window, hasPresent bool, changes []window) window {
	const scale = 27720 // divisible by all counts up to ahead, so that costs are whole numbers
	best, least := present, math.MaxInt
	if hasPresent && present.holds(changes[0]) {
		least = (1 + present.size()) * scale
	}
	candidate := changes[0]
	for i := 1; (1+candidate.size())*scale < least; i++ {
		for i < min(len(changes), ahead) && candidate.holds(changes[i]) {
			i++
		}
		serves := i
		if i == ahead {
			serves = 2 * ahead // and probably more
		}
		if cost := (1+candidate.size())*scale + newWindow*scale/serves; cost < least {
			best, least = candidate, cost
		}
		if i >= min(len(changes), ahead) {
			break
		}
		candidate = candidate.and(changes[i])
	}
	return best
}
