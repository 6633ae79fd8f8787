// Package remoteblock reads blocks where they are: in an object store, of which it
// fetches the parts that a query needs and keeps them on local disk, or in a bucket on
// this machine, whose files it reads in place. A Reader gives one query one block; it
// implements tsdb.BlockReader, so Prometheus's own block querier works on top of it.
//
// What makes it quick from afar: a small sidecar object beside a block says where things
// are in it, so that nothing needs to be scanned; the lists of postings that a selector
// needs are read together; the entries of series are read in batches; and chunks are
// loaded ahead in the order in which the engine asks for them. A block that was never
// touched before answers its first selector within four round trips, one after the
// other: sidecar, postings, series, chunks. For an index of up to 1 MiB they are two,
// since its sidecar holds the whole index.
//
// Everything is verified by checksums when it is read, and an answer is right or an
// error: see ErrDamaged. Damage to the sidecar costs time only.
//
// The package does not decide which blocks are read, and writes to the bucket only by
// WriteSidecar and AddSidecar.
package remoteblock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/pagefile"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Config says where a Pool keeps what it fetches.
type Config struct {
	// Dir belongs to the Pool alone. What is in it can be fetched again.
	Dir string
	// CacheBytes bounds the parts of blocks in Dir, at least 64 MiB. They need no room
	// while the bucket is on this machine.
	CacheBytes int64
}

const (
	pagesDir   = "pages"
	headersDir = "headers"
)

// Pool opens blocks for queries, which share what was fetched. It is safe for
// concurrent use.
type Pool struct {
	cfg     Config
	store   *blockstore.Store
	logger  *slog.Logger
	metrics *metrics
	codec   *codec
	headers *headers
	pages   func() (pages, error) // opens them the first time
}

// pages keeps parts of remote files on local disk.
type pages interface {
	// File returns a remote file, shared by its key.
	File(key string, size int64, read func(ctx context.Context, p []byte, offset int64) error) (file, error)
}

type metrics struct {
	open     prometheus.Gauge
	sidecars *prometheus.CounterVec
	fetched  *prometheus.CounterVec
	damaged  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		open: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_remoteblock_readers_open",
			Help: "Blocks that queries read now, counted once for each query.",
		}),
		sidecars: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_remoteblock_sidecars_total",
			Help: "Sidecars of blocks that were read, missing, damaged, or rebuilt from the index, by which.",
		}, []string{"outcome"}),
		fetched: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_remoteblock_fetched_bytes_total",
			Help: "Bytes of blocks that were fetched from the object store for queries, by what: sidecars, or parts of files.",
		}, []string{"what"}),
		damaged: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_remoteblock_damaged_total",
			Help: "How often a block proved damaged when it was read, which failed the query.",
		}),
	}
}

// cache is the pages that are on disk.
type cache struct{ *pagefile.Cache }

func (c cache) File(key string, size int64, read func(ctx context.Context, p []byte, offset int64) error) (file, error) {
	f, err := c.Cache.File(key, size, read)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// New returns a Pool that reads the blocks of store. It opens what an earlier process
// left in cfg.Dir when it is first needed, or by Prepare.
func New(cfg Config, store *blockstore.Store, logger *slog.Logger, reg prometheus.Registerer) (*Pool, error) {
	onDisk := pagefile.Config{Dir: filepath.Join(cfg.Dir, pagesDir), MaxBytes: cfg.CacheBytes, Permanent: isPermanent}
	if err := onDisk.Validate(); err != nil {
		return nil, fmt.Errorf("remoteblock: %w", err)
	}
	return newPool(cfg, store, sync.OnceValues(func() (pages, error) {
		c, err := pagefile.Open(onDisk, logger, reg)
		if err != nil {
			return nil, err
		}
		return cache{c}, nil
	}), logger, reg)
}

// isPermanent reports whether it is no use to read again.
func isPermanent(err error) bool {
	return errors.Is(err, blockstore.ErrBlockNotFound) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrDamaged)
}

// Prepare opens what an earlier process left on disk. Otherwise the first query that
// needs a block which is not on this machine does, and waits for it.
func (p *Pool) Prepare() error {
	if _, err := p.pages(); err != nil {
		return fmt.Errorf("open the parts of blocks in %s: %w", p.cfg.Dir, err)
	}
	return nil
}

// newPool returns a Pool over pages.
func newPool(cfg Config, store *blockstore.Store, pages func() (pages, error), logger *slog.Logger, reg prometheus.Registerer) (*Pool, error) {
	if cfg.Dir == "" {
		return nil, errors.New("remoteblock: no folder to keep parts of blocks in")
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c, err := newCodec()
	if err != nil {
		return nil, fmt.Errorf("remoteblock: %w", err)
	}
	return &Pool{cfg: cfg, store: store, logger: logger, metrics: newMetrics(reg), codec: c, headers: newHeaders(), pages: pages}, nil
}

// openRemote opens a file of a block in the object store. If content is not nil, it is
// read from there.
func (p *Pool) openRemote(key blockKey, name string, size int64, content file) (file, error) {
	read := func(ctx context.Context, b []byte, offset int64) error {
		if content != nil {
			return readFull(content, b, offset)
		}
		return p.store.ReadRange(ctx, key.tenant, key.block, name, b, offset)
	}
	pages, err := p.pages()
	if err != nil {
		return nil, err
	}
	return pages.File(string(key.tenant)+"/"+key.block.String()+"/"+name, size, read)
}

// Trim forgets what was written down about blocks that keep does not name.
func (p *Pool) Trim(keep func(tenant.ID, ulid.ULID) bool) error {
	root := filepath.Join(p.cfg.Dir, headersDir)
	tenants, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("forget blocks: %w", err)
	}
	var errs []error
	for _, t := range tenants {
		entries, err := os.ReadDir(filepath.Join(root, t.Name()))
		errs = append(errs, err)
		for _, e := range entries {
			block, err := ulid.ParseStrict(e.Name())
			if err == nil && !keep(tenant.ID(t.Name()), block) {
				errs = append(errs, os.Remove(filepath.Join(root, t.Name(), e.Name())))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget blocks: %w", err)
	}
	return nil
}
