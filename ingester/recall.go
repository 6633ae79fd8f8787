package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	// recallTogether is how many series are identified between two takings of the lock on
	// the table, and the least that a second goroutine is worth.
	recallTogether = 4096
)

// recall fills the table with all series that the head of a TSDB holds. Without it, whoever
// sends series by their identities would be asked for the labels of all of them after each
// restart, and whoever sends labels would have them looked at once more. Nobody else uses
// the TSDB yet.
func (t *tenantDB) recall(db *tsdb.DB) {
	var err error
	if t.app.table, err = recall(db, t.blocks); err != nil {
		t.log.Warn("The series of the head were not listed; each is asked for its labels once", "err", err)
	}
}

func recall(db *tsdb.DB, blocks *localBlocks) (table, error) {
	r := recalling{db: db, elsewhere: newestElsewhere(db, blocks)}
	refs, err := r.refs()
	if err != nil {
		return table{}, fmt.Errorf("list the series of the head: %w", err)
	}
	r.table.reserve(len(refs))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for len(refs) > 0 {
		some := refs[:min(len(refs), recallTogether)]
		refs = refs[len(some):]
		if len(refs) == 0 {
			err = r.add(some)
			break
		}
		g.Go(func() error { return r.add(some) })
	}
	if err := errors.Join(err, g.Wait()); err != nil {
		return table{}, fmt.Errorf("identify the series of the head: %w", err)
	}
	return r.table, nil
}

// recalling is a recall at work.
type recalling struct {
	db        *tsdb.DB
	elsewhere int64 // what newestElsewhere returns

	mu    sync.Mutex
	table table // guarded by mu
}

// refs returns the references of all series.
func (r *recalling) refs() (refs []storage.SeriesRef, err error) {
	reader, err := r.db.Head().Index()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	name, value := index.AllPostingsKey()
	all, err := reader.Postings(context.Background(), name, value)
	if err != nil {
		return nil, err
	}
	refs = make([]storage.SeriesRef, 0, r.db.Head().NumSeries())
	for all.Next() {
		refs = append(refs, all.At())
	}
	return refs, all.Err()
}

// add puts some series into the table.
func (r *recalling) add(refs []storage.SeriesRef) (err error) {
	reader, err := readHead(r.db.Head())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	scratch, hasher := labels.NewScratchBuilder(0), write.NewHasher()
	entries := make([]entry, 0, len(refs))
	for _, ref := range refs {
		if err := reader.series(ref, &scratch); errors.Is(err, storage.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		e := newEntry(hasher.Labels(scratch.Labels()), ref, r.elsewhere)
		newest, stale, err := reader.newest()
		switch {
		case err != nil:
			e.lastT = math.MaxInt64 // Unknown: have every sample compared.
		case newest >= e.lastT && stale:
			e.lastT, e.state = newest, guessed|ended
		default:
			e.lastT = max(e.lastT, newest)
		}
		entries = append(entries, e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		if r.table.find(e.id) == nil {
			r.table.insert(e)
		}
	}
	return nil
}

// headReader reads series of a head, one after the other. One goroutine.
type headReader struct {
	index  tsdb.IndexReader
	chunks tsdb.ChunkReader
	metas  []chunks.Meta // of the in-order chunks of the series at hand, the newest last
	it     chunkenc.Iterator
}

func readHead(head *tsdb.Head) (*headReader, error) {
	series, err := head.Index()
	if err != nil {
		return nil, err
	}
	samples, err := head.Chunks()
	if err != nil {
		return nil, errors.Join(err, series.Close())
	}
	return &headReader{index: series, chunks: samples}, nil
}

// Close ends reading.
func (r *headReader) Close() error { return errors.Join(r.chunks.Close(), r.index.Close()) }

// series turns to a series, and sets scratch to its labels. The error is
// storage.ErrNotFound if the head does not have it.
func (r *headReader) series(ref storage.SeriesRef, scratch *labels.ScratchBuilder) error {
	return r.index.Series(ref, scratch, &r.metas)
}

// eachChunk calls f with the chunks of the series at hand, from the newest to the oldest,
// until f returns false.
func (r *headReader) eachChunk(f func(chunks.Meta, chunkenc.Chunk) bool) error {
	for k := len(r.metas) - 1; k >= 0; k-- {
		c, _, err := r.chunks.ChunkOrIterable(r.metas[k])
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !f(r.metas[k], c) {
			return nil
		}
	}
	return nil
}

// openEnd is the end of a chunk that takes more samples. It is in memory.
const openEnd = math.MaxInt64

// newest returns the time of the newest in-order sample of the series at hand, or the
// least time there is, and whether it is known to be a stale marker. It reads no file, whose
// faults would be a panic.
func (r *headReader) newest() (t int64, stale bool, err error) {
	t = math.MinInt64
	if n := len(r.metas); n > 0 && r.metas[n-1].MaxTime != openEnd {
		return r.metas[n-1].MaxTime, false, nil
	}
	err = r.eachChunk(func(_ chunks.Meta, c chunkenc.Chunk) bool {
		r.it = c.Iterator(r.it)
		left := c.NumSamples()
		for typ := r.it.Next(); typ != chunkenc.ValNone; typ = r.it.Next() {
			t = r.it.AtT()
			if left--; left == 0 {
				stale = pointAt(r.it, typ).stale()
			}
		}
		return false // The newest chunk has the newest sample.
	})
	return t, stale, err
}

// newestElsewhere returns a bound for the times of the samples that are stored here, but
// for those in order in the head.
func newestElsewhere(db *tsdb.DB, blocks *localBlocks) int64 {
	t := blocks.maxTime()
	if t != math.MinInt64 {
		t--
	}
	if head := db.Head(); head.MinOOOTime() != math.MaxInt64 {
		t = max(t, head.MaxOOOTime())
	}
	return t
}
