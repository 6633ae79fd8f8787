package ingester

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// tsdbFolder is the folder in that of a tenant which its TSDB is opened on. It has links
// to the logs and to the chunks of the head, which lie beside it, and no blocks: a TSDB
// keeps all blocks open that it finds. So the tenant's folder is as every TSDB leaves it,
// and whoever opens that finds everything. Nothing but a snapshot of the head lies in
// here that is not made anew at each opening.
const tsdbFolder = "head"

const (
	logFolder     = "wal"
	lateLogFolder = "wbl"
	chunksFolder  = "chunks_head"
)

// prepareTSDB makes the folder that the TSDB of the tenant folder dir is opened on.
// late says that it will have a log of late samples. If any was cut, in-order samples of
// before cutBefore were.
func prepareTSDB(dir string, late bool, cutBefore int64, cut bool) (folder string, err error) {
	folder = filepath.Join(dir, tsdbFolder)
	defer func() {
		if err != nil {
			err = fmt.Errorf("prepare the folder %s for the TSDB: %w", folder, err)
		}
	}()
	if err := takeOut(dir, folder); err != nil {
		return folder, err
	}
	if err := takeSnapshots(dir, folder); err != nil {
		return folder, err
	}
	if err := removeOvertaken(dir, folder); err != nil {
		return folder, err
	}
	names := []string{logFolder, chunksFolder}
	if late || hasFiles(filepath.Join(dir, lateLogFolder)) {
		names = append(names, lateLogFolder)
	}
	for _, name := range names {
		if err := linkFolder(dir, name); err != nil {
			return folder, err
		}
	}
	if !cut {
		return folder, nil
	}
	return folder, writeMarker(folder, cutBefore)
}

