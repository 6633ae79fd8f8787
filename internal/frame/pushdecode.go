package frame

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/hundredfold/hundredfold/internal/write"
)

// PushDecoder decodes push frames, one set of them after the other, and keeps its
// buffers. It is the write.LabelSource of the batch that it filled last, so both
// belong together until that batch is done with. Its zero value is ready for use.
// One goroutine.
type PushDecoder struct {
	batch  *write.Batch
	frames [][]byte
	// labelled locates the labels of the series that came with any, by rising series:
	// in steady state none does, and nothing is kept for those without.
	labelled []region
	builder  labels.ScratchBuilder
}

// region says where the labels of a series lie.
type region struct {
	series, frame uint32
	off, len      uint32 // in bytes, from the start of the frame
}

// DecodePush is PushDecoder.Decode with a decoder of its own, which b keeps as its
// Source. Whoever decodes many frames keeps a PushDecoder.
func DecodePush(b *write.Batch, frames ...[]byte) error {
	return new(PushDecoder).Decode(b, frames...)
}

// Decode replaces the content of b by all series of all frames, in their order, and
// makes the decoder its Source. Series.ID is the identity that the frame gives, which
// nobody has checked against the labels.
//
// The labels and metadata of b alias the frames. Histograms and the labels of exemplars
// do not. An error wraps ErrMalformed; b is then empty.
func (d *PushDecoder) Decode(b *write.Batch, frames ...[]byte) error {
	d.Forget()
	b.Reset()
	if err := d.decode(b, frames); err != nil {
		b.Reset()
		d.Forget()
		return err
	}
	b.Source = d
	return nil
}

// Forget drops all references to the last frames and their batch; the buffers stay.
func (d *PushDecoder) Forget() {
	clear(d.frames)
	d.batch, d.frames, d.labelled = nil, d.frames[:0], d.labelled[:0]
	d.builder = labels.ScratchBuilder{} // it holds strings of the frames
}

// Retained returns how many bytes of buffers the decoder keeps for its next frames, for
// pools that let go of what grew too large.
func (d *PushDecoder) Retained() int { return 16*cap(d.labelled) + 24*cap(d.frames) }

// AppendLabels implements write.LabelSource.
func (d *PushDecoder) AppendLabels(i int, b *labels.ScratchBuilder) error {
	at, found := d.find(i)
	if !found {
		return write.ErrNoLabels
	}
	r := d.labelled[at]
	return addLabels(d.frames[r.frame][r.off:r.off+r.len], b)
}

// Labelled implements write.PartialSource.
func (d *PushDecoder) Labelled(i int) bool {
	if len(d.labelled) == 0 {
		return false
	}
	_, found := d.find(i)
	return found
}

// find returns where the labels of series i are in labelled.
func (d *PushDecoder) find(i int) (at int, found bool) {
	return slices.BinarySearchFunc(d.labelled, uint32(i), func(r region, series uint32) int {
		return int(r.series) - int(series)
	})
}

func (d *PushDecoder) decode(b *write.Batch, frames [][]byte) error {
	d.batch = b
	total := 0
	for i, frame := range frames {
		if total += len(frame); total > maxBytes {
			return errTooLong
		}
		d.frames = append(d.frames, frame)
		if err := d.decodeFrame(frame); err != nil {
			return fmt.Errorf("push frame %d of %d, behind series %d: %w", i+1, len(frames), len(b.Series), err)
		}
	}
	return nil
}

// decodeFrame appends what the frame holds to the batch.
func (d *PushDecoder) decodeFrame(frame []byte) error {
	rest, err := open(frame, pushVersion)
	if err != nil {
		return err
	}
	b := d.batch
	p := pushCursor{}
	for len(rest) > 0 {
		// A series with one sample at nearly the time of the one before is what nearly
		// all of them are, hence the short way.
		if rest[0] == 1<<countShift && len(rest) >= seriesBytes+9 && rest[seriesBytes] < 0x80 {
			p.t += unzigzag(uint64(rest[seriesBytes]))
			b.Series = append(b.Series, write.Series{
				ID:         write.Identity{Hi: binary.LittleEndian.Uint64(rest[1:]), Lo: binary.LittleEndian.Uint64(rest[9:])},
				Samples:    write.Span{Off: uint32(len(b.Samples)), Len: 1},
				Histograms: write.Span{Off: uint32(len(b.Histograms))},
				Exemplars:  write.Span{Off: uint32(len(b.Exemplars))},
			})
			b.Samples = append(b.Samples, write.Sample{
				T: p.t,
				V: math.Float64frombits(binary.LittleEndian.Uint64(rest[seriesBytes+1:])),
			})
			rest = rest[seriesBytes+9:]
			continue
		}
		p.rest = rest
		if err := d.entry(&p, len(frame)); err != nil {
			return err
		}
		rest = p.rest
	}
	return nil
}

