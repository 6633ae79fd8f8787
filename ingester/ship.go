package ingester

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
)

const (
	shippedFile    = "shipped.json"
	shippedVersion = 1
)

// shipped remembers which local blocks are in the bucket, across restarts: a
// block that was merged there since must not be uploaded again. It is safe for
// concurrent use.
type shipped struct {
	path string

	mu  sync.Mutex
	ids map[ulid.ULID]struct{}
}

// shippedDisk is the format of shippedFile.
type shippedDisk struct {
	Version int         `json:"version"`
	Blocks  []ulid.ULID `json:"blocks"`
}

func openShipped(dir string) (*shipped, error) {
	s := &shipped{path: filepath.Join(dir, shippedFile), ids: map[ulid.ULID]struct{}{}}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of uploaded blocks: %w", err)
	}
	var d shippedDisk
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("decode %s (remove the file to upload all local blocks again): %w", s.path, err)
	}
	if d.Version != shippedVersion {
		return nil, fmt.Errorf("%s has version %d, this build reads %d", s.path, d.Version, shippedVersion)
	}
	for _, id := range d.Blocks {
		s.ids[id] = struct{}{}
	}
	return s, nil
}

func (s *shipped) has(id ulid.ULID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ids[id]
	return ok
}

// add records that id is in the bucket, and forgets the blocks that are not local any more.
func (s *shipped) add(id ulid.ULID, local []*tsdb.Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[ulid.ULID]struct{}{id: {}}
	for _, b := range local {
		if _, ok := s.ids[b.Meta().ULID]; ok {
			next[b.Meta().ULID] = struct{}{}
		}
	}
	ids := slices.SortedFunc(maps.Keys(next), func(a, b ulid.ULID) int { return a.Compare(b) })
	data, err := json.Marshal(shippedDisk{Version: shippedVersion, Blocks: ids})
	if err != nil {
		return err
	}
	if err := writeFile(s.path, data); err != nil {
		return fmt.Errorf("record the upload of block %s: %w", id, err)
	}
	s.ids = next
	return nil
}

// uploadTimeout ends an upload that hangs, so that it is tried again.
const uploadTimeout = 15 * time.Minute

func (t *tenantDB) upload(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	return t.ing.deps.Store.Upload(ctx, t.id, dir)
}

// deletable returns the blocks that were uploaded, that queries read from the
// bucket, and that no late sample need be compared with any more.
func (t *tenantDB) deletable(db *tsdb.DB, blocks []*tsdb.Block) map[ulid.ULID]struct{} {
	out := map[ulid.ULID]struct{}{}
	for _, b := range blocks {
		meta := b.Meta()
		settled := t.retiring.Load() || meta.MaxTime <= t.oldestLate(db)
		if settled && t.shipped.has(meta.ULID) && t.ing.deps.Visible(t.id, meta.ULID) {
			out[meta.ULID] = struct{}{}
		}
	}
	return out
}

// shipHeld uploads the local blocks that the bucket lacks. use is held shared.
func (t *tenantDB) shipHeld(ctx context.Context, db *tsdb.DB) error {
	var errs []error
	for _, b := range db.Blocks() {
		id := b.Meta().ULID
		if t.shipped.has(id) {
			continue
		}
		if err := t.upload(ctx, b.Dir()); err != nil {
			t.ing.metrics.uploadFailures.Inc()
			errs = append(errs, fmt.Errorf("upload block %s: %w", id, err))
			continue // One block must not hold up the others.
		}
		t.ing.metrics.uploads.Inc()
		if err := t.shipped.add(id, db.Blocks()); err != nil {
			errs = append(errs, err)
			continue
		}
		t.ing.deps.Uploaded(t.id)
		t.log.Info("Uploaded a block", "block", id, "mint", b.MinTime(), "maxt", b.MaxTime(), "series", b.Meta().Stats.NumSeries, "samples", b.Meta().Stats.NumSamples)
	}
	return errors.Join(errs...)
}

// deleteShipped lets the TSDB delete the blocks that need not be local any more.
// A TSDB reloads its blocks, and deletes then, only when it cuts; cutting
// out-of-order samples, of which there are few or none, is how to ask it for a
// reload. Blocks of out-of-order samples alone are not worth it while more may
// come: each would make another. They go with the next cut. use is held shared.
func (t *tenantDB) deleteShipped(ctx context.Context, db *tsdb.DB) error {
	deletable := t.deletable(db, db.Blocks())
	worthIt := false
	for _, b := range db.Blocks() {
		meta := b.Meta()
		if _, ok := deletable[meta.ULID]; ok && (t.retiring.Load() || !meta.Compaction.FromOutOfOrder()) {
			worthIt = true
		}
	}
	if !worthIt {
		return nil
	}
	if err := db.CompactOOOHead(ctx); err != nil {
		return fmt.Errorf("delete uploaded blocks: %w", err)
	}
	return nil
}
