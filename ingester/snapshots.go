package ingester

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// replayed knows whether the snapshot of the head that a TSDB leaves can be started from.
//
// A series that leaves the head and comes back has a new reference, and the log may have
// both. Who replays the log gives the series the first one, and takes what comes under the
// other for its own. A snapshot has the one reference only. So who starts from it would not
// know whose the late samples and the chunks are that were written under the other before
// the log was replayed. See ADR 005.
type replayed struct {
	// before are the files with late samples and with chunks that were there when a TSDB
	// was opened that replayed its log. Empty if it began where a snapshot ends.
	before []string
}

// noteReplay looks at the folder of a TSDB that is closed, before anything is appended to its
// log.
func noteReplay(dir string) (r replayed, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("look at what will be replayed: %w", err)
		}
	}()
	whole, err := endsWithSnapshot(dir)
	if err != nil || whole {
		return replayed{}, err
	}
	for _, name := range []string{lateLogFolder, chunksFolder} {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return replayed{}, err
		}
		for _, entry := range entries {
			info, err := entry.Info()
			if err != nil {
				return replayed{}, err
			}
			if info.Size() > 0 {
				r.before = append(r.before, filepath.Join(dir, name, entry.Name()))
			}
		}
	}
	return r, nil
}

// endsWithSnapshot reports whether there is a snapshot of the head as it was after all that
// the log has.
func endsWithSnapshot(dir string) (bool, error) {
	_, last, err := wlog.Segments(filepath.Join(dir, logFolder))
	if errors.Is(err, fs.ErrNotExist) || err == nil && last < 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	end, err := os.Stat(wlog.SegmentName(filepath.Join(dir, logFolder), last))
	if err != nil {
		return false, err
	}
	// One that an earlier release left, in dir, may be of a TSDB that had replayed its log.
	_, segment, offset, err := tsdb.LastChunkSnapshot(filepath.Join(dir, tsdbFolder))
	if err != nil {
		return false, nil //nolint:nilerr // There is none, or none that the TSDB would take.
	}
	return segment == last && int64(offset) == end.Size(), nil
}

// lingers reports whether there are still files of those.
func (r replayed) lingers() bool {
	return slices.ContainsFunc(r.before, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// closeReplayed closes a TSDB that replayed its log, and leaves it so that the next one can
// do it again: without a snapshot, and with all late samples in blocks. The replay would drop
// full chunks of them that were written under the first reference of a series which has
// another in the log.
func (t *tenantDB) closeReplayed() error {
	if err := t.cutter.cut(func() error { return t.db.CompactOOOHead(context.Background()) }); err != nil {
		t.log.Warn("The late samples of a tenant stay in their log while its TSDB is closed", "err", err)
	}
	return errors.Join(closeTSDB(t.db), removeSnapshots(t.dir))
}
