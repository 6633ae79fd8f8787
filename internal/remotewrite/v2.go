package remotewrite

import (
	"fmt"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/hundredfold/hundredfold/internal/write"
)

// decodeV2 decodes io.prometheus.write.v2.Request. It goes over the request
// twice, because symbols may stand behind the series that refer to them.
func (d *Decoder) decodeV2() error {
	if err := d.collectSymbols(); err != nil {
		return err
	}
	c := cursor{data: d.data, end: len(d.data)}
	for c.more() {
		num, wire, err := c.next()
		if err == nil {
			if num != 5 {
				err = c.skip(wire)
			} else {
				var m cursor
				if m, err = c.message(wire); err == nil {
					err = d.seriesV2(m)
				}
			}
		}
		if err != nil {
			return located(err, &c, "Request")
		}
	}
	return nil
}

// collectSymbols finds the symbols of the request and checks its outermost fields.
func (d *Decoder) collectSymbols() error {
	c := cursor{data: d.data, end: len(d.data)}
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("Request", err)
		}
		switch num {
		case 1, 2, 3: // timeseries and metadata of 1.0
			err = errNotVersion
		case 4: // symbols
			var start, end int
			start, end, err = c.span(wire)
			switch {
			case err != nil:
			case len(d.symbols) == 0 && start != end:
				err = errNoEmpty
			case len(d.symbols) >= maxSymbols:
				err = errTooMany
			default:
				d.symbols = append(d.symbols, symbol{off: uint32(start), len: uint32(end - start)})
			}
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return c.fault("Request", err)
		}
	}
	if cap(d.described) < len(d.symbols) {
		d.described = make([]bool, len(d.symbols))
	} else {
		d.described = d.described[:len(d.symbols)]
		clear(d.described)
	}
	return nil
}

// symbol returns the string that ref refers to. It aliases the request.
func (d *Decoder) symbol(ref uint32) (string, bool) {
	if uint64(ref) >= uint64(len(d.symbols)) {
		return "", false
	}
	s := d.symbols[ref]
	return alias(d.data[s.off : s.off+s.len]), true
}

// metadataV2 is io.prometheus.write.v2.Metadata.
type metadataV2 struct {
	kind       uint64
	help, unit uint32
}

// seriesV2 decodes io.prometheus.write.v2.TimeSeries.
func (d *Decoder) seriesV2(c cursor) error {
	var (
		s       = d.open()
		r       region
		meta    metadataV2
		created uint64
	)
	d.unfit = 0
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("TimeSeries", err)
		}
		switch num {
		case 1: // labels_refs
			err = d.refs(&c, wire, &r)
		case 2: // samples
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = d.sampleV2(m)
			}
		case 3: // histograms
			var start, end int
			if start, end, err = c.span(wire); err == nil {
				err = d.histogramV2(d.data[start:end])
			}
		case 4: // exemplars
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = d.exemplarV2(m)
			}
		case 5: // metadata
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = decodeMetadataV2(m, &meta)
			}
		case 6: // created_timestamp, before 2.0-rc.4
			created, err = c.number(wire)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return located(err, &c, "TimeSeries")
		}
	}
	d.seal(&s)
	if created != 0 {
		d.setCreated(&s, int64(created))
	}
	if err := d.finishV2(s, r, meta); err != nil {
		return located(err, &c, "TimeSeries")
	}
	return nil
}

// refs adds references, packed or not, to r.
func (d *Decoder) refs(c *cursor, wire byte, r *region) error {
	if wire == wireBytes {
		start, end, err := c.span(wire)
		if err == nil && start != end {
			d.extend(r, start, end)
		}
		return err
	}
	start := c.pos
	if _, err := c.number(wire); err != nil {
		return err
	}
	d.extend(r, start, c.pos)
	return nil
}

// setCreated gives the samples of s without a start timestamp that of the series.
func (d *Decoder) setCreated(s *write.Series, created int64) {
	for i := s.Samples.Off; i < s.Samples.End(); i++ {
		if d.batch.Samples[i].ST == 0 {
			d.batch.Samples[i].ST = created
		}
	}
	for i := s.Histograms.Off; i < s.Histograms.End(); i++ {
		if d.batch.Histograms[i].ST == 0 {
			d.batch.Histograms[i].ST = created
		}
	}
}

