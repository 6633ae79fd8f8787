package blockcheck

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/storage"
)

// sums holds, for each name of a label, a sum over the pairs of its values and the series
// that have them. It does not depend on the order, so the sum over the series and the sum
// over the postings are the same if, and but for one chance in 2^64 only if, the postings
// say what the series say.
type sums map[string]uint64

func (s sums) add(name, value string, ref storage.SeriesRef) {
	s[name] += pair(xxhash.Sum64String(value), ref)
}

// pair mixes the hash of a value with a series; every bit depends on all others.
func pair(value uint64, ref storage.SeriesRef) uint64 {
	x := value ^ uint64(ref)*0x9e3779b97f4a7c15
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return x ^ x>>32
}

// postings compares the postings of each label with the series.
func (w *walk) postings(ctx context.Context) error {
	names, err := w.index.LabelNames(ctx)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(w.sums)) {
		if !slices.Contains(names, name) {
			if err := w.fault(fmt.Errorf("label %q: there are series with it, and no postings", name)); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		sum, err := w.sumOf(ctx, name)
		if err != nil {
			err = fmt.Errorf("label %q: %w", name, err)
		} else if sum != w.sums[name] {
			err = fmt.Errorf("label %q: the postings name other series than have it", name)
		}
		if err != nil {
			if err := w.fault(err); err != nil {
				return err
			}
		}
	}
	return nil
}

// sumOf returns the sum over the postings of a label.
func (w *walk) sumOf(ctx context.Context, name string) (uint64, error) {
	values, err := w.index.SortedLabelValues(ctx, name, nil)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, value := range values {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		postings, err := w.index.Postings(ctx, name, value)
		if err != nil {
			return 0, fmt.Errorf("value %q: %w", value, err)
		}
		hash, first, last := xxhash.Sum64String(value), true, storage.SeriesRef(0)
		for postings.Next() {
			ref := postings.At()
			if !first && ref <= last {
				return 0, fmt.Errorf("value %q: series %d comes after series %d", value, ref, last)
			}
			first, last = false, ref
			sum += pair(hash, ref)
		}
		if err := postings.Err(); err != nil {
			return 0, fmt.Errorf("value %q: %w", value, err)
		}
	}
	return sum, nil
}
