package remoteblock

import (
	"encoding/binary"
	"sync"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/chunkbounds"
)

const (
	// A window is what is read of a segment at once, in bytes. It begins small, for a
	// query may want one series only, and doubles as long as chunks are asked for one
	// after the other. One window is held for each block that a query reads.
	minWindow = 4 << 10
	maxWindow = 64 << 10
	// maxChunk bounds a chunk, in bytes. It has at most 65,535 samples; those of
	// histograms may take hundreds of bytes.
	maxChunk = 64 << 20
)

// chunkReader implements tsdb.ChunkReader for one Select. The chunks that it returns
// share the memory of the window that they were read in; that goes with the last of them.
// It is safe for concurrent use.
type chunkReader struct {
	sel *Selection

	mu struct {
		sync.Mutex
		segment int
		start   int64 // of data, in the segment
		data    []byte
		size    int64 // of the next window
	}
}

var _ tsdb.ChunkReader = (*chunkReader)(nil)

func newChunkReader(sel *Selection) *chunkReader {
	c := &chunkReader{sel: sel}
	c.mu.size = minWindow
	return c
}

// ChunkOrIterable implements tsdb.ChunkReader.
func (c *chunkReader) ChunkOrIterable(meta chunks.Meta) (chunkenc.Chunk, chunkenc.Iterable, error) {
	segment, start := chunks.BlockChunkRef(meta.Ref).Unpack()
	r := c.sel.r
	if segment < 0 || segment >= len(r.header.segments) {
		return nil, nil, r.failed("chunks", damagef("segment %d is missing: there are %d", segment+1, len(r.header.segments)))
	}
	chunk, err := c.chunk(segment, int64(start))
	if err != nil {
		return nil, nil, r.failed(r.header.segments[segment].Name, at(int64(start), err))
	}
	return chunk, nil, nil
}

func (c *chunkReader) chunk(segment int, start int64) (chunkenc.Chunk, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.bytesLocked(segment, start)
	if err != nil {
		return nil, err
	}
	length, n := binary.Uvarint(p)
	body := p[n : n+1+int(length)]
	if binary.BigEndian.Uint32(p[len(p)-4:]) != castagnoli(body) {
		return nil, damagef("the checksum of a chunk does not match")
	}
	return newChunk(chunkenc.Encoding(body[0]), body[1:len(body):len(body)])
}

// newChunk returns a chunk that is safe to decode.
func newChunk(encoding chunkenc.Encoding, data []byte) (chunkenc.Chunk, error) {
	chunk, err := chunkbounds.New(encoding, data)
	if err != nil {
		return nil, damagef("%w", err)
	}
	return chunk, nil
}

// bytesLocked returns a chunk with its length before it and its checksum behind it.
func (c *chunkReader) bytesLocked(segment int, start int64) ([]byte, error) {
	if p := c.windowLocked(segment, start); p != nil {
		if need, err := chunkSize(p); err != nil {
			return nil, err
		} else if need > 0 && need <= int64(len(p)) {
			return p[:need], nil
		}
	}
	size := c.sel.r.header.segments[segment].Size
	if start >= size || start < chunks.SegmentHeaderSize {
		return nil, damagef("the segment has %d bytes", size)
	}
	f, err := c.sel.r.segment(segment)
	if err != nil {
		return nil, err
	}
	// One after the other: what follows will be wanted soon.
	end := c.mu.start + int64(len(c.mu.data))
	if segment == c.mu.segment && start >= c.mu.start && start <= end+minWindow {
		c.mu.size = min(2*c.mu.size, maxWindow)
	} else {
		c.mu.size = minWindow
	}
	resident, err := c.residentLocked(f, segment, start, size)
	if err != nil {
		return nil, err
	}
	want := min(c.mu.size, resident-start)
	for {
		p, err := c.readLocked(f, segment, start, want)
		if err != nil {
			return nil, err
		}
		need, err := chunkSize(p)
		switch {
		case err != nil:
			return nil, err
		case need > 0 && need <= want:
			return p[:need], nil
		case need == 0:
			need = want + binary.MaxVarintLen64
		}
		if want = min(need, size-start); want <= int64(len(p)) {
			return nil, damagef("a chunk of %d bytes begins in a segment of %d bytes", need, size)
		}
		if err := c.sel.r.load(c.sel.ctx, f, part(start, start+want)); err != nil {
			return nil, err
		}
	}
}

// residentLocked makes the start of a chunk resident, and returns up to where.
func (c *chunkReader) residentLocked(f file, segment int, start, size int64) (int64, error) {
	if c.sel.r.local {
		return size, nil
	}
	end, planned, err := c.sel.plan.await(c.sel.ctx, c.sel, segment, start)
	if err != nil || planned {
		return end, err
	}
	end = min(start+c.sel.plan.guess, size)
	return end, c.sel.r.load(c.sel.ctx, f, part(start, end))
}

func (c *chunkReader) windowLocked(segment int, start int64) []byte {
	if segment != c.mu.segment || start < c.mu.start || start >= c.mu.start+int64(len(c.mu.data)) {
		return nil
	}
	return c.mu.data[start-c.mu.start:]
}

func (c *chunkReader) readLocked(f file, segment int, start, size int64) ([]byte, error) {
	if err := c.sel.holdWindow(size); err != nil {
		return nil, err
	}
	p := make([]byte, size)
	if err := readFull(f, p, start); err != nil {
		return nil, err
	}
	c.mu.segment, c.mu.start, c.mu.data = segment, start, p
	return p, nil
}

// chunkSize returns how many bytes the chunk at the start of p takes in the segment; 0 if
// p is too short to tell.
func chunkSize(p []byte) (int64, error) {
	length, n := binary.Uvarint(p)
	switch {
	case n == 0 && len(p) < binary.MaxVarintLen64:
		return 0, nil
	case n <= 0 || length > maxChunk:
		return 0, damagef("a chunk has an impossible length")
	}
	return int64(n) + 1 + int64(length) + 4, nil
}

// Close implements tsdb.ChunkReader.
func (c *chunkReader) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.data = nil
	return nil
}
