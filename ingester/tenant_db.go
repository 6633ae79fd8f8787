package ingester

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/compression"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	blockRange = 2 * time.Hour // of the head, and so of the blocks cut from it

	// Sized for thousands of tenants: Prometheus's own 16,384 stripes and 4 MiB
	// would cost every tenant 8 MB. One goroutine at a time appends to a tenant,
	// so few stripes cost nothing (ADR 025).
	stripeSize           = 64
	headWriteBufferBytes = chunks.MinWriteBufferSize

	floatEncoding = chunkenc.EncXOR2

	// maxCutJitter spreads the cuts of tenants and replicas over time.
	maxCutJitter = 5 * time.Minute

	reopenInterval = time.Minute
)

// tenantDB is the TSDB of one tenant and what surrounds it. It is safe for
// concurrent use.
type tenantDB struct {
	id  tenant.ID
	dir string
	ing *Ingester
	log *slog.Logger

	// use is held shared by whoever uses the fields below, and exclusively to open
	// and close the TSDB.
	use     sync.RWMutex
	db      *tsdb.DB // nil: closed
	blocks  *localBlocks
	gate    *gate
	meta    *metadataStore
	shipped *shipped
	// placements is nil outside of a cluster.
	placements *placements
	// indexed is used outside of use, too.
	indexed indexed
	openErr error     // why db is nil, if opening failed
	retryAt time.Time // when opening is tried again
	retired bool      // never to be opened again: another tenantDB takes over, or none
	// dormant says that the TSDB was closed because nothing is held, and that the
	// tenant is kept for its placements.
	dormant bool
	// doomed is the deletion of the tenant that has closed the TSDB before this one and could
	// not take the folder away: nothing has come since.
	doomed ulid.ULID

	// doubled are series that have to leave the head before late samples of them are taken.
	// It changes while use is held exclusively.
	doubled doubled

	// held is for those who must not wait for use. It is set once the TSDB was open.
	held atomic.Pointer[held]

	// appending is held by the one push, or the one cut of everything, at a time.
	// It is what makes retries idempotent (no two pushes race to store the same
	// sample), and it stands in for the TSDB's isolation, which is off.
	appending turn
	app       appendState  // guarded by appending
	refs      seriesRefs   // guarded by appending
	ring      exemplarRing // guarded by appending
	// cutting is held by whoever cuts blocks or writes out chunks of the head, which the
	// TSDB does one at a time: taken after use, before appending.
	cutting turn
	chunks  headChunks

	// broken is set when a commit could not be written to the log, or a push panicked
	// before its own: the head may hold series that the log lacks, so nothing more may
	// be acknowledged before the TSDB is opened anew from the log.
	broken atomic.Bool
	// lateLogFailed is set when the log of out-of-order samples could not be
	// written, which the TSDB only mentions in its log.
	lateLogFailed atomic.Bool
	// deletionsDue is set when an upload was put off for a deletion, or one failed.
	deletionsDue atomic.Bool
	// retiring lets blocks go that late samples may still be compared with.
	retiring atomic.Bool

	lastPush atomic.Int64 // Unix nanoseconds
	active   atomic.Int64 // series, when they were counted last

	cutter  cutter
	readers readers

	// working is held by whoever cuts, uploads and deletes blocks.
	working   sync.Mutex
	cutDue    time.Time // when the pending cut is due; guarded by working
	evictions evictions // guarded by working
}

// open opens the TSDB. It fails fast while an earlier failure is recent.
func (t *tenantDB) open() error {
	t.use.Lock()
	defer t.use.Unlock()
	return t.openLocked()
}

func (t *tenantDB) openLocked() error {
	if t.db != nil {
		return nil
	}
	if t.retired {
		return errClosed
	}
	now := t.ing.now()
	if t.openErr != nil && now.Before(t.retryAt) {
		return t.closedErrLocked()
	}
	if err := t.openNewLocked(); err != nil {
		t.openErr = fmt.Errorf("open the TSDB of tenant %s: %w", t.id, err)
		t.retryAt = now.Add(reopenInterval)
		return t.closedErrLocked()
	}
	t.openErr = nil
	t.broken.Store(false)
	t.lateLogFailed.Store(false)
	t.retiring.Store(false)
	t.lastPush.Store(now.UnixNano())
	t.dormant, t.doomed = false, ulid.ULID{}
	return nil
}

