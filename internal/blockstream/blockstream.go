// Package blockstream reads whole blocks from beginning to end, as a compaction does,
// where they are: nothing of a block's chunks is kept on disk, and of each block two
// windows of chunks are in memory, the one that is read and the next, which is fetched
// meanwhile. The index, a small part of a block, is brought to a local file unless the
// bucket is on this machine, since symbols are looked up in it at random; what was read
// of it does not stay in memory.
//
// A block is expected to have its chunks in the order of its series, as all writers of
// blocks leave it. Others are read correctly and slowly.
//
// It is not for queries, which want little of a block and the same again.
package blockstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// ErrUnreachable says that something could not be read, which says nothing about the
// block: reading it again may succeed.
var ErrUnreachable = errors.New("the block cannot be read now")

const (
	indexFile      = "index"
	tombstonesFile = "tombstones"
	chunksDir      = "chunks/"

	// attempts is how often a part of a file is asked for before reading fails, and with
	// it what may be the work of an hour.
	attempts = 3

	// minWindow and maxWindow bound the bytes of a window of chunks. Below, requests cost
	// more than their bytes; above, nothing is gained.
	minWindow, maxWindow = 256 << 10, 4 << 20
)

// Window returns the size of windows, in bytes, with which n blocks that are read at the
// same time take budget bytes.
func Window(budget, n int) int {
	return min(max(budget/max(2*n, 1), minWindow), maxWindow)
}

// Config says how a block is read.
type Config struct {
	// Dir is a directory for files of this block alone. It is made if it is needed; the
	// caller removes it after Close.
	Dir string
	// Window is the size of a window of chunks in bytes; see Window. 0 means the smallest.
	Window int
}

// readFunc fills p from offset; a file that ends before is io.ErrUnexpectedEOF.
type readFunc func(p []byte, offset int64) error

// file is a file of a block.
type file struct {
	blockstore.File
	read readFunc
	// path is set if the file is on this machine.
	path string
}

// Block is a block that is read. It implements tsdb.BlockReader. One goroutine may use it.
type Block struct {
	meta     tsdb.BlockMeta
	cfg      Config
	size     int64
	index    file
	segments []file
	stones   tombstones.Reader
	opened   []io.Closer
	advance  []*chunkReader
}

var _ tsdb.BlockReader = (*Block)(nil)

// Open opens a block of the bucket; ctx bounds all that is read of it until Close. An
// error wraps ErrUnreachable or blockstore.ErrBlockNotFound, or says what is wrong with
// the block.
func Open(ctx context.Context, cfg Config, store *blockstore.Store, id tenant.ID, block blockstore.Block) (*Block, error) {
	name := block.Meta.ULID
	listed, err := store.Files(ctx, id, name)
	if err != nil {
		return nil, unreachable(err)
	}
	b := &Block{meta: block.Meta, cfg: cfg}
	files := make([]file, len(listed))
	for i, f := range listed {
		files[i] = file{File: f, read: func(p []byte, offset int64) (err error) {
			for range attempts {
				if err = unreachable(store.ReadRange(ctx, id, name, f.Name, p, offset)); !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
					break
				}
			}
			return err
		}}
		if local, ok := store.OpenFile(id, name, f.Name); ok {
			files[i].read, files[i].path = readLocal(local), local.Name()
			b.opened = append(b.opened, local)
		}
	}
	return b.open(files)
}

// OpenDir opens the block in a directory. Nothing else is written anywhere.
func OpenDir(dir string, meta tsdb.BlockMeta, window int) (*Block, error) {
	b := &Block{meta: meta, cfg: Config{Window: window}}
	segments, err := os.ReadDir(filepath.Join(dir, chunksDir))
	if err != nil {
		return nil, err
	}
	names := []string{indexFile}
	for _, segment := range segments {
		names = append(names, chunksDir+segment.Name())
	}
	if _, err := os.Stat(filepath.Join(dir, tombstonesFile)); err == nil {
		names = append(names, tombstonesFile)
	}
	var files []file
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.opened = append(b.opened, f)
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		files = append(files, file{File: blockstore.File{Name: name, Size: info.Size()}, read: readLocal(f), path: f.Name()})
	}
	return b.open(files)
}

