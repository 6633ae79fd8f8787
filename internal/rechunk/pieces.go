package rechunk

import "iter"

// pieces cuts samples with the start timestamps st into chunks and yields the bounds of
// each. No chunk has more than MaxSamples, and of more than that none has less than half
// as many, unless start timestamps ask for it: in a chunk each sample after a change
// takes some bits for its own, so a long run without a change begins a chunk.
func pieces(st []int64) iter.Seq2[int, int] {
	return func(yield func(from, to int) bool) {
		for from := 0; from < len(st); {
			to := from + stretch(st[from:])
			if !even(from, to, yield) {
				return
			}
			from = to
		}
	}
}

// stretch returns how many samples at the beginning of st go together: a run with one
// start timestamp if it is a long one, else all before the next long one.
func stretch(st []int64) int {
	for from := 0; from < len(st); {
		to := from + 1
		for to < len(st) && st[to] == st[from] {
			to++
		}
		if to-from >= minSTRun {
			if from == 0 {
				return to
			}
			return from
		}
		from = to
	}
	return len(st)
}

// even yields pieces of at most MaxSamples and of sizes as equal as possible.
func even(from, to int, yield func(from, to int) bool) bool {
	n := (to - from + MaxSamples - 1) / MaxSamples
	for ; n > 0; n-- {
		next := from + (to-from+n-1)/n
		if !yield(from, next) {
			return false
		}
		from = next
	}
	return true
}
