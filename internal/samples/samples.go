// Package samples decodes chunks into single samples, and encodes samples into the chunks
// that every Prometheus of the last years reads. It is for one series at a time.
package samples

import (
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Of decodes a series.
func Of(series storage.ChunkSeries) ([]chunks.Sample, error) {
	var (
		out []chunks.Sample
		it  chunkenc.Iterator
	)
	of := series.Iterator(nil)
	for of.Next() {
		it = of.At().Chunk.Iterator(it)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			s := sample{kind: kind, st: it.AtST()}
			switch kind {
			case chunkenc.ValHistogram:
				s.t, s.h = it.AtHistogram(nil)
			case chunkenc.ValFloatHistogram:
				s.t, s.fh = it.AtFloatHistogram(nil)
			default:
				s.t, s.f = it.At()
			}
			out = append(out, s)
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
	}
	return out, of.Err()
}

// sample is a sample of any kind. It implements chunks.Sample.
type sample struct {
	kind  chunkenc.ValueType
	t, st int64
	f     float64
	h     *histogram.Histogram
	fh    *histogram.FloatHistogram
}

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return s.st }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return s.h }
func (s sample) FH() *histogram.FloatHistogram { return s.fh }
func (s sample) Type() chunkenc.ValueType      { return s.kind }

func (s sample) Copy() chunks.Sample {
	if s.h != nil {
		s.h = s.h.Copy()
	}
	if s.fh != nil {
		s.fh = s.fh.Copy()
	}
	return s
}

// Plain returns chunks with the same samples in the encodings that every Prometheus reads:
// without start timestamps, floats as XOR. Chunks that are plain stay as they are.
func Plain(metas []chunks.Meta) ([]chunks.Meta, error) {
	var out []chunks.Meta
	for _, meta := range metas {
		switch meta.Chunk.Encoding() {
		case chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
			out = append(out, meta)
			continue
		}
		decoded, err := Of(&storage.ChunkSeriesEntry{ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
			return storage.NewListChunkSeriesIterator(meta)
		}})
		if err != nil {
			return nil, err
		}
		for k := range decoded {
			s := decoded[k].(sample)
			s.st = 0
			decoded[k] = s
		}
		it := storage.NewSeriesToChunkEncoder(storage.NewListSeries(labels.EmptyLabels(), decoded)).Iterator(nil)
		for it.Next() {
			out = append(out, it.At())
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
