package querier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// idleAfter is how long a block that no query needs stays open, and its copy on disk.
const idleAfter = 24 * time.Hour

// errClosed says that the Querier has ended.
var errClosed = errors.New("the querier is shutting down")

// blockError says that a block which a query needs cannot be read. The query fails:
// to leave the block out would be a hole in the answer.
type blockError struct {
	key blockKey
	err error
}

func (e *blockError) Error() string {
	return fmt.Sprintf("block %s of tenant %q, which the query needs, cannot be read: %s", e.key.block, e.key.tenant, e.err)
}

func (e *blockError) Unwrap() error { return e.err }

type blockKey struct {
	tenant tenant.ID
	block  ulid.ULID
}

// blockPool opens blocks on first use, where they are if the bucket is local and
// else from a copy in dir, and shares them among queries by counting references.
// It is safe for concurrent use.
type blockPool struct {
	dir     string
	store   *blockstore.Store
	logger  *slog.Logger
	metrics *metrics

	mu struct {
		sync.Mutex
		blocks map[blockKey]*pooledBlock
		closed bool
	}
}

// pooledBlock is a block that is open or has a copy on disk, or is about to.
type pooledBlock struct {
	key blockKey
	// files, of capacity 1, is held by whoever opens, closes, fetches or removes the
	// block. It is taken before pool.mu, which is never held across I/O.
	files chan struct{}

	// Guarded by pool.mu.
	block *tsdb.Block // nil: not open
	refs  int
	used  time.Time
}

func newBlockPool(dir string, store *blockstore.Store, logger *slog.Logger, m *metrics) *blockPool {
	p := &blockPool{dir: dir, store: store, logger: logger, metrics: m}
	p.mu.blocks = map[blockKey]*pooledBlock{}
	return p
}

// acquire returns a block and opens it if need be. The caller closes all readers of
// the block and then calls release, once.
func (p *blockPool) acquire(ctx context.Context, id tenant.ID, meta *tsdb.BlockMeta) (block *tsdb.Block, release func() error, err error) {
	key := blockKey{tenant: id, block: meta.ULID}
	b, block, err := p.reference(key)
	if err != nil {
		return nil, nil, err
	}
	if block == nil {
		block, err = p.openOnce(ctx, b, meta)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else {
			p.metrics.openFailures.Inc()
		}
		return nil, nil, errors.Join(&blockError{key: key, err: err}, p.release(b))
	}
	return block, sync.OnceValue(func() error { return p.release(b) }), nil
}

// reference counts a use of key; block is nil if it is not open.
func (p *blockPool) reference(key blockKey) (b *pooledBlock, block *tsdb.Block, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, nil, unavailable(errClosed)
	}
	b = p.mu.blocks[key]
	if b == nil {
		b = &pooledBlock{key: key, files: make(chan struct{}, 1)}
		p.mu.blocks[key] = b
	}
	b.refs++
	b.used = time.Now()
	return b, b.block, nil
}

