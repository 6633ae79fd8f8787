package ingester

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	deletionsVersion = 1
	// deletionsFolder is no tenant's name.
	deletionsFolder = "~deletions"
	// deletionsSkew is by how much clocks may differ of who accepts a deletion and who
	// carries it out.
	deletionsSkew = 10 * time.Minute
	// deletionsPatience ends a look at the bucket that hangs, so that the next is made: uploads
	// wait for it.
	deletionsPatience = 2 * time.Minute
	// deletionsKept is how long it is remembered that a deletion was carried out, once it
	// is not active any more.
	deletionsKept = 7 * 24 * time.Hour
)

// CarriedOut says that an ingester has carried out a deletion.
type CarriedOut struct {
	ID ulid.ULID
	// Blocks were on this ingester's disk then, with their sources. They may be in the
	// bucket, or get there, as they were before.
	Blocks []ulid.ULID
}

// tenantDeletions is what is known here of a tenant's deletions, across restarts and though
// the tenant's folder may come and go.
type tenantDeletions struct {
	dir, name string
	// applying is held by whoever carries deletions out.
	applying turn

	mu   sync.Mutex
	read bool
	disk deletionsDisk
}

// deletionsDisk is the format of the file.
type deletionsDisk struct {
	Version int `json:"version"`
	// BegunMs is when the tenant's folder was made: deletions that were accepted before do
	// not concern what is in it. 0: that is not known.
	BegunMs int64 `json:"begun_ms"`
	// CheckedMs is when the deletions were last listed, active and complete ones, and all of
	// them carried out; or when the tenant's folder was made. 0: neither has been noted, so
	// that those which are complete by now may be as old as the bucket.
	CheckedMs int64 `json:"checked_ms"`
	// Done are the deletions that were carried out, or need not be, with the blocks that
	// were here then.
	Done map[ulid.ULID][]ulid.ULID `json:"done"`
}

// deletionsOf returns what is known of a tenant's deletions. It is kept for good.
func (i *Ingester) deletionsOf(id tenant.ID) *tenantDeletions {
	d, _ := i.deletions.LoadOrStore(id, &tenantDeletions{
		dir:      filepath.Join(i.cfg.Dir, deletionsFolder),
		name:     string(id),
		applying: newTurn(),
	})
	return d.(*tenantDeletions)
}

// trash returns where the folder of the tenant goes as a whole when a deletion takes it.
func (d *tenantDeletions) trash(deletion ulid.ULID) string {
	return filepath.Join(d.dir, d.name+trashMark+deletion.String())
}

// trashMark stands between the name of a tenant and the deletion that took its folder.
const trashMark = "~"

// openLocked reads the file, once.
func (d *tenantDeletions) openLocked() error {
	if d.read {
		return nil
	}
	var disk deletionsDisk
	path := filepath.Join(d.dir, d.name+".json")
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read the list of deletions: %w", err)
	default:
		if disk, err = parseDeletions(text); err != nil {
			return fmt.Errorf("decode %s (put back a copy of it; without one, remove the file: deletions that GET /api/v1/admin/tsdb/deletions lists as pending are carried out again then, on what came since, too): %w", path, err)
		}
	}
	if disk.Done == nil {
		disk.Done = map[ulid.ULID][]ulid.ULID{}
	}
	d.disk = disk
	if err := d.emptyTrashLocked(); err != nil {
		return err
	}
	d.read = true
	return nil
}

func parseDeletions(text []byte) (deletionsDisk, error) {
	var disk deletionsDisk
	err := json.Unmarshal(text, &disk)
	if err == nil && disk.Version != deletionsVersion {
		err = fmt.Errorf("it has version %d, this build reads %d", disk.Version, deletionsVersion)
	}
	return disk, err
}

// emptyTrashLocked completes what a crash left half done: a folder that lies in the trash
// was taken by a deletion, which is carried out with that.
func (d *tenantDeletions) emptyTrashLocked() error {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for what deletions took: %w", err)
	}
	for _, entry := range entries {
		text, ok := strings.CutPrefix(entry.Name(), d.name+trashMark)
		id, err := ulid.ParseStrict(text)
		if !ok || err != nil {
			continue
		}
		if _, done := d.disk.Done[id]; !done {
			blocks, err := blocksIn(d.trash(id))
			if err != nil {
				return err
			}
			d.disk.Done[id] = blocks
			if err := d.saveLocked(); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(d.trash(id)); err != nil {
			return fmt.Errorf("remove what a deletion took: %w", err)
		}
	}
	return nil
}

