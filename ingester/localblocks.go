package ingester

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// localBlocks are the blocks in a tenant's folder. The tenant's TSDB does not know of
// them (see tsdbFolder): it would keep all of them open. Only what their meta.json says
// is kept in memory. It is safe for concurrent use.
//
// A block is in the list before the head drops what it was cut from. Who reads both
// opens the head first, and so misses nothing; what is in both is the same.
type localBlocks struct {
	tenant  tenant.ID
	dir     string
	shipped *shipped
	all     *openBlocks
	log     *slog.Logger

	changing sync.Mutex                    // held by who changes the list, and not while files are read or written
	list     atomic.Pointer[[]*localBlock] // sorted by the times they begin at; never changed in place
	out      atomic.Pointer[[]leftOut]     // see setLeftOut; never changed in place
}

// deletedSuffix is that of a block which is being deleted.
const deletedSuffix = ".tmp-for-deletion"

// openLocalBlocks finds the blocks in dir. It reads their meta.json and opens none.
func openLocalBlocks(id tenant.ID, dir string, sh *shipped, all *openBlocks, log *slog.Logger) (*localBlocks, error) {
	l := &localBlocks{tenant: id, dir: dir, shipped: sh, all: all, log: log}
	l.list.Store(&[]*localBlock{})
	l.out.Store(&[]leftOut{})
	if err := l.removeUnfinished(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find local blocks: %w", err)
	}
	var found []*localBlock
	illegible := map[ulid.ULID]error{}
	obsolete := map[ulid.ULID]bool{}
	for _, entry := range entries {
		id, err := ulid.ParseStrict(entry.Name())
		if err != nil || !entry.IsDir() {
			continue
		}
		b, err := l.read(id)
		if err != nil {
			illegible[id] = err
			continue
		}
		found = append(found, b)
		// A process that died may have left a block beside the one that was written in its
		// place, or one that there is nothing of any more.
		for _, parent := range b.meta.Compaction.Parents {
			obsolete[parent.ULID] = true
		}
		if b.meta.Compaction.Deletable {
			obsolete[b.meta.ULID] = true
		}
	}
	l.setLocked(found)
	err = l.remove(func(b *localBlock) bool { return obsolete[b.meta.ULID] })
	for id := range illegible {
		if obsolete[id] {
			err = errors.Join(err, removeBlock(filepath.Join(dir, id.String())))
			delete(illegible, id)
		}
	}
	l.leaveOut(illegible)
	return l, err
}

// removeUnfinished removes the blocks that were being written or deleted when the
// process died.
func (l *localBlocks) removeUnfinished() error {
	left, err := namesIn(l.dir, isUnfinished)
	if err != nil {
		return fmt.Errorf("find unfinished blocks: %w", err)
	}
	for _, name := range left {
		if err := os.RemoveAll(filepath.Join(l.dir, name)); err != nil {
			return fmt.Errorf("remove an unfinished block: %w", err)
		}
	}
	return nil
}

// isUnfinished reports whether it is the name of a block that is being written or deleted.
func isUnfinished(name string) bool {
	for _, suffix := range []string{".tmp-for-creation", deletedSuffix, ".tmp"} {
		block, ok := strings.CutSuffix(name, suffix)
		if _, err := ulid.ParseStrict(block); ok && err == nil {
			return true
		}
	}
	return false
}

