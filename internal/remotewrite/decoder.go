package remotewrite

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Decoder decodes requests, one after the other, and keeps its buffers. It is
// the write.LabelSource of the batch it filled last, so both belong together
// until that batch is done with. One goroutine.
type Decoder struct {
	// Reserve, unless nil, is told how many bytes histograms and the labels of exemplars
	// take, in steps. Its error ends Decode.
	Reserve func(bytes int64) error

	hasher *write.Hasher

	version Version
	data    []byte
	batch   *write.Batch
	// regions holds where the labels of each series of the batch lie.
	regions []region
	// extra holds labels that do not lie in one piece in data.
	extra    []byte
	rejected write.Result
	builder  labels.ScratchBuilder

	// unfit counts the histograms of the current series that were rejected.
	unfit int
	// unreserved is what they take that Reserve was not told yet, in bytes.
	unreserved int64

	// Of 2.0 only.
	symbols   []symbol
	forms     [2]form             // of the series at hand and of the one before, in turn
	at        int                 // which of them is that of the series at hand
	expanded  int                 // bytes of labels so far
	described []bool              // by symbol: metadata of the metric of this name is taken
	families  map[string]struct{} // metric families whose metadata is taken
	histogram struct {            // for reuse; their slices are never reused
		v1 prompb.Histogram
		v2 writev2.Histogram
	}
}

// NewDecoder returns a Decoder.
func NewDecoder() *Decoder {
	return &Decoder{
		hasher:   write.NewHasher(),
		builder:  labels.NewScratchBuilder(16),
		families: map[string]struct{}{},
	}
}

// region locates the labels of a series: in 1.0 the fields of its labels, in 2.0
// its references as varints. An offset with inExtra set counts from the start
// of Decoder.extra, any other from that of Decoder.data.
type region struct{ off, len uint32 }

const inExtra = 1 << 31

// symbol locates a string in Decoder.data.
type symbol struct{ off, len uint32 }

// Decode replaces the content of b by what data says, a request of version v
// without compression. It returns what it had to reject on its own account:
// the histograms, exemplars and series that it could not put into b. Series
// whose labels make no sense are in b with their Err set.
//
// b, its labels and its metadata alias data. An error says that data is no such
// request at all; b is then empty.
func (d *Decoder) Decode(v Version, data []byte, b *write.Batch) (write.Result, error) {
	d.Forget()
	b.Reset()
	if len(data) > maxRequestBytes {
		return write.Result{}, errTooLarge
	}
	d.version, d.data, d.batch = v, data, b
	b.Source = d
	decode := d.decodeV1
	if v == V2 {
		decode = d.decodeV2
	}
	if err := decode(); err != nil {
		b.Reset()
		d.Forget()
		return write.Result{}, err
	}
	return d.rejected, nil
}

// Forget drops all references to the last request and its batch; the buffers stay.
func (d *Decoder) Forget() {
	if len(d.families) > keptFamilies {
		d.families = map[string]struct{}{}
	}
	clear(d.families)
	d.data, d.batch, d.rejected = nil, nil, write.Result{}
	d.regions, d.extra = d.regions[:0], d.extra[:0]
	d.symbols, d.described, d.expanded = d.symbols[:0], d.described[:0], 0
	d.unreserved = 0
	d.forms[0].pairs, d.forms[1].pairs = 0, 0
	d.builder.Reset()
}

// Retained returns how many bytes of buffers the decoder keeps for its next
// request, for pools that let go of what grew too large.
func (d *Decoder) Retained() int {
	return 8*cap(d.regions) + cap(d.extra) + 8*cap(d.symbols) + cap(d.forms[0].bytes) + cap(d.forms[1].bytes) + cap(d.described)
}

// AppendLabels implements write.LabelSource.
func (d *Decoder) AppendLabels(i int, b *labels.ScratchBuilder) error {
	return d.appendRegion(d.regions[i], maxLabelsBytes, b)
}

// appendRegion adds the labels at r, at most limit bytes, to b.
func (d *Decoder) appendRegion(r region, limit int, b *labels.ScratchBuilder) error {
	if int(r.len) > limit {
		return errLabelsTooLong(int(r.len))
	}
	if d.version == V2 {
		return d.appendRefs(d.bytes(r), limit, b)
	}
	c := cursor{data: d.data, pos: int(r.off)}
	if r.off&inExtra != 0 {
		c = cursor{data: d.extra, pos: int(r.off &^ inExtra)}
	}
	c.end = c.pos + int(r.len)
	return appendLabelsV1(c, b)
}

func errLabelsTooLong(size int) error {
	return fmt.Errorf("the labels of the series have %d bytes, more than %d", size, maxLabelsBytes)
}

