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
	if s, ok := plainSample(c.data[c.pos:c.end]); ok {
		return d.addSample(s)
	}
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
	if err := errReferences(raw); err != nil {
		return err
	}
	d.builder.Reset()
	fault := d.appendRefs(raw, maxExemplarBytes, &d.builder)
	d.extra = d.extra[:kept]
	return d.addExemplar(value, int64(ts), fault)
}

// errReferences says what is wrong if raw is no sequence of references, which are varints.
func errReferences(raw []byte) error {
	c := cursor{data: raw, end: len(raw)}
	for c.more() {
		if _, err := c.uvarint(); err != nil {
			return err
		}
	}
	return nil
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
