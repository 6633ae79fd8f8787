package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Foreign reads a bucket or directory that another program keeps its blocks in, wherever
// they lie there. Nothing is ever written to it. It is safe for concurrent use.
type Foreign struct {
	bucket objstore.Bucket
	local  localBucket // nil if it is not on this machine
}

// OpenForeign opens what cfg describes, which must exist.
func OpenForeign(cfg Config, logger *slog.Logger) (*Foreign, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	store, err := open(cfg, openExisting, "", logger, nil)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cfg.place(), err)
	}
	return &Foreign{bucket: store.bucket, local: store.local}, nil
}

// Close releases it.
func (f *Foreign) Close() error { return f.bucket.Close() }

// Folders lists the names of the folders in dir, "" for the top, in order.
func (f *Foreign) Folders(ctx context.Context, dir string) ([]string, error) {
	var names []string
	err := f.bucket.Iter(ctx, dir, func(name string) error {
		if folder, ok := strings.CutSuffix(name, objstore.DirDelim); ok {
			names = append(names, path.Base(folder))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", dir, err)
	}
	return names, nil
}

// Read reads a small file, of at most 16 MiB; found is false if there is none.
func (f *Foreign) Read(ctx context.Context, name string) (content []byte, found bool, err error) {
	return (&Store{bucket: f.bucket}).readSmall(ctx, name)
}

// NoCompact reads the mark against compaction of the block in the folder dir, as we, Thanos,
// Cortex and Mimir write it; nil: there is none. One that cannot be understood is one.
func (f *Foreign) NoCompact(ctx context.Context, dir string) (*NoCompactMark, error) {
	text, found, err := f.Read(ctx, dir+objstore.DirDelim+noCompactMarkFile)
	if err != nil || !found {
		return nil, err
	}
	var mark struct {
		NoCompactMark
		Seconds int64 `json:"no_compact_time"` // theirs
	}
	if err := json.Unmarshal(text, &mark); err != nil {
		return &NoCompactMark{Version: markVersion, Reason: NoCompactUnreadableMark, Details: err.Error()}, nil
	}
	if mark.Time.IsZero() && mark.Seconds > 0 {
		mark.Time = time.Unix(mark.Seconds, 0).UTC()
	}
	mark.Version = markVersion
	return &mark.NoCompactMark, nil
}

// Block lists the files of the block in the folder dir.
func (f *Foreign) Block(ctx context.Context, dir string) ([]File, error) {
	var files []File
	err := f.bucket.Iter(ctx, dir, func(name string) error {
		file := strings.TrimPrefix(name, dir+objstore.DirDelim)
		if !isBlockFile(file) {
			return nil
		}
		attrs, err := f.bucket.Attributes(ctx, name)
		if err != nil {
			return err
		}
		files = append(files, File{Name: file, Size: attrs.Size})
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	return files, nil
}

// Local returns the folder dir as one of this machine; ok is false if it is elsewhere.
func (f *Foreign) Local(dir string) (path string, ok bool) {
	if f.local == nil {
		return "", false
	}
	return f.local.LocalPath(dir), true
}

// Fetch copies files of the block in the folder dir to the folder to of this machine. It
// may be broken off and repeated: what is there in full is not copied again.
func (f *Foreign) Fetch(ctx context.Context, dir string, files []File, to string, progress func(bytes int64)) error {
	for _, file := range files {
		target := filepath.Join(to, filepath.FromSlash(file.Name))
		if info, err := os.Stat(target); err == nil && info.Size() == file.Size {
			progress(file.Size)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o777); err != nil {
			return err
		}
		if err := f.fetch(ctx, dir+"/"+file.Name, target, file.Size, progress); err != nil {
			return fmt.Errorf("fetch %s of %s: %w", file.Name, dir, err)
		}
	}
	return nil
}

func (f *Foreign) fetch(ctx context.Context, name, target string, size int64, progress func(int64)) error {
	r, err := f.bucket.Get(ctx, name)
	if err != nil {
		return err
	}
	counted := readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		progress(int64(n))
		return n, err
	})
	temporary := target + downloadSuffix
	got, err := writeFile(temporary, whileAlive(ctx, counted))
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if got != size {
		return fmt.Errorf("got %d bytes of %d: %w", got, size, io.ErrUnexpectedEOF)
	}
	return os.Rename(temporary, target)
}

// UploadAs is Upload of the block in dir with meta in place of the meta.json there.
func (s *Store) UploadAs(ctx context.Context, id tenant.ID, dir string, meta []byte) error {
	block, content, err := localBlock(dir)
	if err == nil {
		_, _, err = parseMeta(block, meta)
	}
	if err != nil {
		return fmt.Errorf("upload block %s: %w", dir, err)
	}
	for i := range content {
		if content[i].name == metaFile {
			content[i] = sourceFile{name: metaFile, size: int64(len(meta)), open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(meta)), nil
			}}
		}
	}
	if err := s.upload(ctx, id, block, content); err != nil {
		return fmt.Errorf("upload block %s of tenant %s: %w", block, id, err)
	}
	return nil
}
