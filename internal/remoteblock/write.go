package remoteblock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// maxSidecar bounds a sidecar in the bucket, in bytes: what is larger is not read.
	maxSidecar = 16 << 20
	// fetchWindow is how much of an index is fetched by one request, in bytes.
	fetchWindow = 8 << 20
)

// WriteSidecar writes the sidecar of the block in dir, which was uploaded or is about
// to be, into the bucket. Nothing needs it: without it the first reader of the block is
// slower.
func WriteSidecar(ctx context.Context, store *blockstore.Store, id tenant.ID, dir string) error {
	block, err := ulid.ParseStrict(filepath.Base(dir))
	if err != nil {
		return fmt.Errorf("make the sidecar of %s: the folder is not named by a ULID", dir)
	}
	content, err := sidecarOfDir(ctx, block, dir)
	if err != nil {
		return fmt.Errorf("make the sidecar of block %s of tenant %s: %w", block, id, err)
	}
	return store.WriteSideFile(ctx, id, block, SidecarName, content)
}

// AddSidecar writes the sidecar of a block that is in the bucket without one. scratch is a
// directory for a copy of the index, which is made if it is needed; unless the bucket is
// on this machine, it needs room for that. An ErrDamaged will be one again.
func AddSidecar(ctx context.Context, store *blockstore.Store, id tenant.ID, block blockstore.Block, scratch string) error {
	name := block.Meta.ULID
	content, err := sidecarOfBlock(ctx, store, id, block, scratch)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errVersion) {
		err = damagef("%w", err)
	}
	if err != nil {
		return fmt.Errorf("make the sidecar of block %s of tenant %s: %w", name, id, err)
	}
	return store.WriteSideFile(ctx, id, name, SidecarName, content)
}

func sidecarOfBlock(ctx context.Context, store *blockstore.Store, id tenant.ID, block blockstore.Block, scratch string) (content []byte, err error) {
	// The decoders check what they read, those of the TSDB not against everything.
	defer func() {
		if r := recover(); r != nil {
			err = damagef("reading it panics: %v", r)
		}
	}()
	name, files := block.Meta.ULID, block.Files
	if len(files) == 0 {
		if files, err = store.Files(ctx, id, name); err != nil {
			return nil, err
		}
	}
	l, err := newLayout(files)
	if err != nil {
		return nil, err
	}
	index, ok := store.OpenFile(id, name, indexName)
	if !ok {
		if index, err = fetchIndex(ctx, store, id, name, l.index, scratch); err != nil {
			return nil, err
		}
	}
	local, err := newLocalFile(index)
	if err != nil {
		return nil, err
	}
	defer local.Release()
	return makeSidecar(ctx, name, local, l)
}

// fetchIndex copies an index to a file in dir that has no name any more: it goes when it
// is closed.
func fetchIndex(ctx context.Context, store *blockstore.Store, id tenant.ID, block ulid.ULID, size int64, dir string) (_ *os.File, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "index-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	window := make([]byte, min(size, fetchWindow))
	for offset := int64(0); offset < size; offset += int64(len(window)) {
		window = window[:min(int64(len(window)), size-offset)]
		if err := store.ReadRange(ctx, id, block, indexName, window, offset); err != nil {
			return nil, err
		}
		if _, err := f.Write(window); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func sidecarOfDir(ctx context.Context, block ulid.ULID, dir string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, indexName))
	if err != nil {
		return nil, err
	}
	local, err := newLocalFile(f)
	if err != nil {
		return nil, err
	}
	defer local.Release()
	files, err := dirFiles(dir, local.Size())
	if err != nil {
		return nil, err
	}
	l, err := newLayout(files)
	if err != nil {
		return nil, err
	}
	return makeSidecar(ctx, block, local, l)
}

// makeSidecar returns the sidecar of the block whose index is in a file on this machine.
func makeSidecar(ctx context.Context, block ulid.ULID, index *localFile, l layout) ([]byte, error) {
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	defer c.close()
	h, err := scan(ctx, index, l)
	if err != nil {
		return nil, err
	}
	s := sidecar{layout: l, header: h}
	if l.index <= wholeIndex {
		s = sidecar{layout: l, whole: make([]byte, l.index)}
		err = readFull(index, s.whole, 0)
	} else {
		err = h.locateChunks(ctx, index)
	}
	if err != nil {
		return nil, err
	}
	content := c.encode(block, s)
	if len(content) > maxSidecar {
		return nil, fmt.Errorf("it would have %d bytes, more than the %d that are read", len(content), maxSidecar)
	}
	return content, nil
}
