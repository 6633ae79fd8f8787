package querier

import (
	"context"
	"math"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Edge is where a Querier finds the recent samples: Direct, the ingester of the same
// process, or a *ClusterIngester, the ingesters of a cluster.
type Edge interface {
	// attach is called once, before all other methods.
	attach(v *views)
	ready() error
	// observe is called before each listing of the bucket.
	observe()
	samples(id tenant.ID, within timeRange) (recent[storage.Querier], error)
	chunks(id tenant.ID, within timeRange) (recent[storage.ChunkQuerier], error)
	exemplars(ctx context.Context, id tenant.ID) (storage.ExemplarQuerier, error)
	metadata(ctx context.Context, id tenant.ID, metric string) (map[string][]metadata.Metadata, error)
	// oldest returns a function of a view that is loaded afterwards: the least time of any sample that
	// may not be read from the bucket by that view. What is before it, is, as a whole.
	oldest(ctx context.Context, id tenant.ID) (func(*tenantView) int64, error)
	// stats describes the heads; nil says that no data of the tenant is in memory.
	stats(ctx context.Context, id tenant.ID, labelName string, limit int) (*tsdb.Stats, error)
}

// recent is one query's hold on the recent samples of one tenant.
type recent[R reader] interface {
	// begin begins to read what one call needs, and returns a function that waits
	// for it. The reader that this returns answers exactly that call, and belongs to the
	// query. A view of the bucket that is loaded afterwards and allowed by the coverage
	// has every sample that the reader lacks.
	begin(ctx context.Context, ask request) (wait func() (R, covered, error))
	// close ends what was begun and releases all that was read.
	close() error
}

// request is one call of a querier's method.
type request struct {
	timeRange
	kind     requestKind
	hints    *storage.SelectHints // of series; may be nil
	name     string               // of label values
	limit    int                  // of labels; 0 is none
	matchers []*labels.Matcher
}

type requestKind int

const (
	selectSeries requestKind = iota
	labelValues
	labelNames
	fetchPages // of series
)

// covered says which blocks in the bucket need not be read, since all that they hold
// is in the answers of ingesters.
type covered struct {
	// blocks are in the answers as a whole.
	blocks []ulid.ULID
	// from is in ms: the answers have all samples at or after it that came by way of
	// an ingester. Those samples are in blocks for which cut is true.
	from int64
	cut  func(ulid.ULID) bool // nil: none
	// generation is the least one of a block index that lists all that ingesters have
	// dropped; 0: it is not known.
	generation uint64
	// snapshot says that all answers are of the moment when the hold began, so that a
	// view that was loaded for one call is good for all.
	snapshot bool
	// check refuses a view of the bucket that may lack what ingesters have dropped;
	// nil accepts all.
	check func(*tenantView) error
}

// has reports whether the samples of a block are in the answers.
func (c *covered) has(meta *tsdb.BlockMeta) bool {
	sources := blockstore.Sources(*meta)
	if !slices.ContainsFunc(sources, func(s ulid.ULID) bool { return !slices.Contains(c.blocks, s) }) {
		return true
	}
	return c.cut != nil && meta.MinTime >= c.from &&
		!slices.ContainsFunc(sources, func(s ulid.ULID) bool { return !c.cut(s) })
}

// Direct returns the Edge that is an ingester in the same process: its answers are
// plain calls away, and nothing of them is copied.
func Direct(ing Ingester) Edge { return &directEdge{ing} }

type directEdge struct{ ingester Ingester }

func (*directEdge) attach(*views) {}

func (*directEdge) ready() error { return nil }

func (*directEdge) observe() {}

func (d *directEdge) samples(id tenant.ID, within timeRange) (recent[storage.Querier], error) {
	q, err := d.ingester.Querier(id, within.mint, within.maxt)
	if err != nil {
		return nil, err
	}
	return &directRecent[storage.Querier]{d.ingester, id, q}, nil
}

func (d *directEdge) chunks(id tenant.ID, within timeRange) (recent[storage.ChunkQuerier], error) {
	q, err := d.ingester.ChunkQuerier(id, within.mint, within.maxt)
	if err != nil {
		return nil, err
	}
	return &directRecent[storage.ChunkQuerier]{d.ingester, id, q}, nil
}

func (d *directEdge) exemplars(ctx context.Context, id tenant.ID) (storage.ExemplarQuerier, error) {
	return d.ingester.ExemplarQuerier(ctx, id)
}

func (d *directEdge) metadata(_ context.Context, id tenant.ID, metric string) (map[string][]metadata.Metadata, error) {
	return d.ingester.Metadata(id, metric), nil
}

func (d *directEdge) oldest(_ context.Context, id tenant.ID) (func(*tenantView) int64, error) {
	blocks, mins, head := d.ingester.Oldest(id)
	return func(v *tenantView) int64 {
		if listedOnce(v) != nil {
			return math.MinInt64
		}
		return min(head, oldestOf(v, blocks, mins))
	}, nil
}

// oldestOf returns the least time of any sample in local blocks that a view lacks.
func oldestOf(v *tenantView, blocks []ulid.ULID, mins []int64) int64 {
	if len(mins) != len(blocks) {
		return math.MinInt64 // an ingester of a release before
	}
	oldest := int64(math.MaxInt64)
	for i, id := range blocks {
		if !v.reads(id) {
			oldest = min(oldest, mins[i])
		}
	}
	return oldest
}

func (d *directEdge) stats(_ context.Context, id tenant.ID, labelName string, limit int) (*tsdb.Stats, error) {
	stats, ok := d.ingester.Stats(id, labelName, limit)
	if !ok {
		return nil, nil
	}
	return stats, nil
}

// directRecent is one querier of the ingester for all calls of a query.
type directRecent[R reader] struct {
	ingester Ingester
	id       tenant.ID
	reader   R
}

func (d *directRecent[R]) begin(context.Context, request) func() (R, covered, error) {
	return func() (R, covered, error) {
		// Asked after the reader was opened: what has been cut since, it reads from the
		// head.
		return d.reader, covered{blocks: d.ingester.LocalBlocks(d.id), snapshot: true, check: listedOnce}, nil
	}
}

// listedOnce refuses a view that only an index has shown since the start of the process:
// the index may be older than what the ingester has moved to the bucket before. Since then
// the ingester drops what this process reads from the bucket.
func listedOnce(v *tenantView) error {
	if v.listed.IsZero() {
		return unavailable(errNotListed)
	}
	return nil
}

func (d *directRecent[R]) close() error { return d.reader.Close() }

var (
	_ Edge = (*directEdge)(nil)
	_ Edge = (*ClusterIngester)(nil)
)