// unreachable tells an error of the bucket from one of the block.
func unreachable(err error) error {
	if err == nil || errors.Is(err, blockstore.ErrBlockNotFound) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

func readLocal(f *os.File) readFunc {
	return func(p []byte, offset int64) error {
		_, err := f.ReadAt(p, offset)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
}

// open sorts out the files of the block and opens index and tombstones.
func (b *Block) open(files []file) (_ *Block, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	b.stones = tombstones.NewMemTombstones()
	for _, f := range files {
		b.size += f.Size
		switch {
		case f.Name == indexFile:
			b.index = f
		case f.Name == tombstonesFile:
			if err := b.readTombstones(f); err != nil {
				return nil, fmt.Errorf("tombstones: %w", err)
			}
		case strings.HasPrefix(f.Name, chunksDir):
			b.segments = append(b.segments, f)
		}
	}
	if b.index.read == nil {
		return nil, errors.New("there is no index")
	}
	return b, b.checkSegments()
}

// checkSegments checks that no segment is missing between others. References to chunks
// count the segments that are there, so they would lead to other chunks.
func (b *Block) checkSegments() error {
	for i, segment := range b.segments {
		name := strings.TrimPrefix(segment.Name, chunksDir)
		if number, err := strconv.ParseUint(name, 10, 64); err != nil || number != uint64(i+1) {
			return fmt.Errorf("segment %06d of the chunks is missing, there is %s instead", i+1, name)
		}
	}
	return nil
}

// maxTombstones bounds the size of a file of tombstones, in bytes; it is read into memory.
const maxTombstones = 64 << 20

func (b *Block) readTombstones(f file) error {
	if f.Size > maxTombstones {
		return fmt.Errorf("the file has %d bytes, more than %d", f.Size, maxTombstones)
	}
	dir := filepath.Dir(f.path)
	if f.path == "" {
		dir = b.cfg.Dir
		if err := fetch(f, dir); err != nil {
			return err
		}
	}
	content, err := os.ReadFile(filepath.Join(dir, tombstonesFile))
	if err != nil {
		return err
	}
	stones, err := mask.DecodeTombstones(content)
	if err != nil {
		return err
	}
	b.stones = stones
	return nil
}

// fetchPart is how much of a file is fetched with one request, in bytes.
const fetchPart = 8 << 20

// fetch copies a file to dir. It is as durable as it need be: not at all.
func fetch(f file, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	local, err := os.Create(filepath.Join(dir, f.Name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, local.Close()) }()
	part := make([]byte, min(f.Size, fetchPart))
	for offset := int64(0); offset < f.Size; offset += int64(len(part)) {
		part = part[:min(int64(len(part)), f.Size-offset)]
		if err := f.read(part, offset); err != nil {
			return err
		}
		if _, err := local.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// Meta implements tsdb.BlockReader.
func (b *Block) Meta() tsdb.BlockMeta { return b.meta }

// Size implements tsdb.BlockReader.
func (b *Block) Size() int64 { return b.size }

// Tombstones implements tsdb.BlockReader.
func (b *Block) Tombstones() (tombstones.Reader, error) { return keepOpen{b.stones}, nil }

// keepOpen keeps tombstones from being closed by one who reads them.
type keepOpen struct{ tombstones.Reader }

// Close implements tombstones.Reader.
func (keepOpen) Close() error { return nil }

// Close ends all reading. Readers of the block must not be used any more.
func (b *Block) Close() error {
	var errs []error
	for _, c := range b.advance {
		errs = append(errs, c.Close())
	}
	for _, c := range b.opened {
		errs = append(errs, c.Close())
	}
	b.advance, b.opened = nil, nil
	return errors.Join(errs...)
}
