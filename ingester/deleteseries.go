package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/deletion"
)

// selectorsOf returns what a deletion selects.
func selectorsOf(d *blockstore.Deletion) ([][]*labels.Matcher, error) {
	if d.WholeTenant {
		all, value := index.AllPostingsKey()
		return [][]*labels.Matcher{{labels.MustNewMatcher(labels.MatchEqual, all, value)}}, nil
	}
	selectors := make([][]*labels.Matcher, len(d.Selectors))
	for k, selector := range d.Selectors {
		matchers, err := deletion.ParseSelector(selector)
		if err != nil {
			return nil, err
		}
		selectors[k] = matchers
	}
	return selectors, nil
}

// deleteSeries deletes samples from head and local blocks. Of a tenant that is deleted as a
// whole, those that had come when that was accepted.
//
// The head's own way to delete would not do: it hides a range of a series, so that what
// comes late to that range is hidden as well, and out-of-order samples come back when
// they are cut. So the series are first cut out of the head, whole, into blocks, and the
// blocks are written anew without what is deleted. Samples that come later make new series
// in the head. The blocks of before count as those that were here: they may be in the
// bucket.
func (t *tenantDB) deleteSeries(ctx context.Context, d *blockstore.Deletion) ([]ulid.ULID, error) {
	selectors, err := selectorsOf(d)
	if err != nil {
		return nil, err
	}
	within := *d
	within.MaxMs = min(d.MaxMs, d.Accepted.UnixMilli())
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return nil, nil // Nothing is held.
	}
	if err != nil {
		return nil, err
	}
	defer release()
	// Not during a cut, which would be waited for with writes held back.
	if err := t.cutting.take(ctx); err != nil {
		return nil, fmt.Errorf("wait for a cut: %w", err)
	}
	defer t.cutting.give()
	// What would fail afterwards is to fail before the head is touched.
	if err := t.readyToRewrite(&within); err != nil {
		return nil, err
	}
	if err := t.cutSeries(ctx, db, &within, selectors); err != nil {
		return nil, err
	}
	// The TSDB's queriers panic on series with several deleted ranges, so no block keeps
	// tombstones: those of an attempt that ended half way go first.
	var blocks []ulid.ULID
	for _, step := range []func(*tsdb.Block) error{
		func(*tsdb.Block) error { return nil },
		func(b *tsdb.Block) error { return deleteFrom(ctx, b, &within, selectors) },
	} {
		for _, b := range t.blocks.get() {
			blocks = append(append(blocks, b.meta.ULID), blockstore.Sources(b.meta)...)
			for _, parent := range b.meta.Compaction.Parents {
				if parent.ULID != (ulid.ULID{}) { // or it is the head
					blocks = append(blocks, parent.ULID) // An attempt before this one may have written it anew.
				}
			}
		}
		if err := t.blocks.rewrite(ctx, blockCompactor{&t.cutter}, within.MinMs, within.MaxMs, step); err != nil {
			return nil, err
		}
	}
	if d.WholeTenant {
		// It takes the blocks that it names as a whole: those that are left have nothing of before.
		left := t.blocks.get()
		blocks = slices.DeleteFunc(blocks, func(id ulid.ULID) bool {
			return slices.ContainsFunc(left, func(b *localBlock) bool {
				return b.meta.ULID == id || slices.Contains(blockstore.Sources(b.meta), id)
			})
		})
	}
	slices.SortFunc(blocks, ulid.ULID.Compare)
	return slices.Compact(blocks), nil
}

// readyToRewrite returns an error if the blocks that a deletion concerns cannot be opened,
// or one of them not be written anew.
func (t *tenantDB) readyToRewrite(d *blockstore.Deletion) error {
	if err := t.blocks.unchangeable(d.MinMs, d.MaxMs); err != nil {
		return err
	}
	largest, err := t.blocks.largestToRewrite(d.MinMs, d.MaxMs)
	if err != nil || largest == 0 {
		return err
	}
	return t.ing.disk.check(uint64(largest), t.ing.caps.series.Load())
}

