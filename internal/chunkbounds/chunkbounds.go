// Package chunkbounds makes chunks of bytes that somebody else may have written. The
// decoders of Prometheus take what the header of a chunk says for granted: they panic on
// one that is too short for its header, and the layout of a histogram chunk lets them ask
// for 2^32 buckets of memory for each of its spans, whatever the length of the chunk. So
// both are checked before there is an iterator.
package chunkbounds

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

const (
	// Lengths of the header of a chunk, in bytes.
	headerXOR = 2
	header    = 3

	// maxBuckets bounds the buckets of a sample. There are 2^20 in the finest resolution
	// that Prometheus has, 2^8 to a power of two, for all floats of either sign.
	maxBuckets = 1 << 21
)

var errShort = errors.New("a histogram chunk ends within its layout")

// New returns the chunk that data, which it keeps, is of an encoding. An error is the fault
// of the data.
func New(encoding chunkenc.Encoding, data []byte) (chunkenc.Chunk, error) {
	if err := Check(encoding, data); err != nil {
		return nil, err
	}
	return chunkenc.FromData(encoding, data)
}

// Check returns an error if it is not safe to decode data as a chunk of an encoding. What
// it accepts may still be damaged, which decoding it says.
func Check(encoding chunkenc.Encoding, data []byte) error {
	if len(data) < header && (encoding != chunkenc.EncXOR || len(data) < headerXOR) {
		return fmt.Errorf("a chunk has %d bytes, less than its header", len(data))
	}
	samples := int(binary.BigEndian.Uint16(data))
	perBucket := 1 // bits that the first sample needs at least
	switch encoding {
	case chunkenc.EncHistogram:
	case chunkenc.EncFloatHistogram:
		perBucket = 64
	case chunkenc.EncHistogramST, chunkenc.EncFloatHistogramST:
		// They have flags in the two highest bits.
		samples &= 1<<14 - 1
		if encoding == chunkenc.EncFloatHistogramST {
			perBucket = 64
		}
	default:
		return nil
	}
	if samples == 0 {
		return nil // nothing is decoded, the layout neither
	}
	r := &bitReader{data: data[header:]}
	buckets, err := layout(r)
	if err != nil {
		return err
	}
	if most := min(maxBuckets, r.left()/perBucket); buckets > uint64(most) {
		return fmt.Errorf("a histogram chunk of %d bytes states %d buckets, it has no more than %d", len(data), buckets, most)
	}
	return nil
}

// layout reads what is before the first sample of a histogram chunk, and returns how many
// buckets each sample has.
func layout(r *bitReader) (buckets uint64, err error) {
	threshold, err := r.bits(8)
	if err == nil && threshold == 255 { // It is none that fits in one byte.
		_, err = r.bits(64)
	}
	if err != nil {
		return 0, err
	}
	schema, err := r.varbit(true)
	if err != nil {
		return 0, err
	}
	for range 2 { // positive and negative spans
		n, err := spans(r)
		if err != nil {
			return 0, err
		}
		buckets += n
	}
	if histogram.IsCustomBucketsSchema(int32(schema)) {
		err = bounds(r)
	}
	return buckets, err
}

// spans returns how many buckets there are in spans.
func spans(r *bitReader) (buckets uint64, err error) {
	n, err := count(r)
	for i := uint64(0); i < n && err == nil; i++ {
		var length uint64
		if length, err = r.varbit(false); err == nil {
			buckets += uint64(uint32(length)) // no more than 2^21 of 2^32
			_, err = r.varbit(true)           // the offset
		}
	}
	return buckets, err
}

// bounds skips the bounds of custom buckets.
func bounds(r *bitReader) error {
	n, err := count(r)
	for i := uint64(0); i < n && err == nil; i++ {
		var bound uint64
		if bound, err = r.varbit(false); err == nil && bound == 0 { // a float follows
			_, err = r.bits(64)
		}
	}
	return err
}

// count reads how many spans or bounds follow; each takes memory of 8 bytes.
func count(r *bitReader) (uint64, error) {
	n, err := r.varbit(false)
	if err == nil && n > maxBuckets {
		err = fmt.Errorf("a histogram chunk states %d spans or bounds, there are at most %d", n, maxBuckets)
	}
	return n, err
}

// bitReader reads bits from the highest of the first byte on.
type bitReader struct {
	data []byte
	pos  int // in bits
}

// left returns how many bits there are after the last that was read.
func (r *bitReader) left() int { return 8*len(r.data) - r.pos }

// bits reads n bits, at most 64.
func (r *bitReader) bits(n int) (uint64, error) {
	if r.left() < n {
		return 0, errShort
	}
	var v uint64
	for n > 0 {
		free := 8 - r.pos%8 // bits of the byte at hand
		take := min(free, n)
		b := r.data[r.pos/8] << (8 - free) >> (8 - take)
		v = v<<take | uint64(b)
		r.pos += take
		n -= take
	}
	return v, nil
}

// varbit reads a number that is encoded as varbit: up to eight ones, the last before a
// zero unless they are eight, say how many bits follow.
func (r *bitReader) varbit(signed bool) (uint64, error) {
	ones := 0
	for ones < 8 {
		bit, err := r.bits(1)
		if err != nil {
			return 0, err
		}
		if bit == 0 {
			break
		}
		ones++
	}
	size := [...]int{0, 3, 6, 9, 12, 18, 25, 56, 64}[ones]
	v, err := r.bits(size)
	if signed && size > 0 && size < 64 && v > 1<<(size-1) {
		v -= 1 << size
	}
	return v, err
}
