// Package history writes long histories as blocks, directly and fast: the series and
// values are those that loadgen sends, but nothing is sent. They serve measurements
// and tests of what reads, compacts and imports blocks.
//
// A history is a pure function of its Config: the same one gives the same bytes.
package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/loadgen"
)

// Config says which samples a history has and how they are stored.
type Config struct {
	// Seed tells histories apart that are otherwise equal.
	Seed uint64
	// Series is how many series there are: see Mix.
	Series int
	// Interval is the time from one sample of a series to the next.
	Interval time.Duration
	// Start and End bound the time. They are multiples of Block since the epoch.
	Start, End time.Time
	// Block is the length of each block: 2 h for those that an ingester cuts.
	Block time.Duration
	// Encoding is that of the chunks.
	Encoding chunkenc.Encoding
	// ChunkSamples is how many samples a chunk holds at most. An ingester writes 120.
	ChunkSamples int
	// Joined joins the chunks of a series in each block, as the compactor does.
	Joined bool
	// Plain takes the series as loadgen numbers them instead of choosing by Mix.
	Plain bool
}

// Year is the history that a year's queries are measured on: 1,000 series at 60 s.
func Year() Config {
	return Config{
		Seed: 1, Series: 1000, Interval: time.Minute,
		Start: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), End: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Block: 24 * time.Hour, Encoding: chunkenc.EncXOR2, ChunkSamples: 120,
	}
}

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(c.Series < 1, "series: %d is below 1", c.Series)
	fault(c.Block <= 0 || c.Block%time.Millisecond != 0, "block: %s is not a positive number of milliseconds", c.Block)
	if c.Block > 0 {
		for _, t := range []time.Time{c.Start, c.End} {
			fault(t.UnixMilli()%c.Block.Milliseconds() != 0, "%s is no multiple of %s since the epoch", t.UTC().Format(time.RFC3339), c.Block)
		}
	}
	fault(!c.Start.Before(c.End), "start: %s is not before the end, %s", c.Start.UTC().Format(time.RFC3339), c.End.UTC().Format(time.RFC3339))
	fault(c.Encoding != chunkenc.EncXOR && c.Encoding != chunkenc.EncXOR2, "encoding: %s is neither XOR nor XOR2", c.Encoding)
	fault(c.ChunkSamples < 1 || c.ChunkSamples > 1<<16-1, "chunk samples: %d is outside 1 to 65535", c.ChunkSamples)
	return errors.Join(errs...)
}

// series is one of a block, with its labels.
type series struct {
	labels labels.Labels
	stream loadgen.Stream
}

// Write writes the blocks of c into dir, a folder each, as many at once as there are
// processors. Blocks that are there already are kept, so that what was interrupted can
// be taken up. It returns how many samples dir now holds of c.
func Write(ctx context.Context, c Config, dir string) (samples uint64, err error) {
	if err := c.Validate(); err != nil {
		return 0, fmt.Errorf("write a history: %w", err)
	}
	streams, err := Mix(c)
	if err != nil {
		return 0, fmt.Errorf("write a history: %w", err)
	}
	all := make([]series, len(streams))
	for i, s := range streams {
		all[i] = series{labels: s.Labels(), stream: s}
	}
	slices.SortFunc(all, func(a, b series) int { return labels.Compare(a.labels, b.labels) })
	table := symbols(all)

	var starts []int64
	for t := c.Start.UnixMilli(); t < c.End.UnixMilli(); t += c.Block.Milliseconds() {
		starts = append(starts, t)
	}
	counts := make([]uint64, len(starts))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, mint := range starts {
		group.Go(func() (err error) {
			b := blockWriter{cfg: c, mint: mint, maxt: mint + c.Block.Milliseconds(), series: all, symbols: table}
			counts[i], err = b.write(ctx, dir)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, fmt.Errorf("write a history: %w", err)
	}
	for _, n := range counts {
		samples += n
	}
	return samples, nil
}

// symbols returns all strings of the labels in order, each once.
func symbols(all []series) []string {
	seen := map[string]struct{}{}
	for _, s := range all {
		s.labels.Range(func(l labels.Label) {
			seen[l.Name] = struct{}{}
			seen[l.Value] = struct{}{}
		})
	}
	table := make([]string, 0, len(seen))
	for s := range seen {
		table = append(table, s)
	}
	slices.Sort(table)
	return table
}

// Size returns the bytes of all files below dir whose path relative to it keep accepts.
func Size(dir string, keep func(path string) bool) (int64, error) {
	total := int64(0)
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !keep(path[len(dir):]) {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