// linkFolder makes a folder in that of the tenant, and the link to it, unless they are
// there. The TSDB makes nothing in the place of a link.
func linkFolder(dir, name string) error {
	if err := os.MkdirAll(filepath.Join(dir, name), 0o750); err != nil {
		return err
	}
	err := os.Symlink(filepath.Join("..", name), filepath.Join(dir, tsdbFolder, name))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// takeOut moves what a TSDB began in its own folder, since there was no link, to where it
// would have been without one.
func takeOut(dir, folder string) error {
	for _, name := range []string{logFolder, lateLogFolder, chunksFolder} {
		from, to := filepath.Join(folder, name), filepath.Join(dir, name)
		if info, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		} else if !info.IsDir() || hasFiles(to) { // a link, or a copy that was made by following it
			continue
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return nil
}

// takeSnapshots empties folder but for a snapshot of the head, and moves one there that an
// earlier release left in dir, which is newer.
func takeSnapshots(dir, folder string) error {
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	newer, err := namesIn(dir, isSnapshot)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(folder) // snapshots first, and snapshotsVoid after them
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(folder, snapshotsVoid))
	keep := len(newer) == 0 && errors.Is(err, fs.ErrNotExist)
	for _, entry := range entries {
		if keep && isSnapshot(entry.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(folder, entry.Name())); err != nil {
			return err
		}
	}
	for _, name := range newer {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

// snapshotPrefix is what the names of snapshots of a head begin with. What is unfinished of
// them the TSDB removes.
const snapshotPrefix = "chunk_snapshot."

func isSnapshot(name string) bool { return strings.HasPrefix(name, snapshotPrefix) }

// snapshotsVoid is a file in tsdbFolder that says that no snapshot there is to be started
// from. Its name comes after theirs.
const snapshotsVoid = "snapshots_void"

// voidSnapshots has the next opening replay the log, whatever snapshot it finds.
func voidSnapshots(dir string) error {
	err := os.WriteFile(filepath.Join(dir, tsdbFolder, snapshotsVoid), nil, 0o600)
	if err != nil {
		return fmt.Errorf("void the snapshots of the head: %w", err)
	}
	return nil
}

// removeOvertaken removes a snapshot that is from before the checkpoint of the log. The TSDB
// would read both, and forget the chunks of late samples of all series that are in both.
func removeOvertaken(dir, folder string) error {
	_, taken, _, err := tsdb.LastChunkSnapshot(folder)
	if err != nil {
		return nil //nolint:nilerr // There is none, or none that the TSDB would take.
	}
	_, checkpoint, err := wlog.LastCheckpoint(filepath.Join(dir, logFolder))
	if err != nil || checkpoint < taken {
		return nil //nolint:nilerr // There is none.
	}
	return removeSnapshots(dir)
}

func hasFiles(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) > 0
}

// headBytes returns the size of the files of a head. The TSDB's own number is that of the
// links.
func headBytes(dir string) (int64, error) {
	var sum int64
	for _, name := range []string{logFolder, lateLogFolder, chunksFolder} {
		n, err := fileutil.DirSize(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("measure the files of the head: %w", err)
		}
		sum += n
	}
	return sum, nil
}

// markerID returns the name of the one block which a TSDB finds when it is opened, and drops at
// once. It has no series: it says how far the head was cut, by which the TSDB leaves out
// what its log still has of that.
func markerID() ulid.ULID { return ulid.ULID{15: 1} }

// writeMarker writes the marker into folder. Its tombstone, of nothing, is what
// dropMarker makes the TSDB drop it by. Nothing of it needs to be durable.
func writeMarker(folder string, cutBefore int64) error {
	meta := tsdb.BlockMeta{ULID: markerID(), MinTime: cutBefore - 1, MaxTime: cutBefore, Version: 1}
	meta.Compaction.Level = 1
	meta.Compaction.Sources = []ulid.ULID{markerID()}
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	stone, err := oneTombstone()
	if err != nil {
		return err
	}
	dir := filepath.Join(folder, markerID().String())
	if err := os.MkdirAll(filepath.Join(dir, "chunks"), 0o750); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"index":                       emptyIndex(),
		tombstones.TombstonesFilename: stone,
		"meta.json":                   text,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// emptyIndex returns the index of a block without series.
func emptyIndex() []byte {
	be := binary.BigEndian
	empty := be.AppendUint32(be.AppendUint32(nil, 4), 0) // its length and that there are no entries
	empty = be.AppendUint32(empty, checksum(empty[4:]))
	x := append(be.AppendUint32(nil, index.MagicIndex), index.FormatV2)
	symbols := len(x)
	x = append(x, empty...)
	postings := len(x)
	x = append(x, empty...)
	contents := len(x)
	for _, section := range []int{symbols, postings, 0, 0, 0, postings} {
		x = be.AppendUint64(x, uint64(section))
	}
	return be.AppendUint32(x, checksum(x[contents:]))
}

// oneTombstone returns a file of tombstones, of which there is one.
func oneTombstone() ([]byte, error) {
	stones := tombstones.NewMemTombstones()
	stones.AddInterval(1, tombstones.Interval{})
	body, err := tombstones.Encode(stones)
	if err != nil {
		return nil, err
	}
	text := append(binary.BigEndian.AppendUint32(nil, tombstones.MagicTombstone), body...)
	return binary.BigEndian.AppendUint32(text, checksum(body[1:])), nil // but for the version of the format
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// dropMarker has the TSDB drop the marker, if it was opened with one.
func dropMarker(db *tsdb.DB) error {
	if err := db.CleanTombstones(); err != nil {
		return fmt.Errorf("drop the marker of how far the head was cut: %w", err)
	}
	if n := len(db.Blocks()); n > 0 {
		return fmt.Errorf("the TSDB has %d blocks in %s and should have none", n, db.Dir())
	}
	return nil
}

// markerOnly returns which of the blocks the TSDB is to delete: the marker, once
// dropMarker was called.
func markerOnly(blocks []*tsdb.Block) map[ulid.ULID]struct{} {
	doomed := map[ulid.ULID]struct{}{}
	for _, b := range blocks {
		if meta := b.Meta(); meta.Compaction.Deletable {
			doomed[meta.ULID] = struct{}{}
		}
	}
	return doomed
}