// finishV2 identifies s and adds it to the batch.
func (d *Decoder) finishV2(s write.Series, r region, meta metadataV2) error {
	name, err := d.identify(&s, r)
	if err != nil {
		return err
	}
	if s.Err == nil {
		s.Err = d.addMetadata(name, meta, s.Histograms.Len > 0)
	}
	if s.Err != nil {
		s.ID = write.Identity{}
	}
	// Prometheus sends exemplars in series of their own, against the letter of the
	// protocol, which wants a sample or a histogram in each.
	if s.Samples.Len > 0 || s.Histograms.Len > 0 || s.Exemplars.Len > 0 {
		return d.add(s, r)
	}
	// If its histograms were rejected, that is said already.
	if d.unfit == 0 {
		d.rejectEmpty(s, r)
	}
	return nil
}

// rejectEmpty rejects a series with nothing in it.
func (d *Decoder) rejectEmpty(s write.Series, r region) {
	reason, detail := write.ReasonNoSamples, "the series has neither samples nor histograms nor exemplars"
	if s.Err != nil {
		reason, detail = write.ReasonMalformedSeries, s.Err.Error()
	}
	d.reject(reason, 1, func() (string, string) { return detail, d.describe(r) })
}

// noRef stands for "no such symbol".
const noRef = ^uint32(0)

// identify sets the identity of s, or its Err, and returns which symbol is the
// value of __name__. Its error is about the request as a whole.
func (d *Decoder) identify(s *write.Series, r region) (name uint32, err error) {
	raw := d.bytes(r)
	name, s.Err, err = d.canonicalize(raw)
	if err != nil || s.Err != nil {
		if err == nil && !wholeVarints(raw) {
			err = errTruncated
		}
		return noRef, err
	}
	if d.expanded += len(d.canonical); d.expanded > maxExpandedBytes {
		return noRef, errExpanded
	}
	s.ID = d.hasher.Canonical(d.canonical)
	return name, nil
}

// canonicalize puts the canonical form of the labels that raw refers to into
// d.canonical. The fault is that of the series alone.
func (d *Decoder) canonicalize(raw []byte) (name uint32, fault, err error) {
	name = noRef
	c := cursor{data: raw, end: len(raw)}
	d.canonical = d.canonical[:0]
	for c.more() {
		nameRef, err := c.uvarint()
		if err != nil {
			return noRef, nil, err
		}
		if !c.more() {
			return noRef, errOddRefs, nil
		}
		valueRef, err := c.uvarint()
		if err != nil {
			return noRef, nil, err
		}
		label, ok1 := d.symbol(uint32(nameRef))
		value, ok2 := d.symbol(uint32(valueRef))
		if !ok1 || !ok2 {
			return noRef, fmt.Errorf("label references %d and %d exceed the %d symbols", uint32(nameRef), uint32(valueRef), len(d.symbols)), nil
		}
		if value == "" {
			continue
		}
		if label == model.MetricNameLabel {
			name = uint32(valueRef)
		}
		if size := len(d.canonical) + len(label) + len(value); size > maxLabelsBytes {
			return noRef, errLabelsTooLong(size), nil
		}
		d.canonical = appendLabel(d.canonical, label, value)
	}
	return name, nil, nil
}

// appendLabel is write.AppendCanonical with a shorter way for short labels.
func appendLabel(dst []byte, name, value string) []byte {
	size := 4 + len(name) + len(value)
	if size >= 0x80 {
		return write.AppendCanonical(dst, name, value)
	}
	off := len(dst)
	if cap(dst)-off < size+2 {
		dst = append(dst, make([]byte, size+2)...)
	} else {
		dst = dst[:off+size+2]
	}
	p := dst[off : off+size+2]
	p[0], p[1], p[2], p[3] = 0x0a, byte(size), 0x0a, byte(len(name))
	n := 4 + copy(p[4:], name)
	p[n], p[n+1] = 0x12, byte(len(value))
	copy(p[n+2:], value)
	return dst
}

// appendRefs adds the labels that raw refers to, at most limit bytes, to b.
func (d *Decoder) appendRefs(raw []byte, limit int, b *labels.ScratchBuilder) error {
	c := cursor{data: raw, end: len(raw)}
	size := 0
	for c.more() {
		nameRef, err := c.uvarint()
		if err != nil {
			return err
		}
		if !c.more() {
			return errOddRefs
		}
		valueRef, err := c.uvarint()
		if err != nil {
			return err
		}
		name, ok1 := d.symbol(uint32(nameRef))
		value, ok2 := d.symbol(uint32(valueRef))
		if !ok1 || !ok2 {
			return fmt.Errorf("label references %d and %d exceed the %d symbols", uint32(nameRef), uint32(valueRef), len(d.symbols))
		}
		if size += len(name) + len(value); size > limit {
			return fmt.Errorf("the labels have more than %d bytes", limit)
		}
		b.Add(name, value)
	}
	return nil
}

