package frame

import (
	"encoding/binary"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// selectVersion is the version of select frames.
const selectVersion = 1

// SelectWriter writes a select frame, series by series. Its zero value is ready for
// use; it keeps its memory when it is Reset. One goroutine.
type SelectWriter struct {
	buf    []byte
	series int
	labels labelWriter
}

// Reset begins a new frame. The bytes of the last one are overwritten.
func (w *SelectWriter) Reset() {
	*w = SelectWriter{buf: w.buf[:0], labels: w.labels}
}

// Len returns the length of the frame in bytes, 0 if there is nothing in it.
func (w *SelectWriter) Len() int { return len(w.buf) }

// Series returns how many series are in the frame.
func (w *SelectWriter) Series() int { return w.series }

// Bytes returns the frame, nil if there is nothing in it. It is good until the next
// Add or Reset.
func (w *SelectWriter) Bytes() []byte {
	if len(w.buf) == 0 {
		return nil
	}
	return w.buf
}

// Add appends a series and its chunks, whose data is copied. Each meta MUST hold its
// chunk; if one does not, the frame stays as it was.
func (w *SelectWriter) Add(ls labels.Labels, chks []chunks.Meta) error {
	for i := range chks {
		if chks[i].Chunk == nil {
			return fmt.Errorf("chunk %d of series %s is not loaded", i, ls)
		}
	}
	buf := w.buf
	if len(buf) == 0 {
		buf = append(buf, selectVersion)
	}
	buf = w.labels.append(buf, ls)
	buf = binary.AppendUvarint(buf, uint64(len(chks)))
	var t int64
	for i := range chks {
		c := &chks[i]
		buf = append(buf, byte(c.Chunk.Encoding()))
		buf = appendVarint(buf, c.MinTime-t)
		buf = appendVarint(buf, c.MaxTime-c.MinTime)
		t = c.MaxTime
		data := c.Chunk.Bytes()
		buf = binary.AppendUvarint(buf, uint64(len(data)))
		buf = append(buf, data...)
	}
	w.buf = buf
	w.series++
	return nil
}

// Chunk is a chunk in a select frame.
type Chunk struct {
	// MinTime and MaxTime are in milliseconds since the epoch, both inclusive. The
	// MaxTime of a chunk that is still appended to may be math.MaxInt64.
	MinTime, MaxTime int64
	Encoding         chunkenc.Encoding
	// Data aliases the frame.
	Data []byte
}

// Meta returns the chunk as Prometheus knows it. It aliases the frame; its Ref is 0.
func (c Chunk) Meta() (chunks.Meta, error) {
	chk, err := chunkenc.FromData(c.Encoding, c.Data)
	if err != nil {
		return chunks.Meta{}, fmt.Errorf("chunk of a select frame: %w", err)
	}
	return chunks.Meta{Chunk: chk, MinTime: c.MinTime, MaxTime: c.MaxTime}, nil
}

// SelectReader reads a select frame, series by series. One goroutine.
type SelectReader struct {
	c       cursor
	encoded []byte // the labels of the series
	builder labels.ScratchBuilder
	chunks  []Chunk
	err     error
}

// NewSelectReader returns a reader of frame. A frame of no bytes has no series.
func NewSelectReader(frame []byte) *SelectReader {
	r := &SelectReader{}
	r.Reset(frame)
	return r
}

// Reset makes r a reader of another frame. The chunks of the last one are overwritten.
func (r *SelectReader) Reset(frame []byte) {
	clear(r.chunks)
	*r = SelectReader{chunks: r.chunks[:0], builder: r.builder}
	r.builder.Reset()
	if len(frame) == 0 {
		return
	}
	r.c.rest, r.err = open(frame, selectVersion)
}

// Next steps to the next series. It returns false at the end of the frame and at the
// first fault, which Err tells.
func (r *SelectReader) Next() bool {
	r.clear()
	if r.err != nil || len(r.c.rest) == 0 {
		return false
	}
	if r.err = r.next(); r.err != nil {
		r.clear()
		return false
	}
	return true
}

// clear forgets the series.
func (r *SelectReader) clear() {
	r.chunks, r.encoded = r.chunks[:0], nil
	r.builder.Reset()
}

func (r *SelectReader) next() error {
	const least = 1 + 1 + 1 + 1 + minChunkBytes // encoding, times, length, data
	c := &r.c
	r.encoded = c.bytes()
	var t int64
	for range c.count(least) {
		chunk := Chunk{Encoding: chunkenc.Encoding(c.byte())}
		chunk.MinTime = t + c.varint()
		chunk.MaxTime = chunk.MinTime + c.varint()
		chunk.Data = c.bytes()
		t = chunk.MaxTime
		if c.failed {
			return errCut
		}
		if len(chunk.Data) < headerBytes(chunk.Encoding) {
			return errChunk
		}
		r.chunks = append(r.chunks, chunk)
	}
	if c.failed {
		return errCut
	}
	return addLabels(r.encoded, &r.builder)
}

// minChunkBytes is the least that a chunk has: its number of samples.
const minChunkBytes = 2

// headerBytes returns how long the header of a chunk is, without which chunkenc
// panics. For encodings that this release does not know, it is what all have.
func headerBytes(e chunkenc.Encoding) int {
	if e == chunkenc.EncXOR || !chunkenc.IsValidEncoding(e) {
		return minChunkBytes
	}
	return minChunkBytes + 1
}

// Labels returns the labels of the series, sorted. They do not alias the frame.
func (r *SelectReader) Labels() labels.Labels { return r.builder.Labels() }

// LabelBytes returns the labels in the canonical form of write.Identity: equal for
// equal labels, so that replicas can be compared before labels are made. It aliases the
// frame.
func (r *SelectReader) LabelBytes() []byte { return r.encoded }

// Chunks returns the chunks of the series, in the order in which they were added. The
// slice is good until the next call of Next or Reset, the chunks' data as long as the
// frame.
func (r *SelectReader) Chunks() []Chunk { return r.chunks }

// Err returns what ended Next, or nil at the end of the frame. It wraps ErrMalformed.
func (r *SelectReader) Err() error { return r.err }
