package ingester

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sys/unix"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	// filesPerTenant is how many files a TSDB may hold open: the segment of its log, the
	// folder of its head's files, and one of those, twice, or the log of late samples too.
	// A small one has two of them open until it is replayed after a crash, which writes its
	// complete chunks to a file. Local blocks are of the process: see mostOpenBlocks.
	filesPerTenant = 4
	// mapsPerTenant is how many regions of memory it may map.
	mapsPerTenant = 2
	// takenByBlocks is how many files, and maps, the local blocks take that stay open, however
	// many there are on disk: an index and a file of chunks each.
	takenByBlocks = 2 * mostOpenBlocks
	// filesOfProcess and mapsOfProcess are what it takes without any tenant: those blocks,
	// connections, blocks that are read or written, the heap, stacks.
	filesOfProcess = 1000 + takenByBlocks
	mapsOfProcess  = 1000 + takenByBlocks

	// ceilingFull is the share of a limit above which no tenant comes anew. The rest is for
	// those that are there: their cuts, uploads, queries and senders.
	ceilingFull = 0.9
)

// ceiling is a limit of the operating system that every tenant takes a part of. A TSDB that
// meets it can't go on, whoever has taken the last part, so new tenants are refused before.
// It is safe for concurrent use.
type ceiling struct {
	what string // in messages
	// The metrics of how much is taken, and of the limit.
	usedMetric, limitMetric string

	fix   string // what to do about it; %d is what is needed
	limit func() int64
	count func() int64 // 0: unknown
	now   func() time.Time
	keep  time.Duration // how long a count is good for
	each  int64         // what a tenant takes
	base  int64         // what the process takes besides

	mu      sync.Mutex
	counted time.Time
	n       int64 // at that time, with what came since
}

// newCeilings returns the limits of this process that tenants take a part of.
func newCeilings() []*ceiling {
	return []*ceiling{
		{
			what: "open files", usedMetric: "hundredfold_ingester_open_files", limitMetric: "hundredfold_ingester_open_files_limit",
			fix:   "let the process open %d: LimitNOFILE= in systemd, ulimit -n elsewhere",
			limit: fileLimit, count: openFiles, now: time.Now, keep: 100 * time.Millisecond, each: filesPerTenant, base: filesOfProcess,
		},
		{
			what: "memory maps", usedMetric: "hundredfold_ingester_memory_maps", limitMetric: "hundredfold_ingester_memory_maps_limit",
			fix:   "let a process have %d: sysctl vm.max_map_count",
			limit: mapLimit, count: memoryMaps, now: time.Now, keep: 10 * time.Second, each: mapsPerTenant, base: mapsOfProcess,
		},
	}
}

// fileLimit returns how many files the process may open; 0: unknown. Go raises it to what it
// may be raised to.
func fileLimit() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<40 {
		return 0
	}
	return int64(limit.Cur)
}

// openFiles returns how many files the process has open. Linux says so since 6.2; before, they
// have to be listed.
func openFiles() int64 {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer func() { _ = dir.Close() }()
	if info, err := dir.Stat(); err == nil && info.Size() > 0 {
		return info.Size()
	}
	names, _ := dir.Readdirnames(-1)
	return int64(len(names))
}

// mapLimit returns how many regions of memory the process may map; 0: unknown.
func mapLimit() int64 {
	text, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n
}

// memoryMaps returns how many regions of memory the process has mapped.
func memoryMaps() int64 {
	text, _ := os.ReadFile("/proc/self/maps")
	return int64(bytes.Count(text, []byte("\n")))
}

// used returns how much of it is taken; 0: unknown.
func (c *ceiling) used() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usedLocked()
}

func (c *ceiling) usedLocked() int64 {
	if now := c.now(); c.counted.IsZero() || now.Sub(c.counted) >= c.keep {
		c.counted, c.n = now, c.count()
	}
	return c.n
}

// need is what the process needs at most with so many tenants.
func (c *ceiling) need(tenants int) int64 { return c.base + int64(tenants)*c.each }

// admit says why no tenant may come anew to so many that there are, or takes the part of
// one. Who is known comes back in any case. What a restart after a crash needs counts, too:
// who was taken in must be found again.
func (c *ceiling) admit(id tenant.ID, known bool, tenants int) *write.SeriesError {
	limit := c.limit()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.usedLocked()
	if known || limit <= 0 || n == 0 || float64(max(n+c.each, c.need(tenants+1))) <= ceilingFull*float64(limit) {
		c.n += c.each
		return nil
	}
	return &write.SeriesError{
		Reason: write.ReasonInstanceTenantLimit,
		Detail: fmt.Sprintf("tenant %s has nothing here yet and is refused for now: the process has %d %s, its %d tenants may need %d, and its limit is %d; they go on", id, n, c.what, tenants, c.need(tenants), limit),
	}
}

// warn says so if the limit is too low for the tenants that there are.
func (c *ceiling) warn(tenants int, logger *slog.Logger) {
	limit, need := c.limit(), c.need(tenants)
	if limit <= 0 || float64(need) <= ceilingFull*float64(limit) {
		return
	}
	logger.Warn("A limit of the operating system is too low for the tenants here: new ones will be refused, and those that are here may fail",
		"limit_of", c.what, "limit", limit, "need", need, "tenants", tenants, "fix", fmt.Sprintf(c.fix, need*3/2))
}

// warnOfCeilings compares the limits with what the tenants on disk need.
func (i *Ingester) warnOfCeilings(ids []tenant.ID) {
	for _, c := range i.ceilings {
		c.warn(len(ids), i.logger)
	}
}

// refuseNew says why tenant id, which has no TSDB here, must not have one. A tenant with a
// folder is not new: its TSDB was closed since it was idle, or is being opened anew.
func (i *Ingester) refuseNew(id tenant.ID) *write.SeriesError {
	known := isDir(i.cfg.dirOf(id))
	i.mu.RLock()
	tenants := len(i.mu.tenants)
	i.mu.RUnlock()
	for _, c := range i.ceilings {
		if why := c.admit(id, known, tenants); why != nil {
			return why
		}
	}
	return nil
}

// refused is the answer to a batch of a tenant that is refused.
func refused(b *write.Batch, why *write.SeriesError) (write.Result, error) {
	if len(b.Series) == 0 {
		return write.Result{}, wire.Unavailable(why, 10*time.Second)
	}
	var result write.Result
	for i := range b.Series {
		result.RejectItems(why, appendItems(itemsOf(i, &b.Series[i]), write.KindExemplar, b.Series[i].Exemplars)...)
	}
	return result, nil
}

// forgetUnopened takes a tenant out of the list that has no TSDB and nothing to be known of.
func (t *tenantDB) forgetUnopened() {
	if !t.use.TryLock() {
		return
	}
	defer t.use.Unlock()
	if t.db == nil && t.openErr == nil && !t.dormant && !t.retired && t.doomed == ulid.Zero {
		t.retired = true // Who has it still asks for it again.
		t.ing.forget(t)
	}
}
