package compactor

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// indexInterval is how often the indexes are looked after, and listed what no pass of
	// the compactor has listed of late: one that works on a large block takes hours.
	indexInterval = time.Minute
	// maxListingAge is how old a listing may be when the index that is made of it is
	// written. It bounds by how much one of two compactors at once can put readers back.
	maxListingAge = 2 * time.Minute
	// indexers is how many tenants are listed at once.
	indexers = 8
	// fileReads is how many blocks are asked for the sizes of their files at once.
	fileReads = 16
)

// indexer writes the block index of each tenant. An index is always made of a listing of
// the bucket; of the one before it takes the generation, and the sizes of files of the
// blocks that are listed still, which never change.
//
// Two indexers of one tenant at once do no harm. They may write the same generation, and
// the one that listed first may write last, so that the blocks of the moments in between
// are missing. Readers have these from whoever uploaded them, refuse an index without
// what they know, and list the bucket now and then; and each indexer notices within two
// rounds that the index is not what it wrote, and writes it anew.
//
// It is safe for concurrent use.
type indexer struct {
	store   *blockstore.Store
	owns    func(tenant.ID) bool
	writer  string
	logger  *slog.Logger
	metrics *metrics

	mu struct {
		sync.Mutex
		tenants map[tenant.ID]*indexedTenant
	}
}

// indexedTenant is what is known of the index of one tenant.
type indexedTenant struct {
	// turn, of capacity 1, is held by whoever uses the rest.
	turn chan struct{}
	// content is that of the index in the bucket, as far as is known; 0: nothing is.
	content    uint64
	generation uint64
	sighting   blockstore.IndexSighting
	listed     time.Time // when the last listing began that the index has all of
	files      map[ulid.ULID][]blockstore.File
}

func newIndexer(store *blockstore.Store, owns func(tenant.ID) bool, writer string, logger *slog.Logger, m *metrics) *indexer {
	x := &indexer{store: store, owns: owns, writer: writer, logger: logger, metrics: m}
	x.mu.tenants = map[tenant.ID]*indexedTenant{}
	return x
}

