// Package compactor keeps the blocks in the bucket few, large and within their
// tenant's retention. In each pass it goes through all tenants, one after the other:
//
//	list -> plan (pure) -> mark, delete -> compact one job -> list again -> ...
//
// Blocks of 2 h become blocks of 12 h and 24 h; blocks that overlap, because of
// samples out of order or of replicas, are merged on the way. The sources of a
// result stay readable until readers know the result, then they are deleted.
//
// Every step may fail or be the last one before a crash: what it leaves behind is
// a correct state of the bucket, and the next pass goes on from there. Nothing is
// remembered elsewhere. A block that cannot be read is marked, reported and left
// alone; the others are compacted without it.
//
// Several compactors share the tenants: each works on those that it owns. When they
// disagree for a while on who owns what, a visit in the bucket keeps the second one
// away; and if both work on a tenant all the same, what they do is correct, only done
// twice: results of the same sources supersede each other, those that overlap are
// merged, and what is deleted was superseded for as long as DeletionDelay.
//
// The compactor neither answers queries nor knows who does; it relies on readers
// to follow blockstore.Superseded.
package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"

	"github.com/hundredfold/hundredfold/internal/backlog"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Config says how the compactor works.
type Config struct {
	// Dir is where results are written before they are uploaded. It needs room for the
	// largest day of a tenant, and a tenth more for indexes. On the filesystem of the
	// bucket's directory, nothing is copied from it.
	Dir string `yaml:"dir"`
	// Interval is the time between two passes, at least 1s.
	Interval model.Duration `yaml:"interval"`
	// DeletionDelay is how long a block stays after it was marked for deletion. It
	// must be longer than it takes readers to see new blocks, and the longest query.
	DeletionDelay model.Duration `yaml:"deletion_delay"`
}

// Default returns the configuration of a single process.
func Default() Config {
	return Config{
		Dir:           "./data/compactor",
		Interval:      model.Duration(time.Minute),
		DeletionDelay: model.Duration(2 * time.Hour),
	}
}

// Validate reports all faults of c, each with its key and value.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("compactor.dir: it is empty; name a directory for temporary files"))
	}
	if time.Duration(c.Interval) < time.Second {
		errs = append(errs, fmt.Errorf("compactor.interval: %s is below 1s", c.Interval))
	}
	if c.DeletionDelay < 0 {
		errs = append(errs, fmt.Errorf("compactor.deletion_delay: %s is below 0s", c.DeletionDelay))
	}
	return errors.Join(errs...)
}

// Compactor compacts, and deletes, the blocks of all tenants. It works on one job
// at a time, which bounds its memory. One goroutine may use it.
type Compactor struct {
	cfg     Config
	store   *blockstore.Store
	limits  tenant.LimitsFunc
	owns    func(tenant.ID) bool
	visits  *visits // nil: there are no other compactors
	logger  *slog.Logger
	metrics *metrics
	index   *indexer
	now     func() time.Time

	// board is told what is seen, planned and done.
	board *backlog.Board
	// Blocks whose meta.json could not be understood and that were reported so.
	reported map[blockName]struct{}

	settling func(context.Context, tenant.ID) (missing []string, err error) // nil: nobody can be asked
	rules    map[tenant.ID]rulesSince
	// pruned are the classes of series that blocks were looked through for.
	pruned map[blockName][]string
	// untouched are, for each deletion, the blocks that have nothing of what it deletes.
	untouched map[ulid.ULID]map[blockName]struct{}
	sizes     *sizes

	sidecars *sidecars
}

// blockName names a block among those of all tenants: blocks that were copied from
// one tenant to another have the same ULID.
type blockName struct {
	tenant tenant.ID
	block  ulid.ULID
}

// Deps are what a Compactor works with.
type Deps struct {
	// Store holds the blocks. What is in its previous bucket only is left alone.
	Store  *blockstore.Store
	Limits tenant.LimitsFunc
	// Owns tells which tenants are this compactor's; it may change its mind at any time
	// and MUST NOT block. Nil: all are, and there is no other compactor.
	Owns func(tenant.ID) bool
	// Settle has the ingesters carry out the deletions of a tenant that are not settled,
	// and records those that all have; missing are the ingesters that have not. Nil: there
	// is nobody who could.
	Settle func(ctx context.Context, id tenant.ID) (missing []string, err error)
	// Instance is the ID of this process among those that share the bucket. It is needed
	// with Owns.
	Instance string

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: nothing is counted
}

