package remotewrite

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// The wire types of protobuf.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

const maxFieldNumber = 1<<29 - 1

// cursor walks over the fields of one message, which is data[pos:end]. Positions
// count from the start of the request, so that errors can name them.
type cursor struct {
	data     []byte
	pos, end int

	at  int // where the current field starts
	num int // its number
}

// more reports whether another field follows.
func (c *cursor) more() bool { return c.pos < c.end }

// next reads the tag of the next field. Only call it after more.
func (c *cursor) next() (num int, wire byte, err error) {
	c.at, c.num = c.pos, 0
	tag := uint64(c.data[c.pos])
	if tag < 0x80 {
		c.pos++
	} else if tag, err = c.uvarint(); err != nil {
		return 0, 0, err
	}
	number := tag >> 3
	if number == 0 || number > maxFieldNumber {
		return 0, 0, errFieldNum
	}
	c.num = int(number)
	return c.num, byte(tag & 7), nil
}

// uvarint reads a varint. Bits beyond 64 are dropped, as protobuf prescribes.
func (c *cursor) uvarint() (uint64, error) {
	if c.pos < c.end && c.data[c.pos] < 0x80 {
		v := uint64(c.data[c.pos])
		c.pos++
		return v, nil
	}
	var v uint64
	for shift := uint(0); shift < 70; shift += 7 {
		if c.pos >= c.end {
			return 0, errTruncated
		}
		b := c.data[c.pos]
		c.pos++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, errVarint
}

// number reads the value of a varint field.
func (c *cursor) number(wire byte) (uint64, error) {
	if wire != wireVarint {
		return 0, errWireType
	}
	return c.uvarint()
}

// double reads the value of a double field, bit by bit.
func (c *cursor) double(wire byte) (float64, error) {
	if wire != wireFixed64 {
		return 0, errWireType
	}
	if c.end-c.pos < 8 {
		return 0, errTruncated
	}
	v := binary.LittleEndian.Uint64(c.data[c.pos:])
	c.pos += 8
	return math.Float64frombits(v), nil
}

// span steps over the value of a field of bytes and returns where it lies.
func (c *cursor) span(wire byte) (start, end int, err error) {
	if wire != wireBytes {
		return 0, 0, errWireType
	}
	n, err := c.uvarint()
	if err != nil {
		return 0, 0, err
	}
	if n > uint64(c.end-c.pos) {
		return 0, 0, errLength
	}
	start = c.pos
	c.pos += int(n)
	return start, c.pos, nil
}

// message steps over the value of a message field and returns a cursor over it.
func (c *cursor) message(wire byte) (cursor, error) {
	start, end, err := c.span(wire)
	return cursor{data: c.data, pos: start, end: end}, err
}

// text reads the value of a string field. The string aliases the request.
func (c *cursor) text(wire byte) (string, error) {
	start, end, err := c.span(wire)
	if err != nil {
		return "", err
	}
	return alias(c.data[start:end]), nil
}

// skip steps over the value of an unknown field.
func (c *cursor) skip(wire byte) error {
	size := 0
	switch wire {
	case wireVarint:
		_, err := c.uvarint()
		return err
	case wireBytes:
		_, _, err := c.span(wire)
		return err
	case wireFixed64:
		size = 8
	case wireFixed32:
		size = 4
	case 3, 4:
		return errGroup
	default:
		return errWireType
	}
	if c.end-c.pos < size {
		return errTruncated
	}
	c.pos += size
	return nil
}

// fault says that err was met in the current field of message.
func (c *cursor) fault(message string, err error) error {
	return &DecodeError{Message: message, Field: c.num, Offset: c.at, Err: err}
}

// alias returns b as a string without copying it.
func alias(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b))
}
