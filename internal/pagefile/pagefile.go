// Package pagefile keeps parts of remote files on local disk. A remote file is an
// immutable object that is read by ranges, as the index or a segment of a block in an
// object store. For each there is one sparse local file in which pages of 16 KiB are
// either resident, that is, the same bytes as in the remote file, or absent:
//
//	Load    makes ranges resident: what is absent is fetched, coalesced, in parallel
//	ReadAt  reads resident bytes with pread, and never goes to the network
//
// A page that several callers want at the same time is fetched once. Requests to the
// store are bounded in number and bytes for the whole process, tried again when they
// fail in passing, and hedged: one that takes longer than most did lately is asked a
// second time. Files that nobody holds are removed, the least recently used first, when
// the disk budget is used up; a file that somebody holds is never touched, so a reader
// cannot see a page vanish.
//
// What was fetched outlives the process, even one that was killed: beside the pages a
// file holds a checksum of each, and what an earlier process left is believed page by
// page when its checksum agrees. docs/formats.md describes the files.
//
// The package does not know what the bytes mean. It does not verify that the store sent
// the right ones; who reads them has checksums, and Discard for pages that fail them.
package pagefile

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
)

const (
	// pageSize is the unit of residency. Smaller pages would waste less of the disk and
	// of the network around a range of few bytes; larger ones need less bookkeeping. A
	// request takes so much longer than the transfer of 16 KiB that less would gain nothing.
	pageSize = 16 << 10

	// maxFileSize bounds what is believed about the size of a remote file, and with it
	// the bitmap (8 MiB). An index ends at 64 GiB by its format, a segment at 4 GiB.
	maxFileSize = 1 << 40

	// maxKeyLength bounds keys, which are written into the files' headers.
	maxKeyLength = 1024
)

var (
	// ErrClosed says that the cache was closed, or the handle released.
	ErrClosed = errors.New("the page cache is closed")
	// ErrNotResident says that bytes were read which Load was not asked for, or which
	// were discarded since.
	ErrNotResident = errors.New("not resident in the page cache")
)

// Range is a part of a file: bytes [Start, End).
type Range struct{ Start, End int64 }

// ReadFunc fills p with the bytes of the remote file from offset on, in one request to
// the store. It MUST NOT use p after it returns, and must be safe for concurrent use. It
// may be called until the last Load that was given it has returned, and shortly after with
// a context that is done.
type ReadFunc func(ctx context.Context, p []byte, offset int64) error

// Config says where a Cache lies and what it may use.
type Config struct {
	// Dir belongs to the Cache alone, of all processes. It is created if it is missing.
	Dir string
	// MaxBytes is the disk space that the files may take, at least 64 MiB. Files in use
	// are kept beyond it, since queries come before budgets; the metric
	// hundredfold_page_cache_over_budget_total counts how often.
	MaxBytes int64
	// Permanent reports whether a ReadFunc's error is the same however often one asks,
	// as that of an object that does not exist. Others are tried again. nil: none is.
	Permanent func(error) bool
}

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("the page cache has no directory"))
	}
	if c.MaxBytes < minBytes {
		errs = append(errs, fmt.Errorf("the page cache has %d bytes, at least %d (64 MiB) are needed", c.MaxBytes, int64(minBytes)))
	}
	return errors.Join(errs...)
}

// minBytes is the least budget: below it a single query would evict what it just read.
const minBytes = 64 << 20

// Cache keeps parts of remote files on local disk within a budget of bytes. It is safe
// for concurrent use.
type Cache struct {
	cfg     Config
	tuning  tuning
	logger  *slog.Logger
	metrics *metrics

	slots   *semaphore.Weighted // bounds requests and the memory of their buffers
	buffers []sync.Pool         // by class, see lease
	hedges  *hedger
	// writeAt is (*os.File).WriteAt; tests put a full disk in its place.
	writeAt func(disk *os.File, p []byte, offset int64) (int, error)

	// work counts the goroutines that fetch.
	work sync.WaitGroup

	// mu is taken after file.mu, and never held across I/O.
	mu struct {
		sync.Mutex
		files  map[string]*file
		idle   *list.List // of *file that nobody holds, the least recently used first
		used   int64      // bytes on disk, of all files
		serial uint64     // of the newest local file
		closed bool
	}
}

// Open opens the cache in cfg.Dir and takes over what an earlier process left there.
// logger may be nil, and reg too.
func Open(cfg Config, logger *slog.Logger, reg prometheus.Registerer) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return open(cfg, defaultTuning(), logger, reg)
}

func open(cfg Config, tuning tuning, logger *slog.Logger, reg prometheus.Registerer) (*Cache, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		cfg: cfg, tuning: tuning, logger: logger, metrics: newMetrics(reg),
		slots:   semaphore.NewWeighted(tuning.maxInFlight),
		buffers: make([]sync.Pool, bufferClass(tuning.maxRequest)+1),
		hedges:  newHedger(tuning),
		writeAt: (*os.File).WriteAt,
	}
	c.mu.files = map[string]*file{}
	c.mu.idle = list.New()
	if err := c.restore(); err != nil {
		return nil, fmt.Errorf("open the page cache in %s: %w", cfg.Dir, err)
	}
	return c, nil
}

// File returns a handle on the remote file of that key and size; the caller releases it.
// Handles of one key share what is resident. read is how this handle's Loads reach the
// store. File does no I/O.
func (c *Cache) File(key string, size int64, read ReadFunc) (*File, error) {
	if key == "" || len(key) > maxKeyLength {
		return nil, fmt.Errorf("a key of %d bytes for the page cache: 1 to %d are possible", len(key), maxKeyLength)
	}
	if size < 0 || size > maxFileSize {
		return nil, fmt.Errorf("%s has %d bytes: the page cache takes files of up to %d", key, size, int64(maxFileSize))
	}
	c.mu.Lock()
	f, stale, err := c.acquireLocked(key, size)
	c.mu.Unlock()
	c.remove(stale)
	if err != nil {
		return nil, err
	}
	return &File{file: f, read: read}, nil
}

// acquireLocked returns the file of key, held once more, and the files that the caller
// must remove after it has unlocked c.mu.
func (c *Cache) acquireLocked(key string, size int64) (f *file, stale []*file, err error) {
	if c.mu.closed {
		return nil, nil, ErrClosed
	}
	f = c.mu.files[key]
	switch {
	case f == nil:
	case f.size == size:
		c.holdLocked(f)
		return f, nil, nil
	case f.refs > 0:
		return nil, nil, fmt.Errorf("%s is in use with %d bytes, and now has %d", key, f.size, size)
	default: // another object has taken the name
		c.dropLocked(f)
		stale = append(stale, f)
	}
	c.mu.serial++
	f = newFile(c, key, size, c.mu.serial)
	c.mu.files[key] = f
	c.holdLocked(f)
	return f, stale, nil
}

// Close waits for the requests that are under way and closes the cache. All handles
// must have been released.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	c.work.Wait()
	return nil
}