// pushCursor is a cursor over a push frame, with the times of the last sample.
type pushCursor struct {
	cursor
	t, start int64
}

// entry reads any entry. size is that of the whole frame.
func (d *PushDecoder) entry(p *pushCursor, size int) error {
	b := d.batch
	flags := p.byte()
	if flags>>countShift == notSeries {
		if flags != entryMetadata {
			return errEntry
		}
		return d.metadata(p)
	}
	s := write.Series{
		ID:         write.Identity{Hi: p.fixed64(), Lo: p.fixed64()},
		Samples:    write.Span{Off: uint32(len(b.Samples))},
		Histograms: write.Span{Off: uint32(len(b.Histograms))},
		Exemplars:  write.Span{Off: uint32(len(b.Exemplars))},
	}
	count := int(flags >> countShift)
	if count == countFollows {
		count = p.count(9)
	}
	if flags&hasLabels != 0 {
		encoded := p.bytes()
		if len(encoded) == 0 {
			return errCut
		}
		d.labelled = append(d.labelled, region{
			series: uint32(len(b.Series)),
			frame:  uint32(len(d.frames) - 1),
			off:    uint32(size - len(p.rest) - len(encoded)),
			len:    uint32(len(encoded)),
		})
	}
	d.samples(p, count, flags&hasStarts != 0)
	if flags&hasHistograms != 0 {
		if err := d.histograms(p); err != nil {
			return err
		}
	}
	if flags&hasExemplars != 0 {
		if err := d.exemplars(p); err != nil {
			return err
		}
	}
	if p.failed {
		return errCut
	}
	s.Samples.Len = uint32(len(b.Samples)) - s.Samples.Off
	s.Histograms.Len = uint32(len(b.Histograms)) - s.Histograms.Off
	s.Exemplars.Len = uint32(len(b.Exemplars)) - s.Exemplars.Off
	b.Series = append(b.Series, s)
	return nil
}

// samples reads count samples. It is all that is done for a sample, so it works on
// local variables.
func (d *PushDecoder) samples(p *pushCursor, count int, starts bool) {
	samples, rest, t := d.batch.Samples, p.rest, p.t
	for range count {
		if len(rest) == 0 {
			p.fail()
			return
		}
		delta, n := uint64(rest[0]), 1
		if delta >= 0x80 {
			delta, n = binary.Uvarint(rest)
		}
		if n <= 0 || len(rest)-n < 8 {
			p.fail()
			return
		}
		t += unzigzag(delta)
		s := write.Sample{T: t, V: math.Float64frombits(binary.LittleEndian.Uint64(rest[n:]))}
		rest = rest[n+8:]
		if starts {
			p.rest = rest
			p.start += p.varint()
			s.ST, rest = p.start, p.rest
		}
		samples = append(samples, s)
	}
	d.batch.Samples = samples
	if !p.failed {
		p.rest, p.t = rest, t
	}
}

func (d *PushDecoder) histograms(p *pushCursor) error {
	for range p.count(minHistogramBytes) {
		p.t += p.varint()
		p.start += p.varint()
		h := write.Histogram{T: p.t, ST: p.start}
		flags := p.byte()
		if flags&^knownHistogramFlags != 0 {
			return errHistogram
		}
		if flags&isFloat != 0 {
			h.Float = p.floatHistogram(flags)
		} else {
			h.Int = p.histogram(flags)
		}
		if p.failed {
			return errCut
		}
		d.batch.Histograms = append(d.batch.Histograms, h)
	}
	return nil
}

func (d *PushDecoder) exemplars(p *pushCursor) error {
	const least = 1 + 1 + 8 + 1 // flags, time, value, length of the labels
	for range p.count(least) {
		flags := p.byte()
		if flags&^hasTimestamp != 0 {
			return errExemplar
		}
		p.t += p.varint()
		e := exemplar.Exemplar{Ts: p.t, HasTs: flags != 0, Value: p.double()}
		encoded := p.bytes()
		if p.failed {
			return errCut
		}
		d.builder.Reset()
		if err := addLabels(encoded, &d.builder); err != nil {
			return err
		}
		e.Labels = d.builder.Labels()
		d.batch.Exemplars = append(d.batch.Exemplars, e)
	}
	return nil
}

func (d *PushDecoder) metadata(p *pushCursor) error {
	m := write.Metadata{Metric: p.text(), Metadata: metadata.Metadata{
		Type: model.MetricType(p.text()),
		Unit: p.text(),
		Help: p.text(),
	}}
	if p.failed {
		return errCut
	}
	d.batch.Metadata = append(d.batch.Metadata, m)
	return nil
}
