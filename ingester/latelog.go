package ingester

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/wlog"

	"github.com/hundredfold/hundredfold/internal/wire"
)

// A TSDB keeps a log of its own of out-of-order samples, which takes an open file and 110 KB
// whether or not there are any. Most tenants never have one. So a TSDB is opened as one that
// takes none, and made to take them when the first comes: see ADR 025. An adopted directory
// is opened as Prometheus would open it.

// errNoLateLog says that a push has samples or exemplars that are late and that the TSDB does
// not take yet. The rest of what was pushed may be stored.
var errNoLateLog = errors.New("the TSDB takes no out-of-order samples yet")

// lateLogDir is the folder of the log. It is there while the log may hold something, or the
// head has what the log had.
func (t *tenantDB) lateLogDir() string { return filepath.Join(t.dir, wlog.WblDirName) }

// lateWindow returns the window for out-of-order samples to open the TSDB with.
func (t *tenantDB) lateWindow(limit time.Duration) time.Duration {
	if t.adopted() != nil {
		return limit
	}
	if _, err := os.Stat(t.lateLogDir()); errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	// Not 0 whatever the limit says, which a push looks at itself: with 0 the TSDB opens no
	// log if there is nothing in it, and if it finds out-of-order chunks nevertheless it
	// never makes one.
	return max(limit, time.Millisecond)
}

// lateLogged reports whether a TSDB that was just opened has a log of out-of-order samples, or
// can have one. It can't if chunks of such samples are left in the head's files without
// their log: then it is to be opened once more.
func (t *tenantDB) lateLogged(db *tsdb.DB) (bool, error) {
	if t.adopted() != nil || t.ring.window > 0 || db.Head().MinOOOTime() == math.MaxInt64 {
		return true, nil
	}
	return false, os.MkdirAll(t.lateLogDir(), 0o750)
}

// openLateLog has the TSDB take what is as late as the tenant's limit allows. use is held
// shared.
func (t *tenantDB) openLateLog(ctx context.Context, db *tsdb.DB) error {
	// A cut ends with a bound for the times of out-of-order samples, which it derives from
	// the window.
	if err := t.cutting.take(ctx); err != nil {
		return fmt.Errorf("wait for a cut of tenant %s before its first late samples: %w", t.id, err)
	}
	defer t.cutting.give()
	if err := t.appending.take(ctx); err != nil {
		return fmt.Errorf("wait for other writes of tenant %s: %w", t.id, err)
	}
	defer t.appending.give()
	window := time.Duration(t.ing.deps.Limits(t.id).OutOfOrderWindow).Milliseconds()
	if window <= t.ring.window {
		return nil // Somebody else did it.
	}
	err := linkFolder(t.dir, lateLogFolder)
	if err == nil {
		err = t.ring.apply(db, t.ring.size, window)
	}
	if err != nil {
		return wire.Unavailable(fmt.Errorf("open the log of late samples of tenant %s: %w", t.id, err), 10*time.Second)
	}
	return nil
}

// lateLogLacks reports whether the TSDB refuses what the tenant's limit allows, and gives err
// for it. appending is held.
func (p *pusher) lateLogLacks(err error) bool {
	return time.Duration(p.limits.OutOfOrderWindow).Milliseconds() > p.t.ring.window &&
		(errors.Is(err, storage.ErrOutOfBounds) || errors.Is(err, storage.ErrOutOfOrderSample) ||
			errors.Is(err, storage.ErrTooOldSample) || errors.Is(err, storage.ErrOutOfOrderExemplar))
}

// dropLateLog removes the log of out-of-order samples of a TSDB that was closed, if it has
// nothing and nothing depends on it: chunks of such samples in the head's files, or exemplars,
// which are read from the other log with the window of this one.
func (t *tenantDB) dropLateLog() error {
	if t.adopted() != nil || t.ring.used > 0 {
		return nil
	}
	for _, dir := range []string{t.lateLogDir(), filepath.Join(t.dir, "chunks_head")} {
		if empty, err := emptyFiles(dir); err != nil || !empty {
			return err
		}
	}
	return os.RemoveAll(t.lateLogDir())
}

// emptyFiles reports whether the files in dir, which need not be there, have no bytes.
func emptyFiles(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Size() > 0 {
			return false, err
		}
	}
	return true, nil
}
