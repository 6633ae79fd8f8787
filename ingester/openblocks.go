package ingester

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// mostOpenBlocks is how many local blocks of all tenants stay open though nobody reads
// them. An open block takes a map of its index and one per 512 MiB of chunks, and memory
// for the parts of its index, which opening it reads. Large tenants have few blocks here, so
// theirs stay open; of ten thousand small ones those that were read last do.
const mostOpenBlocks = 256

// openBlocks are the local blocks of all tenants that are open: those that are being
// read, and beside them the ones that were read last. It is safe for concurrent use.
type openBlocks struct {
	most int // that are open at once, unless more are being read

	pool           chunkenc.Pool
	opened, failed prometheus.Counter
	leftOut        *prometheus.GaugeVec // by tenant

	// A localBlock's opening is taken before mu.
	mu struct {
		sync.Mutex
		open int
		idle *list.List // of *localBlock: open, read by nobody, the least recently used first
	}
}

func newOpenBlocks(most int, reg prometheus.Registerer) *openBlocks {
	o := &openBlocks{most: most, pool: chunkenc.NewPool()}
	o.mu.idle = list.New()
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_open_blocks",
		Help: "Local blocks that are open, of all tenants: those that are being read, and the ones that were read last.",
	}, func() float64 { return float64(o.count()) })
	o.opened = f.NewCounter(prometheus.CounterOpts{
		Name: "hundredfold_ingester_block_opens_total",
		Help: "Times that a local block was opened to be read.",
	})
	o.failed = f.NewCounter(prometheus.CounterOpts{
		Name: "hundredfold_ingester_block_open_failures_total",
		Help: "Times that a local block could not be opened. What needs its samples fails and names the block.",
	})
	o.leftOut = f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "hundredfold_ingester_left_out_blocks",
		Help: "Local blocks that are left out since their meta.json can't be read, by tenant. What needs their samples fails.",
	}, []string{"tenant"})
	return o
}

func (o *openBlocks) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.open
}

// localBlock is one block in a tenant's folder. It may be read after it is gone from
// there, by those who began before.
type localBlock struct {
	tenant tenant.ID
	dir    string
	meta   tsdb.BlockMeta
	all    *openBlocks
	log    *slog.Logger

	// opening is held by the one who opens the block at a time.
	opening sync.Mutex
	// fate is held by who deletes the block or writes it anew. It is taken before opening.
	fate sync.Mutex

	// What follows is guarded by all.mu. block is set while opening is held, and only set
	// to nil when there are no readers.
	block   *tsdb.Block
	readers int
	idle    *list.Element // in all.mu.idle
	gone    bool          // it is closed once nobody reads it
	faulty  bool          // the last attempt to open it failed
}

// errGone says that a block was deleted before it could be opened. What is asked for anew
// does not have it.
var errGone = errors.New("the local block was deleted")

// overlaps reports whether the block may have samples from mint to maxt.
func (b *localBlock) overlaps(mint, maxt int64) bool {
	return b.meta.MinTime <= maxt && mint < b.meta.MaxTime
}

// acquire opens the block, unless it is open. It stays open until release is called. The
// error is errGone if it was deleted meanwhile.
func (b *localBlock) acquire() (block *tsdb.Block, release func(), err error) {
	o := b.all
	o.mu.Lock()
	b.readers++
	o.wakeLocked(b)
	o.mu.Unlock()
	block, err = b.openForReader()
	if err != nil {
		b.release()
		return nil, nil, err
	}
	return block, sync.OnceFunc(b.release), nil
}

// openForReader is called by who is counted among the readers.
func (b *localBlock) openForReader() (*tsdb.Block, error) {
	b.opening.Lock()
	defer b.opening.Unlock()
	o := b.all
	o.mu.Lock()
	block := b.block
	if block == nil {
		o.mu.open++
	}
	victims := o.surplusLocked()
	o.mu.Unlock()
	b.closeOthers(victims)
	if block != nil {
		return block, nil
	}
	block, err := tsdb.OpenBlock(b.log, b.dir, o.pool, nil)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.opened.Inc()
		b.block, b.faulty = block, false
		return block, nil
	}
	o.mu.open--
	if b.gone {
		return nil, errGone
	}
	o.failed.Inc()
	if !b.faulty {
		b.faulty = true
		b.log.Error("A local block can't be opened; queries that need it fail until it can. If its files are damaged, stop the process, move the folder away and start",
			"block", b.meta.ULID, "dir", b.dir, "mint", b.meta.MinTime, "maxt", b.meta.MaxTime, "err", err)
	}
	return nil, fmt.Errorf("open local block %s of tenant %s (in %s): %w", b.meta.ULID, b.tenant, b.dir, err)
}

// release is called once by each reader.
func (b *localBlock) release() {
	o := b.all
	o.mu.Lock()
	b.readers--
	var victims []*tsdb.Block
	switch {
	case b.readers > 0 || b.block == nil:
	case b.gone:
		victims = append(victims, o.forgetLocked(b))
	default:
		b.idle = o.mu.idle.PushBack(b)
		victims = o.surplusLocked()
	}
	o.mu.Unlock()
	b.closeOthers(victims)
}

// closeOthers closes what others have read. If that fails it is not for who reads b.
func (b *localBlock) closeOthers(victims []*tsdb.Block) {
	if err := closeBlocks(victims); err != nil {
		b.log.Warn("Closing local blocks reported an error", "err", err)
	}
}

// discard has the block closed as soon as nobody reads it.
func (b *localBlock) discard() error {
	o := b.all
	o.mu.Lock()
	b.gone = true
	var victims []*tsdb.Block
	if b.readers == 0 && b.block != nil {
		victims = append(victims, o.forgetLocked(b))
	}
	o.mu.Unlock()
	return closeBlocks(victims)
}

// wakeLocked takes a block that has a reader from the idle ones.
func (o *openBlocks) wakeLocked(b *localBlock) {
	if b.idle != nil {
		o.mu.idle.Remove(b.idle)
		b.idle = nil
	}
}

// forgetLocked returns what is to be closed of a block that nobody reads.
func (o *openBlocks) forgetLocked(b *localBlock) *tsdb.Block {
	o.wakeLocked(b)
	block := b.block
	b.block = nil
	o.mu.open--
	return block
}

// surplusLocked returns the blocks that are to be closed since too many are open.
func (o *openBlocks) surplusLocked() (victims []*tsdb.Block) {
	for o.mu.open > o.most {
		oldest := o.mu.idle.Front()
		if oldest == nil {
			return victims // All are being read.
		}
		victims = append(victims, o.forgetLocked(oldest.Value.(*localBlock)))
	}
	return victims
}

// closeBlocks closes blocks that nobody reads.
func closeBlocks(blocks []*tsdb.Block) error {
	errs := make([]error, len(blocks))
	for k, b := range blocks {
		errs[k] = b.Close()
	}
	return errors.Join(errs...)
}
