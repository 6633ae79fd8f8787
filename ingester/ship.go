package ingester

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/remoteblock"
)

const (
	shippedFile    = "shipped.json"
	shippedVersion = 1
)

// shipped remembers which local blocks are in the bucket, across restarts: a
// block that was merged there since must not be uploaded again. It also knows since
// when nothing was deleted here, and how far the head was cut though no block says so any
// more. It is safe for concurrent use.
type shipped struct {
	path string

	mu       sync.Mutex
	uploads  map[ulid.ULID]upload
	heldFrom int64 // ms; every sample taken here at or after it is still here
	// cut is as in the file: the time, in ms, before which all in-order samples were cut,
	// at least. math.MinInt64: the file says nothing of it.
	cut int64
	// assumed says that the file does not say all of that, and would be understood
	// otherwise later.
	assumed bool
}

// upload is what shippedFile says of one uploaded block.
type upload struct {
	// Time is when the upload ended, in ms.
	Time int64 `json:"time_ms"`
	// MaxTime is that of the block. A block that is not local any more is told by it.
	MaxTime int64 `json:"max_ms"`
}

// shippedDisk is the format of shippedFile. What may be left out came later, and releases
// without it drop it.
type shippedDisk struct {
	Version   int                  `json:"version"`
	Blocks    []ulid.ULID          `json:"blocks"`
	HeldFrom  *int64               `json:"held_from_ms,omitempty"`
	Uploads   map[ulid.ULID]upload `json:"uploads,omitempty"`
	CutBefore *int64               `json:"cut_before_ms,omitempty"`
}

// openShipped reads the file in dir. now stands for the unknown time of an upload, and
// gone is a time before which samples may have been deleted, for all that is known
// without the file.
func openShipped(dir string, now time.Time, gone int64) (*shipped, error) {
	s := &shipped{path: filepath.Join(dir, shippedFile), uploads: map[ulid.ULID]upload{}, heldFrom: gone, cut: math.MinInt64}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		s.assumed = true
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of uploaded blocks: %w", err)
	}
	d, err := decodeShipped(data)
	if err != nil {
		return nil, fmt.Errorf("decode %s (remove the file to upload all local blocks again): %w", s.path, err)
	}
	if s.assumed = d.HeldFrom == nil; !s.assumed {
		s.heldFrom = *d.HeldFrom
	}
	if d.CutBefore != nil {
		s.cut = *d.CutBefore
	}
	for _, id := range d.Blocks {
		up, known := d.Uploads[id]
		if !known { // Written by a release that noted no more, and deleted who knows what.
			up = upload{Time: now.UnixMilli(), MaxTime: math.MinInt64}
			s.heldFrom, s.assumed = max(s.heldFrom, gone), true
		}
		up.Time = min(up.Time, now.UnixMilli())
		s.uploads[id] = up
		if _, err := os.Stat(filepath.Join(dir, id.String())); errors.Is(err, fs.ErrNotExist) {
			s.heldFrom = max(s.heldFrom, up.MaxTime)
		}
	}
	return s, nil
}

func decodeShipped(data []byte) (shippedDisk, error) {
	var d shippedDisk
	if err := json.Unmarshal(data, &d); err != nil {
		return d, err
	}
	if d.Version != shippedVersion {
		return d, fmt.Errorf("it has version %d, this build reads %d", d.Version, shippedVersion)
	}
	return d, nil
}

func (s *shipped) has(id ulid.ULID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.uploads[id]
	return ok
}

// since returns how long ago a block was uploaded; ok is false if it was not.
func (s *shipped) since(id ulid.ULID, now time.Time) (d time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	up, ok := s.uploads[id]
	return now.Sub(time.UnixMilli(up.Time)), ok
}

// maxTime returns the end of a block that was uploaded; math.MinInt64 if it was not, or that
// is not known.
func (s *shipped) maxTime(id ulid.ULID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if up, ok := s.uploads[id]; ok {
		return up.MaxTime
	}
	return math.MinInt64
}

// from returns the time from which on all samples taken here are still here.
func (s *shipped) from() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heldFrom
}

// release notes that samples before maxTime are about to be deleted. It need not be
// written down: the file lists the blocks that are not here any more.
func (s *shipped) release(maxTime int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heldFrom = max(s.heldFrom, maxTime)
}

// cutBefore returns the time before which all in-order samples were cut, at least, as far
// as the file says; math.MinInt64 if it does not.
func (s *shipped) cutBefore() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut
}

// noteCut has the file say that all in-order samples of before maxt were cut.
func (s *shipped) noteCut(maxt int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maxt <= s.cut {
		return nil
	}
	if err := s.saveLocked(s.uploads, maxt); err != nil {
		return fmt.Errorf("record how far the head was cut: %w", err)
	}
	return nil
}

// add records that block is in the bucket, and forgets those that are not local any more.
// What the block says of how far the head was cut is recorded with it, so that it can be
// deleted on a disk that has no room.
func (s *shipped) add(block tsdb.BlockMeta, now time.Time, local *localBlocks) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[ulid.ULID]upload{block.ULID: {Time: now.UnixMilli(), MaxTime: block.MaxTime}}
	for _, b := range local.get() {
		if up, ok := s.uploads[b.meta.ULID]; ok {
			up.MaxTime = b.meta.MaxTime
			next[b.meta.ULID] = up
		}
	}
	for _, b := range local.leftOut() {
		if up, ok := s.uploads[b.id]; ok {
			next[b.id] = up
		}
	}
	cut := s.cut
	if cutInOrder(&block) {
		cut = max(cut, block.MaxTime)
	}
	if err := s.saveLocked(next, cut); err != nil {
		return fmt.Errorf("record the upload of block %s: %w", block.ULID, err)
	}
	return nil
}

