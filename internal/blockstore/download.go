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

// downloadSuffix marks a folder that a download has not completed.
const downloadSuffix = ".downloading"

// Download copies a block to the directory dst, which becomes whole or stays
// absent; if dst exists, it is taken as whole. index and chunks in dst must not be
// written to: they may be the objects of the bucket themselves. dst outlives the
// block in the bucket. Only one Download at a time may have the same dst.
func (s *Store) Download(ctx context.Context, id tenant.ID, block ulid.ULID, dst string) error {
	if _, err := os.Stat(dst); err == nil {
		return nil
	}
	err := s.download(ctx, id, block, dst)
	if errors.Is(err, ErrBlockNotFound) && s.previous != nil {
		err = s.previous.download(ctx, id, block, dst)
	}
	if err != nil {
		return fmt.Errorf("download block %s of tenant %s: %w", block, id, err)
	}
	return nil
}

func (s *Store) download(ctx context.Context, id tenant.ID, block ulid.ULID, dst string) (err error) {
	var content []string
	err = s.bucket.Iter(ctx, blockPrefix(id, block), func(name string) error {
		if _, _, file, ok := parseKey(name); ok && isBlockFile(file) {
			content = append(content, file)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return err
	}
	if !slices.Contains(content, metaFile) {
		return ErrBlockNotFound
	}

	temp := dst + downloadSuffix
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(temp, chunksDir), 0o777); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(transfers)
	for _, file := range content {
		group.Go(func() error {
			return s.downloadFile(groupCtx, blockKey(id, block, file), file, filepath.Join(temp, filepath.FromSlash(file)))
		})
	}
	err = group.Wait()
	// A block that vanishes meanwhile loses its meta.json first, so if that is here
	// now, the rest was there all the time.
	if whole, existsErr := s.bucket.Exists(ctx, blockKey(id, block, metaFile)); existsErr != nil {
		return errors.Join(err, existsErr)
	} else if !whole {
		return ErrBlockNotFound
	}
	if err != nil {
		return err
	}
	if err := errors.Join(syncDir(filepath.Join(temp, chunksDir)), syncDir(temp)); err != nil {
		return err
	}
	if err := os.Rename(temp, dst); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dst))
}

func (s *Store) downloadFile(ctx context.Context, name, file, path string) error {
	if s.local != nil && isImmutable(file) && os.Link(s.local.LocalPath(name), path) == nil {
		return nil
	}
	attrs, err := s.bucket.Attributes(ctx, name)
	if err != nil {
		return fmt.Errorf("copy %s: %w", file, err)
	}
	r, err := s.bucket.Get(ctx, name)
	if err != nil {
		return fmt.Errorf("copy %s: %w", file, err)
	}
	size, err := writeFile(path, whileAlive(ctx, r))
	if err := errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", file, err)
	}
	if size != attrs.Size {
		return fmt.Errorf("copy %s: got %d bytes of %d: %w", file, size, attrs.Size, io.ErrUnexpectedEOF)
	}
	return nil
}

// writeFile writes what r gives to a new file and syncs it.
func writeFile(path string, r io.Reader) (size int64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err = io.Copy(f, r); err != nil {
		return size, err
	}
	return size, f.Sync()
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, fs.ErrInvalid) { // a filesystem without it
		err = nil
	}
	return errors.Join(err, f.Close())
}
