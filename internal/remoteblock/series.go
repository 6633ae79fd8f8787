package remoteblock

import (
	"context"
	"encoding/binary"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// maxEntry bounds the entry of one series, in bytes: labels take little, and a year of
// chunks of two hours takes 50 KB.
const maxEntry = 64 << 20

// entryReader reads entries of series one by one.
type entryReader struct {
	f    file
	h    *header
	load func(context.Context, ...Range) (int64, error)
	buf  []byte
}

// read returns the content of the entry of a series; it is valid until the next read.
func (r *entryReader) read(ctx context.Context, ref uint64) ([]byte, error) {
	end := r.h.seriesEnd()
	if ref > uint64(end)/seriesAlign || int64(ref)*seriesAlign < int64(r.h.toc.Series) {
		return nil, damagef("there is no series %d", ref)
	}
	off := int64(ref) * seriesAlign
	want := min(r.h.entryGuess(), end-off)
	for {
		if int64(cap(r.buf)) < want {
			r.buf = make([]byte, want)
		}
		r.buf = r.buf[:want]
		if _, err := r.load(ctx, part(off, off+want)); err != nil {
			return nil, err
		}
		if err := readFull(r.f, r.buf, off); err != nil {
			return nil, at(off, err)
		}
		content, need, err := parseEntry(r.buf)
		if err != nil {
			return nil, at(off, err)
		}
		if content != nil {
			return content, nil
		}
		if need > end-off || need <= want {
			return nil, at(off, damagef("the entry of a series ends early"))
		}
		want = need
	}
}

// parseEntry returns the content of the entry at the start of p, checked. If p is too
// short, content is nil and need is how many bytes it takes.
func parseEntry(p []byte) (content []byte, need int64, err error) {
	length, n := binary.Uvarint(p)
	if n < 0 || length > maxEntry || n == 0 && len(p) >= binary.MaxVarintLen64 {
		return nil, 0, damagef("the entry of a series has an impossible length")
	}
	if n == 0 {
		return nil, int64(len(p)) + binary.MaxVarintLen64, nil
	}
	need = int64(n) + int64(length) + 4
	if need > int64(len(p)) {
		return nil, need, nil
	}
	content = p[n : n+int(length) : n+int(length)]
	if binary.BigEndian.Uint32(p[n+int(length):]) != castagnoli(content) {
		return nil, 0, damagef("the checksum of a series does not match")
	}
	return content, need, nil
}

// decodeLabels adds the labels of an entry to b, and returns what follows them.
func decodeLabels(content []byte, lookup func(uint32) (string, error), b *labels.ScratchBuilder) ([]byte, error) {
	c := cursor{b: content}
	for n := c.count(2); n > 0; n-- {
		nameRef, valueRef := c.uvarint(), c.uvarint()
		if c.bad || nameRef > maxUint32 || valueRef > maxUint32 {
			return nil, damagef("the labels of a series cannot be decoded")
		}
		name, err := lookup(uint32(nameRef))
		if err != nil {
			return nil, err
		}
		value, err := lookup(uint32(valueRef))
		if err != nil {
			return nil, err
		}
		b.Add(name, value)
	}
	if c.bad {
		return nil, damagef("the labels of a series cannot be decoded")
	}
	return c.b, nil
}

const maxUint32 = 1<<32 - 1

// labelRefs calls f for each symbol of an entry, and returns what follows the labels;
// nil if it cannot be decoded.
func labelRefs(content []byte, f func(name, value uint32)) []byte {
	c := cursor{b: content}
	for n := c.count(2); n > 0; n-- {
		name, value := c.uvarint(), c.uvarint()
		if c.bad {
			return nil
		}
		f(uint32(name), uint32(value))
	}
	if c.bad {
		return nil
	}
	return c.b
}

// decodeChunks decodes the chunks of an entry from its start.
func decodeChunks(content []byte, out *[]chunks.Meta) error {
	rest := labelRefs(content, func(uint32, uint32) {})
	if rest == nil {
		return damagef("the labels of a series cannot be decoded")
	}
	return appendChunks(rest, out)
}

// appendChunks decodes the chunks that follow the labels of an entry. They are in order
// of time.
func appendChunks(rest []byte, out *[]chunks.Meta) error {
	c := cursor{b: rest}
	n := c.count(3)
	var (
		ref  int64
		maxt int64
	)
	for i := range n {
		var mint int64
		if i == 0 {
			mint = c.varint()
		} else {
			mint = maxt + int64(c.uvarint())
		}
		length := int64(c.uvarint())
		if i == 0 {
			ref = int64(c.uvarint())
		} else {
			ref += c.varint()
		}
		if c.bad || length < 0 || mint+length < mint {
			break
		}
		maxt = mint + length
		*out = append(*out, chunks.Meta{Ref: chunks.ChunkRef(ref), MinTime: mint, MaxTime: maxt})
		if i == n-1 {
			return nil
		}
	}
	if n == 0 && !c.bad {
		return nil
	}
	return damagef("the chunks of a series cannot be decoded")
}
