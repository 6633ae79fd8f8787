package remoteblock

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Budget is what one query may use. Both methods MAY refuse, and then the query ends with
// that error. They are called from several goroutines.
type Budget interface {
	// Fetch is told of bytes that were fetched from the object store for the query, part
	// by part: a refusal ends the query before the next part.
	Fetch(bytes int64) error
	// Hold is asked before memory is taken that is held until the query ends.
	Hold(bytes int64) error
}

// Reader is a block as one query, or one compaction, sees it. It implements
// tsdb.BlockReader; its errors name the tenant, the block and the file. The first error
// is that of everything that follows.
//
// It is safe for concurrent use; what it returns serves one goroutine at a time.
type Reader struct {
	pool   *Pool
	ctx    context.Context //nolint:containedctx // it bounds the query that the Reader belongs to
	key    blockKey
	meta   tsdb.BlockMeta
	header *header
	budget Budget // nil: unlimited
	index  file
	// local says that the files are on this machine, so that there is nothing to load;
	// indexResident that there is nothing to load of the index.
	local, indexResident bool

	goroutines sync.WaitGroup
	mu         struct {
		sync.Mutex
		segments  []file // nil: not open yet
		err       error  // the first
		cancels   []context.CancelFunc
		closed    bool
		selection *Selection // of Index, for Chunks
	}
}

// Open gives one query a block; ctx bounds all that is read through it, until Close.
// budget may be nil. It reads where things are in the block, if that is not known yet.
func (p *Pool) Open(ctx context.Context, id tenant.ID, block blockstore.Block, budget Budget) (*Reader, error) {
	key := blockKey{tenant: id, block: block.Meta.ULID}
	h, err := p.header(ctx, key, block.Files)
	if err != nil {
		return nil, p.counted(key.withFile(indexName, err))
	}
	if n := block.Meta.Stats.NumSeries; n > 0 && h.series > 0 && n != h.series {
		return nil, p.counted(key.withFile("meta.json", damagef("it says that there are %d series, the index has %d", n, h.series)))
	}
	r := &Reader{pool: p, ctx: ctx, key: key, meta: block.Meta, header: h, budget: budget}
	r.mu.segments = make([]file, len(h.segments))
	if r.index, err = r.open(indexName, h.index); err != nil {
		return nil, p.counted(key.withFile(indexName, err))
	}
	_, r.local = r.index.(*localFile)
	r.indexResident = r.local
	if !r.local && h.index <= wholeIndex {
		if err := r.load(ctx, r.index, part(0, h.index)); err != nil {
			r.index.Release()
			return nil, p.counted(key.withFile(indexName, err))
		}
		r.indexResident = true
	}
	p.metrics.open.Inc()
	return r, nil
}

// open opens a file of the block where it is.
func (r *Reader) open(name string, size int64) (file, error) {
	if f, ok := r.pool.store.OpenFile(r.key.tenant, r.key.block, name); ok {
		local, err := newLocalFile(f)
		if err != nil {
			return nil, err
		}
		if local.size != size {
			local.Release()
			return nil, damagef("it has %d bytes, and had %d", local.size, size)
		}
		return local, nil
	}
	return r.pool.openRemote(r.key, name, size, nil)
}

// Meta implements tsdb.BlockReader.
func (r *Reader) Meta() tsdb.BlockMeta { return r.meta }

// Size implements tsdb.BlockReader: it is that of the files without meta.json.
func (r *Reader) Size() int64 { return r.header.size() }

// Index implements tsdb.BlockReader. The chunks of the series that are selected through
// it are read by what the next call of Chunks returns; see Select.
func (r *Reader) Index() (tsdb.IndexReader, error) {
	sel := r.Select(r.ctx, r.meta.MinTime, r.meta.MaxTime, true)
	r.mu.Lock()
	r.mu.selection = sel
	r.mu.Unlock()
	return sel.Index()
}

// Chunks implements tsdb.BlockReader.
func (r *Reader) Chunks() (tsdb.ChunkReader, error) {
	r.mu.Lock()
	sel := r.mu.selection
	r.mu.Unlock()
	if sel == nil {
		sel = r.Select(r.ctx, r.meta.MinTime, r.meta.MaxTime, true)
	}
	return sel.Chunks()
}

// Tombstones implements tsdb.BlockReader.
func (r *Reader) Tombstones() (tombstones.Reader, error) {
	stones, err := r.readTombstones()
	return stones, r.failed(tombstonesName, err)
}

// Err returns the first error of all that was read through r; nil: none so far.
func (r *Reader) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.err
}