// openLeft opens what was left in the folder of a tenant that is closed, if there is something
// which the deletion must look at.
func (t *tenantDB) openLeft(deletion ulid.ULID) error {
	left := func() bool {
		return t.db == nil && t.openErr == nil && !t.retired && !t.dormant && t.doomed != deletion && isDir(t.dir)
	}
	t.use.RLock()
	needed := left()
	t.use.RUnlock()
	if !needed {
		return nil
	}
	t.use.Lock()
	defer t.use.Unlock()
	if !left() {
		return nil
	}
	return t.openLocked()
}

func (t *tenantDB) openNewLocked() error {
	if _, err := os.Stat(t.dir); errors.Is(err, fs.ErrNotExist) {
		if err := t.ing.deletionsOf(t.id).begin(t.ing.now()); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(t.dir, 0o750); err != nil {
		return err
	}
	if err := removeTemporaries(t.dir); err != nil {
		return err
	}
	meta, err := openMetadata(t.dir)
	if err != nil {
		return err
	}
	sh, pl, err := t.openHeld()
	if err != nil {
		return err
	}
	blocks, err := openLocalBlocks(t.id, t.dir, sh, t.ing.openBlocks, t.log)
	if err != nil {
		return err
	}
	t.cutter.blocks = blocks
	g := &gate{id: t.id, limits: t.ing.deps.Limits, caps: t.ing.caps}
	db, err := t.openTSDB(g)
	if err != nil {
		return err
	}
	if err := t.ring.fit(db); err != nil {
		g.release()
		return errors.Join(err, t.closeToReplay(db))
	}
	if t.adopted() != nil {
		if err := removeSnapshots(t.dir); err != nil {
			g.release()
			return errors.Join(err, t.closeToReplay(db))
		}
	}
	g.open.Store(true)
	g.created.Store(0)
	t.db, t.blocks, t.gate, t.meta, t.shipped, t.placements = db, blocks, g, meta, sh, pl
	t.held.Store(&held{shipped: sh, placements: pl})
	t.app = newAppendState()
	t.doubled = doubled{series: g.replayed.again}
	g.replayed = nil
	if err := t.part(db); err != nil {
		return errors.Join(err, t.closeLocked())
	}
	t.recall(db)
	return nil
}

// openHeld opens what says what is held.
func (t *tenantDB) openHeld() (*shipped, *placements, error) {
	now := t.ing.now()
	sh, err := openShipped(t.dir, now, t.ing.releasedUntil.Load())
	if err != nil {
		return nil, nil, err
	}
	self := t.ing.self.Load()
	if self == nil {
		return sh, nil, noteAlone(t.dir)
	}
	pl, err := openPlacements(t.dir, now, self.alone)
	if err != nil {
		return nil, nil, err
	}
	return sh, pl, sh.save()
}

func (t *tenantDB) options(g *gate) *tsdb.Options {
	limits := t.ing.deps.Limits(t.id)
	o := tsdb.DefaultOptions()
	o.MinBlockDuration = blockRange.Milliseconds()
	o.MaxBlockDuration = blockRange.Milliseconds()
	o.RetentionDuration = 0
	o.EnableOverlappingCompaction = false // The compactor merges.
	o.NoLockfile = true                   // The data directory has one lock.
	o.WALCompression = compression.None
	o.StripeSize = stripeSize
	o.HeadChunksWriteBufferSize = headWriteBufferBytes
	o.SeriesLifecycleCallback = g
	o.IsolationDisabled = true
	o.OutOfOrderTimeWindow = t.lateWindow(time.Duration(limits.OutOfOrderWindow)).Milliseconds()
	o.EnableSharding = true
	o.EnableExemplarStorage = limits.MaxExemplars > 0
	o.MaxExemplars = int64(limits.MaxExemplars)
	if _, err := os.Stat(t.refs.dir); errors.Is(err, fs.ErrNotExist) {
		o.MaxExemplars = 0 // There is no log, and so no exemplar to be replayed.
	}
	t.ring = exemplarRing{size: int(o.MaxExemplars), window: o.OutOfOrderTimeWindow}
	o.EnableMemorySnapshotOnShutdown = true
	o.FloatChunkEncoding = floatEncoding
	o.EnableSTStorage = true
	o.EnableHistogramSTEncoding = true
	// The TSDB's own timer writes chunks out whether or not the disk is full, and
	// gives up on the process if it is. Pushes do its work instead.
	o.BlockReloadInterval = math.MaxInt64
	o.BlocksToDelete = t.cutter.reloaded
	o.NewCompactorFunc = t.cutter.open
	if t.adopted() != nil {
		plainly(o)
	}
	return o
}

// tsdbLog returns what the TSDB logs to.
func (t *tenantDB) tsdbLog() *slog.Logger {
	return slog.New(quiet{t.log.Handler(), t.overheard, t.ing.deps.Opening.replaying(t.id)})
}

// overheard is told the errors that the TSDB logs.
func (t *tenantDB) overheard(message string) {
	if message == lateLogFailure {
		t.lateLogFailed.Store(true)
	}
}

// lateLogFailure is what the TSDB logs when it appends out-of-order samples
// without having them in its log; the append succeeds all the same.
const lateLogFailure = "Failed to log out of order samples into the WAL"

// closedErrLocked says why there is no TSDB. use is held.
func (t *tenantDB) closedErrLocked() error {
	if t.openErr != nil {
		return wire.Unavailable(t.openErr, max(time.Second, t.retryAt.Sub(t.ing.now()).Round(time.Second)))
	}
	if t.ing.isStopped() {
		// An answer without its samples would be a wrong one.
		return wire.Unavailable(errStopped, time.Second)
	}
	return errClosed
}

// close closes the TSDB for good, once nobody uses it.
func (t *tenantDB) close() error {
	t.use.Lock()
	defer t.use.Unlock()
	t.retired = true
	return t.closeLocked()
}

func (t *tenantDB) closeLocked() error {
	if t.db == nil {
		return nil
	}
	closeDB := closeTSDB
	if len(t.doubled.series) > 0 {
		closeDB = t.closeToReplay
	}
	err := errors.Join(t.meta.save(), closeDB(t.db), t.blocks.close())
	if err == nil {
		err = t.dropLateLog()
	}
	t.gate.release()
	t.db, t.blocks, t.gate = nil, nil, nil
	t.app, t.doubled = appendState{}, doubled{}
	t.active.Store(0)
	if err != nil {
		return fmt.Errorf("close the TSDB of tenant %s: %w", t.id, err)
	}
	return nil
}

// closeTSDB closes db. A TSDB panics when it can't write out a chunk, as on a full
// disk. Nothing is lost then: its log has all samples, as after a crash.
func closeTSDB(db *tsdb.DB) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("the TSDB was left as a crash would leave it: %v", cause)
		}
	}()
	return db.Close()
}