// New returns a Compactor that works on the blocks in deps.Store.
func New(cfg Config, deps Deps) (*Compactor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Compactor{
		cfg:       cfg,
		store:     deps.Store,
		limits:    deps.Limits,
		owns:      deps.Owns,
		logger:    deps.Logger,
		now:       time.Now,
		reported:  make(map[blockName]struct{}),
		settling:  deps.Settle,
		rules:     make(map[tenant.ID]rulesSince),
		pruned:    make(map[blockName][]string),
		untouched: make(map[ulid.ULID]map[blockName]struct{}),
		sizes:     &sizes{known: make(map[blockName]int64)},
		sidecars:  newSidecars(),
	}
	c.board = backlog.New(func() time.Time { return c.now() })
	c.metrics = newMetrics(deps.Registerer, c.board)
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	if c.owns == nil {
		c.owns = func(tenant.ID) bool { return true }
	} else {
		c.visits = newVisits(c.store, deps.Instance, c.logger)
	}
	c.index = newIndexer(c.store, c.owns, deps.Instance, c.logger, c.metrics)
	return c, nil
}

// Run makes a pass over all tenants at once and then at each interval, until ctx
// ends. A pass that fails is logged; the next one tries again. Meanwhile it keeps the
// block indexes of the tenants.
func (c *Compactor) Run(ctx context.Context) error {
	if err := c.removeAborted(); err != nil {
		return err
	}
	var indexing sync.WaitGroup
	indexing.Go(func() { c.index.run(ctx) })
	defer indexing.Wait()
	ticker := time.NewTicker(time.Duration(c.cfg.Interval))
	defer ticker.Stop()
	for {
		if err := c.RunOnce(ctx); err != nil && ctx.Err() == nil {
			c.logger.Error("compaction pass failed in part; blocks stay as they are and the next pass tries again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// RunOnce makes one pass: for each tenant, until there is nothing left to do. The
// error joins those of all tenants; none keeps the others from being worked on.
func (c *Compactor) RunOnce(ctx context.Context) error {
	start := c.now()
	err := c.pass(ctx)
	ended := backlog.Pass{Ended: c.now(), Seconds: c.now().Sub(start).Seconds()}
	c.metrics.passes.Inc()
	c.metrics.passDuration.Observe(ended.Seconds)
	if err != nil {
		ended.Error = err.Error()
	}
	c.board.Passed(ended)
	if err != nil {
		c.metrics.passFailures.Inc()
		return err
	}
	c.metrics.lastSuccess.Set(float64(c.now().Unix()))
	return nil
}

func (c *Compactor) pass(ctx context.Context) error {
	ids, deletions, err := c.tenants(ctx)
	if err != nil {
		return err
	}
	c.forgetComplete(deletions)
	present := make(map[tenant.ID]struct{}, len(ids))
	for _, id := range ids {
		if c.owns(id) {
			present[id] = struct{}{}
			c.survey(ctx, id, deletions[id])
		}
	}
	c.board.Keep(present)
	var errs []error
	sidecarsLeft := maxSidecars
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if !c.owns(id) {
			delete(present, id)
			continue
		}
		present[id] = struct{}{}
		if err := errors.Join(c.tenant(ctx, id, deletions[id]), c.lookAfter(ctx, id, deletions[id])); err != nil {
			if ctx.Err() == nil {
				c.board.Failed(id, err)
			}
			errs = append(errs, fmt.Errorf("tenant %s: %w", id, err))
		}
		sidecarsLeft = c.addSidecars(ctx, id, sidecarsLeft)
	}
	clear(c.sidecars.lacking)
	c.board.Keep(present)
	if c.visits != nil {
		c.visits.forget(present)
	}
	return errors.Join(errs...)
}

// survey looks at a tenant that was never looked at, so that the backlog of all is known
// before the work on the first begins. An error comes again when the tenant's turn does.
func (c *Compactor) survey(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) {
	if !c.board.Knows(id) && ctx.Err() == nil {
		_, _ = c.look(ctx, id, of)
	}
}

// Status returns what there is to do, how far it is and what is wrong. It is safe to call
// at any time.
func (c *Compactor) Status() backlog.Status { return c.board.Status() }

// tenants lists the tenants that have blocks or deletions, and those deletions.
func (c *Compactor) tenants(ctx context.Context) ([]tenant.ID, map[tenant.ID]blockstore.TenantDeletions, error) {
	ids, err := c.store.Tenants(ctx)
	if err != nil {
		return nil, nil, err
	}
	deletions, err := c.store.Deletions(ctx)
	if err != nil {
		return nil, nil, err
	}
	for id := range deletions {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), deletions, nil
}

// tenant does all that there is to do for one tenant now, unless another compactor
// works on it. of are the tenant's deletions as they were when the pass began.
func (c *Compactor) tenant(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) error {
	blocks, partial, err := c.list(ctx, id)
	if err != nil {
		return err
	}
	errs := []error{c.cleanPartial(ctx, id, partial)}
	todo, err := c.plan(ctx, id, of, blocks, partial)
	if err != nil || todo.none() {
		return errors.Join(append(errs, err)...)
	}
	if c.visits == nil {
		return errors.Join(append(errs, c.work(ctx, id, of, todo))...)
	}
	visit, end, err := c.visits.begin(ctx, id)
	if errors.Is(err, errVisited) {
		c.metrics.yielded.Inc()
		return errors.Join(errs...)
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	// Whoever was here a moment ago may have done it.
	if todo, err = c.look(visit, id, of); err == nil {
		err = c.work(visit, id, of, todo)
	}
	if errors.Is(context.Cause(visit), errVisited) {
		c.metrics.yielded.Inc()
		err = nil // it is the other one's business now
	}
	return errors.Join(append(errs, err, end())...)
}

// list lists the blocks of a tenant, and brings the tenant's index up to date.
func (c *Compactor) list(ctx context.Context, id tenant.ID) (blocks map[ulid.ULID]blockstore.Block, partial []ulid.ULID, err error) {
	begun := time.Now()
	blocks, partial, err = c.store.Blocks(ctx, id)
	if err == nil {
		c.index.offer(ctx, id, blocks, begun)
	}
	return blocks, partial, err
}

// look lists the blocks of a tenant and says what is to be done with them.
func (c *Compactor) look(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions) (actions, error) {
	blocks, partial, err := c.list(ctx, id)
	if err != nil {
		return actions{}, err
	}
	return c.plan(ctx, id, of, blocks, partial)
}

func (c *Compactor) plan(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions, blocks map[ulid.ULID]blockstore.Block, partial []ulid.ULID) (actions, error) {
	over, err := c.beyondQuota(ctx, id, blocks)
	if err != nil {
		return actions{}, err
	}
	todo := plan(state{
		blocks:        blocks,
		now:           c.now(),
		retention:     c.policy(id).Longest(),
		over:          over,
		dropped:       droppedOf(of, blocks),
		deletionDelay: time.Duration(c.cfg.DeletionDelay),
	})
	c.sight(id, blocks, partial, todo)
	c.sidecars.plan(id, blocks, todo)
	return todo, nil
}

// work does what is to be done, and what there is to do after that, as long as the
// tenant is this compactor's. No job is tried twice in a pass, so one that fails is left
// for the next, and the others go on.
func (c *Compactor) work(ctx context.Context, id tenant.ID, of blockstore.TenantDeletions, todo actions) error {
	var errs []error
	tried := make(map[string]struct{})
	for c.owns(id) {
		if err := c.retain(ctx, id, todo); err != nil {
			// What cannot be marked now, cannot be uploaded either.
			return errors.Join(append(errs, err)...)
		}
		job, ok := next(todo.compactions, tried)
		if !ok {
			break
		}
		tried[job.key()] = struct{}{}
		c.board.Begin(id, job.describe())
		err := c.compact(ctx, id, job)
		c.board.End(err == nil)
		if err != nil {
			if ctx.Err() != nil {
				return errors.Join(append(errs, err)...)
			}
			c.metrics.compactionFailures.Inc()
			errs = append(errs, err)
		}
		if todo, err = c.look(ctx, id, of); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// next returns the first job that was not tried in this pass.
func next(jobs []compaction, tried map[string]struct{}) (compaction, bool) {
	for _, job := range jobs {
		if _, ok := tried[job.key()]; !ok {
			return job, true
		}
	}
	return compaction{}, false
}

// sight tells the board what there is of a tenant.
func (c *Compactor) sight(id tenant.ID, blocks map[ulid.ULID]blockstore.Block, partial []ulid.ULID, todo actions) {
	t := backlog.Tenant{Blocks: len(blocks), Jobs: make([]backlog.Job, len(todo.compactions))}
	for i, job := range todo.compactions {
		t.Jobs[i] = job.describe()
	}
	for _, name := range sorted(blocks) {
		block := blocks[name]
		if mark := block.NoCompact; mark != nil {
			t.Quarantined = append(t.Quarantined, backlog.Quarantined{Block: name, Reason: string(mark.Reason), Details: mark.Details, Since: mark.Time})
		}
		if mark := block.Deletion; mark != nil {
			t.Marked++
			if at := mark.Time.Add(time.Duration(c.cfg.DeletionDelay)); t.NextDeletion.IsZero() || at.Before(t.NextDeletion) {
				t.NextDeletion = at
			}
		}
	}
	for _, name := range partial {
		if _, ok := c.reported[blockName{id, name}]; ok {
			t.Quarantined = append(t.Quarantined, backlog.Quarantined{Block: name, Reason: "damaged-meta", Details: "its meta.json cannot be understood"})
		}
	}
	c.board.Plan(id, t)
}