// blocksIn returns the blocks in a folder and their sources: a block that a Prometheus has
// merged is not a source of itself. One without a legible meta.json, which cannot have been
// uploaded, counts by its name.
func blocksIn(dir string) ([]ulid.ULID, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	var blocks []ulid.ULID
	for _, entry := range entries {
		id, err := ulid.ParseStrict(entry.Name())
		if err != nil || !entry.IsDir() {
			continue
		}
		blocks = append(blocks, id)
		text, err := os.ReadFile(filepath.Join(dir, entry.Name(), "meta.json"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read what went into a block: %w", err)
		}
		var meta tsdb.BlockMeta
		if err == nil && json.Unmarshal(text, &meta) == nil && meta.ULID == id {
			blocks = append(blocks, blockstore.Sources(meta)...)
		}
	}
	slices.SortFunc(blocks, ulid.ULID.Compare)
	return slices.Compact(blocks), nil
}

func (d *tenantDeletions) saveLocked() error {
	d.disk.Version = deletionsVersion
	text, err := json.Marshal(d.disk)
	if err == nil {
		err = os.MkdirAll(d.dir, 0o750)
	}
	if err == nil {
		err = writeFile(filepath.Join(d.dir, d.name+".json"), text)
	}
	if err != nil {
		// What is in memory would be lost with the process: it is read anew, and what is in
		// the trash is looked at, as after a crash.
		d.read = false
		return fmt.Errorf("write the list of deletions: %w", err)
	}
	return nil
}

// begin notes that the folder of the tenant is new, so that deletions that were accepted
// before do not concern what comes.
func (d *tenantDeletions) begin(now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.openLocked(); err != nil {
		return err
	}
	d.disk.BegunMs, d.disk.CheckedMs = now.UnixMilli(), now.UnixMilli()
	return d.saveLocked()
}

// concerns returns those of the active deletions that have to be carried out here still, and
// when they were listed last; zero: that is not known.
//
// An active deletion is due whatever the clocks say of when it was accepted: who accepted it
// waits for it. Only where nothing is known of before, as in a folder that was adopted or
// has lost its file, those that are settled are not: everybody had carried them out before,
// and what is here came since.
func (d *tenantDeletions) concerns(active []blockstore.ActiveDeletion) (due []blockstore.Deletion, checked time.Time, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.openLocked(); err != nil {
		return nil, time.Time{}, err
	}
	for k := range active {
		settled := active[k].Settlement != nil && d.disk.CheckedMs == 0
		if !settled && d.mayConcernLocked(&active[k].Deletion) {
			due = append(due, active[k].Deletion)
		}
	}
	if d.disk.CheckedMs != 0 {
		checked = time.UnixMilli(d.disk.CheckedMs)
	}
	return due, checked, nil
}

// missed returns those of the deletions, which are complete, that were begun and completed
// while nobody looked here.
func (d *tenantDeletions) missed(receipts []blockstore.Receipt) []blockstore.Deletion {
	d.mu.Lock()
	defer d.mu.Unlock()
	var missed []blockstore.Deletion
	for k := range receipts {
		since := d.disk.CheckedMs - deletionsSkew.Milliseconds()
		if receipts[k].Accepted.UnixMilli() >= since && d.mayConcernLocked(&receipts[k].Deletion) {
			missed = append(missed, receipts[k].Deletion)
		}
	}
	return missed
}

// mayConcernLocked reports whether a deletion was not carried out here, and was not
// accepted before the tenant's folder was made. A deletion of the tenant that the clocks
// leave in doubt counts as from before: it would take all that the tenant has sent since.
func (d *tenantDeletions) mayConcernLocked(of *blockstore.Deletion) bool {
	if _, done := d.disk.Done[of.ID]; done {
		return false
	}
	begun := d.disk.BegunMs
	if !of.WholeTenant {
		begun -= deletionsSkew.Milliseconds()
	}
	return of.Accepted.UnixMilli() >= begun
}

// carriedOut writes down that a deletion was carried out.
func (d *tenantDeletions) carriedOut(id ulid.ULID, blocks []ulid.ULID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disk.Done[id] = blocks
	return d.saveLocked()
}

// checked notes when the active deletions were listed, all of which are carried out, and
// returns for each the blocks that were here then. What nobody will ask for any more is
// dropped.
func (d *tenantDeletions) checked(active []blockstore.ActiveDeletion, now time.Time) ([]CarriedOut, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	save := d.disk.CheckedMs == 0
	if save || now.Sub(time.UnixMilli(d.disk.CheckedMs)) >= deletionsSkew {
		// Not sooner: those that are complete were not looked at then. See dueDeletions.
		d.disk.CheckedMs = now.UnixMilli()
	}
	isActive := map[ulid.ULID]bool{}
	var out []CarriedOut
	for k := range active {
		id := active[k].ID
		isActive[id] = true
		blocks, done := d.disk.Done[id]
		if !done { // It was accepted before anything was held here.
			d.disk.Done[id], save = nil, true
		}
		out = append(out, CarriedOut{ID: id, Blocks: blocks})
	}
	for id := range d.disk.Done {
		if !isActive[id] && now.Sub(ulid.Time(id.Time())) > deletionsKept {
			delete(d.disk.Done, id)
		}
	}
	if !save {
		return out, nil
	}
	return out, d.saveLocked()
}

// ApplyDeletions carries out a tenant's deletions that are recorded in the bucket, and
// returns those that are: what existed here when they were accepted is seen no more, and
// not uploaded without being named. What comes later is stored and seen.
func (i *Ingester) ApplyDeletions(ctx context.Context, id tenant.ID) ([]CarriedOut, error) {
	d := i.deletionsOf(id)
	if err := d.applying.take(ctx); err != nil {
		return nil, fmt.Errorf("wait for other deletions of tenant %s: %w", id, err)
	}
	defer d.applying.give()
	now := i.now()
	active, due, err := i.dueDeletions(ctx, id)
	if err != nil {
		return nil, err
	}
	for k := range due {
		if err := i.applyDeletion(ctx, id, d, &due[k]); err != nil {
			if t := i.lookup(id); t != nil {
				t.deletionsDue.Store(true) // Maintenance tries again.
			}
			return nil, fmt.Errorf("carry out deletion %s of tenant %s: %w", due[k].ID, id, err)
		}
	}
	return d.checked(active, now)
}

// dueDeletions returns the active deletions of a tenant and those that have to be carried
// out here. Who has not looked for long also looks at those that were completed meanwhile.
func (i *Ingester) dueDeletions(ctx context.Context, id tenant.ID) (active []blockstore.ActiveDeletion, due []blockstore.Deletion, err error) {
	ctx, cancel := context.WithTimeout(ctx, deletionsPatience)
	defer cancel()
	found, err := i.deps.Store.DeletionsOf(ctx, id)
	if err == nil {
		err = found.Fault
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list the deletions of tenant %s: %w", id, err)
	}
	d := i.deletionsOf(id)
	due, checked, err := d.concerns(found.Active)
	if err != nil || checked.IsZero() || i.now().Sub(checked) < deletionsSkew {
		return found.Active, due, err
	}
	receipts, err := i.deps.Store.Receipts(ctx, id, checked.Add(-deletionsSkew))
	if err != nil {
		return nil, nil, err
	}
	return found.Active, append(due, d.missed(receipts)...), nil
}

// deletionsDone returns an error if there are deletions of the tenant that are not carried
// out here: a block that was not touched by them must not be given away. Maintenance does
// so then.
func (t *tenantDB) deletionsDone(ctx context.Context) error {
	_, due, err := t.ing.dueDeletions(ctx, t.id)
	if err == nil && len(due) > 0 {
		t.deletionsDue.Store(true)
		err = errDeletionsDue
	}
	return err
}

// errDeletionsDue says that deletions have to be carried out first.
var errDeletionsDue = errors.New("a deletion of the tenant has to be carried out first")

// applyDeletion carries out one deletion and writes that down.
func (i *Ingester) applyDeletion(ctx context.Context, id tenant.ID, log *tenantDeletions, d *blockstore.Deletion) (err error) {
	start := i.now()
	t, err := i.holder(id, d.ID)
	if err != nil {
		return err
	}
	var blocks []ulid.ULID
	var since bool
	if t != nil && d.WholeTenant {
		if since, err = t.hasSince(d.Accepted.Add(deletionsSkew), start); err != nil {
			return err
		}
	}
	switch {
	case t == nil:
		// Nothing is held, unless an attempt before this one ended half way.
		if blocks, err = blocksIn(log.trash(d.ID)); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = log.carriedOut(d.ID, blocks)
		}
	case d.WholeTenant && !since:
		blocks, err = t.dropAll(ctx, log, d.ID)
	default:
		if blocks, err = t.deleteSeries(ctx, d); err == nil {
			err = log.carriedOut(d.ID, blocks)
		}
	}
	if err != nil {
		return err
	}
	i.logger.Info("Carried out a deletion", "tenant", id, "deletion", d.ID, "selectors", d.Selectors, "whole_tenant", d.WholeTenant,
		"local_blocks", len(blocks), "took", i.now().Sub(start))
	return nil
}

