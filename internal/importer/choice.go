package importer

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/samples"
)

const (
	// choiceWindow is the time for which one replica of a series is chosen. Shorter ones
	// lose less beside a gap; longer ones change less often between clocks and phases.
	choiceWindow = int64(10 * time.Minute / time.Millisecond)
	// choiceSlack is how many samples more another replica must have in a window to be
	// taken instead of the one before it: the phase of scraping makes one.
	choiceSlack = 1
)

// mergeReplicas merges series of replicas, of which replica k is that of set k. Two
// Prometheus servers that scrape the same target do it at different moments and see
// different values, so their samples are never interleaved: for each series, one
// replica is chosen for each window, the one with most samples, and rather the one before.
func mergeReplicas(sets []storage.ChunkSeriesSet, replicas []string) storage.ChunkSeriesSet {
	tagged := make([]storage.ChunkSeriesSet, len(sets))
	for k, set := range sets {
		tagged[k] = taggedSet{set, replicas[k]}
	}
	within := storage.NewCompactingChunkSeriesMerger(storage.ChainedSeriesMerge)
	return storage.NewMergeChunkSeriesSet(tagged, 0, func(series ...storage.ChunkSeries) storage.ChunkSeries {
		byReplica := make(map[string][]storage.ChunkSeries)
		for _, s := range series {
			name := s.(taggedSeries).replica
			byReplica[name] = append(byReplica[name], s)
		}
		var each []storage.ChunkSeries
		for _, name := range slices.Sorted(maps.Keys(byReplica)) {
			members := byReplica[name]
			if len(members) == 1 {
				each = append(each, members[0])
			} else {
				each = append(each, within(members...))
			}
		}
		if len(each) == 1 {
			return each[0]
		}
		return chosen(each)
	})
}

// taggedSet remembers of which replica its series are.
type taggedSet struct {
	storage.ChunkSeriesSet
	replica string
}

// At implements storage.ChunkSeriesSet.
func (s taggedSet) At() storage.ChunkSeries { return taggedSeries{s.ChunkSeriesSet.At(), s.replica} }

type taggedSeries struct {
	storage.ChunkSeries
	replica string
}

// chosen returns the series that has, in each window, the samples of one of replicas.
func chosen(replicas []storage.ChunkSeries) storage.ChunkSeries {
	return &storage.ChunkSeriesEntry{
		Lset: replicas[0].Labels(),
		ChunkIteratorFn: func(it chunks.Iterator) chunks.Iterator {
			all := make([][]chunks.Sample, len(replicas))
			for k, r := range replicas {
				var err error
				if all[k], err = samples.Of(r); err != nil {
					return failed{err}
				}
			}
			series := storage.NewListSeries(replicas[0].Labels(), choose(all))
			return storage.NewSeriesToChunkEncoderWithFloatEncoding(series, chunkenc.EncXOR2).Iterator(it)
		},
	}
}

// choose picks for each window the samples of one replica. The samples of each are in order.
func choose(replicas [][]chunks.Sample) []chunks.Sample {
	var out []chunks.Sample
	rest := slices.Clone(replicas)
	last := -1 // the replica of the window before
	for {
		start, found := int64(0), false
		for _, left := range rest {
			if len(left) > 0 && (!found || left[0].T() < start) {
				start, found = left[0].T(), true
			}
		}
		if !found {
			return out
		}
		end := floor(start, choiceWindow) + choiceWindow
		best := -1
		counts := make([]int, len(rest))
		for k, left := range rest {
			counts[k], _ = slices.BinarySearchFunc(left, end, func(s chunks.Sample, t int64) int { return cmp.Compare(s.T(), t) })
			if best < 0 || counts[k] > counts[best] {
				best = k
			}
		}
		if last >= 0 && counts[last] > 0 && counts[last]+choiceSlack >= counts[best] {
			best = last
		}
		out = append(out, rest[best][:counts[best]]...)
		last = best
		for k := range rest {
			rest[k] = rest[k][counts[k]:]
		}
	}
}

// failed is an iterator that could not be made.
type failed struct{ err error }

// Next implements chunks.Iterator.
func (failed) Next() bool { return false }

// At implements chunks.Iterator.
func (failed) At() chunks.Meta { return chunks.Meta{} }

// Err implements chunks.Iterator.
func (f failed) Err() error { return f.err }
