// Package querier answers PromQL. It merges the recent samples of the ingesters
// with the blocks in the bucket behind Prometheus's storage interfaces, runs
// Prometheus's engine over them under the limits of each tenant, and serves
// Prometheus's HTTP API.
//
// Answers are complete or they are errors: a block that is needed and cannot be
// read, a bucket that was never listed, or too few replicas of recent samples that
// answer, fails the query. The package writes
// nothing to the bucket and knows no object keys.
package querier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/resultcache"
)

// Ingester is an ingester in the same process: heads, and blocks that queries do not
// read from the bucket yet. It MUST keep what a querier of its own can read until
// that querier is closed, and MUST NOT drop a block before Querier.Visible.
type Ingester interface {
	Querier(id tenant.ID, mint, maxt int64) (storage.Querier, error)
	ChunkQuerier(id tenant.ID, mint, maxt int64) (storage.ChunkQuerier, error)
	ExemplarQuerier(ctx context.Context, id tenant.ID) (storage.ExemplarQuerier, error)
	// LocalBlocks returns blocks that every querier which was opened before reads from
	// the ingester, so that the bucket's copies need not be read. It MUST NOT wait for
	// a querier to be closed, since its caller holds one; it MAY leave blocks out.
	LocalBlocks(id tenant.ID) []ulid.ULID
	// Oldest returns the local blocks with the least time of any sample in each, and that in
	// the head: math.MaxInt64 if it has none, math.MinInt64 if that is not known.
	Oldest(id tenant.ID) (blocks []ulid.ULID, blockMins []int64, head int64)
	// Metadata returns what is known of metric, or of all metrics if it is empty.
	Metadata(id tenant.ID, metric string) map[string][]metadata.Metadata
	// Stats describes the head; false says that no data of the tenant is in memory.
	Stats(id tenant.ID, labelName string, limit int) (*tsdb.Stats, bool)
}

// Config says how a Querier works.
type Config struct {
	// RefreshInterval is how often the block indexes in the bucket are looked at: 1s to
	// 15m. A block that nobody tells of is read at most this much after its index has it.
	RefreshInterval model.Duration `yaml:"refresh_interval"`

	// CacheBytes bounds what is kept on disk of blocks in a bucket that is not on this
	// machine: at least 64 MiB.
	CacheBytes int64 `yaml:"cache_bytes"`

	// ResultsCacheBytes bounds the results of range queries that are kept on local disk, and a
	// tenth of it in memory; 0 keeps none.
	ResultsCacheBytes int64 `yaml:"results_cache_bytes"`

	// Dir takes the parts of blocks that queries have read. It belongs to the Querier
	// alone.
	Dir string `yaml:"-"`
	// AdminAPI serves the routes that delete. Queries then fail while the querier cannot
	// learn what was deleted.
	AdminAPI bool `yaml:"-"`
	// Version is Hundredfold's own; it stands in the revision of status/buildinfo.
	Version string `yaml:"-"`
	// ConfigText returns the configuration in force, with secrets redacted; nil: none.
	ConfigText func() string `yaml:"-"`
	// Flags are the command line flags in force, with secrets redacted.
	Flags map[string]string `yaml:"-"`
	// Operator is the only tenant that is shown ConfigText and Flags, which name other
	// tenants; "" shows them to all.
	Operator tenant.ID `yaml:"-"`
}

// minCacheBytes is the least that CacheBytes can be: with less, a query would drive out
// what it has just read itself.
const minCacheBytes = 64 << 20

// minResultsCacheBytes is the least that ResultsCacheBytes can be if it is not 0: the results of one query
// take an eighth at most.
const minResultsCacheBytes = 8 << 20

// Default returns the configuration of a Querier that the user does not name.
func Default() Config {
	return Config{RefreshInterval: model.Duration(30 * time.Second), CacheBytes: 10 << 30, ResultsCacheBytes: 1 << 30}
}

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	if d := time.Duration(c.RefreshInterval); d < time.Second || d > 15*time.Minute {
		errs = append(errs, fmt.Errorf("refresh_interval: %s is outside 1s to 15m", c.RefreshInterval))
	}
	if c.CacheBytes < minCacheBytes {
		errs = append(errs, fmt.Errorf("cache_bytes: %d is less than %d", c.CacheBytes, minCacheBytes))
	}
	if c.ResultsCacheBytes != 0 && c.ResultsCacheBytes < minResultsCacheBytes {
		errs = append(errs, fmt.Errorf("results_cache_bytes: %d is neither 0 nor at least %d", c.ResultsCacheBytes, minResultsCacheBytes))
	}
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: it is empty"))
	}
	return errors.Join(errs...)
}

