package ingester

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/prometheus/prometheus/util/compression"
)

// When a chunk of late samples is full, the TSDB puts it into the buffer of the head's files, and
// a marker into the log of late samples: who replays that need not keep the samples before it.
// The marker is on disk at once, the chunk when the buffer is full, 64 KiB later. A replay takes
// a marker for void if no chunk is after it in the files. It fills chunks again, and writes them
// to the files, without markers. A kill then leaves some of them: enough for the next replay to
// take the old markers for good, and forget samples whose chunks were in the buffer again. And
// while late samples are cut, the first of a series gets a marker that names no chunk: all
// before it are in chunks, which again may be in the buffer, and the block is not ready.
//
// So all markers but those of chunks that are there are taken out of the log before it is
// replayed. Without a marker samples are found twice at the worst.

// dropMarkers does so in the folder of a TSDB that is closed. room reports whether the disk has
// room for so many bytes.
func dropMarkers(dir string, room func(bytes uint64) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("look for markers of chunks that are not there in the log of late samples: %w", err)
		}
	}()
	whole, err := endsWithSnapshot(dir)
	if err != nil || whole { // Then the buffer was written out.
		return err
	}
	if err := dropVoidChunks(dir); err != nil {
		return err
	}
	log := filepath.Join(dir, lateLogFolder)
	found, err := findMarkers(log)
	if err != nil || len(found) == 0 {
		return err
	}
	newest := newestChunk(filepath.Join(dir, chunksFolder))
	for segment, m := range found {
		if !isVoid(m.oldest, newest) && !isVoid(m.newest, newest) {
			continue
		}
		if err := withoutMarkers(log, segment, newest, room); err != nil {
			return err
		}
	}
	return nil
}

// chunksVoid is the file in the folder of a tenant which says that the head's files may have
// chunks of late samples which were deleted since, of series that the head did not have any
// more: see lateCuts. The logs have everything else that is in those files.
const chunksVoid = "chunks_head_void"

// dropVoidChunks removes what the logs are to be read without.
func dropVoidChunks(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, chunksVoid)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A snapshot stands for a part of the log, whose chunks are in the files.
	if err := errors.Join(removeSnapshots(dir), os.RemoveAll(filepath.Join(dir, chunksFolder))); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, chunksVoid))
}

// isVoid reports whether a marker of that chunk is void if the newest chunk that is there is newest.
func isVoid(marked, newest chunks.ChunkDiskMapperRef) bool {
	return marked == 0 || marked.GreaterThan(newest)
}

// endsWithSnapshot reports whether there is a snapshot of the head as it was after all that
// the log has.
func endsWithSnapshot(dir string) (bool, error) {
	_, last, err := wlog.Segments(filepath.Join(dir, logFolder))
	if errors.Is(err, fs.ErrNotExist) || err == nil && last < 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	end, err := os.Stat(wlog.SegmentName(filepath.Join(dir, logFolder), last))
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(filepath.Join(dir, tsdbFolder, snapshotsVoid)); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, segment, offset, err := tsdb.LastChunkSnapshot(filepath.Join(dir, tsdbFolder))
	if err != nil {
		return false, nil //nolint:nilerr // There is none, or none that the TSDB would take.
	}
	return segment == last && int64(offset) == end.Size(), nil
}

// markers are the chunks that a segment of the log marks: the places of the first and the last.
type markers struct{ oldest, newest chunks.ChunkDiskMapperRef }

