package remotewrite

import (
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/write"
)

// decodeV1 decodes prometheus.WriteRequest.
func (d *Decoder) decodeV1() error {
	c := cursor{data: d.data, end: len(d.data)}
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("WriteRequest", err)
		}
		switch num {
		case 1: // timeseries
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = d.seriesV1(m)
			}
		case 3: // metadata
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = d.metadataV1(m)
			}
		case 4, 5: // symbols and timeseries of 2.0
			err = errNotVersion
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return located(err, &c, "WriteRequest")
		}
	}
	return nil
}

// located says where err was met unless err does so itself.
func located(err error, c *cursor, message string) error {
	if _, ok := err.(*DecodeError); ok { //nolint:errorlint // made by this package, never wrapped
		return err
	}
	return c.fault(message, err)
}

// seriesV1 decodes prometheus.TimeSeries. The labels are only hopped over.
func (d *Decoder) seriesV1(c cursor) error {
	s := d.open()
	var r region
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("TimeSeries", err)
		}
		switch num {
		case 1: // labels
			start := c.at
			_, _, err = c.span(wire)
			c.pos = hopLabels(c.data[:c.end], c.pos)
			for err == nil && c.pos < c.end && c.data[c.pos] == 0x0a {
				c.at = c.pos
				c.pos++
				_, _, err = c.span(wireBytes)
			}
			if err == nil {
				d.extend(&r, start, c.pos)
			}
		case 2: // samples
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = d.sampleV1(m)
			}
		case 3: // exemplars
			var m cursor
			if m, err = c.message(wire); err == nil {
				err = d.exemplarV1(m)
			}
		case 4: // histograms
			var start, end int
			if start, end, err = c.span(wire); err == nil {
				err = d.histogramV1(d.data[start:end])
			}
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return located(err, &c, "TimeSeries")
		}
	}
	d.seal(&s)
	if s.Samples.Len == 0 && s.Histograms.Len == 0 && s.Exemplars.Len == 0 {
		return nil
	}
	if r.len > maxLabelsBytes {
		s.Err = errLabelsTooLong(int(r.len))
	} else {
		s.ID = d.hasher.Canonical(d.bytes(r))
	}
	if err := d.add(s, r); err != nil {
		return c.fault("TimeSeries", err)
	}
	return nil
}

// hopLabels steps over the labels at p that have less than 128 bytes, which nearly all
// have, and returns where it stopped: there is the rest of the labels or anything else.
func hopLabels(data []byte, p int) int {
	for p+1 < len(data) && data[p] == 0x0a && data[p+1] < 0x80 {
		next := p + 2 + int(data[p+1])
		if next > len(data) {
			break
		}
		p = next
	}
	return p
}

// sampleV1 decodes prometheus.Sample.
func (d *Decoder) sampleV1(c cursor) error {
	if s, ok := plainSample(c.data[c.pos:c.end]); ok {
		return d.addSample(s)
	}
	var s write.Sample
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("Sample", err)
		}
		switch num {
		case 1:
			s.V, err = c.double(wire)
		case 2:
			var t uint64
			t, err = c.number(wire)
			s.T = int64(t)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return c.fault("Sample", err)
		}
	}
	return d.addSample(s)
}

// exemplarV1 decodes prometheus.Exemplar.
func (d *Decoder) exemplarV1(c cursor) error {
	var (
		value float64
		ts    uint64
		size  int
		fault error
	)
	d.builder.Reset()
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("Exemplar", err)
		}
		switch num {
		case 1: // labels
			var m cursor
			if m, err = c.message(wire); err != nil {
				break
			}
			if size += m.end - m.pos; size > maxExemplarBytes {
				fault = errExemplarTooLong
				break
			}
			var name, value string
			if name, value, err = labelV1(m); err == nil {
				d.builder.Add(name, value)
			}
		case 2:
			value, err = c.double(wire)
		case 3:
			ts, err = c.number(wire)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return located(err, &c, "Exemplar")
		}
	}
	return d.addExemplar(value, int64(ts), fault)
}

// labelV1 decodes prometheus.Label. The strings alias the request.
func labelV1(c cursor) (name, value string, err error) {
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return "", "", c.fault("Label", err)
		}
		switch num {
		case 1:
			name, err = c.text(wire)
		case 2:
			value, err = c.text(wire)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return "", "", c.fault("Label", err)
		}
	}
	return name, value, nil
}

// appendLabelsV1 adds the labels of a run of fields of labels to b.
func appendLabelsV1(c cursor, b *labels.ScratchBuilder) error {
	for c.more() {
		_, wire, err := c.next()
		if err != nil {
			return c.fault("TimeSeries", err)
		}
		m, err := c.message(wire)
		if err != nil {
			return c.fault("TimeSeries", err)
		}
		name, value, err := labelV1(m)
		if err != nil {
			return err
		}
		b.Add(name, value)
	}
	return nil
}

// metadataV1 decodes prometheus.MetricMetadata.
func (d *Decoder) metadataV1(c cursor) error {
	var m write.Metadata
	m.Type = model.MetricTypeUnknown
	for c.more() {
		num, wire, err := c.next()
		if err != nil {
			return c.fault("MetricMetadata", err)
		}
		switch num {
		case 1:
			var v uint64
			v, err = c.number(wire)
			m.Type = metricType(v)
		case 2:
			m.Metric, err = c.text(wire)
		case 4:
			m.Help, err = c.text(wire)
		case 5:
			m.Unit, err = c.text(wire)
		default:
			err = c.skip(wire)
		}
		if err != nil {
			return c.fault("MetricMetadata", err)
		}
	}
	if m.Metric == "" {
		return nil
	}
	if len(d.batch.Metadata) >= maxMetadata {
		return errTooMany
	}
	d.batch.Metadata = append(d.batch.Metadata, m)
	return nil
}

// metricType returns the type that both protocols give the number v.
func metricType(v uint64) model.MetricType {
	switch int32(v) {
	case 1:
		return model.MetricTypeCounter
	case 2:
		return model.MetricTypeGauge
	case 3:
		return model.MetricTypeHistogram
	case 4:
		return model.MetricTypeGaugeHistogram
	case 5:
		return model.MetricTypeSummary
	case 6:
		return model.MetricTypeInfo
	case 7:
		return model.MetricTypeStateset
	default:
		return model.MetricTypeUnknown
	}
}
