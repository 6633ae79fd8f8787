package compactor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

// errDamaged says that a block cannot be read, and that trying again cannot help.
var errDamaged = errors.New("the block is damaged")

// census is what an index holds.
type census struct {
	series, chunks int
	tombstones     uint64
}

// verify reads the index of the block in dir: every series, in order, with its
// chunks inside the range that meta.json states (a compaction would cut off what is
// outside), and the last chunk of each segment, so that no segment ends early. With
// deep it reads and decodes each chunk. An error wraps errDamaged if the block is
// at fault and not the machine.
func verify(ctx context.Context, dir string, deep bool) (found census, err error) {
	defer func() {
		// The decoders of the TSDB check what they read, but not against everything.
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: reading it panics: %v", errDamaged, r)
		}
	}()
	if err := checkSegments(filepath.Join(dir, "chunks")); err != nil {
		return census{}, damaged(err)
	}
	block, err := tsdb.OpenBlock(nil, dir, nil, nil)
	if err != nil {
		return census{}, damaged(fmt.Errorf("open: %w", err))
	}
	defer block.Close()
	found, err = count(ctx, block, deep)
	if err != nil {
		return census{}, damaged(err)
	}
	return found, nil
}

// damaged wraps err as the fault of a block, unless it is one of the machine.
func damaged(err error) error {
	if isEnvironment(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errDamaged, err)
}

// isEnvironment tells whether err is due to the machine, or to a shutdown, rather
// than to what was read.
func isEnvironment(err error) bool {
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

func count(ctx context.Context, block *tsdb.Block, deep bool) (census, error) {
	indexReader, err := block.Index()
	if err != nil {
		return census{}, err
	}
	defer indexReader.Close()
	chunkReader, err := block.Chunks()
	if err != nil {
		return census{}, err
	}
	defer chunkReader.Close()
	tombstoneReader, err := block.Tombstones()
	if err != nil {
		return census{}, err
	}
	defer tombstoneReader.Close()

	found := census{tombstones: tombstoneReader.Total()}
	name, value := index.AllPostingsKey()
	postings, err := indexReader.Postings(ctx, name, value)
	if err != nil {
		return census{}, err
	}
	var (
		builder  labels.ScratchBuilder
		metas    []chunks.Meta
		previous labels.Labels
		last     = make(map[int]chunks.Meta) // by segment
	)
	for postings.Next() {
		if err := ctx.Err(); err != nil {
			return census{}, err
		}
		if err := indexReader.Series(postings.At(), &builder, &metas); err != nil {
			return census{}, fmt.Errorf("series %d: %w", postings.At(), err)
		}
		current := builder.Labels()
		if found.series > 0 && labels.Compare(previous, current) >= 0 {
			return census{}, fmt.Errorf("series %s comes after series %s", current, previous)
		}
		previous = current
		if err := checkChunks(block.Meta(), metas); err != nil {
			return census{}, fmt.Errorf("series %s: %w", current, err)
		}
		if deep {
			if err := readChunks(chunkReader, metas); err != nil {
				return census{}, fmt.Errorf("series %s: %w", current, err)
			}
		}
		for _, meta := range metas {
			segment, _ := chunks.BlockChunkRef(meta.Ref).Unpack()
			if meta.Ref >= last[segment].Ref {
				last[segment] = meta
			}
		}
		found.series++
		found.chunks += len(metas)
	}
	if err := postings.Err(); err != nil {
		return census{}, err
	}
	for segment, meta := range last {
		if err := readChunks(chunkReader, []chunks.Meta{meta}); err != nil {
			return census{}, fmt.Errorf("the end of segment %06d: %w", segment+1, err)
		}
	}
	return found, nil
}

// checkChunks checks the ranges of a series' chunks.
func checkChunks(meta tsdb.BlockMeta, metas []chunks.Meta) error {
	for _, chunk := range metas {
		if chunk.MinTime > chunk.MaxTime || chunk.MinTime < meta.MinTime || chunk.MaxTime >= meta.MaxTime {
			return fmt.Errorf("the chunk from %d to %d is not in the range that meta.json states, %d to %d",
				chunk.MinTime, chunk.MaxTime, meta.MinTime, meta.MaxTime)
		}
	}
	return nil
}

// readChunks reads and decodes the chunks of a series.
func readChunks(reader tsdb.ChunkReader, metas []chunks.Meta) error {
	for i, meta := range metas {
		if i > 0 && meta.MinTime <= metas[i-1].MaxTime {
			return fmt.Errorf("the chunk from %d overlaps the one before, which ends at %d", meta.MinTime, metas[i-1].MaxTime)
		}
		chunk, _, err := reader.ChunkOrIterable(meta)
		if err != nil {
			return fmt.Errorf("chunk from %d: %w", meta.MinTime, err)
		}
		samples, last := 0, int64(0)
		it := chunk.Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			if at := it.AtT(); samples > 0 && at <= last {
				return fmt.Errorf("chunk from %d: the sample at %d comes after one at %d", meta.MinTime, at, last)
			}
			last = it.AtT()
			samples++
		}
		if err := it.Err(); err != nil {
			return fmt.Errorf("chunk from %d: %w", meta.MinTime, err)
		}
		if samples != chunk.NumSamples() {
			return fmt.Errorf("chunk from %d: it has %d samples of %d", meta.MinTime, samples, chunk.NumSamples())
		}
	}
	return nil
}
