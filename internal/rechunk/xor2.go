package rechunk

import (
	"encoding/binary"
	"math"

	"github.com/prometheus/prometheus/model/value"
)

const (
	// headerSize is the size of what comes before the samples of an XOR2 chunk: their
	// number in two bytes, and a byte that says where start timestamps are.
	headerSize = 3
	// firstSTKnown is the bit of that byte that says that the first sample has one.
	firstSTKnown = 0x80
	// lastSTChange is the last sample, counted from 0, that start timestamps can begin to
	// change at; the rest of that byte names it.
	lastSTChange = 0x7f
)

// encoder encodes samples as the bytes of an XOR2 chunk. Its zero value is ready.
type encoder struct {
	out  []byte
	free uint // bits that are free in the last byte of out

	windows   []window // of the changes of the value that are still to be written
	present   window   // the one that the last change was written with
	hasWindow bool

	chosen, scratch []window // kept between chunks
}

// encode returns the chunk of samples, of which there must be between 1 and 65535, in
// order of time. The result is the caller's.
func (e *encoder) encode(st, t []int64, v []float64) []byte {
	*e = encoder{out: append(e.out[:0], 0, 0, 0), chosen: e.chosen, scratch: e.scratch}
	e.chosen, e.scratch = chooseWindows(e.chosen[:0], e.scratch, v)
	e.windows = e.chosen
	binary.BigEndian.PutUint16(e.out, uint16(len(t)))

	// change is the first sample whose start timestamp differs from the one before; from
	// there on each sample has its own.
	change := len(st)
	for i := 1; i < len(st); i++ {
		if st[i] != st[i-1] {
			change = min(i, lastSTChange)
			e.out[headerSize-1] |= byte(change)
			break
		}
	}
	e.out = binary.AppendVarint(e.out, t[0])
	e.bits(math.Float64bits(v[0]), 64)
	if st[0] != 0 {
		e.out[headerSize-1] |= firstSTKnown
		e.bytes(binary.AppendVarint(nil, t[0]-st[0]))
	}
	var (
		delta, stDiff int64
		base          uint64 // the last value that is no stale marker
	)
	if !value.IsStaleNaN(v[0]) {
		base = math.Float64bits(v[0])
	}
	for i := 1; i < len(t); i++ {
		next := t[i] - t[i-1]
		if i == 1 {
			e.bytes(binary.AppendUvarint(nil, uint64(next)))
			e.valueAfterTime(v[i], base)
		} else {
			e.sample(next-delta, v[i], base)
		}
		delta = next
		if !value.IsStaleNaN(v[i]) {
			base = math.Float64bits(v[i])
		}
		if i >= change {
			diff := t[i-1] - st[i]
			e.varbit(diff - stDiff)
			stDiff = diff
		}
	}
	return append(make([]byte, 0, len(e.out)), e.out...)
}

// sample encodes a sample but for its start timestamp. dod is the change of the time
// between samples, base the last value that is no stale marker.
func (e *encoder) sample(dod int64, v float64, base uint64) {
	switch {
	case dod != 0:
		e.time(dod)
		e.valueAfterTime(v, base)
	case value.IsStaleNaN(v):
		e.bits(0b11111, 5)
	case math.Float64bits(v) == base:
		e.bits(0, 1)
	default:
		e.bits(0b10, 2)
		e.change(math.Float64bits(v)^base, 0b0, 0b1, 1)
	}
}

// time encodes a change of the time between samples that is not 0.
func (e *encoder) time(dod int64) {
	switch {
	case dod >= -1<<12 && dod < 1<<12:
		e.bits(0b110<<13|uint64(dod)&(1<<13-1), 3+13)
	case dod >= -1<<19 && dod < 1<<19:
		e.bits(0b1110<<20|uint64(dod)&(1<<20-1), 4+20)
	default:
		e.bits(0b11110, 5)
		e.bits(uint64(dod), 64)
	}
}

// valueAfterTime encodes a value behind a time that was spelt out.
func (e *encoder) valueAfterTime(v float64, base uint64) {
	switch {
	case value.IsStaleNaN(v):
		e.bits(0b111, 3)
	case math.Float64bits(v) == base:
		e.bits(0, 1)
	default:
		// The prefixes are 10 and 110; their first bits are the same.
		e.bits(1, 1)
		e.change(math.Float64bits(v)^base, 0b0, 0b10, 2)
	}
}

// change encodes the bits in which a value differs from the one before, of which there
// is at least one, in the next of the windows: after the bit reuse if it is the present
// one, or else after the renewBits bits of renew and what it is.
func (e *encoder) change(diff, reuse, renew uint64, renewBits uint) {
	next := e.windows[0]
	e.windows = e.windows[1:]
	if e.hasWindow && next == e.present {
		e.bits(reuse, 1)
	} else {
		e.present, e.hasWindow = next, true
		e.bits(renew, renewBits)
		// 64 bits are stated as 0: the field has six.
		e.bits(uint64(next.leading)<<6|uint64(next.size())&0x3f, 5+6)
	}
	e.bits(diff>>next.trailing, uint(next.size()))
}

// varbit encodes a number in the fewest of a few sizes.
func (e *encoder) varbit(n int64) {
	if n == 0 {
		e.bits(0, 1)
		return
	}
	for i, size := range [...]uint{3, 6, 9, 12, 18, 25, 56} {
		// One more above zero than below it.
		if half := int64(1) << (size - 1); n > -half && n <= half {
			prefix := uint(i + 2)
			e.bits(1<<prefix-2, prefix)
			e.bits(uint64(n)&(1<<size-1), size)
			return
		}
	}
	e.bits(0xff, 8)
	e.bits(uint64(n), 64)
}

// bytes appends whole bytes.
func (e *encoder) bytes(p []byte) {
	for _, b := range p {
		e.bits(uint64(b), 8)
	}
}

// bits appends the n lowest bits of u, of which n is at most 64, the highest first.
func (e *encoder) bits(u uint64, n uint) {
	u <<= 64 - n
	if e.free > 0 {
		e.out[len(e.out)-1] |= byte(u >> (64 - e.free))
		if n <= e.free {
			e.free -= n
			return
		}
		u <<= e.free
		n -= e.free
		e.free = 0
	}
	for ; n > 8; n -= 8 {
		e.out = append(e.out, byte(u>>56))
		u <<= 8
	}
	e.out = append(e.out, byte(u>>56))
	e.free = 8 - n
}
