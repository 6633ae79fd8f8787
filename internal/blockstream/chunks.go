package blockstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/chunkbounds"
)

const (
	// maxChunk bounds the bytes of a chunk; 65,535 samples of floats take less than 2 MiB.
	maxChunk = 64 << 20
	// aside is how much is read for a chunk that lies before the window, in bytes.
	aside = 64 << 10
)

// window is a part of a segment: the bytes data from offset on.
type window struct {
	segment int
	offset  int64
	data    []byte
	err     error
}

func (w window) end() int64 { return w.offset + int64(len(w.data)) }

// chunkReader implements tsdb.ChunkReader. Chunks refer to the bytes of their window,
// which is never written to again.
type chunkReader struct {
	segments []file
	size     int64
	current  window
	// next gives the window after the current one; nil: none was asked for.
	next chan window
	crc  *crc32.Table
}

// Chunks implements tsdb.BlockReader.
func (b *Block) Chunks() (tsdb.ChunkReader, error) {
	if len(b.segments) == 0 {
		return nil, errors.New("there are no chunks")
	}
	for _, segment := range b.segments {
		var header [chunks.SegmentHeaderSize]byte
		if segment.Size < int64(len(header)) {
			return nil, fmt.Errorf("%s has %d bytes", segment.Name, segment.Size)
		}
		if err := segment.read(header[:], 0); err != nil {
			return nil, fmt.Errorf("%s: %w", segment.Name, err)
		}
		if magic := binary.BigEndian.Uint32(header[:]); magic != chunks.MagicChunks {
			return nil, fmt.Errorf("%s: invalid magic number %x", segment.Name, magic)
		}
		if version := header[chunks.MagicChunksSize]; version != 1 {
			return nil, fmt.Errorf("%s: it has version %d, this build reads 1", segment.Name, version)
		}
	}
	r := &chunkReader{
		segments: b.segments, size: int64(max(b.cfg.Window, minWindow)),
		current: window{segment: -1},
		crc:     crc32.MakeTable(crc32.Castagnoli),
	}
	b.advance = append(b.advance, r)
	return r, nil
}

// ChunkOrIterable implements tsdb.ChunkReader.
func (r *chunkReader) ChunkOrIterable(meta chunks.Meta) (chunkenc.Chunk, chunkenc.Iterable, error) {
	segment, start := chunks.BlockChunkRef(meta.Ref).Unpack()
	if segment >= len(r.segments) {
		return nil, nil, fmt.Errorf("segment index %d out of range", segment)
	}
	chunk, err := r.chunk(segment, int64(start))
	if err != nil {
		return nil, nil, fmt.Errorf("chunk at %d of %s: %w", start, r.segments[segment].Name, err)
	}
	return chunk, nil, nil
}

func (r *chunkReader) chunk(segment int, start int64) (chunkenc.Chunk, error) {
	left := r.segments[segment].Size - start
	if left <= 0 {
		return nil, errors.New("the segment doesn't include enough bytes: it ends before")
	}
	head, err := r.bytes(segment, start, min(left, chunks.MaxChunkLengthFieldSize))
	if err != nil {
		return nil, err
	}
	length, n := binary.Uvarint(head)
	if n <= 0 {
		return nil, fmt.Errorf("reading its length failed with %d", n)
	}
	whole := int64(n) + chunks.ChunkEncodingSize + int64(min(length, maxChunk)) + crc32.Size
	if length > maxChunk || whole > left {
		return nil, fmt.Errorf("the segment doesn't include enough bytes for its length of %d: it has %d", length, left)
	}
	all, err := r.bytes(segment, start, whole)
	if err != nil {
		return nil, err
	}
	encoded, sum := all[n:whole-crc32.Size], all[whole-crc32.Size:]
	if got, want := crc32.Checksum(encoded, r.crc), binary.BigEndian.Uint32(sum); got != want {
		return nil, fmt.Errorf("checksum mismatch: %x, and %x is stored", got, want)
	}
	// The capacity keeps whoever appends to it from writing over the next one.
	data := encoded[1:len(encoded):len(encoded)]
	return chunkbounds.New(chunkenc.Encoding(encoded[0]), data)
}

// bytes returns n bytes, which are there, of a segment.
func (r *chunkReader) bytes(segment int, start, n int64) ([]byte, error) {
	w := r.current
	if w.segment == segment && start < w.offset {
		return r.before(segment, start, n)
	}
	if w.segment != segment || start+n > w.end() {
		if err := r.move(segment, start, n); err != nil {
			return nil, err
		}
		w = r.current
	}
	return w.data[start-w.offset : start-w.offset+n], nil
}

// before reads what lies before the window, which stays where it is.
func (r *chunkReader) before(segment int, start, n int64) ([]byte, error) {
	p := make([]byte, min(max(n, aside), r.segments[segment].Size-start))
	if err := r.segments[segment].read(p, start); err != nil {
		return nil, err
	}
	return p[:n], nil
}

// move moves the window so that it has n bytes from start on.
func (r *chunkReader) move(segment int, start, n int64) error {
	tail := []byte(nil) // of the present window
	if w := r.current; w.segment == segment && start < w.end() {
		tail = w.data[start-w.offset:]
	}
	need := start + int64(len(tail)) // the first byte that is missing
	next, err := r.await(segment, need)
	if err != nil {
		return err
	}
	if next.data == nil {
		next = r.load(segment, need)
		if next.err != nil {
			return next.err
		}
	}
	switch {
	case len(tail) > 0:
		next = window{segment: segment, offset: start, data: append(append(make([]byte, 0, len(tail)+len(next.data)), tail...), next.data...)}
	case next.offset < start: // It was skipped to.
		next = window{segment: segment, offset: start, data: next.data[start-next.offset:]}
	}
	for start+n > next.end() {
		more := r.load(segment, next.end())
		if more.err != nil {
			return more.err
		}
		next.data = append(next.data[:len(next.data):len(next.data)], more.data...)
	}
	r.current = next
	r.prefetch()
	return nil
}

// await returns the window that was asked for, if it has the byte at offset; without data
// if it has not.
func (r *chunkReader) await(segment int, offset int64) (window, error) {
	if r.next == nil {
		return window{}, nil
	}
	w := <-r.next
	r.next = nil
	if w.segment != segment || offset < w.offset || w.err == nil && offset >= w.end() {
		return window{}, nil
	}
	return w, w.err
}

// prefetch asks for the window that follows.
func (r *chunkReader) prefetch() {
	segment, offset := r.current.segment, r.current.end()
	if offset >= r.segments[segment].Size {
		segment, offset = segment+1, chunks.SegmentHeaderSize
	}
	if segment >= len(r.segments) || offset >= r.segments[segment].Size {
		return
	}
	r.next = make(chan window, 1)
	go func(to chan<- window) { to <- r.load(segment, offset) }(r.next)
}

// load reads a window.
func (r *chunkReader) load(segment int, offset int64) window {
	w := window{segment: segment, offset: offset}
	data := make([]byte, min(r.size, r.segments[segment].Size-offset))
	if w.err = r.segments[segment].read(data, offset); w.err == nil {
		w.data = data
	}
	return w
}

// Close implements tsdb.ChunkReader. It waits for what is being fetched.
func (r *chunkReader) Close() error {
	if r.next != nil {
		<-r.next
		r.next = nil
	}
	r.current = window{segment: -1}
	return nil
}
