package ingester

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/prometheus/prometheus/util/compression"
)

const (
	// seriesRefsFile lies in the folder of the log. It has the name and the format of the
	// file by which Prometheus keeps the highest reference, so that it reads ours.
	seriesRefsFile = "series_state.json"

	// refsReserved is how many references are reserved at once. What is left of them is
	// lost with a restart: there are 2^40.
	refsReserved = 1 << 16

	// refsUnseen is more than the series that a process creates between two times that
	// Prometheus writes its file, which are a second apart.
	refsUnseen = 1 << 20
)

// seriesRefs sees to it that a TSDB gives no reference to a series which another series had
// before: out-of-order chunks that were cut into a block but are still in the head's chunk
// file would turn up in the wrong series after a restart. The file has a bound that every
// reference of a series with samples is below; it rises before they get there. When the
// TSDB is opened a record in its log makes it begin above. See ADR 023.
//
// Used by whoever has the tenant's appending, or opens the TSDB.
type seriesRefs struct {
	dir   string // of the log
	bound uint64
}

// reserve is told that samples of the series with this reference are about to be stored.
func (r *seriesRefs) reserve(ref storage.SeriesRef) error {
	if uint64(ref) < r.bound {
		return nil
	}
	bound := uint64(ref) + refsReserved
	// What Prometheus takes from a clean shutdown is the number as it is.
	text, err := json.Marshal(tsdb.SeriesLifecycleState{LastSeriesID: bound, CleanShutdown: true})
	if err == nil {
		err = writeFile(filepath.Join(r.dir, seriesRefsFile), text)
	}
	if err != nil {
		return fmt.Errorf("reserve references for new series: %w", err)
	}
	r.bound = bound
	return nil
}

// read returns a number above all references that were given to series with samples; 0 if
// there were none.
func (r *seriesRefs) read(now time.Time) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(r.dir, seriesRefsFile))
	var state tsdb.SeriesLifecycleState
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(r.dir); errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		return refsByTime(now), nil
	case err != nil:
		return 0, fmt.Errorf("read which references series had: %w", err)
	case json.Unmarshal(text, &state) != nil:
		return refsByTime(now), nil // Prometheus does not sync its file: a power failure may leave nothing of it.
	case !state.CleanShutdown:
		return state.LastSeriesID + refsUnseen, nil
	}
	return state.LastSeriesID + 1, nil
}

// refsByTime returns what is above all references given so far if a tenant has created
// fewer than 62 series in each millisecond since 1970.
func refsByTime(now time.Time) uint64 { return uint64(max(0, now.UnixMilli()))/16 + 1 }

// refMark is the record that makes a TSDB begin above a reference: the tombstone of a series
// that there never was. The zero refMark is none.
type refMark struct {
	path string // of the segment of the log
	ref  storage.SeriesRef
}

// mark appends the mark to the log of a TSDB that is closed.
func (r *seriesRefs) mark(now time.Time) (refMark, error) {
	ref, err := r.read(now)
	r.bound = ref
	if err != nil || ref == 0 {
		return refMark{}, err
	}
	m := refMark{ref: storage.SeriesRef(ref)}
	log, err := wlog.New(nil, nil, r.dir, compression.None)
	if err != nil {
		return refMark{}, fmt.Errorf("note in the log which references series had: %w", err)
	}
	segment, _, err := log.LastSegmentAndOffset()
	m.path = wlog.SegmentName(r.dir, segment)
	if err = errors.Join(err, log.Log(m.record()), log.Close()); err != nil {
		return refMark{}, fmt.Errorf("note in the log which references series had: %w", err)
	}
	return m, nil
}

func (m refMark) record() []byte {
	var enc record.Encoder
	return enc.Tombstones([]tombstones.Stone{{
		Ref:       m.ref,
		Intervals: tombstones.Intervals{{Mint: math.MinInt64, Maxt: math.MaxInt64}},
	}}, nil)
}

// heeded reports whether the mark is still there after the TSDB was opened. A TSDB that
// finds a torn record in its log, as a process leaves it that is killed while it writes,
// removes all segments that follow without having read them.
func (m refMark) heeded() (bool, error) {
	if m.ref == 0 {
		return true, nil
	}
	segment, err := wlog.OpenReadSegment(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the mark of references: %w", err)
	}
	log := wlog.NewReader(wlog.NewSegmentBufReader(segment))
	found := log.Next() && string(log.Record()) == string(m.record())
	return found, segment.Close()
}

// openTSDB opens the TSDB so that it gives no reference a second time, and so that it can log
// late samples.
func (t *tenantDB) openTSDB(g *gate) (*tsdb.DB, error) {
	t.refs = seriesRefs{dir: filepath.Join(t.dir, logFolder)}
	for range 3 { // One for each of the faults below that are mended by opening it once more.
		g.replayed = newSightings()
		if err := dropMarkers(t.dir, func(bytes uint64) error { return t.ing.disk.check(bytes, 0) }); errors.Is(err, errDisk) {
			t.log.Warn("There is no room to write the log of late samples without markers of chunks that are not there; it is replayed with them, and another kill could cost late samples", "err", err)
		} else if err != nil {
			return nil, err
		}
		var mark refMark
		if t.adopted() == nil { // There the TSDB does what Prometheus does.
			var err error
			if mark, err = t.refs.mark(t.ing.now()); err != nil {
				return nil, err
			}
		} else {
			t.refs.bound = math.MaxUint64
		}
		db, err := t.openPrepared(t.options(g))
		if err != nil {
			g.release()
			return nil, err
		}
		heeded, err := mark.heeded()
		logged, makeLog := t.lateLogged(db)
		if err = errors.Join(err, makeLog); err == nil && heeded && logged {
			return db, nil
		}
		// No series was created yet, and the log has no torn record any more. The TSDB did
		// not read that of late samples after it had met one, so the head lacks series that
		// have nothing else, and so does the snapshot that it leaves.
		err = errors.Join(err, t.closeToReplay(db))
		g.release()
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("the logs in %s can't be repaired: they lose what is appended to them", t.dir)
}

// openPrepared opens the TSDB on its folder.
func (t *tenantDB) openPrepared(o *tsdb.Options) (*tsdb.DB, error) {
	cutBefore, cut := t.cutter.blocks.cutBefore()
	folder, err := prepareTSDB(t.dir, o.OutOfOrderTimeWindow > 0, cutBefore, cut)
	if err != nil {
		return nil, err
	}
	db, err := tsdb.Open(folder, t.tsdbLog(), nil, o, nil)
	if err != nil {
		return nil, err
	}
	db.DisableCompactions() // We drive them: see maintain.
	if err := dropMarker(db); err != nil {
		return nil, errors.Join(err, t.closeToReplay(db))
	}
	return db, nil
}