// save writes down since when samples are held, if that had to be assumed.
func (s *shipped) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.assumed {
		return nil
	}
	if err := s.saveLocked(s.uploads, s.cut); err != nil {
		return fmt.Errorf("record since when samples are held: %w", err)
	}
	return nil
}

// saveLocked writes the file. With an error, what is known here stays what it was.
func (s *shipped) saveLocked(uploads map[ulid.ULID]upload, cut int64) error {
	ids := slices.SortedFunc(maps.Keys(uploads), func(a, b ulid.ULID) int { return a.Compare(b) })
	if ids == nil {
		ids = []ulid.ULID{}
	}
	disk := shippedDisk{Version: shippedVersion, Blocks: ids, HeldFrom: &s.heldFrom, Uploads: uploads}
	if cut != math.MinInt64 {
		disk.CutBefore = &cut
	}
	data, err := json.Marshal(disk)
	if err != nil {
		return err
	}
	if err := writeFile(s.path, data); err != nil {
		return err
	}
	s.uploads, s.cut, s.assumed = uploads, cut, false
	return nil
}

// uploadTimeout ends an upload that hangs, so that it is tried again.
const uploadTimeout = 15 * time.Minute

func (t *tenantDB) upload(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	// Before the block, so that its first reader finds it. Nothing needs it.
	if err := remoteblock.WriteSidecar(ctx, t.ing.deps.Store, t.id, dir); err != nil {
		t.ing.logger.Warn("A block goes to the bucket without its sidecar; the first query for it takes longer", "tenant", t.id, "err", err)
	}
	return t.ing.deps.Store.Upload(ctx, t.id, dir)
}

// deletable reports whether a block was uploaded long enough ago, queries read it from the
// bucket, and no late sample need be compared with it any more.
func (t *tenantDB) deletable(db *tsdb.DB, meta *tsdb.BlockMeta) bool {
	now := t.ing.now()
	age, uploaded := t.shipped.since(meta.ULID, now)
	if t.adopted().keeps(meta.ULID) {
		return uploaded && t.outlived(*meta, now)
	}
	settled := t.retiring.Load() || meta.MaxTime <= t.oldestLate(db)
	return settled && uploaded && t.known(meta.ULID, age, now) && t.ing.deps.Visible(t.id, meta.ULID)
}

// shipFor bounds how long one round of maintenance uploads: a directory that was adopted
// may hold years, and heads are to be cut meanwhile.
const shipFor = 30 * time.Second

// shipSome uploads local blocks that the bucket lacks, and leaves the rest to the next
// round if it takes long. use is held shared.
func (t *tenantDB) shipSome(ctx context.Context) error {
	return t.ship(ctx, t.ing.now().Add(shipFor))
}

// shipHeld uploads all local blocks that the bucket lacks. use is held shared.
func (t *tenantDB) shipHeld(ctx context.Context) error {
	return t.ship(ctx, time.Time{})
}

// ship uploads until a time, the zero time for ever. The newest blocks go first: they are
// the ones that nobody else has, and that make room.
func (t *tenantDB) ship(ctx context.Context, until time.Time) error {
	var errs []error
	for _, b := range slices.Backward(t.blocks.get()) {
		id := b.meta.ULID
		if t.shipped.has(id) {
			continue
		}
		if !until.IsZero() && t.ing.now().After(until) {
			break
		}
		if err := t.deletionsDone(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := t.upload(ctx, b.dir); err != nil {
			t.ing.metrics.uploadFailures.Inc()
			errs = append(errs, fmt.Errorf("upload block %s: %w", id, err))
			continue // One block must not hold up the others.
		}
		t.ing.metrics.uploads.Inc()
		// Once more: a deletion that was accepted before the block was in the bucket, and so
		// does not name it, must find it here.
		if err := t.deletionsDone(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := t.shipped.add(b.meta, t.ing.now(), t.blocks); err != nil {
			errs = append(errs, err)
			continue
		}
		t.ing.deps.Uploaded(t.id, id)
		t.log.Info("Uploaded a block", "block", id, "mint", b.meta.MinTime, "maxt", b.meta.MaxTime, "series", b.meta.Stats.NumSeries, "samples", b.meta.Stats.NumSamples)
	}
	return errors.Join(errs...)
}

// deleteShipped deletes the blocks that need not be local any more. use is held shared.
func (t *tenantDB) deleteShipped(db *tsdb.DB) error {
	err := t.blocks.remove(func(b *localBlock) bool {
		if !t.deletable(db, &b.meta) {
			return false
		}
		t.indexed.release(b.meta.ULID)    // Before HeldFrom says that it may be gone.
		t.shipped.release(b.meta.MaxTime) // Before it is gone: see holding.
		return true
	})
	if err != nil {
		return fmt.Errorf("delete uploaded blocks: %w", err)
	}
	return nil
}
