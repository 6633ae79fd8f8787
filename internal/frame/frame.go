// Package frame encodes what ingesters are sent most: series with their samples, on
// their way from a distributor (push frames), and series with their chunks, on their
// way to a querier (select frames). A frame is opaque to gRPC, which carries it in a
// field of bytes, so that a sample costs neither a message nor an allocation. The
// package neither sends nor stores anything. docs/formats.md describes frames byte by
// byte.
//
// The first byte of a frame is its version. A reader refuses versions that it does
// not know, so a writer goes on writing the version before for one release.
//
// Decoders trust nothing: they take memory in proportion to the frame at most, and
// whatever a frame holds, they return an error rather than panic.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// ErrMalformed says that bytes are no frame, or one of an unknown version.
var ErrMalformed = errors.New("undecodable frame")

// Faults of a frame.
var (
	errTooLong    = fmt.Errorf("%w: it exceeds 2 GiB", ErrMalformed)
	errEmpty      = fmt.Errorf("%w: it has no bytes", ErrMalformed)
	errCut        = fmt.Errorf("%w: it is cut short, or holds a number or length that is out of range", ErrMalformed)
	errEntry      = fmt.Errorf("%w: an entry is of an unknown kind", ErrMalformed)
	errHistogram  = fmt.Errorf("%w: a histogram has unknown flags", ErrMalformed)
	errExemplar   = fmt.Errorf("%w: an exemplar has unknown flags", ErrMalformed)
	errLabelForm  = fmt.Errorf("%w: labels are not in their canonical form", ErrMalformed)
	errLabelOrder = fmt.Errorf("%w: labels are not sorted, or a name stands twice", ErrMalformed)
	errChunk      = fmt.Errorf("%w: a chunk is shorter than its header", ErrMalformed)
)

func errVersion(v byte) error { return fmt.Errorf("%w: version %d is unknown", ErrMalformed, v) }

// maxBytes bounds the frames that are decoded at once, so that what they hold can be
// counted with 32 bits.
const maxBytes = math.MaxInt32

// open returns what follows the version of a frame.
func open(frame []byte, version byte) ([]byte, error) {
	if len(frame) == 0 {
		return nil, errEmpty
	}
	if frame[0] != version {
		return nil, errVersion(frame[0])
	}
	return frame[1:], nil
}

// cursor reads fields until one is malformed; from then on all are zero.
type cursor struct {
	rest   []byte
	failed bool
}

func (c *cursor) fail() {
	c.rest, c.failed = nil, true
}

func (c *cursor) byte() byte {
	if len(c.rest) == 0 {
		c.fail()
		return 0
	}
	b := c.rest[0]
	c.rest = c.rest[1:]
	return b
}

func (c *cursor) uvarint() uint64 {
	if len(c.rest) > 0 && c.rest[0] < 0x80 {
		v := uint64(c.rest[0])
		c.rest = c.rest[1:]
		return v
	}
	v, n := binary.Uvarint(c.rest)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

// varint reads a number that appendVarint wrote.
func (c *cursor) varint() int64 { return unzigzag(c.uvarint()) }

// fixed64 reads eight bytes, little-endian.
func (c *cursor) fixed64() uint64 {
	if len(c.rest) < 8 {
		c.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(c.rest)
	c.rest = c.rest[8:]
	return v
}

// double reads a float, bit by bit.
func (c *cursor) double() float64 { return math.Float64frombits(c.fixed64()) }

// count reads a number of elements that take size bytes each or more. More than fit
// into the rest are refused before anybody takes memory for them.
func (c *cursor) count(size int) int {
	n := c.uvarint()
	if n > uint64(len(c.rest)/size) {
		c.fail()
		return 0
	}
	return int(n)
}

// bytes reads a length and as many bytes, which alias the frame.
func (c *cursor) bytes() []byte {
	n := c.count(1)
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b
}

// text is bytes for a string, which aliases the frame.
func (c *cursor) text() string { return alias(c.bytes()) }

// alias returns b as a string without copying it.
func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// zigzag maps numbers near 0 to small ones without a sign.
func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

func appendVarint(dst []byte, v int64) []byte { return binary.AppendUvarint(dst, zigzag(v)) }

func appendDouble(dst []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

func appendText(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}