func (d *Decoder) bytes(r region) []byte {
	if r.off&inExtra != 0 {
		off := r.off &^ inExtra
		return d.extra[off : off+r.len]
	}
	return d.data[r.off : r.off+r.len]
}

// extend adds data[start:end] to r. Pieces that do not lie side by side are
// copied; they are rare.
func (d *Decoder) extend(r *region, start, end int) {
	switch {
	case r.len == 0:
		*r = region{off: uint32(start), len: uint32(end - start)}
		return
	case r.off&inExtra == 0 && int(r.off+r.len) == start:
		r.len += uint32(end - start)
		return
	case r.off&inExtra == 0:
		first := d.bytes(*r)
		r.off = uint32(len(d.extra)) | inExtra
		d.extra = append(d.extra, first...)
	}
	d.extra = append(d.extra, d.data[start:end]...)
	r.len += uint32(end - start)
}

// open returns a series whose spans start at the end of the batch's slices.
func (d *Decoder) open() write.Series {
	return write.Series{
		Samples:    write.Span{Off: uint32(len(d.batch.Samples))},
		Histograms: write.Span{Off: uint32(len(d.batch.Histograms))},
		Exemplars:  write.Span{Off: uint32(len(d.batch.Exemplars))},
	}
}

// seal sets the lengths of the spans of s, which open returned.
func (d *Decoder) seal(s *write.Series) {
	s.Samples.Len = uint32(len(d.batch.Samples)) - s.Samples.Off
	s.Histograms.Len = uint32(len(d.batch.Histograms)) - s.Histograms.Off
	s.Exemplars.Len = uint32(len(d.batch.Exemplars)) - s.Exemplars.Off
}

func (d *Decoder) add(s write.Series, r region) error {
	if len(d.batch.Series) >= maxSeries {
		return errTooMany
	}
	d.batch.Series = append(d.batch.Series, s)
	d.regions = append(d.regions, r)
	return nil
}

// reject counts samples that do not get into the batch. The example is made for
// the first one of a reason only.
func (d *Decoder) reject(reason write.Reason, count int, example func() (detail, series string)) {
	for i := range d.rejected.Rejected {
		if d.rejected.Rejected[i].Reason == reason {
			d.rejected.Rejected[i].Count += count
			return
		}
	}
	e := &write.SeriesError{Reason: reason}
	e.Detail, e.Labels = example()
	d.rejected.Reject(e, count)
}

// describe returns the labels at r for a message, "" if that makes no sense.
func (d *Decoder) describe(r region) string {
	const most = 16 << 10
	d.builder.Reset()
	if err := d.appendRegion(r, most, &d.builder); err != nil {
		return ""
	}
	d.builder.Sort()
	ls := d.builder.Labels()
	return write.Clip(ls.String())
}

// addExemplar adds an exemplar whose labels stand in d.builder; fault says what
// was wrong with them before, if anything.
func (d *Decoder) addExemplar(value float64, ts int64, fault error) error {
	if len(d.batch.Exemplars) >= maxExemplars {
		return errTooMany
	}
	if fault == nil {
		d.builder.Sort()
		ls := d.builder.Labels()
		if fault = write.ValidateExemplarLabels(ls); fault == nil {
			d.batch.Exemplars = append(d.batch.Exemplars, exemplar.Exemplar{Labels: ls, Value: value, Ts: ts, HasTs: ts != 0})
			size := int(ls.ByteSize())
			if d.expanded += size; d.version == V2 && d.expanded > maxExpandedBytes {
				return errExpanded
			}
			return d.reserve(int64(size))
		}
	}
	d.reject(write.ReasonInvalidExemplar, 1, func() (string, string) { return fault.Error(), "" })
	return nil
}

func (d *Decoder) addSample(s write.Sample) error {
	if len(d.batch.Samples) >= maxSamples {
		return errTooMany
	}
	d.batch.Samples = append(d.batch.Samples, s)
	return nil
}

// plainSample decodes a sample of either version that consists of a value, unless that
// is 0, and of a time and nothing else, as nearly all do.
func plainSample(b []byte) (s write.Sample, ok bool) {
	if len(b) > 9 && b[0] == 0x09 {
		s.V = math.Float64frombits(binary.LittleEndian.Uint64(b[1:9]))
		b = b[9:]
	}
	if len(b) < 2 || len(b) > 10 || b[0] != 0x10 {
		return s, false
	}
	// At most nine bytes, so nothing is shifted out.
	var t uint64
	last := len(b) - 1
	for i, x := range b[1:last] {
		if x < 0x80 {
			return s, false
		}
		t |= uint64(x&0x7f) << (7 * i)
	}
	if b[last] >= 0x80 {
		return s, false
	}
	s.T = int64(t | uint64(b[last])<<(7*(last-1)))
	return s, true
}
