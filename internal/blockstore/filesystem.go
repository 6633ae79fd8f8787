package blockstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
)

// tempDir holds what is being written, in the root of the bucket and so on its
// filesystem. '~' is not allowed in tenant names, so it is nobody's.
const tempDir = "~tmp"

// publishAttempts bounds how often an upload makes its folder again after a
// concurrent deletion removed it because it was empty.
const publishAttempts = 10

// Filesystem is a bucket in a directory, made crash-safe: an object is written to
// a temporary file, synced, renamed, and the folders above are synced; so an
// object is there whole and for good once Upload has returned, and is never seen
// half written. A deletion is durable too once it has returned, which keeps
// deletions in order. Reading is objstore's own.
//
// It is safe for concurrent use, also by several processes.
type Filesystem struct {
	*filesystem.Bucket
	root string
	disk disk
}

// disk is what writing needs of the operating system; tests fail it step by step.
type disk struct {
	create  func(path string) (*os.File, error)
	sync    func(f *os.File) error
	syncDir func(dir string) error
	mkdir   func(dir string) error // with its parents
	link    func(from, to string) error
	rename  func(from, to string) error
	remove  func(path string) error
}

func realDisk() disk {
	return disk{
		create:  createTemporary,
		sync:    (*os.File).Sync,
		syncDir: syncDir,
		mkdir:   func(dir string) error { return os.MkdirAll(dir, 0o777) },
		link:    os.Link,
		rename:  os.Rename,
		remove:  os.Remove,
	}
}

// OpenFilesystem opens the bucket in dir, creates it if it is missing, and
// removes what uploads of processes that are gone left behind.
func OpenFilesystem(dir string) (*Filesystem, error) {
	inner, err := filesystem.NewBucket(dir)
	if err != nil {
		return nil, fmt.Errorf("bucket directory %s: %w", dir, err)
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("bucket directory %s: %w", dir, err)
	}
	b := &Filesystem{Bucket: inner, root: root, disk: realDisk()}
	if err := b.disk.mkdir(filepath.Join(root, tempDir)); err != nil {
		return nil, fmt.Errorf("create bucket directory %s: %w", dir, err)
	}
	for _, d := range []string{root, filepath.Dir(root)} {
		if err := b.disk.syncDir(d); err != nil {
			return nil, fmt.Errorf("sync bucket directory %s: %w", d, err)
		}
	}
	if err := b.removeAbandoned(); err != nil {
		return nil, fmt.Errorf("clean bucket directory %s: %w", dir, err)
	}
	return b, nil
}

// openExisting opens the bucket in dir to read from it. Nothing is written there.
func openExisting(dir string) (*Filesystem, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", dir)
	}
	if err != nil {
		return nil, err
	}
	inner, err := filesystem.NewBucket(dir)
	if err != nil {
		return nil, fmt.Errorf("bucket directory %s: %w", dir, err)
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("bucket directory %s: %w", dir, err)
	}
	return &Filesystem{Bucket: inner, root: root, disk: realDisk()}, nil
}

// createTemporary creates a file for writing and locks it, for as long as it is
// open, so that no other process takes it for an abandoned one.
func createTemporary(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close(), os.Remove(path))
	}
	return f, nil
}