// findMarkers returns the markers of each segment of the log that has any.
func findMarkers(log string) (map[int]markers, error) {
	first, last, err := wlog.Segments(log)
	if errors.Is(err, fs.ErrNotExist) || err == nil && last < 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, dec := map[int]markers{}, newMarkerDecoder()
	for segment := first; segment <= last; segment++ {
		err := eachRecord(log, segment, func(rec []byte) error {
			inRecord, err := markersIn(&dec, rec)
			for _, m := range inRecord {
				all, ok := found[segment]
				if !ok {
					all.oldest = m.MmapRef
				}
				found[segment] = markers{oldest: min(all.oldest, m.MmapRef), newest: max(all.newest, m.MmapRef)}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func newMarkerDecoder() record.Decoder {
	return record.NewDecoder(labels.NewSymbolTable(), slog.New(slog.DiscardHandler))
}

// markersIn returns the markers of a record, if it is one of markers.
func markersIn(dec *record.Decoder, rec []byte) ([]record.RefMmapMarker, error) {
	if dec.Type(rec) != record.MmapMarkers {
		return nil, nil
	}
	return dec.MmapMarkers(rec, nil)
}

// eachRecord calls f with the records of a segment, which are f's until it returns. What comes
// after a torn record the TSDB does not read either.
func eachRecord(log string, segment int, f func(rec []byte) error) (err error) {
	file, err := wlog.OpenReadSegment(wlog.SegmentName(log, segment))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	r := wlog.NewReader(wlog.NewSegmentBufReader(file))
	for r.Next() {
		if err := f(r.Record()); err != nil {
			return err
		}
	}
	return nil
}

// newestChunk returns the place of the newest chunk in the head's files; the least there is
// if one can't be read, since a marker too few costs only work.
func newestChunk(dir string) (newest chunks.ChunkDiskMapperRef) {
	files, err := chunks.NewChunkDiskMapper(nil, dir, chunkenc.NewPool(), headWriteBufferBytes, 0)
	if err != nil {
		return 0
	}
	err = files.IterateAllChunks(func(_ chunks.HeadSeriesRef, place chunks.ChunkDiskMapperRef, _, _ int64, _ uint16, _ chunkenc.Encoding, _ bool) error {
		newest = place
		return nil
	})
	if err = errors.Join(err, files.Close()); err != nil {
		return 0
	}
	return newest
}

const (
	// recordsTogether is how many bytes of records are written at once.
	recordsTogether = 1 << 20
	// largestSegment is more than there is in any, compressed ones of a Prometheus included.
	largestSegment = 1 << 40
)

// withoutMarkers writes a segment of the log anew, without the markers that are void, if the
// disk has room for it. It takes the room that writes go on with, so it takes none of the last.
func withoutMarkers(log string, segment int, newest chunks.ChunkDiskMapperRef, room func(bytes uint64) error) (err error) {
	path := wlog.SegmentName(log, segment)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := room(uint64(max(0, info.Size()))); err != nil {
		return err
	}
	next := log + temporarySuffix // goes at the next opening, if this one does not end
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	out, err := wlog.NewSize(nil, nil, next, largestSegment, compression.None)
	if err != nil {
		return err
	}
	var (
		enc     record.Encoder
		dec     = newMarkerDecoder()
		records [][]byte
		size    int
	)
	err = eachRecord(log, segment, func(rec []byte) error {
		markers, err := markersIn(&dec, rec)
		if err != nil {
			return err
		}
		if len(markers) > 0 {
			markers = slices.DeleteFunc(markers, func(m record.RefMmapMarker) bool { return isVoid(m.MmapRef, newest) })
			if len(markers) == 0 {
				return nil
			}
			rec = enc.MmapMarkers(markers, nil)
		}
		records, size = append(records, bytes.Clone(rec)), size+len(rec)
		if size < recordsTogether {
			return nil
		}
		err = out.Log(records...)
		clear(records)
		records, size = records[:0], 0
		return err
	})
	err = errors.Join(err, out.Log(records...))
	if made, _, lookErr := out.LastSegmentAndOffset(); lookErr != nil || made != 0 {
		err = errors.Join(err, lookErr, fmt.Errorf("segment %d does not fit into one", segment))
	}
	written := wlog.SegmentName(next, 0)
	if closeErr := out.Close(); closeErr != nil {
		// It stays open if the disk is full, and would take its room for as long as the process lives.
		err = errors.Join(err, closeErr, os.Truncate(written, 0), out.Close())
	}
	if err = errors.Join(err, syncFile(written)); err == nil { // Closing keeps a failed sync to itself.
		err = fileutil.Rename(written, path)
	}
	return errors.Join(err, os.RemoveAll(next))
}

func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