// failed makes err the error of the reader if it is the first, and says where it was.
func (r *Reader) failed(file string, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(r.ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	err = r.key.withFile(file, err)
	r.distrust(err)
	r.mu.Lock()
	first := r.mu.err == nil
	if first {
		r.mu.err = err
	}
	r.mu.Unlock()
	if first {
		return r.pool.counted(err)
	}
	return err
}

// distrust lets what was fetched of a file be fetched again, around where it is damaged:
// the damage may be on the way or on the local disk.
func (r *Reader) distrust(err error) {
	var place *FileError
	if r.local || !errors.Is(err, ErrDamaged) || !errors.As(err, &place) || place.Offset < 0 {
		return
	}
	f := r.index
	if place.File != indexName {
		i := slices.IndexFunc(r.header.segments, func(s blockstore.File) bool { return s.Name == place.File })
		if i < 0 {
			return
		}
		if f, err = r.segment(i); err != nil {
			return
		}
	}
	if d, ok := f.(interface{ Discard(...Range) error }); ok && place.Offset < f.Size() {
		if err := d.Discard(part(place.Offset, min(place.Offset+maxWindow, f.Size()))); err != nil {
			r.pool.logger.Warn("A damaged part of a block could not be dropped from the local disk", "err", err)
		}
	}
}

// load makes parts of a file resident, and charges what had to be fetched.
func (r *Reader) load(ctx context.Context, f file, ranges ...Range) error {
	if err := r.Err(); err != nil {
		return err
	}
	n, err := f.Load(ctx, ranges...)
	if n > 0 {
		r.pool.metrics.fetched.WithLabelValues("parts").Add(float64(n))
		if r.budget != nil {
			err = errors.Join(err, r.budget.Fetch(n))
		}
	}
	return err
}

// hold asks for memory.
func (r *Reader) hold(bytes int64) error {
	if r.budget == nil {
		return nil
	}
	return r.budget.Hold(bytes)
}

// segment returns a segment of chunks, by its position.
func (r *Reader) segment(i int) (file, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return nil, errClosed
	}
	if f := r.mu.segments[i]; f != nil {
		return f, nil
	}
	s := r.header.segments[i]
	f, err := r.open(s.Name, s.Size)
	if err != nil {
		return nil, err
	}
	r.mu.segments[i] = f
	return f, nil
}

// spawn runs f in a goroutine that Close waits for; false says that r is closed.
func (r *Reader) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return false
	}
	r.goroutines.Go(f)
	return true
}

// checkTimes refuses chunks outside of the time range that meta.json says: queries for
// other times would not find them.
func (r *Reader) checkTimes(metas []chunks.Meta) error {
	for _, m := range metas { // they may overlap, and so be in any order
		if m.MinTime < r.meta.MinTime || m.MaxTime >= r.meta.MaxTime {
			return damagef("a series has samples from %d to %d, and meta.json says that the block has some from %d up to %d only",
				m.MinTime, m.MaxTime, r.meta.MinTime, r.meta.MaxTime)
		}
	}
	return nil
}

// Close ends all that is read through r, and waits for it. Chunks that were read stay
// valid.
func (r *Reader) Close() error {
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		return nil
	}
	r.mu.closed = true
	for _, cancel := range r.mu.cancels {
		cancel()
	}
	if r.mu.err == nil {
		r.mu.err = errClosed
	}
	r.mu.Unlock()
	r.goroutines.Wait()

	r.index.Release()
	for _, f := range r.mu.segments {
		if f != nil {
			f.Release()
		}
	}
	r.pool.metrics.open.Dec()
	return nil
}

// Selection is a block as one Select sees it. It implements tsdb.BlockReader.
type Selection struct {
	r          *Reader
	ctx        context.Context //nolint:containedctx // it bounds one Select
	mint, maxt int64           // ms, both inclusive: chunks of other times are not wanted
	chunks     bool            // whether any are
	plan       *plan

	mu struct {
		sync.Mutex
		batch, window int64 // memory that is held for them
	}
}

// Select returns the block for one Select of the times from mint to maxt, both inclusive;
// ctx bounds what is read for it. As soon as the first series is looked at, the chunks of
// all that are selected are loaded ahead, unless withChunks is false. Index and Chunks
// MUST be called once each.
func (r *Reader) Select(ctx context.Context, mint, maxt int64, withChunks bool) *Selection {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.cancels = append(r.mu.cancels, cancel)
	return &Selection{r: r, ctx: ctx, mint: mint, maxt: maxt, chunks: withChunks, plan: newPlan(r.chunkGuess())}
}

// chunkGuess is how long a chunk likely is at most, in bytes: as long as 480 values that
// compress to nothing, for who has guessed too little needs another round trip, and who has
// guessed too much some bytes of a page that is fetched as a whole.
func (r *Reader) chunkGuess() int64 {
	total := int64(0)
	for _, s := range r.header.segments {
		total += s.Size
	}
	return min(max(2*total/int64(max(r.meta.Stats.NumChunks, 1)), 5<<10), 64<<10)
}

// Index implements tsdb.BlockReader.
func (sel *Selection) Index() (tsdb.IndexReader, error) { return newIndexReader(sel), nil }

// Chunks implements tsdb.BlockReader.
func (sel *Selection) Chunks() (tsdb.ChunkReader, error) { return newChunkReader(sel), nil }

// Tombstones implements tsdb.BlockReader.
func (sel *Selection) Tombstones() (tombstones.Reader, error) { return sel.r.Tombstones() }

// Meta implements tsdb.BlockReader.
func (sel *Selection) Meta() tsdb.BlockMeta { return sel.r.meta }

// Size implements tsdb.BlockReader.
func (sel *Selection) Size() int64 { return sel.r.Size() }

// Err returns the first error of the block's reader.
func (sel *Selection) Err() error { return sel.r.Err() }

// holdBatch and holdWindow ask for memory for the largest batch and window: one of each
// is held at a time.
func (sel *Selection) holdBatch(bytes int64) error { return sel.holdMost(&sel.mu.batch, bytes) }

func (sel *Selection) holdWindow(bytes int64) error { return sel.holdMost(&sel.mu.window, bytes) }

func (sel *Selection) holdMost(held *int64, bytes int64) error {
	sel.mu.Lock()
	more := bytes - *held
	*held = max(*held, bytes)
	sel.mu.Unlock()
	if more <= 0 {
		return nil
	}
	return sel.r.hold(more)
}

// counted counts damage.
func (p *Pool) counted(err error) error {
	if errors.Is(err, ErrDamaged) {
		p.metrics.damaged.Inc()
	}
	return err
}
