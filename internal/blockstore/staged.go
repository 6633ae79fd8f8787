package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// ErrBlockFile says that a name is not that of a file of a block that holds data.
var ErrBlockFile = errors.New("a block has index, tombstones and chunks/000001 and so on, no such file")

// IsWhole tells whether the bucket has the block whole.
func (s *Store) IsWhole(ctx context.Context, id tenant.ID, block ulid.ULID) (bool, error) {
	return s.bucket.Exists(ctx, blockKey(id, block, metaFile))
}

// Stage puts a file of a block that has no meta.json yet, which nobody sees. r must give
// size bytes. UploadAs completes the block; one that is left is cleaned up as a partial one.
func (s *Store) Stage(ctx context.Context, id tenant.ID, block ulid.ULID, file string, size int64, r io.Reader) error {
	if file == metaFile || !isBlockFile(file) {
		return fmt.Errorf("%q: %w", file, ErrBlockFile)
	}
	left := size
	exact := readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		left -= int64(n)
		switch {
		case left < 0:
			return n, fmt.Errorf("there are more than the %d bytes that were announced", size)
		case errors.Is(err, io.EOF) && left > 0:
			return n, fmt.Errorf("%d bytes of %d are missing: %w", left, size, io.ErrUnexpectedEOF)
		}
		return n, err
	})
	sized := objstore.ObjectSizerReadCloser{ReadCloser: io.NopCloser(exact), Size: func() (int64, error) { return size, nil }}
	if err := s.bucket.Upload(ctx, blockKey(id, block, file), sized); err != nil {
		return fmt.Errorf("stage %s of block %s of tenant %s: %w", file, block, id, err)
	}
	return nil
}

// Staged lists the files that were staged.
func (s *Store) Staged(ctx context.Context, id tenant.ID, block ulid.ULID) ([]File, error) {
	return (&Foreign{bucket: s.bucket}).Block(ctx, blockPrefix(id, block))
}

// FetchStaged copies the files that were staged to the folder dir.
func (s *Store) FetchStaged(ctx context.Context, id tenant.ID, block ulid.ULID, files []File, dir string) error {
	return (&Foreign{bucket: s.bucket}).Fetch(ctx, blockPrefix(id, block), files, dir, func(int64) {})
}