func (t *tenantDB) growth() int64 {
	t.use.RLock()
	defer t.use.RUnlock()
	if t.gate == nil {
		return 0
	}
	return t.gate.growth()
}

// maintain does one round of work for the tenant. A deletion that cannot be carried out
// holds up uploads, which look for it themselves, and nothing else: cuts bound the memory, and
// blocks that need not be here any more make the room that a deletion may be waiting for.
func (t *tenantDB) maintain(ctx context.Context) error {
	if err := t.repair(); err != nil {
		return err
	}
	deleted := t.applyDue(ctx)
	return errors.Join(deleted, t.work(ctx, deleted == nil))
}

// applyDue carries out the deletions that are due.
func (t *tenantDB) applyDue(ctx context.Context) error {
	if !t.deletionsDue.Swap(false) {
		return nil
	}
	_, err := t.ing.ApplyDeletions(ctx, t.id)
	if err != nil {
		t.deletionsDue.Store(true)
	}
	return err
}

// work is what maintain does once it has looked at deletions; settled says that none is due.
func (t *tenantDB) work(ctx context.Context, settled bool) error {
	t.working.Lock()
	defer t.working.Unlock()
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return t.forgetDormant()
	}
	if err != nil {
		return err
	}
	defer release()
	if t.broken.Load() {
		return nil // The disk takes no writes yet.
	}
	idle := t.ing.now().Sub(time.Unix(0, t.lastPush.Load())) >= t.ing.cfg.IdleTimeout
	t.retiring.Store(idle)
	// What relieves the disk goes on when it is full: uploads and deletions.
	err = errors.Join(t.cut(ctx, db, idle), t.lookAtSeries(ctx, db), t.shipSome(ctx), t.meta.save(), t.lookAtIndex(ctx, db), t.lookAtLeftOut(), t.deleteShipped(db), t.tidyPlacements(db))
	release()
	if err == nil && idle && settled {
		err = t.retire()
	}
	return err
}

