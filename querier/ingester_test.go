package querier

import (
	"context"
	"math"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// edge is an Ingester made of one real TSDB per tenant, without any of the policies of
// the real one: it keeps all samples until it is told to forget them.
type edge struct {
	t   testing.TB
	dir string

	mu sync.Mutex
	db map[tenant.ID]*tsdb.DB
	md map[tenant.ID]map[string][]metadata.Metadata
}

func newEdge(t testing.TB) *edge {
	e := &edge{t: t, dir: t.TempDir(), db: map[tenant.ID]*tsdb.DB{}, md: map[tenant.ID]map[string][]metadata.Metadata{}}
	t.Cleanup(func() {
		for _, db := range e.db {
			require.NoError(t, db.Close())
		}
	})
	return e
}

// tsdbOptions are those with which promqltest runs by itself.
func tsdbOptions() *tsdb.Options {
	opts := tsdb.DefaultOptions()
	opts.MinBlockDuration = (24 * time.Hour).Milliseconds()
	opts.MaxBlockDuration = opts.MinBlockDuration
	opts.RetentionDuration = 0
	opts.EnableExemplarStorage = true
	opts.MaxExemplars = 1e5
	opts.EnableSTStorage = true
	opts.FloatChunkEncoding = chunkenc.EncXOR2
	opts.EnableHistogramSTEncoding = true
	return opts
}

func (e *edge) get(id tenant.ID) *tsdb.DB {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.db[id]
}

func (e *edge) open(id tenant.ID) *tsdb.DB {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.db[id] == nil {
		db, err := tsdb.Open(filepath.Join(e.dir, string(id)), nil, nil, tsdbOptions(), nil)
		require.NoError(e.t, err)
		db.DisableCompactions()
		e.db[id] = db
	}
	return e.db[id]
}

// Push stores a batch. It refuses what the TSDB refuses.
func (e *edge) Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	app := e.open(id).AppenderV2(ctx)
	var scratch labels.ScratchBuilder
	for i, s := range b.Series {
		scratch.Reset()
		if err := b.Source.AppendLabels(i, &scratch); err != nil {
			return write.Result{}, err
		}
		scratch.Sort()
		ls := scratch.Labels()
		opts := storage.AOptions{Exemplars: b.Exemplars[s.Exemplars.Off:s.Exemplars.End()]}
		for _, v := range b.Samples[s.Samples.Off:s.Samples.End()] {
			if _, err := app.Append(0, ls, v.ST, v.T, v.V, nil, nil, opts); err != nil {
				return write.Result{}, err
			}
			opts = storage.AOptions{}
		}
		for _, h := range b.Histograms[s.Histograms.Off:s.Histograms.End()] {
			if _, err := app.Append(0, ls, h.ST, h.T, 0, h.Int, h.Float, opts); err != nil {
				return write.Result{}, err
			}
		}
	}
	return write.Result{Written: b.Counts()}, app.Commit()
}

func (e *edge) Querier(id tenant.ID, mint, maxt int64) (storage.Querier, error) {
	if db := e.get(id); db != nil {
		return db.Querier(mint, maxt)
	}
	return storage.NoopQuerier(), nil
}

func (e *edge) ChunkQuerier(id tenant.ID, mint, maxt int64) (storage.ChunkQuerier, error) {
	if db := e.get(id); db != nil {
		return db.ChunkQuerier(mint, maxt)
	}
	return storage.NoopChunkedQuerier(), nil
}

func (e *edge) ExemplarQuerier(ctx context.Context, id tenant.ID) (storage.ExemplarQuerier, error) {
	if db := e.get(id); db != nil {
		return db.ExemplarQuerier(ctx)
	}
	return noExemplars{}, nil
}

func (e *edge) LocalBlocks(id tenant.ID) []ulid.ULID {
	db := e.get(id)
	if db == nil {
		return nil
	}
	var ids []ulid.ULID
	for _, b := range db.Blocks() {
		ids = append(ids, b.Meta().ULID)
	}
	return ids
}

func (e *edge) Oldest(id tenant.ID) (blocks []ulid.ULID, mins []int64, head int64) {
	db := e.get(id)
	if db == nil {
		return nil, nil, math.MaxInt64
	}
	head = min(db.Head().MinTime(), db.Head().MinOOOTime())
	for _, b := range db.Blocks() {
		blocks, mins = append(blocks, b.Meta().ULID), append(mins, b.Meta().MinTime)
	}
	return blocks, mins, head
}

func (e *edge) Metadata(id tenant.ID, metric string) map[string][]metadata.Metadata {
	e.mu.Lock()
	defer e.mu.Unlock()
	if metric == "" {
		return e.md[id]
	}
	out := map[string][]metadata.Metadata{}
	if md, ok := e.md[id][metric]; ok {
		out[metric] = md
	}
	return out
}

func (e *edge) Stats(id tenant.ID, labelName string, limit int) (*tsdb.Stats, bool) {
	if db := e.get(id); db != nil {
		return db.Head().Stats(labelName, limit), true
	}
	return nil, false
}

// cut writes what the tenant's TSDB holds as blocks of aligned ranges of span ms, or of
// a multiple if those were too many, into parent. It returns their directories.
func (e *edge) cut(id tenant.ID, parent string, span int64) []string {
	db := e.get(id)
	if db == nil || db.Head().NumSeries() == 0 {
		return nil
	}
	mint, maxt := db.Head().MinTime(), db.Head().MaxTime()
	span *= (maxt-mint)/(10*span) + 1
	start := mint - mint%span
	if mint%span < 0 {
		start -= span
	}
	var dirs []string
	for ; start <= maxt; start += span {
		dirs = append(dirs, e.cutRange(db, parent, max(start, mint), min(start+span-1, maxt))...)
	}
	return dirs
}

// cutRange writes the samples from mint to maxt, both inclusive, as a block.
func (e *edge) cutRange(db *tsdb.DB, parent string, mint, maxt int64) []string {
	compactor, err := tsdb.NewLeveledCompactorWithOptions(context.Background(), nil, nil, tsdb.ExponentialBlockRanges(maxt-mint+1, 1, 2), nil, tsdb.LeveledCompactorOptions{
		EnableOverlappingCompaction: true,
		FloatChunkEncoding:          func() chunkenc.Encoding { return chunkenc.EncXOR2 },
	})
	require.NoError(e.t, err)
	ids, err := compactor.Write(parent, tsdb.NewRangeHead(db.Head(), mint, maxt), mint, maxt+1, nil)
	require.NoError(e.t, err)
	var dirs []string
	for _, id := range ids {
		dirs = append(dirs, filepath.Join(parent, id.String()))
	}
	return dirs
}

// forget drops all that the tenant's TSDB holds.
func (e *edge) forget(id tenant.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if db := e.db[id]; db != nil {
		require.NoError(e.t, db.Close())
		delete(e.db, id)
		e.dir = e.t.TempDir()
	}
}

// noExemplars answers with nil, which is what some implementations do.
type noExemplars struct{}

func (noExemplars) Select(int64, int64, ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	return nil, nil
}
