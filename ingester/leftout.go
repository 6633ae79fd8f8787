package ingester

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

// leftOut is a local block whose meta.json cannot be read. It is not in the list, so it is
// neither read nor uploaded nor written anew. What needs its samples fails, until queries
// read them from the bucket, somebody has mended it, or somebody has moved it away. A value
// of this type is never changed.
type leftOut struct {
	id  ulid.ULID
	dir string
	// Its samples are from mint to before maxt, as far as can be told without its meta.json.
	mint, maxt int64
	cause      error
	// elsewhere says that queries read its samples from the bucket.
	elsewhere bool
}

// overlaps reports whether it may have samples from mint to maxt.
func (b *leftOut) overlaps(mint, maxt int64) bool { return b.mint <= maxt && mint < b.maxt }

// err names it and says why it is left out.
func (l *localBlocks) leftOutErr(b *leftOut) error {
	return fmt.Errorf("local block %s of tenant %s (in %s) is left out, since its meta.json can't be read: %w", b.id, l.tenant, b.dir, b.cause)
}

// leftOut returns the blocks that are left out. The slice must not be changed.
func (l *localBlocks) leftOut() []leftOut { return *l.out.Load() }

// setLeftOut is called by who opens, and from then on by who holds the tenant's working.
func (l *localBlocks) setLeftOut(out []leftOut) {
	l.out.Store(&out)
	if len(out) == 0 {
		l.all.leftOut.DeleteLabelValues(string(l.tenant))
		return
	}
	l.all.leftOut.WithLabelValues(string(l.tenant)).Set(float64(len(out)))
}

// putLeftOut puts another version in the place of one; nil: none.
func (l *localBlocks) putLeftOut(old *leftOut, next *leftOut) {
	var out []leftOut
	for _, b := range l.leftOut() {
		switch {
		case b.id != old.id:
			out = append(out, b)
		case next != nil:
			out = append(out, *next)
		}
	}
	l.setLeftOut(out)
}

// leaveOut leaves out blocks whose meta.json cannot be read, for the causes given.
func (l *localBlocks) leaveOut(causes map[ulid.ULID]error) {
	var out []leftOut
	for id, cause := range causes {
		b := leftOut{id: id, dir: filepath.Join(l.dir, id.String()), cause: cause}
		if !isBlock(b.dir) {
			l.log.Warn("A folder has the name of a block, and neither a meta.json nor an index; it is left alone", "dir", b.dir)
			continue
		}
		b.mint, b.maxt = l.timesOf(&b)
		l.log.Error("A local block is left out: its meta.json can't be read. Queries of its time fail until they read it from the bucket, if it was uploaded; otherwise put its meta.json back, or move the folder away",
			"block", id, "dir", b.dir, "uploaded", l.shipped.has(id), "mint", b.mint, "maxt", b.maxt, "err", cause)
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b leftOut) int { return a.id.Compare(b.id) })
	l.setLeftOut(out)
}