// cut cuts what is due, if the disk has room. use is held shared.
func (t *tenantDB) cut(ctx context.Context, db *tsdb.DB, idle bool) error {
	if idle && headHasSamples(db) {
		return t.cutAllHeld(ctx, db)
	}
	return t.cutIfDue(ctx, db)
}

// repair opens a TSDB that broke or did not open, and tries again to part series. New queries
// wait until those that run have ended.
func (t *tenantDB) repair() error {
	t.use.RLock()
	needed := t.broken.Load() || t.doubled.due(t.ing.now()) || (t.db == nil && t.openErr != nil && !t.ing.now().Before(t.retryAt))
	t.use.RUnlock()
	if !needed || t.ing.disk.check(0, 0) != nil {
		return nil
	}
	t.use.Lock()
	defer t.use.Unlock()
	if t.db != nil && !t.broken.Load() {
		if err := t.part(t.db); err == nil {
			return nil
		}
		t.broken.Store(true)
	}
	if t.broken.Load() {
		if err := t.closeLocked(); err != nil {
			// It could not write its last words, which is why it is opened anew.
			t.log.Warn("Closing a broken TSDB reported an error; it is opened anew from its log", "err", err)
		}
	}
	if err := t.openLocked(); err != nil {
		return err
	}
	t.log.Info("The TSDB was opened anew and takes writes again")
	return nil
}

// retire closes an idle tenant whose samples can all be read from the bucket.
func (t *tenantDB) retire() error {
	if !t.use.TryLock() {
		return nil // In use; the next round tries again.
	}
	defer t.use.Unlock()
	// A directory that was adopted stays as it is, for a Prometheus that goes on with it.
	if t.db == nil || headHasSamples(t.db) || len(t.blocks.get())+len(t.blocks.leftOut()) > 0 || t.adopted() != nil {
		return nil
	}
	// Its placements stay known for a while, since other members may not have
	// uploaded what was written under them.
	t.dormant = t.placements != nil && !t.placements.empty()
	t.retired = !t.dormant
	if err := t.closeLocked(); err != nil {
		t.retired = true
		t.ing.forget(t) // The next write opens what is in its folder.
		return err
	}
	t.log.Info("Closed an idle tenant; all its samples are read from the bucket")
	if t.dormant {
		return nil
	}
	return t.ing.remove(t)
}

// forgetDormant removes a tenant that holds nothing and that no placement is
// remembered for any more.
func (t *tenantDB) forgetDormant() error {
	if !t.use.TryLock() {
		return nil
	}
	defer t.use.Unlock()
	if t.db != nil || !t.dormant || t.retired {
		return nil
	}
	if err := t.placements.tidy(t.ing.now(), math.MinInt64, func(int64) bool { return true }); err != nil {
		return err
	}
	if !t.placements.empty() {
		return nil
	}
	t.retired = true
	return t.ing.remove(t)
}

// headHasSamples reports whether cutting the head may yield a block.
func headHasSamples(db *tsdb.DB) bool {
	return db.Head().NumSeries() > 0
}

// cutIfDue cuts the windows that are complete, after a jitter: the head spans
// more than one and a half of them. use is held shared.
func (t *tenantDB) cutIfDue(ctx context.Context, db *tsdb.DB) error {
	head := db.Head()
	span := head.MaxTime() - head.MinTime()
	if head.MinTime() == math.MaxInt64 || span <= blockRange.Milliseconds()/2*3 {
		t.cutDue = time.Time{}
		return nil
	}
	now := t.ing.now()
	if t.cutDue.IsZero() {
		t.cutDue = now.Add(t.cutJitter())
	}
	// A head that is far behind (old samples are being sent) is cut at once.
	if now.Before(t.cutDue) && span < 2*blockRange.Milliseconds() {
		return nil
	}
	// Barrier: appends that began before the window was complete have ended when
	// we hold the lock, and later ones can't reach into it, because the head takes
	// in order only what is newer than its newest sample minus half a window.
	if err := t.appending.take(ctx); err != nil {
		return err
	}
	t.appending.give()
	if err := t.cutting.take(ctx); err != nil {
		return err
	}
	defer t.cutting.give()
	if err := t.roomToCut(); err != nil {
		return err
	}
	start := t.ing.now()
	if err := t.cutter.cut(func() error { return db.Compact(ctx) }); err != nil {
		return fmt.Errorf("cut blocks: %w", err)
	}
	t.cutDue = time.Time{}
	t.noteCut(start)
	return t.forgetOld(ctx, db)
}