// Querier answers queries. It is safe for concurrent use.
type Querier struct {
	cfg     Config
	edge    Edge
	limits  tenant.LimitsFunc
	logger  *slog.Logger
	metrics *metrics
	views   *views
	blocks  *remoteblock.Pool
	engines *engines
	results *resultcache.Cache // nil: none
	gate    *gate
	started time.Time
	handler http.Handler
	owners  *owners // nil: there are no other queriers
}

// New returns a Querier over the recent samples of edge and the blocks in store.
// Queries fail until Run has listed the bucket.
func New(cfg Config, edge Edge, store *blockstore.Store, limits tenant.LimitsFunc, logger *slog.Logger, reg prometheus.Registerer) (*Querier, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("querier: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	m := newMetrics(reg)
	blocks, err := remoteblock.New(remoteblock.Config{Dir: cfg.Dir, CacheBytes: cfg.CacheBytes}, store, logger, reg)
	if err != nil {
		return nil, fmt.Errorf("querier: %w", err)
	}
	q := &Querier{
		cfg:     cfg,
		edge:    edge,
		limits:  limits,
		logger:  logger,
		metrics: m,
		views:   newViews(store, limits, cfg.AdminAPI, logger, m),
		blocks:  blocks,
		engines: newEngines(limits, logger),
		gate:    newGate(),
		started: time.Now(),
	}
	if cfg.ResultsCacheBytes > 0 {
		q.results = resultcache.New(cfg.Dir+"-results", cfg.ResultsCacheBytes, reg)
	}
	edge.attach(q.views)
	m.observeView(reg, q.views.age)
	q.handler = q.newHandler()
	return q, nil
}

// Share lets the queriers of a cluster own the blocks in the bucket, unless that is on this
// machine: each reads its own, and asks the others for the rest. It is called once, before
// anything else. See RegisterBlocks.
func (q *Querier) Share(src cluster.Source, conns Conns, reg prometheus.Registerer) {
	if !q.views.store.InPlace() {
		q.owners = newOwners(src, conns, q.logger, reg)
	}
}

// Run keeps the view of the bucket fresh until ctx ends. Queries that run then go on
// reading blocks until they end.
func (q *Querier) Run(ctx context.Context) error {
	if err := removeCopies(q.cfg.Dir); err != nil {
		q.logger.Warn("Copies of blocks that an earlier release has made could not be removed", "dir", q.cfg.Dir, "err", err)
	}
	if err := q.blocks.Prepare(); err != nil {
		return fmt.Errorf("querier: %w", err)
	}
	if q.results != nil {
		if err := q.results.Load(); err != nil {
			q.logger.Warn("Results that were kept before could not all be found; those queries are evaluated again", "err", err)
		}
	}
	var deletions sync.WaitGroup
	deletions.Go(func() { q.keepDeletions(ctx) })
	q.keepFresh(ctx)
	deletions.Wait()
	return nil
}

// Ready returns nil once the bucket has been listed and somebody is known who has the
// recent samples, so that queries can be answered.
func (q *Querier) Ready() error { return errors.Join(q.views.loaded(), q.edge.ready()) }

// Visible reports whether queries that start from now on read the samples of a
// block from the bucket: from the block itself, or from one that was made of it.
// It is true as well for a block that retention hides, since no query will need
// another copy of it.
func (q *Querier) Visible(id tenant.ID, block ulid.ULID) bool {
	view, err := q.views.of(id)
	return err == nil && view.reads(block)
}

// BlockUploaded says that a block of a tenant has been uploaded: it is looked for soon,
// and read from then on. It never blocks.
func (q *Querier) BlockUploaded(id tenant.ID, block ulid.ULID) { q.views.notice(id, block) }

// Handler serves /api/v1/... and /federate. The tenant is in the request's context.
func (q *Querier) Handler() http.Handler { return q.handler }