// deleteFrom gives a block tombstones.
func deleteFrom(ctx context.Context, b *tsdb.Block, d *blockstore.Deletion, selectors [][]*labels.Matcher) error {
	if !b.OverlapsClosedInterval(d.MinMs, d.MaxMs) {
		return nil
	}
	for _, matchers := range selectors {
		if err := b.Delete(ctx, d.MinMs, d.MaxMs, matchers...); err != nil {
			return err
		}
	}
	return nil
}

// cutSeries cuts the series that a deletion selects out of the head, if they may have samples
// of its time there, or in its files (see lateCuts): an attempt that follows one which
// failed finds none any more, and does not cut what came since. Writes are held back meanwhile.
func (t *tenantDB) cutSeries(ctx context.Context, db *tsdb.DB, d *blockstore.Deletion, selectors [][]*labels.Matcher) (err error) {
	mint, maxt, late := d.MinMs, d.MaxMs, &t.cutter.late
	if late.concern(d.ID, mint, maxt) {
		// Those that the head has get a tombstone in its log, the others are found here.
		if err := writeFile(filepath.Join(t.dir, chunksVoid), nil); err != nil {
			return fmt.Errorf("note that the head's files have deleted samples: %w", err)
		}
		mint, maxt = math.MinInt64, math.MaxInt64
	}
	defer func() {
		if err == nil {
			late.dropped[d.ID] = late.n
		}
	}()
	if !headOverlaps(db, mint, maxt) {
		return nil
	}
	if err := t.appending.take(ctx); err != nil {
		return fmt.Errorf("wait for writes: %w", err)
	}
	defer t.appending.give()
	if t.broken.Load() {
		return errBroken
	}
	refs, err := selectedSeries(ctx, db, mint, maxt, selectors)
	if err != nil || len(refs) == 0 {
		return err
	}
	if err := t.roomToCut(); err != nil {
		return err
	}
	// Series with out-of-order samples are not cut otherwise.
	if err := t.cutter.cut(func() error { return db.CompactOOOHead(ctx) }); err != nil {
		return fmt.Errorf("cut blocks of out-of-order samples: %w", err)
	}
	if err := t.cutter.cut(func() error { return db.CompactSelectedSeries(refs) }); err != nil {
		return fmt.Errorf("cut the series: %w", err)
	}
	t.app.table.dropRefs(refs)
	return nil
}

// headOverlaps reports whether the head may have samples between mint and maxt.
func headOverlaps(db *tsdb.DB, mint, maxt int64) bool {
	head := db.Head()
	if head.NumSeries() == 0 || head.MinTime() == math.MaxInt64 {
		return false
	}
	return maxt >= min(head.MinTime(), head.MinOOOTime()) && mint <= head.MaxTime()
}

// selectedSeries returns the series in the head that any of the selectors matches, and that
// have a chunk, in order or not, with samples from mint to maxt.
func selectedSeries(ctx context.Context, db *tsdb.DB, mint, maxt int64, selectors [][]*labels.Matcher) (refs []storage.SeriesRef, err error) {
	head := tsdb.NewHeadAndOOOIndexReader(db.Head(), mint, mint, maxt, 0)
	defer func() { err = errors.Join(err, head.Close()) }()
	var (
		builder labels.ScratchBuilder
		metas   []chunks.Meta
	)
	for _, matchers := range selectors {
		postings, err := tsdb.PostingsForMatchers(ctx, head, matchers...)
		if err != nil {
			return nil, fmt.Errorf("select series: %w", err)
		}
		for postings.Next() {
			err := head.Series(postings.At(), &builder, &metas)
			if errors.Is(err, storage.ErrNotFound) {
				continue // It has just been dropped.
			}
			if err != nil {
				return nil, fmt.Errorf("select series: %w", err)
			}
			if len(metas) > 0 {
				refs = append(refs, postings.At())
			}
		}
		if err := postings.Err(); err != nil {
			return nil, fmt.Errorf("select series: %w", err)
		}
	}
	return refs, nil
}
