package querier

import (
	"math"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// trim returns a block whose tombstones hide all samples outside of a time range, so that
// whoever selects from it needs not trim: Prometheus does so by tombstones, too, but
// panics when it adds those after the end to others that reach there
// (tombstones.Intervals.Add with an interval without end).
func trim(block tsdb.BlockReader, within timeRange) tsdb.BlockReader {
	return trimmed{block, within}
}

type trimmed struct {
	tsdb.BlockReader
	timeRange
}

// Tombstones implements tsdb.BlockReader.
func (b trimmed) Tombstones() (tombstones.Reader, error) {
	stones, err := b.BlockReader.Tombstones()
	if err != nil {
		return nil, err
	}
	meta := b.Meta()
	return &trimmedStones{Reader: stones, timeRange: b.timeRange, inside: meta.MinTime >= b.mint && meta.MaxTime-1 <= b.maxt}, nil
}

type trimmedStones struct {
	tombstones.Reader
	timeRange
	inside bool // the block has no samples outside of it
}

// Get implements tombstones.Reader.
func (s *trimmedStones) Get(ref storage.SeriesRef) (tombstones.Intervals, error) {
	inner, err := s.Reader.Get(ref)
	if err != nil || s.inside {
		return inner, err
	}
	return trimIntervals(inner, s.timeRange), nil
}

// trimIntervals adds all times outside of within to intervals, which are sorted and do
// not overlap.
func trimIntervals(intervals tombstones.Intervals, within timeRange) tombstones.Intervals {
	out := make(tombstones.Intervals, 0, len(intervals)+2)
	if within.mint > math.MinInt64 {
		out = append(out, tombstones.Interval{Mint: math.MinInt64, Maxt: within.mint - 1})
	}
	add := func(i tombstones.Interval) {
		if last := len(out) - 1; last >= 0 && (out[last].Maxt == math.MaxInt64 || i.Mint <= out[last].Maxt+1) {
			out[last].Maxt = max(out[last].Maxt, i.Maxt)
			return
		}
		out = append(out, i)
	}
	for _, i := range intervals {
		add(i)
	}
	if within.maxt < math.MaxInt64 {
		after := tombstones.Interval{Mint: within.maxt + 1, Maxt: math.MaxInt64}
		for len(out) > 0 && out[len(out)-1].Mint >= after.Mint {
			out = out[:len(out)-1]
		}
		add(after)
	}
	return out
}