// sampleV2 decodes io.prometheus.write.v2.Sample.
func (d *Decoder) sampleV2(c cursor) error {
	var s write.Sample
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("Sample", err)
		}
		var v uint64
		switch num {
		case 1:
			s.V, err = c.double(wire)
		case 2:
			v, err = c.number(wire)
			s.T = int64(v)
		case 3:
			v, err = c.number(wire)
			s.ST = int64(v)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return c.fault("Sample", err)
		}
	}
	return d.addSample(s)
}

// exemplarV2 decodes io.prometheus.write.v2.Exemplar.
func (d *Decoder) exemplarV2(c cursor) error {
	var (
		value float64
		ts    uint64
		r     region
	)
	kept := len(d.extra)
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("Exemplar", err)
		}
		switch num {
		case 1:
			err = d.refs(&c, wire, &r)
		case 2:
			value, err = c.double(wire)
		case 3:
			ts, err = c.number(wire)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return c.fault("Exemplar", err)
		}
	}
	raw := d.bytes(r)
	if !wholeVarints(raw) {
		return errTruncated
	}
	d.builder.Reset()
	fault := d.appendRefs(raw, maxExemplarBytes, &d.builder)
	d.extra = d.extra[:kept]
	return d.addExemplar(value, int64(ts), fault)
}

// wholeVarints reports whether raw is a sequence of varints.
func wholeVarints(raw []byte) bool {
	c := cursor{data: raw, end: len(raw)}
	for c.more() {
		if _, err := c.uvarint(); err != nil {
			return false
		}
	}
	return true
}

// decodeMetadataV2 decodes io.prometheus.write.v2.Metadata into m.
func decodeMetadataV2(c cursor, m *metadataV2) error {
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("Metadata", err)
		}
		var v uint64
		switch num {
		case 1:
			m.kind, err = c.number(wire)
		case 3:
			v, err = c.number(wire)
			m.help = uint32(v)
		case 4:
			v, err = c.number(wire)
			m.unit = uint32(v)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return c.fault("Metadata", err)
		}
	}
	return nil
}

// addMetadata adds what the series of the metric with the name at symbol ref
// says about its family, once for every family.
func (d *Decoder) addMetadata(ref uint32, m metadataV2, native bool) error {
	if m == (metadataV2{}) {
		return nil
	}
	help, ok1 := d.symbol(m.help)
	unit, ok2 := d.symbol(m.unit)
	if !ok1 || !ok2 {
		return fmt.Errorf("help_ref %d or unit_ref %d exceeds the %d symbols", m.help, m.unit, len(d.symbols))
	}
	if ref == noRef || d.described[ref] {
		return nil
	}
	d.described[ref] = true
	name, _ := d.symbol(ref)
	kind := metricType(m.kind)
	if !native {
		name = family(name, kind)
	}
	if _, known := d.families[name]; known || len(d.batch.Metadata) >= maxMetadata {
		return nil
	}
	d.families[name] = struct{}{}
	d.batch.Metadata = append(d.batch.Metadata, write.Metadata{
		Metric:   name,
		Metadata: metadata.Metadata{Type: kind, Unit: unit, Help: help},
	})
	return nil
}

// family returns the name of the metric family that a series of this name and
// type belongs to, as Prometheus's scraper tells them: without the suffixes of
// the series that a classic histogram or a summary consists of.
func family(name string, kind model.MetricType) string {
	var suffixes []string
	switch kind {
	case model.MetricTypeHistogram:
		suffixes = []string{"_bucket", "_sum", "_count"}
	case model.MetricTypeGaugeHistogram:
		suffixes = []string{"_bucket", "_gsum", "_gcount"}
	case model.MetricTypeSummary:
		suffixes = []string{"_sum", "_count"}
	}
	for _, suffix := range suffixes {
		if stem, ok := strings.CutSuffix(name, suffix); ok && stem != "" {
			return stem
		}
	}
	return name
}
