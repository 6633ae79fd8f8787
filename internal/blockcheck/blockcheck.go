// Package blockcheck reads a block and says what is wrong with it: whether its index is
// whole and in order, whether the chunks lie where and when the index says, and, on
// request, whether each of them can be decoded and each posting belongs to its series.
// Memory is bounded whatever the block's size. It repairs nothing.
package blockcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/prometheus/prometheus/tsdb"
)

// ErrDamaged says that a block cannot be read, and that trying again cannot help.
var ErrDamaged = errors.New("the block is damaged")

// Depth says how much of a block is read.
type Depth int

const (
	// Quick reads every series of the index, in order, with the ranges of its chunks
	// (a compaction would cut off what is outside that of the block), and the last chunk
	// of each segment, so that no segment ends early.
	Quick Depth = iota
	// Full reads and decodes each chunk too, and compares the postings with the series.
	Full
)

// Census is what a block holds.
type Census struct {
	Series, Chunks int
	// Overlapping counts the series with chunks that overlap. It is no damage: readers
	// merge them, see package disjoint.
	Overlapping int
	// Samples is counted by Full alone.
	Samples    uint64
	Tombstones uint64
}

// Dir checks the block in a directory. An error wraps ErrDamaged if the block is at
// fault and not the machine; it names the first fault.
func Dir(ctx context.Context, dir string, depth Depth) (Census, error) {
	return inDir(ctx, dir, checker{depth: depth})
}

// Faults is Dir, but goes on after a fault where it can: report is told of each. An
// error is one of the machine.
func Faults(ctx context.Context, dir string, depth Depth, report func(error)) (Census, error) {
	found, err := inDir(ctx, dir, checker{depth: depth, report: report})
	if errors.Is(err, ErrDamaged) {
		report(err)
		err = nil
	}
	return found, err
}

// Reader checks a block wherever it is read from, like Dir.
func Reader(ctx context.Context, block tsdb.BlockReader, depth Depth) (found Census, err error) {
	defer recovered(&err)
	found, err = checker{depth: depth}.check(ctx, block)
	if err != nil {
		return Census{}, damaged(err)
	}
	return found, nil
}

func inDir(ctx context.Context, dir string, c checker) (found Census, err error) {
	defer recovered(&err)
	if err := checkSegments(filepath.Join(dir, "chunks")); err != nil {
		return Census{}, damaged(err)
	}
	block, err := tsdb.OpenBlock(nil, dir, nil, nil)
	if err != nil {
		return Census{}, damaged(fmt.Errorf("open: %w", err))
	}
	defer block.Close()
	found, err = c.check(ctx, block)
	if err != nil {
		return found, damaged(err)
	}
	return found, nil
}

// recovered makes an error of a panic: the decoders of the TSDB check what they read, but
// not against everything.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: reading it panics: %v", ErrDamaged, r)
	}
}

// CheckStats compares what the meta.json of a block states with what a check found. Stats
// that are all 0 state nothing.
func CheckStats(stats tsdb.BlockStats, found Census, depth Depth) error {
	switch {
	case stats == tsdb.BlockStats{}:
		return nil
	case stats.NumSeries != uint64(found.Series):
		return fmt.Errorf("%w: meta.json states %d series, there are %d", ErrDamaged, stats.NumSeries, found.Series)
	case stats.NumChunks != uint64(found.Chunks):
		return fmt.Errorf("%w: meta.json states %d chunks, there are %d", ErrDamaged, stats.NumChunks, found.Chunks)
	case depth == Full && stats.NumSamples != found.Samples:
		return fmt.Errorf("%w: meta.json states %d samples, there are %d", ErrDamaged, stats.NumSamples, found.Samples)
	}
	return nil
}

// damaged wraps err as the fault of a block, unless it is one of the machine.
func damaged(err error) error {
	if IsEnvironment(err) || errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// IsEnvironment tells whether err is due to the machine, or to a shutdown, rather
// than to what was read.
func IsEnvironment(err error) bool {
	for _, known := range []error{
		context.Canceled, context.DeadlineExceeded,
		syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES, syscall.EPERM,
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// checkSegments checks that no segment is missing between others. References to
// chunks count the segments that are there, so they would lead to other chunks.
func checkSegments(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for i, entry := range entries {
		number, err := strconv.ParseUint(entry.Name(), 10, 64)
		if err != nil || number != uint64(i+1) {
			return fmt.Errorf("segment %06d of the chunks is missing, there is %s instead", i+1, entry.Name())
		}
	}
	return nil
}
