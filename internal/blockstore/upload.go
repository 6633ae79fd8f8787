package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// transfers bounds the files of one block that are copied at once.
const transfers = 4

// sourceFile is a file of a block that is to be in the bucket.
type sourceFile struct {
	name string // relative to the block, with slashes
	size int64
	path string // of the file on this machine, "" if it is elsewhere
	open func(context.Context) (io.ReadCloser, error)
}

// Upload copies the block in dir, whose last element is its ULID, into the bucket.
// It can be repeated: what is there already is not copied again. The block is
// visible, and durable, once Upload has returned without an error; before that it
// is not visible. index and chunks in dir must never change, since they may become
// the objects themselves.
func (s *Store) Upload(ctx context.Context, id tenant.ID, dir string) error {
	block, content, err := localBlock(dir)
	if err != nil {
		return fmt.Errorf("upload block %s: %w", dir, err)
	}
	if err := s.upload(ctx, id, block, content); err != nil {
		return fmt.Errorf("upload block %s of tenant %s: %w", block, id, err)
	}
	return nil
}

func (s *Store) upload(ctx context.Context, id tenant.ID, block ulid.ULID, content []sourceFile) error {
	isMeta := func(file sourceFile) bool { return file.name == metaFile }
	meta := content[slices.IndexFunc(content, isMeta)]
	data := slices.DeleteFunc(slices.Clone(content), isMeta)

	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(transfers)
	for _, file := range data {
		group.Go(func() error {
			if s.matches(groupCtx, id, block, file) == nil {
				return nil
			}
			return s.uploadFile(groupCtx, id, block, file)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := s.matches(ctx, id, block, data...); err != nil {
		return err
	}
	if s.matches(ctx, id, block, meta) == nil {
		return nil
	}
	if err := s.uploadFile(ctx, id, block, meta); err != nil {
		return err
	}
	// Whoever saw the block partial a moment ago may be about to clean it up. What is
	// missing now, the next attempt brings back.
	return s.matches(ctx, id, block, content...)
}

// matches returns an error unless the bucket holds an object of each file's size.
func (s *Store) matches(ctx context.Context, id tenant.ID, block ulid.ULID, content ...sourceFile) error {
	for _, file := range content {
		attrs, err := s.bucket.Attributes(ctx, blockKey(id, block, file.name))
		if err != nil {
			return fmt.Errorf("check %s: %w", file.name, err)
		}
		if attrs.Size != file.size {
			return fmt.Errorf("check %s: it has %d bytes in the bucket and %d here", file.name, attrs.Size, file.size)
		}
	}
	return nil
}

func (s *Store) uploadFile(ctx context.Context, id tenant.ID, block ulid.ULID, file sourceFile) error {
	name := blockKey(id, block, file.name)
	if s.local != nil && file.path != "" && isImmutable(file.name) && s.local.Link(file.path, name) == nil {
		return nil
	}
	r, err := file.open(ctx)
	if err != nil {
		return fmt.Errorf("copy %s: %w", file.name, err)
	}
	// The provider chooses the size of parts by that of the object.
	sized := objstore.ObjectSizerReadCloser{ReadCloser: r, Size: func() (int64, error) { return file.size, nil }}
	if err := errors.Join(s.bucket.Upload(ctx, name, sized), r.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", file.name, err)
	}
	return nil
}

// isImmutable tells which files of a block the TSDB never changes nor replaces.
func isImmutable(file string) bool { return file == indexFile || isSegment(file) }

// localBlock lists the files of the block in dir, or says why it is none.
func localBlock(dir string) (ulid.ULID, []sourceFile, error) {
	block, err := ulid.ParseStrict(filepath.Base(dir))
	if err != nil {
		return ulid.ULID{}, nil, fmt.Errorf("%w: the folder is not named by a ULID", ErrInvalidBlock)
	}
	text, err := os.ReadFile(filepath.Join(dir, metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		return ulid.ULID{}, nil, fmt.Errorf("%w: there is no meta.json", ErrInvalidBlock)
	}
	if err != nil {
		return ulid.ULID{}, nil, err
	}
	if _, _, err := parseMeta(block, text); err != nil {
		return ulid.ULID{}, nil, fmt.Errorf("%w: %w", ErrInvalidBlock, err)
	}

	var content []sourceFile
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(relative)
		if !isBlockFile(name) {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content = append(content, sourceFile{
			name: name, size: info.Size(), path: path,
			open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) },
		})
		return nil
	})
	if err != nil {
		return ulid.ULID{}, nil, err
	}
	return block, content, checkComplete(content)
}

// checkComplete checks that the files of a block are all there, as far as names tell.
func checkComplete(content []sourceFile) error {
	hasMeta, hasIndex, hasChunks := false, false, false
	for _, file := range content {
		hasMeta = hasMeta || file.name == metaFile
		hasIndex = hasIndex || file.name == indexFile
		hasChunks = hasChunks || isSegment(file.name)
	}
	switch {
	case !hasMeta:
		return fmt.Errorf("%w: its meta.json is gone", ErrInvalidBlock)
	case !hasIndex:
		return fmt.Errorf("%w: there is no index", ErrInvalidBlock)
	case !hasChunks:
		return fmt.Errorf("%w: there are no chunks", ErrInvalidBlock)
	}
	return nil
}