// read reads what the meta.json of a block in the folder says.
func (l *localBlocks) read(id ulid.ULID) (*localBlock, error) {
	b := &localBlock{tenant: l.tenant, dir: filepath.Join(l.dir, id.String()), all: l.all, log: l.log}
	text, err := os.ReadFile(filepath.Join(b.dir, "meta.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &b.meta); err != nil {
		return nil, err
	}
	switch {
	case b.meta.Version != 1:
		return nil, fmt.Errorf("it has version %d, this build reads 1", b.meta.Version)
	case b.meta.ULID != id:
		return nil, fmt.Errorf("it is that of block %s", b.meta.ULID)
	}
	return b, nil
}

// get returns the blocks as they are now, by the times that they begin at. The slice must
// not be changed.
func (l *localBlocks) get() []*localBlock { return *l.list.Load() }

// overlaps reports whether any block, one that is left out too, may have samples from mint
// to maxt.
func (l *localBlocks) overlaps(mint, maxt int64) bool {
	return slices.ContainsFunc(l.get(), func(b *localBlock) bool { return b.overlaps(mint, maxt) }) ||
		slices.ContainsFunc(l.leftOut(), func(b leftOut) bool { return b.overlaps(mint, maxt) })
}

// maxTime returns the time that all samples in blocks are before, in those that are left
// out too; math.MinInt64 if there are none.
func (l *localBlocks) maxTime() int64 {
	maxTime := int64(math.MinInt64)
	for _, b := range l.get() {
		maxTime = max(maxTime, b.meta.MaxTime)
	}
	for _, b := range l.leftOut() {
		maxTime = max(maxTime, b.maxt)
	}
	return maxTime
}

// newestEvicted returns the time of the newest sample of series that were evicted, which a head
// does not know that was opened since; math.MinInt64 if there is none.
func (l *localBlocks) newestEvicted() int64 {
	newest := int64(math.MinInt64)
	for _, b := range l.get() {
		if b.meta.Compaction.FromStaleSeries() {
			newest = max(newest, b.meta.MaxTime-1)
		}
	}
	return newest
}

// cutBefore returns the time before which all in-order samples were cut from the head:
// what the log has of before is not to be replayed. The blocks say so that are there, and
// those that were did.
func (l *localBlocks) cutBefore() (maxt int64, ok bool) {
	maxt = max(l.shipped.cutBefore(), cutBy(l.get()))
	return maxt, maxt != math.MinInt64
}

// cutBy returns the time before which all in-order samples were cut, at least, as blocks
// say; math.MinInt64 if none says so.
func cutBy(blocks []*localBlock) int64 {
	maxt := int64(math.MinInt64)
	for _, b := range blocks {
		if cutInOrder(&b.meta) {
			maxt = max(maxt, b.meta.MaxTime)
		}
	}
	return maxt
}

// cutInOrder reports whether a block was cut from all in-order samples of before its end.
// Blocks of late samples and of some of the series say nothing of how far the head was cut.
func cutInOrder(meta *tsdb.BlockMeta) bool {
	c := &meta.Compaction
	return !c.FromOutOfOrder() && !c.FromStaleSeries() && !c.FromSelectedSeries()
}

// add adds blocks that lie in the folder.
func (l *localBlocks) add(blocks ...*localBlock) {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.setLocked(append(slices.Clone(l.get()), blocks...))
}

func (l *localBlocks) setLocked(blocks []*localBlock) {
	slices.SortStableFunc(blocks, func(a, b *localBlock) int { return cmp.Compare(a.meta.MinTime, b.meta.MinTime) })
	l.list.Store(&blocks)
}

// swap takes blocks out of the list and puts others in, in one moment. It returns those
// that were in it.
func (l *localBlocks) swap(old, added []*localBlock) (removed []*localBlock) {
	l.changing.Lock()
	defer l.changing.Unlock()
	var left []*localBlock
	for _, b := range l.get() {
		if slices.Contains(old, b) {
			removed = append(removed, b)
		} else {
			left = append(left, b)
		}
	}
	l.setLocked(append(left, added...))
	return removed
}

// remove deletes the blocks that doomed names, but for one that is being written anew: it
// stays until the next time. Who reads one of them goes on with it.
func (l *localBlocks) remove(doomed func(*localBlock) bool) error {
	var claimed []*localBlock
	for _, b := range l.get() {
		if doomed(b) && b.fate.TryLock() {
			claimed = append(claimed, b)
		}
	}
	defer func() {
		for _, b := range claimed {
			b.fate.Unlock()
		}
	}()
	return l.replace(claimed)
}

// replace takes blocks whose fates are held out of the list, puts others in, and deletes
// the files of those that it took out. Meanwhile the list may be changed: a cut, which holds
// back writes, does not wait for a disk that deletes.
func (l *localBlocks) replace(old []*localBlock, added ...*localBlock) error {
	if len(old) == 0 {
		return nil
	}
	if err := l.keepCut(old, added); err != nil {
		dirs := make([]string, len(added))
		for k, b := range added {
			dirs[k] = b.dir
		}
		return errors.Join(err, undo(dirs))
	}
	var errs []error
	for _, b := range l.swap(old, added) {
		// Open files outlive their names.
		err := errors.Join(b.discard(), removeBlock(b.dir))
		if err == nil {
			l.log.Info("Deleted a local block", "block", b.meta.ULID)
			continue
		}
		errs = append(errs, fmt.Errorf("delete local block %s: %w", b.meta.ULID, err))
		if again, err := l.read(b.meta.ULID); err == nil {
			l.add(again) // It is there still, and the next attempt is to find it.
		}
	}
	return errors.Join(errs...)
}

// keepCut has the disk remember how far the head was cut, if only blocks say so that are
// to go: a log that is replayed may still have what was in them, and a deletion may have
// taken it out of them.
func (l *localBlocks) keepCut(old, added []*localBlock) error {
	going, staying := cutBy(old), cutBy(added)
	for _, b := range l.get() {
		if !slices.Contains(old, b) && cutInOrder(&b.meta) {
			staying = max(staying, b.meta.MaxTime)
		}
	}
	if going < staying {
		return nil // As long as those say so; nor do they go without this.
	}
	return l.shipped.noteCut(going)
}

// claim returns what b is listed as, with its fate held; nil if it was deleted.
func (l *localBlocks) claim(b *localBlock) *localBlock {
	for {
		b.fate.Lock()
		list := l.get()
		k := slices.IndexFunc(list, func(other *localBlock) bool { return other.meta.ULID == b.meta.ULID })
		switch {
		case k < 0:
			b.fate.Unlock()
			return nil
		case list[k] == b:
			return b
		}
		b.fate.Unlock()
		b = list[k] // It could not be deleted, and was listed anew.
	}
}

// removeBlock removes the folder of a block, which has its name until the whole of it is
// to go.
func removeBlock(dir string) error {
	if err := os.Rename(dir, dir+deletedSuffix); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return os.RemoveAll(dir + deletedSuffix)
}

// close closes all blocks, which nobody reads.
func (l *localBlocks) close() error {
	l.setLeftOut(nil)
	var errs []error
	for _, b := range l.get() {
		errs = append(errs, b.discard())
	}
	return errors.Join(errs...)
}

// acquire opens the blocks with samples from mint to maxt. They stay open until release
// is called. It fails if one is left out that may have some.
func (l *localBlocks) acquire(mint, maxt int64) (blocks []*tsdb.Block, release func(), err error) {
	if err := l.lacking(mint, maxt); err != nil {
		l.all.failed.Inc()
		return nil, nil, err
	}
	for {
		blocks, release, err = acquireAll(l.get(), mint, maxt)
		if !errors.Is(err, errGone) {
			return blocks, release, err
		}
		// The list lacks it, and has what was written in its place.
	}
}

func acquireAll(list []*localBlock, mint, maxt int64) (blocks []*tsdb.Block, release func(), err error) {
	var releases []func()
	release = func() {
		for _, f := range releases {
			f()
		}
	}
	for _, b := range list {
		if !b.overlaps(mint, maxt) {
			continue
		}
		block, done, err := b.acquire()
		if err != nil {
			release()
			return nil, nil, err
		}
		blocks, releases = append(blocks, block), append(releases, done)
	}
	return blocks, release, nil
}

// querier adds the blocks to a querier of the head, which it closes if it fails. release
// is called after the querier that it returns was closed.
func (l *localBlocks) querier(head storage.Querier, mint, maxt int64) (q storage.Querier, release func(), err error) {
	return withBlocks(l, head, mint, maxt, tsdb.NewBlockQuerier, func(all []storage.Querier) storage.Querier {
		return storage.NewMergeQuerier(all, nil, storage.ChainedSeriesMerge)
	})
}

// chunkQuerier is like querier. merge joins chunks that overlap.
func (l *localBlocks) chunkQuerier(head storage.ChunkQuerier, mint, maxt int64, merge storage.VerticalChunkSeriesMergeFunc) (q storage.ChunkQuerier, release func(), err error) {
	return withBlocks(l, head, mint, maxt, tsdb.NewBlockChunkQuerier, func(all []storage.ChunkQuerier) storage.ChunkQuerier {
		return storage.NewMergeChunkQuerier(all, nil, merge)
	})
}

// withBlocks is querier for queriers of any kind, which open makes of a block.
func withBlocks[Q io.Closer](l *localBlocks, head Q, mint, maxt int64, open func(b tsdb.BlockReader, mint, maxt int64) (Q, error), merge func([]Q) Q) (all Q, release func(), err error) {
	var none Q
	blocks, release, err := l.acquire(mint, maxt)
	if err != nil {
		return none, nil, errors.Join(err, head.Close())
	}
	if len(blocks) == 0 {
		return head, release, nil
	}
	queriers := []Q{head}
	for _, b := range blocks {
		q, err := open(b, mint, maxt)
		if err != nil {
			err = fmt.Errorf("read local block %s: %w", b.Meta().ULID, err)
			for _, q := range queriers {
				err = errors.Join(err, q.Close())
			}
			release()
			return none, nil, err
		}
		queriers = append(queriers, q)
	}
	return merge(queriers), release, nil
}

// rewrite has change called with each block that overlaps a time, and then writes the
// blocks anew that have tombstones, without what those are for. The blocks that change is
// called with are nobody else's.
func (l *localBlocks) rewrite(ctx context.Context, compactor tsdb.Compactor, mint, maxt int64, change func(*tsdb.Block) error) error {
	for _, b := range l.get() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !b.toRewrite(mint, maxt) {
			continue
		}
		if err := l.rewriteOne(b, compactor, change); err != nil {
			return fmt.Errorf("block %s: %w", b.meta.ULID, err)
		}
	}
	return nil
}

