package pagefile

import (
	"math/bits"
	"sync/atomic"
)

// bitmap is a set of pages. Bits are set and cleared atomically, and a bit that is seen
// set makes visible all that was written before it was set; so readers need no lock.
type bitmap []atomic.Uint64

func newBitmap(pages int64) bitmap { return make(bitmap, (pages+63)/64) }

// has reports whether all pages of s are in the set.
func (b bitmap) has(s span) bool {
	for s.first < s.end {
		word, mask, next := b.word(s)
		if b[word].Load()&mask != mask {
			return false
		}
		s.first = next
	}
	return true
}

func (b bitmap) add(s span) {
	for s.first < s.end {
		word, mask, next := b.word(s)
		b[word].Or(mask)
		s.first = next
	}
}

func (b bitmap) remove(s span) {
	for s.first < s.end {
		word, mask, next := b.word(s)
		b[word].And(^mask)
		s.first = next
	}
}

// absent appends the parts of s that are not in the set.
func (b bitmap) absent(to []span, s span) []span {
	for s.first < s.end {
		word, mask, next := b.word(s)
		missing := mask &^ b[word].Load()
		for missing != 0 {
			first := bits.TrailingZeros64(missing)
			n := bits.TrailingZeros64(^(missing >> first))
			missing &^= (1<<n - 1) << first
			to = appendSpan(to, span{first: word*64 + int64(first), end: word*64 + int64(first+n)})
		}
		s.first = next
	}
	return to
}

// word returns the index of the word that holds the first page of s, the bits of s in
// it, and the first page of the next word.
func (b bitmap) word(s span) (word int64, mask uint64, next int64) {
	word = s.first / 64
	next = min((word+1)*64, s.end)
	mask = ^uint64(0) << (s.first % 64)
	if past := (word+1)*64 - next; past > 0 {
		mask &= ^uint64(0) >> past
	}
	return word, mask, next
}
