package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// File is a file of a block in the bucket.
type File struct {
	// Name is relative to the block: index, chunks/000001, tombstones, or a side file.
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
}

// Files lists the files of a block that hold its data: index, chunks and tombstones, in
// order of name. It fails with ErrBlockNotFound if the block is not whole.
func (s *Store) Files(ctx context.Context, id tenant.ID, block ulid.ULID) ([]File, error) {
	files, err := s.filesHere(ctx, id, block)
	if errors.Is(err, ErrBlockNotFound) && s.previous != nil {
		files, err = s.previous.filesHere(ctx, id, block)
	}
	if err != nil {
		return nil, fmt.Errorf("list the files of block %s of tenant %s: %w", block, id, err)
	}
	return files, nil
}

func (s *Store) filesHere(ctx context.Context, id tenant.ID, block ulid.ULID) ([]File, error) {
	var (
		files []File
		whole bool
	)
	err := s.bucket.Iter(ctx, blockPrefix(id, block), func(name string) error {
		_, _, file, ok := parseKey(name)
		whole = whole || ok && file == metaFile
		if ok && file != metaFile && isBlockFile(file) {
			files = append(files, File{Name: file})
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, err
	}
	if !whole {
		return nil, ErrBlockNotFound
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(metaReads)
	for i := range files {
		group.Go(func() error {
			attrs, err := s.bucket.Attributes(groupCtx, blockKey(id, block, files[i].Name))
			if s.bucket.IsObjNotFoundErr(err) {
				return ErrBlockNotFound
			}
			files[i].Size = attrs.Size
			return err
		})
	}
	return files, group.Wait()
}

// ReadRange fills p with the bytes of a block's file from offset on. It is one request;
// an error may be passing. The file of a block that is gone is ErrBlockNotFound, one that
// is shorter io.ErrUnexpectedEOF.
func (s *Store) ReadRange(ctx context.Context, id tenant.ID, block ulid.ULID, file string, p []byte, offset int64) error {
	err := s.readRange(ctx, blockKey(id, block, file), p, offset)
	if errors.Is(err, ErrBlockNotFound) && s.previous != nil {
		err = s.previous.readRange(ctx, blockKey(id, block, file), p, offset)
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d of %s of block %s of tenant %s: %w", len(p), offset, file, block, id, err)
	}
	return nil
}

func (s *Store) readRange(ctx context.Context, name string, p []byte, offset int64) error {
	r, err := s.bucket.GetRange(ctx, name, offset, int64(len(p)))
	if err == nil {
		_, err = io.ReadFull(r, p)
		err = errors.Join(err, r.Close())
	}
	switch {
	case err == nil:
		return nil
	case s.bucket.IsObjNotFoundErr(err):
		return ErrBlockNotFound
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// InPlace reports whether the bucket is on this machine, so that blocks are read where
// they lie.
func (s *Store) InPlace() bool { return s.local != nil }

// OpenFile opens a block's file where it lies on this machine; ok is false if the bucket
// is elsewhere or there is no such file. It stays readable after the block was deleted.
func (s *Store) OpenFile(id tenant.ID, block ulid.ULID, file string) (f *os.File, ok bool) {
	if s.local != nil {
		if f, err := os.Open(s.local.LocalPath(blockKey(id, block, file))); err == nil {
			return f, true
		}
	}
	if s.previous != nil {
		return s.previous.OpenFile(id, block, file)
	}
	return nil, false
}

// ReadSideFile reads a whole side file of a block, of at most 16 MiB; found is false if
// there is none.
func (s *Store) ReadSideFile(ctx context.Context, id tenant.ID, block ulid.ULID, file string) (content []byte, found bool, err error) {
	content, found, err = s.readSmall(ctx, blockKey(id, block, file))
	if err == nil && !found && s.previous != nil {
		content, found, err = s.previous.readSmall(ctx, blockKey(id, block, file))
	}
	return content, found, err
}

// WriteSideFile writes a file beside those of a block. Nothing may need it to read the
// block; it goes with the block.
func (s *Store) WriteSideFile(ctx context.Context, id tenant.ID, block ulid.ULID, file string, content []byte) error {
	if err := s.bucket.Upload(ctx, blockKey(id, block, file), bytes.NewReader(content)); err != nil {
		return fmt.Errorf("write %s of block %s of tenant %s: %w", file, block, id, err)
	}
	return nil
}
