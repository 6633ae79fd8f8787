// Package ingester keeps the recent samples: one Prometheus TSDB per tenant,
// with a write-ahead log. It appends what distributors push, answers selects
// over what it holds, cuts blocks of two hours, uploads them to the bucket, and
// deletes its copy only when queries read the block from there.
//
// It knows no protocols and no PromQL, and it never deletes a sample that the
// bucket does not hold.
package ingester

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// maintainers is how many tenants are maintained at once. A cut waits for the
// queries that read what it drops, so one slow query must not hold up all tenants.
const maintainers = 4

var (
	// errClosed says that a tenant's TSDB was closed between finding and using it.
	errClosed = errors.New("the tenant's TSDB is closed")
	// errStopped says that the ingester is shutting down.
	errStopped = errors.New("the ingester is shutting down")
	// errBroken says that a write of a tenant did not get into its write-ahead log whole.
	errBroken = errors.New("a write of the tenant did not get into its write-ahead log whole")
	// errLateLog says the same of the log of out-of-order samples.
	errLateLog = errors.New("the log of out-of-order samples could not be written")
)

// Config configures an Ingester.
type Config struct {
	// Dir holds a folder per tenant.
	Dir string `yaml:"-"`
	// MaxSeries caps the series in memory of all tenants together; above it new
	// series are refused. 0 derives the cap from the memory limit of the process.
	MaxSeries int `yaml:"max_series"`
	// IdleTimeout is how long a tenant goes without a write before its head is cut,
	// uploaded and closed.
	IdleTimeout time.Duration `yaml:"-"`
	// MaintenanceInterval is how often cuts, uploads and closings are considered.
	MaintenanceInterval time.Duration `yaml:"-"`
	// InstanceID sets the cuts of replicas apart in time.
	InstanceID string `yaml:"-"`
	// Adopted is a folder of Prometheus's that is a tenant's; nil: there is none.
	Adopted *Adopted `yaml:"-"`
}

// DefaultConfig returns the Config that suits most.
func DefaultConfig() Config {
	return Config{
		IdleTimeout:         time.Hour,
		MaintenanceInterval: 15 * time.Second,
	}
}

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	if c.MaxSeries < 0 {
		errs = append(errs, fmt.Errorf("max_series: %d is below 0", c.MaxSeries))
	}
	if c.IdleTimeout <= 0 {
		errs = append(errs, fmt.Errorf("idle timeout: %s is not above 0", c.IdleTimeout))
	}
	if c.MaintenanceInterval <= 0 {
		errs = append(errs, fmt.Errorf("maintenance interval: %s is not above 0", c.MaintenanceInterval))
	}
	return errors.Join(errs...)
}

// Deps are what an Ingester works with.
type Deps struct {
	// Store is the bucket that blocks go to.
	Store *blockstore.Store
	// Limits are the tenants' limits.
	Limits tenant.LimitsFunc
	// Visible says whether queries read a block, or a descendant of it, from the
	// bucket, so that the local copy may go.
	Visible func(tenant.ID, ulid.ULID) bool
	// Uploaded is told that a tenant has a new block in the bucket. It must not block.
	Uploaded func(tenant.ID, ulid.ULID)
	// Cluster is this ingester as a member of a cluster; nil outside of one. With it,
	// the placements that samples were taken under are remembered.
	Cluster *Member
	// KeepUploaded is how long a block stays here at least after its upload, so that
	// queriers whose view of the bucket is older find it. 0 leaves that to Visible.
	KeepUploaded time.Duration
	// Opening is told how far Open is; nil: nobody asks.
	Opening *Opening

	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // nil: the clock of this machine
}