// holder returns who holds something of a tenant that a deletion is about; nil: there is
// nothing. What lies closed in the tenant's folder is opened, so that it is seen.
func (i *Ingester) holder(id tenant.ID, deletion ulid.ULID) (t *tenantDB, err error) {
	if t = i.lookup(id); t == nil {
		if !isDir(i.cfg.dirOf(id)) {
			return nil, nil
		}
		if t, err = i.tenantForPush(id); err != nil {
			return nil, err
		}
	}
	return t, t.openLeft(deletion)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// hasSince reports whether there are samples of after end, if that has passed. A deletion
// of the tenant that is carried out late, because the ingester was away or could not, must
// not take what the tenant has sent meanwhile: it stays due while nobody can tell.
func (t *tenantDB) hasSince(end, now time.Time) (bool, error) {
	if !end.Before(now) {
		return false, nil
	}
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return false, nil // Nothing is held.
	}
	if err != nil {
		return false, fmt.Errorf("look for what came since: %w", err)
	}
	defer release()
	return headOverlaps(db, end.UnixMilli(), math.MaxInt64) || t.blocks.overlaps(end.UnixMilli(), math.MaxInt64), nil
}

// dropAll deletes all that is held of the tenant, without uploading it, and returns the
// local blocks that there were. If the folder cannot be taken away, a write or a restart
// opens it again, and maintenance tries until then. The next write begins anew: only once it is written down
// that the deletion was carried out, so that it never takes what comes later.
func (t *tenantDB) dropAll(ctx context.Context, log *tenantDeletions, id ulid.ULID) ([]ulid.ULID, error) {
	if err := t.lockWorking(ctx); err != nil {
		return nil, fmt.Errorf("wait for a cut or an upload: %w", err)
	}
	defer t.working.Unlock()
	if err := t.close(); err != nil {
		t.log.Warn("Closing the TSDB of a deleted tenant reported an error; it is deleted all the same", "err", err)
	}
	if t.ing.lookup(t.id) != t {
		return nil, errors.New("the tenant was closed, and may have begun anew, while the deletion waited for its turn")
	}
	blocks, err := t.takeAway(log, id)
	if err != nil {
		t.ing.replace(t, id) // It is closed for good, and its folder is there.
		return nil, err
	}
	return blocks, errors.Join(t.ing.remove(t), os.RemoveAll(log.trash(id)))
}

