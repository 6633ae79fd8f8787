package remotewrite

import (
	"fmt"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Histograms are decoded by Prometheus's own generated code: they are rare and
// large, storage keeps their slices, so there is nothing to save.

// histogramV1 decodes prometheus.Histogram and adds it to the batch.
func (d *Decoder) histogramV1(raw []byte) error {
	if ok, err := d.admitHistogram(raw); !ok || err != nil {
		return err
	}
	m := &d.histogram.v1
	*m = prompb.Histogram{}
	if err := m.Unmarshal(raw); err != nil {
		return err
	}
	h := write.Histogram{T: m.Timestamp}
	if m.IsFloatHistogram() {
		h.Float = m.ToFloatHistogram()
	} else {
		h.Int = m.ToIntHistogram()
	}
	d.addHistogram(h, int32(m.ResetHint))
	*m = prompb.Histogram{}
	return nil
}

// histogramV2 decodes io.prometheus.write.v2.Histogram and adds it to the batch.
func (d *Decoder) histogramV2(raw []byte) error {
	if ok, err := d.admitHistogram(raw); !ok || err != nil {
		return err
	}
	m := &d.histogram.v2
	*m = writev2.Histogram{}
	if err := m.Unmarshal(raw); err != nil {
		return err
	}
	h := write.Histogram{T: m.Timestamp, ST: m.StartTimestamp}
	if m.IsFloatHistogram() {
		h.Float = m.ToFloatHistogram()
	} else {
		h.Int = m.ToIntHistogram()
	}
	d.addHistogram(h, int32(m.ResetHint))
	*m = writev2.Histogram{}
	return nil
}

// admitHistogram checks the size of a histogram, and reserves memory, before any is
// taken for it.
func (d *Decoder) admitHistogram(raw []byte) (bool, error) {
	if len(d.batch.Histograms) >= maxHistograms {
		return false, errTooMany
	}
	if len(raw) > maxHistogramBytes {
		d.rejectHistogram(fmt.Errorf("a histogram has %d encoded bytes, more than %d", len(raw), maxHistogramBytes))
		return false, nil
	}
	return true, d.reserve(histogramBytes + growth*int64(len(raw)))
}

const (
	// histogramBytes is about what a histogram takes without buckets.
	histogramBytes = 256
	// growth is how many bytes a byte of an encoded histogram takes: a bucket has
	// one byte or more there, and eight in memory.
	growth = 8
	// reserveStep spares calls of Reserve for little.
	reserveStep = 64 << 10
)

// reserve reserves bytes for a histogram or the labels of an exemplar.
func (d *Decoder) reserve(bytes int64) error {
	if d.unreserved += bytes; d.Reserve == nil || d.unreserved < reserveStep {
		return nil
	}
	bytes, d.unreserved = d.unreserved, 0
	return d.Reserve(bytes)
}

// addHistogram adds h to the batch, in the highest resolution that storage
// knows. Whether the buckets of h make sense is for storage to say.
func (d *Decoder) addHistogram(h write.Histogram, resetHint int32) {
	hint := histogram.UnknownCounterReset
	if resetHint >= 0 && resetHint <= int32(histogram.GaugeType) {
		hint = histogram.CounterResetHint(resetHint)
	}
	var err error
	if h.Float != nil {
		h.Float.CounterResetHint = hint
		if tooFine(h.Float.Schema) {
			err = h.Float.ReduceResolution(histogram.ExponentialSchemaMax)
		}
	} else {
		h.Int.CounterResetHint = hint
		if tooFine(h.Int.Schema) {
			err = h.Int.ReduceResolution(histogram.ExponentialSchemaMax)
		}
	}
	if err != nil {
		d.rejectHistogram(err)
		return
	}
	d.batch.Histograms = append(d.batch.Histograms, h)
}

func tooFine(schema int32) bool {
	return histogram.IsExponentialSchemaReserved(schema) && schema > histogram.ExponentialSchemaMax
}

func (d *Decoder) rejectHistogram(err error) {
	d.unfit++
	d.reject(write.ReasonInvalidHistogram, 1, func() (string, string) { return err.Error(), "" })
}
