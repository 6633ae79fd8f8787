package blockwriter

import (
	"context"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
)

// symbols gives each output the symbols that its series may need.
//
// Without shards that is all there are. With shards each output would have those of all
// others too, so the series are looked at once before they are written, and what their
// labels need is noted: not the symbols, of which there may be millions, but a bit for
// the hash of each.
func (w *writing) symbols(ctx context.Context, from *source) error {
	var needed []*bitmap // by output; nil: all
	if !w.takesAll() {
		needed = make([]*bitmap, len(w.outputs))
		for i := range needed {
			needed[i] = new(bitmap)
		}
		if err := w.survey(ctx, from, needed); err != nil {
			return err
		}
	}
	all := from.symbols()
	for all.Next() {
		symbol := all.At()
		hash := uint64(0)
		if needed != nil {
			hash = xxhash.Sum64String(symbol)
		}
		for i, o := range w.outputs {
			if needed != nil && !needed[i].has(hash) {
				continue
			}
			if err := o.index.AddSymbol(symbol); err != nil {
				return fmt.Errorf("write a symbol: %w", err)
			}
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read symbols: %w", err)
	}
	return ctx.Err()
}

// survey notes which symbols the series of each output need, and which series there are,
// since a list of them can be gone through only once.
func (w *writing) survey(ctx context.Context, from *source, needed []*bitmap) error {
	byOutput := make(map[*output]*bitmap, len(w.outputs))
	for i, o := range w.outputs {
		byOutput[o] = needed[i]
	}
	for i := range from.inputs {
		in := &from.inputs[i]
		var builder labels.ScratchBuilder
		in.refs = []storage.SeriesRef{}
		for in.all.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			ref := in.all.At()
			series, err := in.labels(ref, &builder)
			if errors.Is(err, storage.ErrNotFound) {
				continue // A head has dropped it since.
			}
			if err != nil {
				return fmt.Errorf("series %d: %w", ref, err)
			}
			bits := byOutput[w.outputOf(series)]
			if bits == nil {
				continue
			}
			in.refs = append(in.refs, ref)
			series.Range(func(l labels.Label) {
				bits.set(xxhash.Sum64String(l.Name))
				bits.set(xxhash.Sum64String(l.Value))
			})
		}
		if err := in.all.Err(); err != nil {
			return err
		}
	}
	return nil
}

// labels returns the labels of a series; they are valid until the next call.
func (in *input) labels(ref storage.SeriesRef, builder *labels.ScratchBuilder) (labels.Labels, error) {
	if err := in.index.Series(ref, builder, &in.scratch); err != nil {
		return labels.EmptyLabels(), err
	}
	return builder.Labels(), nil
}

// bitmap is a set of hashes that may say yes for one that was not set: of 4 million
// symbols a sixteenth of the others come along, which costs their room in the index and
// nothing else. It takes 8 MiB.
type bitmap [1 << 20]uint64

func (b *bitmap) set(hash uint64) { b[hash>>6%uint64(len(b))] |= 1 << (hash & 63) }

func (b *bitmap) has(hash uint64) bool { return b[hash>>6%uint64(len(b))]&(1<<(hash&63)) != 0 }