// openOnce opens b unless another query has done so meanwhile. If that one gives up,
// the next that waits takes over.
func (p *blockPool) openOnce(ctx context.Context, b *pooledBlock, meta *tsdb.BlockMeta) (*tsdb.Block, error) {
	select {
	case b.files <- struct{}{}:
		defer func() { <-b.files }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	block := b.block
	p.mu.Unlock()
	if block != nil {
		return block, nil
	}
	block, err := p.open(ctx, b.key, meta)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	b.block = block
	p.mu.Unlock()
	p.metrics.blocksOpen.Inc()
	return block, nil
}

// open opens the block in the bucket if that is local, else a copy of it.
func (p *blockPool) open(ctx context.Context, key blockKey, meta *tsdb.BlockMeta) (*tsdb.Block, error) {
	if dir, ok := p.store.LocalDir(key.tenant, key.block); ok {
		return p.openDir(dir, meta)
	}
	dir := p.copyDir(key)
	if _, err := os.Stat(dir); err == nil {
		block, err := p.openDir(dir, meta)
		if err == nil {
			return block, nil
		}
		p.logger.Warn("A copy of a block is not usable; it is fetched again", "tenant", key.tenant, "block", key.block, "err", err)
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove its copy: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make room for its copy: %w", err)
	}
	if err := p.store.Download(ctx, key.tenant, key.block, dir); err != nil {
		return nil, unavailable(fmt.Errorf("download it: %w", err))
	}
	return p.openDir(dir, meta)
}

func (p *blockPool) copyDir(key blockKey) string {
	return filepath.Join(p.dir, string(key.tenant), key.block.String())
}

// openDir opens a block and checks that it is the one that was listed.
func (p *blockPool) openDir(dir string, want *tsdb.BlockMeta) (*tsdb.Block, error) {
	block, err := tsdb.OpenBlock(p.logger, dir, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	got := block.Meta()
	if got.ULID != want.ULID || got.MinTime != want.MinTime || got.MaxTime != want.MaxTime || !reflect.DeepEqual(got.Stats, want.Stats) {
		return nil, errors.Join(fmt.Errorf("open %s: its meta.json describes another block than the bucket's", dir), block.Close())
	}
	return block, nil
}

// release drops a use of b. It has nothing to close except after the pool's end.
func (p *blockPool) release(b *pooledBlock) error {
	p.mu.Lock()
	b.refs--
	b.used = time.Now()
	var block *tsdb.Block
	if b.refs == 0 && p.mu.closed {
		block, b.block = b.block, nil
	}
	p.mu.Unlock()
	return p.closeBlock(block)
}

func (p *blockPool) closeBlock(block *tsdb.Block) error {
	if block == nil {
		return nil
	}
	p.metrics.blocksOpen.Dec()
	return block.Close()
}

// trim closes the blocks that are not in view any more or that no query has needed
// for long, and removes copies of them. A block in use stays until a later trim.
func (p *blockPool) trim(view *bucketView) error {
	visible := make(map[blockKey]struct{})
	for id, t := range view.tenants {
		for i := range t.blocks {
			visible[blockKey{tenant: id, block: t.blocks[i].Meta.ULID}] = struct{}{}
		}
	}
	p.mu.Lock()
	var candidates []*pooledBlock
	for key, b := range p.mu.blocks {
		if _, ok := visible[key]; b.refs == 0 && (!ok || time.Since(b.used) > idleAfter) {
			candidates = append(candidates, b)
		}
	}
	p.mu.Unlock()

	var errs []error
	for _, b := range candidates {
		errs = append(errs, p.drop(b))
	}
	return errors.Join(errs...)
}

// drop closes b and removes its copy, unless a query has come to need it.
func (p *blockPool) drop(b *pooledBlock) error {
	select {
	case b.files <- struct{}{}:
		defer func() { <-b.files }()
	default: // a query is opening it
		return nil
	}
	p.mu.Lock()
	if b.refs > 0 {
		p.mu.Unlock()
		return nil
	}
	block := b.block
	b.block = nil
	p.mu.Unlock()

	// A query that comes now waits for files and opens the block anew.
	err := errors.Join(p.closeBlock(block), os.RemoveAll(p.copyDir(b.key)))

	p.mu.Lock()
	defer p.mu.Unlock()
	if b.refs == 0 {
		delete(p.mu.blocks, b.key)
	}
	return err
}

// adopt takes over the copies that an earlier process left in dir, as if they had
// been used just now, and removes what is no whole copy.
func (p *blockPool) adopt() error {
	tenants, err := os.ReadDir(p.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, t := range tenants {
		id, err := tenant.Parse(t.Name())
		if err != nil || !t.IsDir() {
			continue // not ours
		}
		entries, err := os.ReadDir(filepath.Join(p.dir, t.Name()))
		if err != nil {
			return err
		}
		for _, e := range entries {
			block, err := ulid.ParseStrict(e.Name())
			if err != nil {
				if err := os.RemoveAll(filepath.Join(p.dir, t.Name(), e.Name())); err != nil {
					return err
				}
				continue
			}
			p.adoptBlock(blockKey{tenant: id, block: block})
		}
	}
	return nil
}

func (p *blockPool) adoptBlock(key blockKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.blocks[key] == nil {
		p.mu.blocks[key] = &pooledBlock{key: key, files: make(chan struct{}, 1), used: time.Now()}
	}
}

// close closes all blocks that are not in use; the others close with their last use.
func (p *blockPool) close() error {
	p.mu.Lock()
	p.mu.closed = true
	var idle []*tsdb.Block
	for _, b := range p.mu.blocks {
		if b.refs == 0 && b.block != nil {
			idle = append(idle, b.block)
			b.block = nil
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, block := range idle {
		errs = append(errs, p.closeBlock(block))
	}
	return errors.Join(errs...)
}
