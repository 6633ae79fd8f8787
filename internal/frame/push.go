package frame

import (
	"encoding/binary"
	"math"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/write"
)

// pushVersion is the version of push frames.
const pushVersion = 1

// The first byte of a series in a push frame: what the series has, and in the upper
// four bits how many samples.
const (
	hasLabels     = 1 << 0
	hasStarts     = 1 << 1 // samples have start timestamps
	hasHistograms = 1 << 2
	hasExemplars  = 1 << 3

	countShift = 4
	// countFollows stands where the number of samples is this or more and follows the
	// identity.
	countFollows = 14
	// notSeries stands in the upper four bits of what is no series.
	notSeries = 15

	entryMetadata = notSeries<<countShift | 1
)

// seriesBytes is what a series takes without anything that is its own.
const seriesBytes = 17

// hasTimestamp is set in the first byte of an exemplar that has one.
const hasTimestamp = 1

// PushWriter writes a push frame, series by series. Its zero value is ready for use;
// it keeps its memory when it is Reset. One goroutine.
type PushWriter struct {
	buf []byte
	// t and start are the times of the last sample: the next ones are written as
	// differences to them.
	t, start int64

	series int
	counts write.Counts
	labels labelWriter
}

// Reset begins a new frame. The bytes of the last one are overwritten.
func (w *PushWriter) Reset() {
	*w = PushWriter{buf: w.buf[:0], labels: w.labels}
}

// Series returns how many series are in the frame.
func (w *PushWriter) Series() int { return w.series }

// Samples returns how many samples and histograms are in the frame.
func (w *PushWriter) Samples() int { return w.counts.Samples + w.counts.Histograms }

// Counts returns how many samples, histograms and exemplars are in the frame.
func (w *PushWriter) Counts() write.Counts { return w.counts }

// Len returns the length of the frame in bytes, 0 if there is nothing in it.
func (w *PushWriter) Len() int { return len(w.buf) }

// Retained returns how many bytes the writer keeps for its next frame, for pools that
// let go of what grew too large.
func (w *PushWriter) Retained() int { return cap(w.buf) + cap(w.labels.buf) }

// Bytes returns the frame, nil if there is nothing in it. It is good until the next
// Add, AddMetadata or Reset.
func (w *PushWriter) Bytes() []byte {
	if len(w.buf) == 0 {
		return nil
	}
	return w.buf
}

// begin writes what stands before the first entry.
func (w *PushWriter) begin() {
	if len(w.buf) == 0 {
		w.buf = append(w.buf, pushVersion)
	}
}

// Add appends series i of b with all that it has. id and ls are the identity and the
// labels under which it is stored, whatever it was sent as; without ls it is sent by
// its identity alone. Nothing of b is kept.
func (w *PushWriter) Add(b *write.Batch, i int, id write.Identity, ls labels.Labels) {
	s := &b.Series[i]
	samples := b.Samples[s.Samples.Off:s.Samples.End()]
	w.begin()
	w.series++
	w.counts.Samples += len(samples)

	flags := byte(min(len(samples), countFollows)) << countShift
	if hasAnyStart(samples) {
		flags |= hasStarts
	}
	if !ls.IsEmpty() {
		flags |= hasLabels
	}
	if s.Histograms.Len > 0 {
		flags |= hasHistograms
	}
	if s.Exemplars.Len > 0 {
		flags |= hasExemplars
	}
	buf := append(w.buf, flags)
	buf = binary.LittleEndian.AppendUint64(buf, id.Hi)
	buf = binary.LittleEndian.AppendUint64(buf, id.Lo)
	if len(samples) >= countFollows {
		buf = binary.AppendUvarint(buf, uint64(len(samples)))
	}
	if flags&hasLabels != 0 {
		buf = w.labels.append(buf, ls)
	}
	w.buf = w.appendSamples(buf, samples, flags&hasStarts != 0)
	if flags&hasHistograms != 0 {
		w.addHistograms(b.Histograms[s.Histograms.Off:s.Histograms.End()])
	}
	if flags&hasExemplars != 0 {
		w.addExemplars(b.Exemplars[s.Exemplars.Off:s.Exemplars.End()])
	}
}

func hasAnyStart(samples []write.Sample) bool {
	for i := range samples {
		if samples[i].ST != 0 {
			return true
		}
	}
	return false
}

func (w *PushWriter) appendSamples(buf []byte, samples []write.Sample, starts bool) []byte {
	t := w.t
	for i := range samples {
		s := &samples[i]
		// Series of one scrape have the same time: mostly this is one byte.
		if delta := zigzag(s.T - t); delta < 0x80 {
			buf = append(buf, byte(delta))
		} else {
			buf = binary.AppendUvarint(buf, delta)
		}
		t = s.T
		buf = binary.LittleEndian.AppendUint64(buf, math.Float64bits(s.V))
		if starts {
			buf = appendVarint(buf, s.ST-w.start)
			w.start = s.ST
		}
	}
	w.t = t
	return buf
}

func (w *PushWriter) addHistograms(histograms []write.Histogram) {
	w.counts.Histograms += len(histograms)
	w.buf = binary.AppendUvarint(w.buf, uint64(len(histograms)))
	for i := range histograms {
		h := &histograms[i]
		w.buf = appendVarint(w.buf, h.T-w.t)
		w.buf = appendVarint(w.buf, h.ST-w.start)
		w.t, w.start = h.T, h.ST
		if h.Float != nil {
			w.buf = appendFloatHistogram(w.buf, h.Float)
		} else {
			w.buf = appendHistogram(w.buf, h.Int)
		}
	}
}

func (w *PushWriter) addExemplars(exemplars []exemplar.Exemplar) {
	w.counts.Exemplars += len(exemplars)
	w.buf = binary.AppendUvarint(w.buf, uint64(len(exemplars)))
	for i := range exemplars {
		e := &exemplars[i]
		var flags byte
		if e.HasTs {
			flags = hasTimestamp
		}
		w.buf = append(w.buf, flags)
		w.buf = appendVarint(w.buf, e.Ts-w.t)
		w.t = e.Ts
		w.buf = appendDouble(w.buf, e.Value)
		w.buf = w.labels.append(w.buf, e.Labels)
	}
}

// AddMetadata appends what is known of metric families.
func (w *PushWriter) AddMetadata(metadata []write.Metadata) {
	for i := range metadata {
		m := &metadata[i]
		w.begin()
		w.buf = append(w.buf, entryMetadata)
		for _, s := range [...]string{m.Metric, string(m.Type), m.Unit, m.Help} {
			w.buf = appendText(w.buf, s)
		}
	}
}