// toRewrite reports whether rewrite opens the block.
func (b *localBlock) toRewrite(mint, maxt int64) bool {
	return b.overlaps(mint, maxt) || hasTombstones(b.dir)
}

// largestToRewrite opens the blocks that rewrite will open, and returns the size of the
// largest.
func (l *localBlocks) largestToRewrite(mint, maxt int64) (bytes int64, err error) {
	var errs []error
	for _, b := range l.get() {
		if !b.toRewrite(mint, maxt) {
			continue
		}
		block, release, err := b.acquire()
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		bytes = max(bytes, block.Size())
		release()
	}
	return bytes, errors.Join(errs...)
}

// hasTombstones reports whether there are any, or may be.
func hasTombstones(dir string) bool {
	const headerAndChecksum = 4 + 1 + 4
	info, err := os.Stat(filepath.Join(dir, tombstones.TombstonesFilename))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return info.Size() > headerAndChecksum
}

// rewriteOne rewrites a block, unless it was deleted since it was listed.
func (l *localBlocks) rewriteOne(b *localBlock, compactor tsdb.Compactor, change func(*tsdb.Block) error) (err error) {
	if b = l.claim(b); b == nil {
		return nil
	}
	defer b.fate.Unlock()
	block, err := tsdb.OpenBlock(l.log, b.dir, nil, nil)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, block.Close())
		}
	}()
	if err := change(block); err != nil {
		return err
	}
	ids, replaced, err := block.CleanTombstones(l.dir, compactor)
	if err != nil {
		return fmt.Errorf("write it anew: %w", err)
	}
	if !replaced {
		return nil
	}
	var added []*localBlock
	for _, id := range ids {
		next, err := l.read(id)
		if err != nil {
			return fmt.Errorf("write it anew: %w", err)
		}
		added = append(added, next)
	}
	closed = true
	if err := block.Close(); err != nil {
		return err
	}
	return l.replace([]*localBlock{b}, added...)
}
