package remoteblock

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/pagefile"
)

// Range is a part of a file: the bytes from Start (inclusive) to End (exclusive).
type Range = pagefile.Range

func part(start, end int64) Range { return Range{Start: start, End: end} }

// file is a file of a block, on this machine or elsewhere. It is safe for concurrent
// use.
type file interface {
	// Load makes ranges resident, and returns how many bytes were fetched for it. It MAY
	// make more than that resident.
	Load(ctx context.Context, ranges ...Range) (fetched int64, err error)
	// ReadAt reads bytes that are resident. It MUST return an error if they are not.
	ReadAt(p []byte, off int64) (int, error)
	Size() int64
	// Release ends the use of the file.
	Release()
}

// localFile is a file on this machine: there is nothing to load.
type localFile struct {
	f    *os.File
	size int64
}

func newLocalFile(f *os.File) (*localFile, error) {
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return &localFile{f: f, size: info.Size()}, nil
}

func (*localFile) Load(context.Context, ...Range) (int64, error) { return 0, nil }

func (l *localFile) ReadAt(p []byte, off int64) (int, error) { return l.f.ReadAt(p, off) }

func (l *localFile) Size() int64 { return l.size }

func (l *localFile) Release() { _ = l.f.Close() } // nothing was written

// memoryFile is a file that is in memory as a whole.
type memoryFile []byte

func (memoryFile) Load(context.Context, ...Range) (int64, error) { return 0, nil }

func (m memoryFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (m memoryFile) Size() int64 { return int64(len(m)) }

func (memoryFile) Release() {}

// The files of a block, relative to it.
const (
	indexName      = "index"
	tombstonesName = "tombstones"
	segmentPrefix  = "chunks/"
)

// layout is the files of a block. It is immutable.
type layout struct {
	index      int64 // size in bytes
	tombstones int64 // size in bytes; 0: there is none
	segments   []blockstore.File
}

// newLayout sorts the files of a block. It refuses a set of files with a gap: the
// number in a reference to a chunk is the position of its segment.
func newLayout(files []blockstore.File) (layout, error) {
	l := layout{index: -1}
	numbers := make(map[int]blockstore.File, len(files))
	for _, f := range files {
		switch segment, isSegment := strings.CutPrefix(f.Name, segmentPrefix); {
		case f.Name == indexName:
			l.index = f.Size
		case f.Name == tombstonesName:
			l.tombstones = f.Size
		case isSegment:
			n, err := strconv.Atoi(segment)
			if err != nil || n < 1 {
				return layout{}, damagef("%q is no name of a segment", f.Name)
			}
			numbers[n] = f
		}
	}
	if l.index < 0 {
		return layout{}, damagef("there is no index")
	}
	for n := 1; n <= len(numbers); n++ {
		f, ok := numbers[n]
		if !ok {
			return layout{}, damagef("segment %s%06d is missing", segmentPrefix, n)
		}
		l.segments = append(l.segments, f)
	}
	return l, nil
}

// files is the opposite of newLayout.
func (l *layout) files() []blockstore.File {
	files := append([]blockstore.File{{Name: indexName, Size: l.index}}, l.segments...)
	if l.tombstones > 0 {
		files = append(files, blockstore.File{Name: tombstonesName, Size: l.tombstones})
	}
	return files
}

// size returns the bytes of all files.
func (l *layout) size() int64 {
	total := l.index + l.tombstones
	for _, s := range l.segments {
		total += s.Size
	}
	return total
}

// readFull reads a resident part of a file.
func readFull(f file, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF: //nolint:errorlint // io.ReaderAt returns it as it is
		return damagef("the file ends after %d bytes, it had %d", off+int64(n), f.Size())
	}
	return fmt.Errorf("read %d bytes: %w", len(p), err)
}