// Ingester holds the recent samples of all tenants. It is safe for concurrent use.
type Ingester struct {
	cfg        Config
	deps       Deps
	logger     *slog.Logger
	metrics    *metrics
	checks     *write.Checks
	caps       *caps
	disk       *disk
	openBlocks *openBlocks
	// ceilings are the limits of the operating system that tenants share.
	ceilings []*ceiling
	now      func() time.Time

	// self is nil outside of a cluster.
	self atomic.Pointer[self]
	// releasedUntil: what was taken here of tenants that nothing is held of, now or
	// before this process began, is before this time, in ms.
	releasedUntil atomic.Int64
	// draining is set while no writes are taken because the ingester is emptied.
	draining atomic.Bool
	emptying turn // held by the one drain at a time

	// deletions is, by tenant, a *tenantDeletions.
	deletions sync.Map

	// Lock order: a tenantDB's working, its use, its appending, then mu.
	mu struct {
		sync.RWMutex
		tenants map[tenant.ID]*tenantDB
		stopped bool
	}
}

// Open opens the TSDB of every tenant that has a folder in cfg.Dir, which
// replays their write-ahead logs. A tenant whose TSDB does not open refuses
// reads and writes and is tried again by Run; the others are not affected.
func Open(ctx context.Context, cfg Config, deps Deps) (*Ingester, error) {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	return open(ctx, cfg, deps, deps.Now)
}

// self is a member with what follows from being it.
type self struct {
	Member
	alone Placed
}

func open(ctx context.Context, cfg Config, deps Deps, now func() time.Time) (*Ingester, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("ingester: %w", err)
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("create the ingester's folder: %w", err)
	}
	i := &Ingester{
		cfg:    cfg,
		deps:   deps,
		logger: deps.Logger.With("component", "ingester"),
		caps:   newCaps(cfg.MaxSeries),
		disk:   newDisk(cfg.Dir),
		now:    now,

		ceilings: newCeilings(),

		emptying: newTurn(),
	}
	// Samples that were taken before are not newer, and those of tenants without a
	// folder are gone.
	i.releasedUntil.Store(now().Add(maxAhead).UnixMilli())
	if deps.Cluster != nil {
		i.become(*deps.Cluster)
	}
	i.openBlocks = newOpenBlocks(mostOpenBlocks, deps.Registerer)
	i.metrics = newMetrics(deps.Registerer, i)
	i.checks = write.NewChecks("ingester", i.logger, deps.Registerer)
	i.mu.tenants = map[tenant.ID]*tenantDB{}
	ids, err := tenantsOnDisk(cfg)
	if err != nil {
		return nil, err
	}
	i.warnOfCeilings(ids)
	deps.Opening.begin(ids)
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, id := range ids {
		t := i.newTenantDB(id)
		i.mu.tenants[id] = t
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := t.open(); err != nil {
				i.logger.Error("Tenant refuses reads and writes until its TSDB opens; it is tried again every minute",
					"tenant", id, "dir", t.dir, "err", err)
			}
			deps.Opening.reached(id, 1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(err, i.close())
	}
	return i, nil
}

