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
	if ok, err := d.admitHistogram(raw); !ok {
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
	if ok, err := d.admitHistogram(raw); !ok {
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

// admitHistogram checks the size of a histogram before memory is taken for it.
func (d *Decoder) admitHistogram(raw []byte) (bool, error) {
	if len(d.batch.Histograms) >= maxHistograms {
		return false, errTooMany
	}
	if len(raw) > maxHistogramBytes {
		d.rejectHistogram(fmt.Errorf("a histogram has %d encoded bytes, more than %d", len(raw), maxHistogramBytes))
		return false, nil
	}
	return true, nil
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
