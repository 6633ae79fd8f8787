package remoteblock

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// castagnoli returns the checksum that all parts of a block carry.
func castagnoli(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

func updateCRC(crc uint32, p []byte) uint32 {
	return crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), p)
}

// cursor decodes bytes that may hold anything. After the first fault all its methods
// return zero values, and bad is true. It allocates nothing.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	if len(c.b) > 0 && c.b[0] < 0x80 { // most are short
		v := c.b[0]
		c.b = c.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

// bytes returns the next n bytes; they belong to what is decoded.
func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}

// text returns a string with its length before it, as bytes that belong to what is
// decoded.
func (c *cursor) text() []byte { return c.bytes(c.uvarint()) }

func (c *cursor) be32() uint32 {
	p := c.bytes(4)
	if p == nil {
		return 0
	}
	return binary.BigEndian.Uint32(p)
}

// int63 returns a number that is a size or an offset.
func (c *cursor) int63() int64 {
	v := c.uvarint()
	if v > math.MaxInt64 {
		c.fail()
		return 0
	}
	return int64(v)
}

// count returns a number of things that take least bytes each or more, so that it is
// safe to make room for them.
func (c *cursor) count(least uint64) int {
	n := c.uvarint()
	if n > uint64(len(c.b))/least {
		c.fail()
		return 0
	}
	return int(n)
}

func (c *cursor) fail() { c.b, c.bad = nil, true }