func tenantsOnDisk(cfg Config) ([]tenant.ID, error) {
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	var ids []tenant.ID
	if cfg.Adopted != nil {
		ids = append(ids, cfg.Adopted.Tenant)
	}
	for _, e := range entries {
		if id, err := tenant.Parse(e.Name()); err == nil && e.IsDir() && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// become makes i the member of a cluster.
func (i *Ingester) become(m Member) { i.self.Store(&self{Member: m, alone: m.alone()}) }

// Push appends b for tenant id. When it returns without an error, all that the
// Result counts as written is in the write-ahead log: it survives the death of
// the process. With an error nothing is known to be written and the same batch
// may be pushed again, which never stores a sample twice.
//
// In a cluster it is for samples that no other member gets; see PushPlaced.
func (i *Ingester) Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	if self := i.self.Load(); self != nil {
		return i.push(ctx, id, b, &self.alone)
	}
	return i.push(ctx, id, b, nil)
}

// PushPlaced is Push for samples that placed has chosen this member of a cluster for.
// Before it returns, the placement is on disk too.
func (i *Ingester) PushPlaced(ctx context.Context, id tenant.ID, b *write.Batch, placed Placed) (write.Result, error) {
	return i.push(ctx, id, b, &placed)
}

func (i *Ingester) push(ctx context.Context, id tenant.ID, b *write.Batch, placed *Placed) (write.Result, error) {
	if err := i.takesWrites(); err != nil {
		i.metrics.refused.WithLabelValues("draining").Inc()
		return write.Result{}, err
	}
	if err := i.disk.check(0, i.caps.series.Load()); err != nil {
		i.metrics.refused.WithLabelValues("disk").Inc()
		return write.Result{}, wire.Unavailable(err, 10*time.Second)
	}
	for {
		if err := ctx.Err(); err != nil {
			return write.Result{}, err
		}
		t, err := i.tenantForPush(id)
		if err != nil {
			return write.Result{}, err
		}
		result, err := t.push(ctx, b, placed)
		if errors.Is(err, errClosed) {
			continue // It was closed since we found it; open it again.
		}
		if err == nil {
			i.metrics.appended.Add(float64(result.Written.Samples + result.Written.Histograms))
			i.metrics.unknown.Add(float64(len(result.Unknown)))
		}
		return result, err
	}
}

// tenantForPush returns the tenantDB of id, made if need be. It may be closed.
func (i *Ingester) tenantForPush(id tenant.ID) (*tenantDB, error) {
	i.mu.RLock()
	t, stopped := i.mu.tenants[id], i.mu.stopped
	i.mu.RUnlock()
	if stopped {
		return nil, wire.Unavailable(errStopped, time.Second)
	}
	if t != nil {
		return t, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.mu.stopped {
		return nil, wire.Unavailable(errStopped, time.Second)
	}
	if t := i.mu.tenants[id]; t != nil {
		return t, nil
	}
	t = i.newTenantDB(id)
	i.mu.tenants[id] = t
	return t, nil
}

func (i *Ingester) isStopped() bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.mu.stopped
}

func (i *Ingester) lookup(id tenant.ID) *tenantDB {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.mu.tenants[id]
}

// all returns the tenants in the order of their names.
func (i *Ingester) all() []*tenantDB {
	i.mu.RLock()
	defer i.mu.RUnlock()
	out := make([]*tenantDB, 0, len(i.mu.tenants))
	for _, t := range i.mu.tenants {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *tenantDB) int { return cmp.Compare(a.id, b.id) })
	return out
}

// Querier returns a querier over all samples of the tenant that are held here.
func (i *Ingester) Querier(id tenant.ID, mint, maxt int64) (storage.Querier, error) {
	t := i.lookup(id)
	if t == nil {
		return storage.NoopQuerier(), nil
	}
	return t.querier(mint, maxt)
}

// ChunkQuerier is like Querier, for encoded chunks.
func (i *Ingester) ChunkQuerier(id tenant.ID, mint, maxt int64) (storage.ChunkQuerier, error) {
	t := i.lookup(id)
	if t == nil {
		return storage.NoopChunkedQuerier(), nil
	}
	return t.chunkQuerier(mint, maxt)
}

// ExemplarQuerier returns a querier over the tenant's exemplars.
func (i *Ingester) ExemplarQuerier(ctx context.Context, id tenant.ID) (storage.ExemplarQuerier, error) {
	t := i.lookup(id)
	if t == nil {
		return noExemplars{}, nil
	}
	return t.exemplarQuerier(ctx)
}

// Metadata returns what is known of a metric, newest first, or of all if metric is "".
func (i *Ingester) Metadata(id tenant.ID, metric string) map[string][]metadata.Metadata {
	t := i.lookup(id)
	if t == nil {
		return nil
	}
	return t.metadataOf(metric)
}

// LocalBlocks returns the blocks of a tenant that queriers which were opened
// before read here, whether or not the bucket has them.
func (i *Ingester) LocalBlocks(id tenant.ID) []ulid.ULID {
	t := i.lookup(id)
	if t == nil {
		return nil
	}
	return t.localBlocks()
}

// Stats describes the head of a tenant; ok is false if it has none.
func (i *Ingester) Stats(id tenant.ID, labelName string, limit int) (stats *tsdb.Stats, ok bool) {
	t := i.lookup(id)
	if t == nil {
		return nil, false
	}
	return t.stats(labelName, limit)
}

