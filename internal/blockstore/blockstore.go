// Package blockstore keeps the blocks of all tenants in a bucket. It is the only
// code that knows the names of objects. A block in the bucket is a plain
// Prometheus TSDB block that promtool opens; two small marks may lie beside it:
//
//	<tenant>/<ULID>/meta.json             range, statistics, sources; a block is whole if and only if this exists
//	<tenant>/<ULID>/index
//	<tenant>/<ULID>/chunks/000001 ...
//	<tenant>/<ULID>/tombstones            if the block has one
//	<tenant>/<ULID>/deletion-mark.json    the block will be deleted: when it was decided, and why
//	<tenant>/<ULID>/no-compact-mark.json  the compactor leaves the block alone: since when, and why
//
// What concerns the cluster and not a tenant's data lies below names that no tenant
// can have:
//
//	~cluster.json                         whose bucket it is, and the seed of identities
//	~visits/<tenant>.json                 the compactor that works on the tenant's blocks
//	~copied/<tenant>.json                 the blocks that came here from a previous bucket
//	~deletions/active/<tenant>/<ULID>/    a deletion that hides samples until they are gone from all blocks
//	~deletions/done/<tenant>/<ULID>.json  what became of a deletion
//	~index/<tenant>.json.gz               all that is known of the tenant's blocks, see Index
//
// Everything but the marks is immutable. meta.json is uploaded last and deleted
// first, so a block is seen whole or not at all whatever fails in between; what
// lies there without meta.json is a partial block, which readers ignore.
//
// The bucket is a directory (type filesystem: crash-safe, see Filesystem) or
// S3-compatible (type s3). Beside it a previous bucket may be read, whose blocks
// CopyPrevious brings over. The package decides nothing: which blocks to compact,
// to mark or to delete is the compactor's business, which to read the querier's.
package blockstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

var (
	// ErrBlockNotFound says that the bucket holds no whole block of that name,
	// maybe because it was deleted a moment ago.
	ErrBlockNotFound = errors.New("no such block in the bucket")
	// ErrInvalidBlock says that a directory is not a block that can be uploaded.
	ErrInvalidBlock = errors.New("not a whole block")

	errCorruptMeta = errors.New("corrupt meta.json")
	errCorruptMark = errors.New("corrupt mark")
)

// localBucket is a bucket whose objects are files of this machine. The store uses
// it to spare copies; everything works without it.
type localBucket interface {
	// LocalPath returns the file or directory of the object or prefix name.
	LocalPath(name string) string
	// Link makes the file src the object name without copying it. src must never
	// change afterwards. The object is durable when Link returns without an error;
	// after an error the object is absent and the caller may upload a copy.
	Link(src, name string) error
}

// Store reads and writes the blocks of a bucket. It is safe for concurrent use.
type Store struct {
	bucket objstore.Bucket
	local  localBucket // nil if the bucket is not on this machine
	logger *slog.Logger

	// previous is only ever read; nil if there is none.
	previous *Store
	// remaining returns how many blocks are yet to be copied; its first call registers
	// it, so that no process says 0 before it has looked.
	remaining func() prometheus.Gauge

	// mu guards the metas and marks read so far. It is never held across I/O, and
	// the inner maps are replaced, never changed.
	mu struct {
		sync.Mutex
		known map[tenant.ID]map[ulid.ULID]Block
		// deletions are those that will not change any more.
		deletions map[deletionName]*ActiveDeletion
	}
}

// Open opens the bucket that cfg describes. A filesystem bucket is created if it
// is missing, and what an upload left behind in a crash is removed.
func Open(cfg Config, logger *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	store, err := open(cfg, OpenFilesystem, "", logger, reg)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	if cfg.Previous == nil {
		return store, nil
	}
	previous, err := open(*cfg.Previous, openExisting, "previous ", logger, reg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open bucket.previous: %w", err), store.Close())
	}
	store.follow(previous, reg)
	return store, nil
}

// open opens one bucket. label goes before its name in metrics.
func open(cfg Config, filesystem func(dir string) (*Filesystem, error), label string, logger *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	var (
		bucket objstore.Bucket
		local  localBucket
	)
	switch cfg.Type {
	case TypeFilesystem:
		fs, err := filesystem(cfg.Filesystem.Directory)
		if err != nil {
			return nil, err
		}
		bucket, local = fs, fs
	case TypeS3:
		s3, err := openS3(cfg.S3, logger)
		if err != nil {
			return nil, err
		}
		bucket = s3
	}
	if reg != nil {
		prefixed := prometheus.WrapRegistererWithPrefix("hundredfold_", reg)
		// That an object is absent is an answer, not a failure of the bucket.
		bucket = objstore.WrapWithMetrics(bucket, prefixed, label+bucket.Name()).WithExpectedErrs(bucket.IsObjNotFoundErr)
	}
	store := New(bucket, logger)
	store.local = local
	return store, nil
}

// New returns a Store over bucket. Objects are read in place and linked instead
// of copied only if bucket itself is a *Filesystem, so that a decorator around one
// sees every access. Requests to any other bucket are given up when it hangs.
func New(bucket objstore.Bucket, logger *slog.Logger) *Store {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{bucket: bucket, logger: logger}
	if local, ok := bucket.(localBucket); ok {
		s.local = local
	} else {
		s.bucket = bounded{bucket}
	}
	s.mu.known = make(map[tenant.ID]map[ulid.ULID]Block)
	s.mu.deletions = make(map[deletionName]*ActiveDeletion)
	return s
}

// LocalDir returns the directory of a block that lies on this machine, so that it
// can be opened in place; ok is false if the bucket is elsewhere or the block is
// not whole. The directory belongs to the bucket: nothing may be written to it,
// and it may be unlinked at any time (open files stay readable).
func (s *Store) LocalDir(id tenant.ID, block ulid.ULID) (dir string, ok bool) {
	if s.local != nil {
		dir = s.local.LocalPath(blockPrefix(id, block))
		if _, err := os.Stat(filepath.Join(dir, metaFile)); err == nil {
			return dir, true
		}
	}
	if s.previous != nil {
		return s.previous.LocalDir(id, block)
	}
	return "", false
}

// Close releases the bucket, and the previous one.
func (s *Store) Close() error {
	err := s.bucket.Close()
	if s.previous != nil {
		err = errors.Join(err, s.previous.Close())
	}
	return err
}