func (t *tenantDB) noteCut(start time.Time) {
	t.ing.metrics.cuts.Inc()
	t.ing.metrics.cutSeconds.Observe(t.ing.now().Sub(start).Seconds())
}

// forgetOld drops the series from the table that the head has dropped.
func (t *tenantDB) forgetOld(ctx context.Context, db *tsdb.DB) error {
	if err := t.appending.take(ctx); err != nil {
		return err
	}
	defer t.appending.give()
	t.app.table.forgetOld(db.Head().MinTime(), t.oldestLate(db), minuteOf(db.Head().MaxTime()))
	return nil
}

// oldestLate returns the time before which samples are too old.
func (t *tenantDB) oldestLate(db *tsdb.DB) int64 {
	newest := max(db.Head().MaxTime(), t.blocks.newestEvicted())
	if newest == math.MinInt64 {
		return newest // There are no samples.
	}
	return newest - time.Duration(t.ing.deps.Limits(t.id).OutOfOrderWindow).Milliseconds()
}

// cutJitter is the same for a tenant on one instance at all times.
func (t *tenantDB) cutJitter() time.Duration {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.ing.cfg.InstanceID + "/" + string(t.id)))
	return time.Duration(h.Sum64() % uint64(maxCutJitter))
}

// flush cuts everything, up to the newest sample, and uploads it. Nothing is uploaded before
// a deletion is carried out, so one that fails ends it.
func (t *tenantDB) flush(ctx context.Context) error {
	if _, err := t.ing.ApplyDeletions(ctx, t.id); err != nil {
		return err
	}
	t.working.Lock()
	defer t.working.Unlock()
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	if err := t.cutAllHeld(ctx, db); err != nil {
		return err
	}
	return t.shipHeld(ctx)
}

// cutAllHeld holds back appends throughout, since the head takes samples into
// the very window that is being cut. use is held shared.
func (t *tenantDB) cutAllHeld(ctx context.Context, db *tsdb.DB) error {
	if err := t.cutting.take(ctx); err != nil {
		return err
	}
	defer t.cutting.give()
	if err := t.roomToCut(); err != nil {
		return err
	}
	if err := t.appending.take(ctx); err != nil {
		return err
	}
	defer t.appending.give()
	start := t.ing.now()
	head, width := db.Head(), blockRange.Milliseconds()
	// The end is fixed before the first cut: a cut moves the head's newest time up.
	for mint, end := head.MinTime(), head.MaxTime(); mint <= end; {
		maxt := min(floorTo(mint, width)+width-1, end)
		if err := t.cutter.cut(func() error { return db.CompactHead(tsdb.NewRangeHead(head, mint, maxt)) }); err != nil {
			return fmt.Errorf("cut blocks: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		mint = max(maxt+1, head.MinTime()) // There may be years without samples.
	}
	if err := t.cutter.cut(func() error { return db.CompactOOOHead(ctx) }); err != nil {
		return fmt.Errorf("cut blocks of out-of-order samples: %w", err)
	}
	t.app.table = table{}
	t.noteCut(start)
	return nil
}

// floorTo rounds t down to a multiple of width, below zero too.
func floorTo(t, width int64) int64 {
	q := t / width
	if t%width < 0 {
		q--
	}
	return q * width
}

// roomToCut says whether the disk has room for the blocks that a cut may write,
// for which the size of the head's files is an upper bound. cutting or appending is held,
// by which the head keeps the files it has.
func (t *tenantDB) roomToCut() error {
	size, err := headBytes(t.dir)
	if err != nil {
		return err
	}
	return t.ing.disk.check(uint64(size), t.ing.caps.series.Load())
}