// Summary describes what is held for one tenant.
type Summary struct {
	Tenant           tenant.ID
	Series           uint64 // in the head
	MinTime, MaxTime int64  // of head and local blocks, in ms; MinTime > MaxTime if there are no samples
	LocalBlocks      int
}

// Summaries describes all tenants, in the order of their names.
func (i *Ingester) Summaries() []Summary {
	var out []Summary
	for _, t := range i.all() {
		if s, ok := t.summary(); ok {
			out = append(out, s)
		}
	}
	return out
}

// Flush cuts the whole head of a tenant into blocks and uploads them.
func (i *Ingester) Flush(ctx context.Context, id tenant.ID) error {
	t := i.lookup(id)
	if t == nil {
		return nil
	}
	return t.flush(ctx)
}

// Run cuts, uploads, deletes and closes as time goes by. When ctx ends it closes
// all TSDBs and returns; pushes and queries must have ended before.
func (i *Ingester) Run(ctx context.Context) error {
	tick := time.NewTicker(i.cfg.MaintenanceInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return i.close()
		case <-tick.C:
			i.maintain(ctx)
		}
	}
}

// maintain does one round of everything that happens behind the back of pushes
// and queries.
func (i *Ingester) maintain(ctx context.Context) {
	growth := map[tenant.ID]int64{}
	for _, t := range i.all() {
		growth[t.id] = t.growth()
	}
	i.caps.update(growth)
	var g errgroup.Group
	g.SetLimit(maintainers)
	for _, t := range i.all() {
		g.Go(func() error {
			if err := t.maintain(ctx); err != nil && ctx.Err() == nil {
				i.metrics.maintenanceFailures.WithLabelValues(string(t.id)).Inc()
				i.logger.Error("Maintenance of a tenant ended early and is tried again in the next round; nothing is lost, but its data stays in memory and on the local disk until it works",
					"tenant", t.id, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // Errors are logged, tenant by tenant.
}

// forget takes a tenant that was closed for good out of the list.
func (i *Ingester) forget(t *tenantDB) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.mu.tenants[t.id] == t {
		delete(i.mu.tenants, t.id)
	}
}

// replace puts another tenantDB, which is closed, in the place of one that a deletion of the
// tenant has closed for good without taking its folder away. Maintenance tries that again.
// What is said to be held stays the same until then.
func (i *Ingester) replace(t *tenantDB, deletion ulid.ULID) {
	next := i.newTenantDB(t.id)
	next.held.Store(t.held.Load())
	next.doomed = deletion
	next.deletionsDue.Store(true)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.mu.tenants[t.id] == t {
		i.mu.tenants[t.id] = next
	}
}

// remove deletes the folder of a tenant that was closed for good and is empty,
// and forgets it: in this order, so that a write that comes meanwhile does not
// open the folder.
func (i *Ingester) remove(t *tenantDB) error {
	defer i.forget(t)
	if held := t.held.Load(); held != nil {
		i.released(held.shipped.from())
	}
	if adopted := t.adopted(); adopted != nil {
		if err := adopted.empty(); err != nil {
			return fmt.Errorf("remove what an idle tenant keeps in the directory of a Prometheus: %w", err)
		}
		return nil
	}
	if err := os.RemoveAll(t.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the folder of an idle tenant: %w", err)
	}
	return nil
}

// released notes that samples before a time were deleted of a tenant that is forgotten.
func (i *Ingester) released(until int64) {
	for {
		before := i.releasedUntil.Load()
		if until <= before || i.releasedUntil.CompareAndSwap(before, until) {
			return
		}
	}
}

func (i *Ingester) close() error {
	i.mu.Lock()
	i.mu.stopped = true
	i.mu.Unlock()
	var errs []error
	for _, t := range i.all() {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

func (i *Ingester) newTenantDB(id tenant.ID) *tenantDB {
	return &tenantDB{
		id:  id,
		dir: i.cfg.dirOf(id),
		ing: i,
		log: i.logger.With("tenant", id),

		appending: newTurn(),
		cutting:   newTurn(),
	}
}