// takeAway moves the folder of a closed tenant away and writes that down.
func (t *tenantDB) takeAway(log *tenantDeletions, id ulid.ULID) ([]ulid.ULID, error) {
	blocks, err := blocksIn(t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, log.carriedOut(id, nil)
	}
	if err != nil {
		return nil, err
	}
	if held := t.held.Load(); held != nil {
		held.shipped.release(t.ing.now().Add(maxAhead).UnixMilli()) // Nothing of before is here: see holding.
	}
	if err := os.MkdirAll(log.dir, 0o750); err != nil {
		return nil, err
	}
	if adopted := t.adopted(); adopted != nil {
		if blocks, err = adopted.takeAway(log.trash(id)); err != nil {
			return nil, fmt.Errorf("take away what a deleted tenant has in the directory of a Prometheus: %w", err)
		}
		return blocks, log.carriedOut(id, blocks)
	}
	if err := os.Rename(t.dir, log.trash(id)); err != nil {
		return nil, fmt.Errorf("take away the folder of a deleted tenant: %w", err)
	}
	return blocks, log.carriedOut(id, blocks)
}

// lockWorking locks working, or gives up when ctx ends.
func (t *tenantDB) lockWorking(ctx context.Context) error {
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for !t.working.TryLock() {
		select {
		case <-retry.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