func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// removeAbandoned removes the temporary files that no process holds open.
func (b *Filesystem) removeAbandoned() error {
	dir := filepath.Join(b.root, tempDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if lock(f) != nil { // somebody is writing it
			err = f.Close()
		} else {
			err = errors.Join(ignoreNotExist(os.Remove(path)), f.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Upload writes the object name. See Filesystem for what it guarantees.
func (b *Filesystem) Upload(ctx context.Context, name string, r io.Reader, _ ...objstore.ObjectUploadOption) (err error) {
	target, err := b.target(name)
	if err != nil {
		return err
	}
	temp := filepath.Join(b.root, tempDir, rand.Text())
	f, err := b.disk.create(temp)
	if err != nil {
		return fmt.Errorf("create temporary file: %w", err)
	}
	published := false
	defer func() {
		// The lock goes with the file's descriptor, so the file is closed last.
		if !published {
			err = errors.Join(err, ignoreNotExist(b.disk.remove(temp)))
		}
		err = errors.Join(err, f.Close())
	}()
	if _, err := io.Copy(f, whileAlive(ctx, r)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := b.disk.sync(f); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	if err := b.publish(target, func() error { return b.disk.rename(temp, target) }); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	published = true
	return b.syncAbove(target)
}

// Link makes the immutable file src the object name without copying it. It fails
// if the object exists or src lies on another filesystem.
func (b *Filesystem) Link(src, name string) error {
	target, err := b.target(name)
	if err != nil {
		return err
	}
	// The age of an object is that of its upload: what is old and not whole is
	// taken for the remains of one that nobody will complete.
	now := time.Now()
	if err := os.Chtimes(src, now, now); err != nil {
		return err
	}
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	if err := errors.Join(b.disk.sync(f), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", src, err)
	}
	if err := b.publish(target, func() error { return b.disk.link(src, target) }); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return b.syncAbove(target)
}

// publish puts a file into its place, and makes the folder for it. Between the two
// a concurrent Delete may have found the folder empty and removed it.
func (b *Filesystem) publish(target string, put func() error) error {
	var err error
	for range publishAttempts {
		// That a folder exists is an error only if it was gone again a moment later.
		if err = b.disk.mkdir(filepath.Dir(target)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err = put(); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// syncAbove syncs the folders from that of target up to the root. All of them,
// since any may have been made just now, maybe by another upload that is not yet
// done; a folder without changes costs next to nothing.
func (b *Filesystem) syncAbove(target string) error {
	for dir := filepath.Dir(target); ; dir = filepath.Dir(dir) {
		if err := ignoreNotExist(b.disk.syncDir(dir)); err != nil {
			return fmt.Errorf("sync folder %s: %w", dir, err)
		}
		if dir == b.root {
			return nil
		}
	}
}

// Delete removes the object name and the folders that it leaves empty. objstore's
// own Delete looks whether a folder is empty and then removes it with all that is
// in it, by then maybe the object of a concurrent upload.
func (b *Filesystem) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	target, err := b.target(name)
	if err != nil {
		return err
	}
	if err := ignoreNotExist(b.disk.remove(target)); err != nil {
		return err
	}
	dir := filepath.Dir(target)
	for ; dir != b.root; dir = filepath.Dir(dir) {
		// Removing a folder fails unless it is empty.
		if err := b.disk.remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return b.syncAbove(filepath.Join(dir, "x"))
}

// Iter lists the objects in dir.
func (b *Filesystem) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	return b.IterWithAttributes(ctx, dir, func(attrs objstore.IterObjectAttributes) error { return f(attrs.Name) }, options...)
}

// IterWithAttributes lists the objects in dir. What vanishes while it lists is
// left out; objstore's own fails then.
func (b *Filesystem) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, options ...objstore.IterOption) error {
	if err := objstore.ValidateIterOptions(b.SupportedIterOptions(), options...); err != nil {
		return err
	}
	return b.iter(ctx, strings.TrimSuffix(dir, objstore.DirDelim), f, objstore.ApplyIterOptions(options...))
}

func (b *Filesystem) iter(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, params objstore.IterParams) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(b.root, dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := filepath.Join(dir, entry.Name())
		if name == tempDir {
			continue
		}
		if err := b.visit(ctx, name, entry, f, params); err != nil {
			return err
		}
	}
	return nil
}

func (b *Filesystem) visit(ctx context.Context, name string, entry fs.DirEntry, f func(objstore.IterObjectAttributes) error, params objstore.IterParams) error {
	attrs := objstore.IterObjectAttributes{Name: name}
	if entry.IsDir() {
		if params.Recursive {
			return b.iter(ctx, name, f, params)
		}
		empty, err := isEmpty(filepath.Join(b.root, name))
		if err != nil || empty {
			return err
		}
		attrs.Name += objstore.DirDelim
	}
	if params.LastModified {
		info, err := entry.Info()
		if err != nil {
			return ignoreNotExist(err)
		}
		attrs.SetLastModified(info.ModTime())
	}
	return f(attrs)
}

// IsObjNotFoundErr tells whether err says that an object is absent.
func (b *Filesystem) IsObjNotFoundErr(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// LocalPath returns the file of the object name.
func (b *Filesystem) LocalPath(name string) string { return filepath.Join(b.root, name) }

// target returns the file of the object name, and refuses names outside the bucket.
func (b *Filesystem) target(name string) (string, error) {
	first, _, _ := strings.Cut(name, "/")
	if name == "." || first == tempDir || !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q cannot be the name of an object", name)
	}
	return filepath.Join(b.root, name), nil
}

// isEmpty tells whether there is nothing in dir, or no dir.
func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, f.Close()
	}
	return false, errors.Join(ignoreNotExist(err), f.Close())
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// readerFunc is a function that reads.
type readerFunc func(p []byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// whileAlive returns a reader that fails once ctx has ended, and so ends a copy.
func whileAlive(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}
