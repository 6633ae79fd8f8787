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

// stagedDir is the folder in that of a block for what was staged. What arrives there late
// changes nothing of the block, and goes with it.
const stagedDir = "upload"

func stagedPrefix(id tenant.ID, block ulid.ULID) string { return blockKey(id, block, stagedDir) }

// IsWhole tells whether the bucket has the block whole.
func (s *Store) IsWhole(ctx context.Context, id tenant.ID, block ulid.ULID) (bool, error) {
	return s.bucket.Exists(ctx, blockKey(id, block, metaFile))
}

// Stage keeps a file for a block that has no meta.json yet, beside those of the block, so
// that nobody ever sees it. r must give size bytes. PublishStaged makes the block; what is
// left without one is cleaned up as a partial block.
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
	if err := s.bucket.Upload(ctx, stagedPrefix(id, block)+"/"+file, sized); err != nil {
		return fmt.Errorf("stage %s of block %s of tenant %s: %w", file, block, id, err)
	}
	return nil
}

// Staged lists the files that were staged.
func (s *Store) Staged(ctx context.Context, id tenant.ID, block ulid.ULID) ([]File, error) {
	return (&Foreign{bucket: s.bucket}).Block(ctx, stagedPrefix(id, block))
}

// FetchStaged copies the files that were staged to the folder dir.
func (s *Store) FetchStaged(ctx context.Context, id tenant.ID, block ulid.ULID, files []File, dir string) error {
	return (&Foreign{bucket: s.bucket}).Fetch(ctx, stagedPrefix(id, block), files, dir, func(int64) {})
}

// PublishStaged makes the block visible with the files in dir, which FetchStaged brought
// there and the caller has checked, and with meta; then it removes what was staged. A block
// that is whole already stays as it is.
func (s *Store) PublishStaged(ctx context.Context, id tenant.ID, dir string, meta []byte) error {
	block, _, err := localBlock(dir)
	if err != nil {
		return err
	}
	whole, err := s.IsWhole(ctx, id, block)
	if err != nil {
		return err
	}
	if !whole {
		// What an attempt before left may have the same sizes and other bytes.
		if err := s.removeFiles(ctx, blockPrefix(id, block)); err != nil {
			return err
		}
		if err := s.UploadAs(ctx, id, dir, meta); err != nil {
			return err
		}
	}
	return s.removeFiles(ctx, stagedPrefix(id, block))
}

// removeFiles removes the files of a block that lie in the folder dir of the bucket.
func (s *Store) removeFiles(ctx context.Context, dir string) error {
	files, err := (&Foreign{bucket: s.bucket}).Block(ctx, dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := s.remove(ctx, dir+"/"+file.Name); err != nil {
			return fmt.Errorf("remove %s: %w", file.Name, err)
		}
	}
	return nil
}