// isBlock reports whether there is anything of a block in a folder. Who deletes one bit by
// bit, as old releases of Prometheus did, may leave chunks.
func isBlock(dir string) bool {
	for _, name := range []string{"meta.json", "index"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// timesOf returns what the samples of a block are between that is left out: as its index
// says or, if that cannot be read either, not after it was cut.
func (l *localBlocks) timesOf(b *leftOut) (mint, maxt int64) {
	mint, maxt, err := timesIn(filepath.Join(b.dir, "index"))
	if err != nil {
		mint, maxt = math.MinInt64, int64(b.id.Time())+maxAhead.Milliseconds()+1
	}
	if end := l.shipped.maxTime(b.id); end != math.MinInt64 {
		maxt = end
	}
	return mint, maxt
}

// timesIn returns the times that the samples are from, and before, which an index lists.
func timesIn(path string) (mint, maxt int64, err error) {
	r, err := index.NewFileReader(path, index.DecodePostingsRaw)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	mint, maxt = math.MaxInt64, math.MinInt64
	name, value := index.AllPostingsKey()
	postings, err := r.Postings(context.Background(), name, value)
	if err != nil {
		return 0, 0, err
	}
	var (
		scratch = labels.NewScratchBuilder(0)
		metas   []chunks.Meta
	)
	for postings.Next() {
		if err := r.Series(postings.At(), &scratch, &metas); err != nil {
			return 0, 0, err
		}
		for _, c := range metas {
			mint, maxt = min(mint, c.MinTime), max(maxt, c.MaxTime+1)
		}
	}
	return mint, maxt, postings.Err()
}

// lacking returns an error if a block is left out that may have samples from mint to maxt,
// and that queries do not read elsewhere.
func (l *localBlocks) lacking(mint, maxt int64) error {
	for _, b := range l.leftOut() {
		if b.overlaps(mint, maxt) && !b.elsewhere {
			return l.leftOutErr(&b)
		}
	}
	return nil
}

// unchangeable returns an error if a block is left out that may have samples from mint to
// maxt: what is deleted would come back with its meta.json.
func (l *localBlocks) unchangeable(mint, maxt int64) error {
	var errs []error
	for _, b := range l.leftOut() {
		if b.overlaps(mint, maxt) {
			errs = append(errs, l.leftOutErr(&b))
		}
	}
	return errors.Join(errs...)
}

// notUploaded returns an error if a block is left out that may have samples of before end,
// and that is not in the bucket: it can be uploaded only once it was mended.
func (l *localBlocks) notUploaded(end int64) error {
	for _, b := range l.leftOut() {
		if b.mint < end && !l.shipped.has(b.id) {
			return l.leftOutErr(&b)
		}
	}
	return nil
}

// lookAtLeftOut takes blocks back that were mended, forgets those that were moved away, and
// has queries read from the bucket what they find there: such a block is deleted as others
// are that were uploaded. use is held shared, and working.
func (t *tenantDB) lookAtLeftOut() error {
	var errs []error
	for _, b := range t.blocks.leftOut() {
		mended, err := t.blocks.read(b.id)
		switch {
		case err == nil:
			t.blocks.add(mended) // first: it is missed by nobody
			t.blocks.putLeftOut(&b, nil)
			t.log.Info("A local block that was left out can be read again", "block", b.id)
		case !isBlock(b.dir):
			t.letGo(&b)
			t.blocks.putLeftOut(&b, nil)
			t.log.Warn("A local block that was left out is not there any more; queries read it from the bucket if it was uploaded, and lack its samples otherwise",
				"block", b.id, "uploaded", t.shipped.has(b.id))
		case t.readElsewhere(b.id):
			errs = append(errs, t.deleteLeftOut(&b))
		}
	}
	return errors.Join(errs...)
}

// readElsewhere reports whether queries find a block in the bucket if they look there. One
// that can be read stays for longer (see known): nobody is worse off meanwhile. Queriers that
// listed the bucket did so after its upload, or their view is too old for them; those that
// only have an index have one that lists it, or are refused by its generation (see release).
func (t *tenantDB) readElsewhere(block ulid.ULID) bool {
	now, keep := t.ing.now(), t.ing.deps.KeepUploaded
	age, uploaded := t.shipped.since(block, now)
	listed := keep <= 0 || age >= keep && (t.indexed.lists(block, 0, now) || age >= keepUnindexed)
	return uploaded && listed && t.ing.deps.Visible(t.id, block)
}

// letGo has queries that come from now on read a block from the bucket, if it is there.
func (t *tenantDB) letGo(b *leftOut) {
	if !t.shipped.has(b.id) {
		return
	}
	t.indexed.release(b.id)   // Before HeldFrom says that it may be gone.
	t.shipped.release(b.maxt) // Before it is said that nothing is lacking: see holding.
}

// deleteLeftOut deletes a block that queries read from the bucket, unless it is one that
// stays in a directory which was adopted.
func (t *tenantDB) deleteLeftOut(b *leftOut) error {
	if !b.elsewhere {
		t.letGo(b)
		next := *b
		next.elsewhere = true
		t.blocks.putLeftOut(b, &next)
	}
	if t.adopted().keeps(b.id) {
		return nil
	}
	if err := removeBlock(b.dir); err != nil {
		return fmt.Errorf("delete local block %s: %w", b.id, err)
	}
	t.blocks.putLeftOut(b, nil)
	t.log.Info("Deleted a local block that was left out; queries read it from the bucket", "block", b.id)
	return nil
}
