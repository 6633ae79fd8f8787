package pagefile

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// restoreReaders is how many files are read together: there may be many, and
// each costs a few reads of a disk that may be slow.
const restoreReaders = 8

// leftover is a local file of an earlier process.
type leftover struct {
	file    *file
	serial  uint64
	changed time.Time
}

// restore takes over the files of an earlier process, the budget permitting, and removes
// those of no use. It reads headers and journals, no pages.
func (c *Cache) restore() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o777); err != nil {
		return err
	}
	names, err := c.localFiles()
	if err != nil {
		return err
	}
	var (
		found []leftover
		mu    sync.Mutex
		group errgroup.Group
	)
	group.SetLimit(restoreReaders)
	for _, name := range names {
		group.Go(func() error {
			left, err := c.readLeftover(name)
			if err != nil { // damaged, or of another version: it is fetched again
				return os.Remove(filepath.Join(c.cfg.Dir, name))
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, left)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b leftover) int {
		return cmp.Or(a.changed.Compare(b.changed), cmp.Compare(a.serial, b.serial))
	})
	c.remove(c.takeOver(found))
	return nil
}

// takeOver makes found, the oldest first, the files of c, and returns those to be removed.
func (c *Cache) takeOver(found []leftover) (stale []*file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, left := range found {
		c.mu.serial = max(c.mu.serial, left.serial)
		if older := c.mu.files[left.file.key]; older != nil {
			c.dropLocked(older)
			stale = append(stale, older)
		}
		c.mu.files[left.file.key] = left.file
		c.mu.used += left.file.used
		left.file.idle = c.mu.idle.PushBack(left.file)
	}
	c.metrics.used.Set(float64(c.mu.used))
	return append(stale, c.evictLocked(c.cfg.MaxBytes)...)
}

// localFiles returns the names of all local files, relative to the cache's directory.
func (c *Cache) localFiles() ([]string, error) {
	var names []string
	err := filepath.WalkDir(c.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(c.cfg.Dir, path)
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(name, extension) {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

func (c *Cache) readLeftover(name string) (left leftover, err error) {
	serial, ok := serialOf(name)
	if !ok {
		return leftover{}, errNotOurs
	}
	disk, err := os.Open(filepath.Join(c.cfg.Dir, name))
	if err != nil {
		return leftover{}, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	info, err := disk.Stat()
	if err != nil {
		return leftover{}, err
	}
	head := make([]byte, headerSize+maxKeyLength)
	n, err := disk.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return leftover{}, err
	}
	h, err := decodeHeader(head[:n])
	if err != nil {
		return leftover{}, err
	}
	f := newFile(c, h.key, h.size, serial)
	if f.name != name {
		return leftover{}, errNotOurs
	}
	if err := f.readJournal(disk, info.Size()); err != nil {
		return leftover{}, err
	}
	return leftover{file: f, serial: serial, changed: info.ModTime()}, nil
}

// readJournal takes over what the journal in disk says of f.
func (f *file) readJournal(disk *os.File, size int64) error {
	// Each page has one entry, or a few if it was fetched again.
	length := min(max(size-f.journalStart(), 0), 4*f.pages*entrySize)
	journal := make([]byte, length)
	if _, err := disk.ReadAt(journal, f.journalStart()); err != nil && length > 0 {
		return err
	}
	sums := decodeJournal(journal, f.pages)
	if len(sums) == 0 {
		return errNotOurs
	}
	f.mu.restored = sums
	f.mu.journalEnd += (length + entrySize - 1) / entrySize * entrySize
	f.used = int64(headerSize+len(f.key)) + f.mu.journalEnd - f.journalStart()
	for page := range sums {
		f.used += f.bytes([]span{{first: int64(page), end: int64(page) + 1}})
	}
	return nil
}
