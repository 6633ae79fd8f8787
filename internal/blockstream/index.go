package blockstream

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/prometheus/prometheus/tsdb/index"
	"golang.org/x/sys/unix"
)

// releaseEvery is after how many series the index is let go from memory.
const releaseEvery = 1 << 16

// mapped is an index file in memory, as far as it was touched.
type mapped []byte

func (m mapped) Len() int                    { return len(m) }
func (m mapped) Range(start, end int) []byte { return m[start:end] }

// indexReader is the TSDB's, whose pages do not stay in memory.
type indexReader struct {
	*index.Reader
	file *fileutil.MmapFile
	read int // series
}

// Index implements tsdb.BlockReader.
func (b *Block) Index() (tsdb.IndexReader, error) {
	path := b.index.path
	if path == "" {
		path = filepath.Join(b.cfg.Dir, indexFile)
		if err := fetch(b.index, b.cfg.Dir); err != nil {
			return nil, fmt.Errorf("bring the index: %w", err)
		}
	}
	if b.index.Size < index.HeaderLen {
		return nil, fmt.Errorf("the index has %d bytes", b.index.Size)
	}
	file, err := fileutil.OpenMmapFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	reader, err := index.NewReader(mapped(file.Bytes()), index.DecodePostingsRaw)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the index: %w", err), file.Close())
	}
	return &indexReader{Reader: reader, file: file}, nil
}

// Series implements tsdb.IndexReader.
func (r *indexReader) Series(ref storage.SeriesRef, builder *labels.ScratchBuilder, metas *[]chunks.Meta) error {
	if r.read++; r.read%releaseEvery == 0 {
		release(r.file.Bytes())
	}
	return r.Reader.Series(ref, builder, metas)
}

// Close implements tsdb.IndexReader.
func (r *indexReader) Close() error { return errors.Join(r.Reader.Close(), r.file.Close()) }

// release lets go of the memory behind a mapped file. What is read of it afterwards
// comes from the file again. It is a request that may be refused.
func release(b []byte) { _ = unix.Madvise(b, unix.MADV_DONTNEED) }
