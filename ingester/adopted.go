package ingester

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Adopted is a Prometheus data directory that serves as the folder of a tenant, in place.
// A Prometheus may be started on it again at any time: the TSDB writes what every
// Prometheus reads, nothing there is deleted that the bucket does not hold, unless the
// tenant is deleted, and the folder itself is never removed.
type Adopted struct {
	Tenant tenant.ID
	Dir    string
	// Keep are blocks that stay, though the bucket holds them: those that Prometheus made.
	// They go when they are older than the tenant's retention.
	Keep []ulid.ULID
}

// keeps tells whether the block is one of those that stay.
func (a *Adopted) keeps(block ulid.ULID) bool {
	return a != nil && slices.Contains(a.Keep, block)
}

// adopted returns what the tenant's folder was adopted as; nil for one of our own.
func (t *tenantDB) adopted() *Adopted {
	if a := t.ing.cfg.Adopted; a != nil && a.Tenant == t.id {
		return a
	}
	return nil
}

// dirOf returns the folder of a tenant.
func (c Config) dirOf(id tenant.ID) string {
	if c.Adopted != nil && c.Adopted.Tenant == id {
		return c.Adopted.Dir
	}
	return filepath.Join(c.Dir, string(id))
}

// adoptedEncoding is that of float chunks in an adopted directory.
const adoptedEncoding = chunkenc.EncXOR

// plainly makes o write only what every Prometheus of the last years reads.
func plainly(o *tsdb.Options) {
	o.FloatChunkEncoding = adoptedEncoding
	o.EnableSTStorage = false
	o.EnableHistogramSTEncoding = false
	// A Prometheus without its flag would leave a snapshot there, to be read when it is
	// out of date.
	o.EnableMemorySnapshotOnShutdown = false
	// Prometheus's own way to keep the highest series reference. It writes a file every
	// second, which is nothing for a single TSDB.
	o.EnableFastStartup = true
}

// removeSnapshots removes the snapshots of the head that Prometheus wrote, if its flag for
// them was on: they would be out of date for the next one. The log, which was just read,
// has all that they have.
func removeSnapshots(dir string) error {
	var err error
	for _, folder := range []string{dir, filepath.Join(dir, tsdbFolder)} {
		found, findErr := namesIn(folder, isSnapshot)
		err = errors.Join(err, findErr)
		for _, name := range found {
			err = errors.Join(err, os.RemoveAll(filepath.Join(folder, name)))
		}
	}
	if err != nil {
		return fmt.Errorf("remove outdated snapshots of the head: %w", err)
	}
	return nil
}

// empty removes what a TSDB keeps in an adopted folder, once the bucket has it
// all, but for the blocks that stay.
func (a *Adopted) empty() error {
	names := adoptedFiles()
	entries, err := os.ReadDir(a.Dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if block, err := ulid.ParseStrict(entry.Name()); err == nil && !a.keeps(block) {
			names = append(names, entry.Name())
		}
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, os.RemoveAll(filepath.Join(a.Dir, name)))
	}
	return errors.Join(errs...)
}

// adoptedFiles returns what a TSDB keeps in an adopted folder beside the blocks.
func adoptedFiles() []string {
	return []string{tsdbFolder, logFolder, lateLogFolder, chunksFolder, shippedFile, metadataFile, placementsFile}
}

// takeAway moves all blocks of an adopted folder to trash, also those that stay otherwise,
// and what else a TSDB keeps there, and returns the blocks. The folder itself, in which trash
// may lie, cannot be moved. trash is there once all is in it: what an attempt before this one
// has moved, when it ended half way, lies beside it.
func (a *Adopted) takeAway(trash string) ([]ulid.ULID, error) {
	partial := trash + ".partial"
	if err := os.MkdirAll(partial, 0o750); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(a.Dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if _, err := ulid.ParseStrict(entry.Name()); err == nil {
			names = append(names, entry.Name())
		}
	}
	for _, name := range append(names, adoptedFiles()...) {
		to := filepath.Join(partial, name)
		if _, err := os.Lstat(filepath.Join(a.Dir, name)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(to); err != nil {
			return nil, err
		}
		if err := os.Rename(filepath.Join(a.Dir, name), to); err != nil {
			return nil, err
		}
	}
	blocks, err := blocksIn(partial)
	if err != nil {
		return nil, err
	}
	return blocks, os.Rename(partial, trash)
}

// outlived tells whether a block that stays was hidden by the tenant's retention, in the
// bucket too.
func (t *tenantDB) outlived(meta tsdb.BlockMeta, now time.Time) bool {
	retention := time.Duration(t.ing.deps.Limits(t.id).Retention)
	return retention > 0 && meta.MaxTime <= now.Add(-retention).UnixMilli() && !t.ing.deps.Visible(t.id, meta.ULID)
}