// run looks after the indexes until ctx ends.
func (x *indexer) run(ctx context.Context) {
	ticker := time.NewTicker(indexInterval)
	defer ticker.Stop()
	for {
		if err := x.round(ctx); err != nil && ctx.Err() == nil {
			x.logger.Error("the block indexes could not all be looked after; queriers list the bucket instead, and the next round tries again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// round sees to it that the index of each tenant is there, is what was written, and has
// all blocks. The error joins those of all tenants.
func (x *indexer) round(ctx context.Context) error {
	indexes, err := x.store.Indexes(ctx)
	if err != nil {
		return err
	}
	ids, err := x.store.Tenants(ctx)
	if err != nil {
		return err
	}
	var (
		mu    sync.Mutex
		errs  []error
		group errgroup.Group
	)
	group.SetLimit(indexers)
	do := func(f func() error) {
		group.Go(func() error {
			if err := f(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil
		})
	}
	present := make(map[tenant.ID]struct{}, len(ids))
	for _, id := range ids {
		if present[id] = struct{}{}; x.owns(id) {
			modified, found := indexes[id]
			do(func() error { return x.check(ctx, id, modified, found) })
		}
	}
	for id := range indexes {
		if _, ok := present[id]; !ok && x.owns(id) {
			do(func() error { return x.remove(ctx, id) })
		}
	}
	_ = group.Wait() // the functions return nil: one tenant must not stop the others
	x.forget(present)
	return errors.Join(append(errs, ctx.Err())...)
}

func (x *indexer) forget(present map[tenant.ID]struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	maps.DeleteFunc(x.mu.tenants, func(id tenant.ID, _ *indexedTenant) bool {
		_, ok := present[id]
		return !ok || !x.owns(id)
	})
}

// take returns what is known of a tenant's index, for the caller alone until it calls give.
func (x *indexer) take(ctx context.Context, id tenant.ID) (t *indexedTenant, give func(), err error) {
	x.mu.Lock()
	t = x.mu.tenants[id]
	if t == nil {
		t = &indexedTenant{turn: make(chan struct{}, 1)}
		x.mu.tenants[id] = t
	}
	x.mu.Unlock()
	select {
	case t.turn <- struct{}{}:
		return t, func() { <-t.turn }, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// check sees to one tenant's index, which was modified then if it is there.
func (x *indexer) check(ctx context.Context, id tenant.ID, modified time.Time, found bool) error {
	t, give, err := x.take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	begun := time.Now()
	asWritten := found && !t.sighting.Changed(modified, begun)
	if !asWritten {
		t.content = 0
	}
	if asWritten && begun.Sub(t.listed) < 2*indexInterval {
		return nil
	}
	blocks, _, err := x.store.Blocks(ctx, id)
	if err != nil {
		return err
	}
	if err := x.publish(ctx, id, t, blocks, begun); err != nil {
		return err
	}
	if !asWritten {
		t.sighting.Read(begun)
	}
	return nil
}

// offer takes a listing that somebody else has made, to spare one. What goes wrong is
// counted and logged: it must not keep the compactor from its work.
func (x *indexer) offer(ctx context.Context, id tenant.ID, blocks map[ulid.ULID]blockstore.Block, begun time.Time) {
	if !x.owns(id) {
		return
	}
	t, give, err := x.take(ctx, id)
	if err != nil {
		return
	}
	defer give()
	if err := x.publish(ctx, id, t, blocks, begun); err != nil && ctx.Err() == nil {
		x.logger.Error("the block index of a tenant could not be written; queriers go on with the one before, and the next round tries again", "tenant", id, "err", err)
	}
}

// publish writes the index of what was listed from begun on, unless that is what it says
// already. Turn is held.
func (x *indexer) publish(ctx context.Context, id tenant.ID, t *indexedTenant, blocks map[ulid.ULID]blockstore.Block, begun time.Time) error {
	if begun.Before(t.listed) {
		return nil // A later listing has been written meanwhile.
	}
	err := x.write(ctx, id, t, own(blocks), begun)
	if err != nil {
		x.metrics.indexFailures.Inc()
	}
	return err
}

// own returns the blocks that the bucket has, and not only the previous one.
func own(blocks map[ulid.ULID]blockstore.Block) map[ulid.ULID]blockstore.Block {
	blocks = maps.Clone(blocks)
	maps.DeleteFunc(blocks, func(_ ulid.ULID, b blockstore.Block) bool { return b.Previous })
	return blocks
}

func (x *indexer) write(ctx context.Context, id tenant.ID, t *indexedTenant, blocks map[ulid.ULID]blockstore.Block, begun time.Time) error {
	if t.content != 0 && contentOf(withFiles(blocks, t.files)) == t.content {
		t.listed = begun
		return nil
	}
	before, found, err := x.store.ReadIndex(ctx, id)
	if errors.Is(err, blockstore.ErrCorruptIndex) {
		x.logger.Warn("the block index of a tenant is damaged; it is written anew", "tenant", id, "err", err)
		err = nil
	}
	if err != nil {
		return err
	}
	if found && len(blockstore.Dropped(before.Blocks, blocks)) > 0 || time.Since(begun) > maxListingAge {
		// Somebody else has listed later, or the blocks are gone: whatever that index has
		// and this listing has not, was not there after it was written.
		begun = time.Now()
		listed, _, err := x.store.Blocks(ctx, id)
		if err != nil {
			return err
		}
		blocks = own(listed)
	}
	t.files = x.sizes(ctx, id, blocks, t.files, before.Blocks)
	blocks = withFiles(blocks, t.files)
	content := contentOf(blocks)
	t.generation = max(t.generation, before.Generation)
	if found && contentOf(before.Blocks) == content && before.Generation >= t.generation {
		t.content, t.listed = content, begun
		return nil
	}
	// Milliseconds since 1970 are a floor, so that the generations of an index that
	// somebody has deleted are not given again.
	t.generation = max(t.generation+1, uint64(max(0, time.Now().UnixMilli()))) //nolint:gosec // it is not negative
	index := blockstore.Index{Generation: t.generation, Writer: x.writer, Listed: begun, Blocks: blocks}
	if err := x.store.WriteIndex(ctx, id, index); err != nil {
		t.content = 0 // It may have been written all the same.
		return err
	}
	x.metrics.indexesWritten.Inc()
	t.content, t.listed = content, begun
	return nil
}

// remove deletes the index of a tenant that has no objects any more.
func (x *indexer) remove(ctx context.Context, id tenant.ID) error {
	t, give, err := x.take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	blocks, partial, err := x.store.Blocks(ctx, id)
	if err != nil || len(blocks)+len(partial) > 0 {
		return err
	}
	t.content = 0
	return x.store.DeleteIndex(ctx, id)
}

// sizes returns the files of blocks. Those that are known are not looked for; those that
// cannot be learned now are left out, and whoever reads the block looks for himself.
func (x *indexer) sizes(ctx context.Context, id tenant.ID, blocks map[ulid.ULID]blockstore.Block, known map[ulid.ULID][]blockstore.File, before map[ulid.ULID]blockstore.Block) map[ulid.ULID][]blockstore.File {
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	group.SetLimit(fileReads)
	sizes := make(map[ulid.ULID][]blockstore.File, len(blocks))
	for block := range blocks {
		files := known[block]
		if files == nil {
			files = before[block].Files
		}
		if files != nil {
			mu.Lock()
			sizes[block] = files
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			files, err := x.store.Files(ctx, id, block)
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, blockstore.ErrBlockNotFound) {
					x.logger.Warn("the sizes of a block's files are not known; queriers look for themselves", "tenant", id, "block", block, "err", err)
				}
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			sizes[block] = files
			return nil
		})
	}
	_ = group.Wait()
	return sizes
}

func withFiles(blocks map[ulid.ULID]blockstore.Block, files map[ulid.ULID][]blockstore.File) map[ulid.ULID]blockstore.Block {
	out := make(map[ulid.ULID]blockstore.Block, len(blocks))
	for id, block := range blocks {
		block.Files = files[id]
		out[id] = block
	}
	return out
}

// contentOf is a fingerprint of what an index says. Blocks never change, marks come and go.
func contentOf(blocks map[ulid.ULID]blockstore.Block) uint64 {
	hash := xxhash.New()
	number := func(n uint64) { _, _ = hash.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	text := func(s string) {
		number(uint64(len(s)))
		_, _ = hash.WriteString(s)
	}
	for _, id := range slices.SortedFunc(maps.Keys(blocks), ulid.ULID.Compare) {
		block := blocks[id]
		_, _ = hash.Write(id[:])
		if mark := block.Deletion; mark != nil {
			text("deletion")
			number(uint64(mark.Time.UnixMilli())) //nolint:gosec // any number will do
			text(string(mark.Reason))
		}
		if mark := block.NoCompact; mark != nil {
			text("no compact")
			number(uint64(mark.Time.UnixMilli())) //nolint:gosec // any number will do
			text(string(mark.Reason))
		}
		number(uint64(len(block.Files)))
	}
	return hash.Sum64() | 1 // never 0, which is nothing
}
