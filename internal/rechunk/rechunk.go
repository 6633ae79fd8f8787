// Package rechunk joins the chunks of a series of floats into fewer, larger ones.
//
// A chunk carries about 30 bytes that do not depend on its samples: its length,
// checksum and first sample, and its times and place in the index. The TSDB cuts
// chunks of 120 samples, so that this is a quarter of a byte per sample, which for
// series that seldom change is most of what they take. In blocks that nothing is
// appended to any more, chunks can be larger.
//
// The result is encoded as XOR2 in the format of Prometheus, and any Prometheus that
// reads XOR2 reads it. The encoder is one of its own for two reasons. Prometheus's cannot
// know whether the start timestamp will change, so from the 128th sample on it writes one
// with each sample, about three bytes, even if there is none. And it takes a window of
// bits for a wide change of the value and keeps it for all narrow ones that follow; this
// one looks ahead and chooses the window that serves best for the next changes.
//
// Samples stay what they are, to the bit: times, values with all kinds of NaN, start
// timestamps. Chunks of histograms are left alone: the TSDB cuts them at 1 KiB, so that
// joining them spares a tenth or less of most, and where they may be joined is for their
// counter resets to say.
package rechunk

import (
	"fmt"
	"math"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// MaxSamples bounds the samples of a chunk that Join makes. At 480 what a chunk costs
	// by itself is below a fourteenth of a byte per sample, and a reader who wants one
	// sample of it decodes 240 on average, in a few microseconds; doubling it again
	// would spare a thirtieth of a byte.
	MaxSamples = 480
	// settledSamples is how many samples a chunk must have to be left as it is. Join
	// never makes a smaller one out of more than MaxSamples.
	settledSamples = MaxSamples / 2

	// minSTRun is how many samples with the same start timestamp are worth a chunk of their own.
	minSTRun = 64
)

// Joiner joins chunks. It keeps buffers between calls; one goroutine may use it. Its zero
// value is ready.
type Joiner struct {
	st, t  []int64
	v      []float64
	it     chunkenc.Iterator
	out    []chunks.Meta
	encode encoder
}

// Join returns the chunks of one series with those of floats joined, where that makes
// fewer of them. in must be in order of time and not overlap; each of them must have its
// chunk. The result is valid until the next call, its new chunks are for the caller to
// keep. Joining what was joined before changes nothing, and decodes nothing but small
// chunks beside each other.
func (j *Joiner) Join(in []chunks.Meta) ([]chunks.Meta, error) {
	j.out = j.out[:0]
	for i := 0; i < len(in); {
		if isSettled(in[i].Chunk) {
			j.out = append(j.out, in[i])
			i++
			continue
		}
		end := i + 1
		for end < len(in) && !isSettled(in[end].Chunk) {
			end++
		}
		if err := j.joinRun(in[i:end]); err != nil {
			return nil, err
		}
		i = end
	}
	return j.out, nil
}

// isSettled tells whether a chunk is to stay as it is whatever is beside it.
func isSettled(c chunkenc.Chunk) bool {
	switch c.Encoding() {
	case chunkenc.EncXOR:
		return false
	case chunkenc.EncXOR2:
		return c.NumSamples() >= settledSamples && !isBloated(c)
	}
	return true
}

// isBloated tells whether a chunk has start timestamps from the 128th sample on, which
// Prometheus's encoder writes for no reason.
func isBloated(c chunkenc.Chunk) bool {
	return c.NumSamples() > lastSTChange && c.Bytes()[headerSize-1]&lastSTChange == lastSTChange
}

// joinRun joins chunks of floats that lie beside each other.
func (j *Joiner) joinRun(run []chunks.Meta) error {
	if len(run) == 1 && run[0].Chunk.Encoding() == chunkenc.EncXOR2 && !isBloated(run[0].Chunk) {
		j.out = append(j.out, run[0])
		return nil
	}
	j.st, j.t, j.v = j.st[:0], j.t[:0], j.v[:0]
	for _, meta := range run {
		if err := j.decode(meta); err != nil {
			return err
		}
	}
	for from, to := range pieces(j.st) {
		chunk := chunkenc.NewXOR2Chunk()
		chunk.Reset(j.encode.encode(j.st[from:to], j.t[from:to], j.v[from:to]))
		if err := j.compare(chunk, from, to); err != nil {
			return err
		}
		j.out = append(j.out, chunks.Meta{MinTime: j.t[from], MaxTime: j.t[to-1], Chunk: chunk})
	}
	return nil
}

// compare checks that Prometheus's decoder makes of a chunk what was encoded. What the
// samples were taken from will be deleted, and this costs a quarter of the time at most.
func (j *Joiner) compare(chunk chunkenc.Chunk, from, to int) error {
	j.it = chunk.Iterator(j.it)
	for i := from; i < to; i++ {
		if j.it.Next() != chunkenc.ValFloat {
			return fmt.Errorf("BUG: encoded %d samples from %d on, of which %d are decoded: %w", to-from, j.t[from], i-from, j.it.Err())
		}
		t, v := j.it.At()
		if t != j.t[i] || math.Float64bits(v) != math.Float64bits(j.v[i]) || j.it.AtST() != j.st[i] {
			return fmt.Errorf("BUG: the sample at %d is decoded as another one than was encoded", j.t[i])
		}
	}
	return nil
}

// decode appends the samples of a chunk to the buffers.
func (j *Joiner) decode(meta chunks.Meta) error {
	before := len(j.t)
	j.it = meta.Chunk.Iterator(j.it)
	for kind := j.it.Next(); kind != chunkenc.ValNone; kind = j.it.Next() {
		if kind != chunkenc.ValFloat {
			return fmt.Errorf("chunk from %d: it is encoded as %s and has a sample that is a %s", meta.MinTime, meta.Chunk.Encoding(), kind)
		}
		t, v := j.it.At()
		if n := len(j.t); n > 0 && t <= j.t[n-1] {
			return fmt.Errorf("chunk from %d: the sample at %d comes after one at %d", meta.MinTime, t, j.t[n-1])
		}
		j.st, j.t, j.v = append(j.st, j.it.AtST()), append(j.t, t), append(j.v, v)
	}
	if err := j.it.Err(); err != nil {
		return fmt.Errorf("chunk from %d: %w", meta.MinTime, err)
	}
	if n := len(j.t) - before; n != meta.Chunk.NumSamples() {
		return fmt.Errorf("chunk from %d: it has %d samples of %d", meta.MinTime, n, meta.Chunk.NumSamples())
	}
	return nil
}
