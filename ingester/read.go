package ingester

import (
	"context"
	"errors"
	"math"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// acquire takes t.use shared. Until release is called the TSDB stays open.
func (t *tenantDB) acquire() (db *tsdb.DB, release func(), err error) {
	t.use.RLock()
	if t.db == nil {
		defer t.use.RUnlock()
		return nil, nil, t.closedErrLocked()
	}
	return t.db, sync.OnceFunc(t.use.RUnlock), nil
}

// reading begins a read, before the head is opened for it. What is returned ends it, after
// the head was closed, and calls release.
func (t *tenantDB) reading(release func()) func() {
	t.readers.enter()
	return sync.OnceFunc(func() {
		t.readers.leave()
		release()
	})
}

func (t *tenantDB) querier(mint, maxt int64) (storage.Querier, error) {
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return storage.NoopQuerier(), nil // All it held is read from the bucket.
	}
	if err != nil {
		return nil, err
	}
	release = t.reading(release)
	q, done, err := t.querierOf(db, mint, maxt)
	if err != nil {
		release()
		return nil, err
	}
	return &heldQuerier{Querier: q, release: func() { done(); release() }}, nil
}

func (t *tenantDB) chunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return storage.NoopChunkedQuerier(), nil
	}
	if err != nil {
		return nil, err
	}
	release = t.reading(release)
	q, err := db.ChunkQuerier(mint, maxt)
	if err != nil {
		release()
		return nil, err
	}
	// The head first: what is cut from it meanwhile is in a block then.
	q, done, err := t.blocks.chunkQuerier(q, mint, maxt, t.chunkMerger())
	if err != nil {
		release()
		return nil, err
	}
	return &heldChunkQuerier{ChunkQuerier: q, release: func() { done(); release() }}, nil
}

// chunkMerger returns what joins chunks that overlap, in the encoding of the tenant's TSDB.
func (t *tenantDB) chunkMerger() storage.VerticalChunkSeriesMergeFunc {
	return storage.NewCompactingChunkSeriesMergerWithFloatEncoding(storage.ChainedSeriesMerge, func() chunkenc.Encoding {
		if t.adopted() != nil {
			return adoptedEncoding
		}
		return floatEncoding
	})
}

// querierOf returns a querier over head and blocks. use is held shared until done is
// called, after the querier was closed.
func (t *tenantDB) querierOf(db *tsdb.DB, mint, maxt int64) (q storage.Querier, done func(), err error) {
	head, err := db.Querier(mint, maxt)
	if err != nil {
		return nil, nil, err
	}
	// The head first: what is cut from it meanwhile is in a block then.
	return t.blocks.querier(head, mint, maxt)
}

// heldQuerier keeps a TSDB open for as long as it is open itself.
type heldQuerier struct {
	storage.Querier
	release func()
}

func (q *heldQuerier) Close() error {
	defer q.release()
	return q.Querier.Close()
}

type heldChunkQuerier struct {
	storage.ChunkQuerier
	release func()
}

func (q *heldChunkQuerier) Close() error {
	defer q.release()
	return q.ChunkQuerier.Close()
}

func (t *tenantDB) exemplarQuerier(ctx context.Context) (storage.ExemplarQuerier, error) {
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return noExemplars{}, nil
	}
	if err != nil {
		return nil, err
	}
	// Exemplars live on the Go heap: they may be read after the TSDB is closed.
	defer release()
	return db.ExemplarQuerier(ctx)
}

type noExemplars struct{}

// Select implements storage.ExemplarQuerier.
func (noExemplars) Select(int64, int64, ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	return nil, nil
}

func (t *tenantDB) metadataOf(metric string) map[string][]metadata.Metadata {
	t.use.RLock()
	defer t.use.RUnlock()
	if t.meta == nil {
		return nil
	}
	return t.meta.get(metric)
}

// localBlocks returns the local blocks; see oldest.
func (t *tenantDB) localBlocks() []ulid.ULID {
	blocks, _, _ := t.oldest()
	return blocks
}

func (t *tenantDB) stats(labelName string, limit int) (*tsdb.Stats, bool) {
	db, release, err := t.acquire()
	if err != nil {
		return nil, false
	}
	defer release()
	return db.Head().Stats(labelName, limit), true
}

func (t *tenantDB) summary() (Summary, bool) {
	db, release, err := t.acquire()
	if err != nil {
		return Summary{}, false
	}
	defer release()
	s := Summary{Tenant: t.id, Series: db.Head().NumSeries(), MinTime: math.MaxInt64, MaxTime: math.MinInt64}
	for _, b := range t.blocks.get() {
		s.LocalBlocks++
		s.MinTime, s.MaxTime = min(s.MinTime, b.meta.MinTime), max(s.MaxTime, b.meta.MaxTime-1)
	}
	if head := db.Head(); head.NumSeries() > 0 && head.MinTime() != math.MaxInt64 {
		s.MinTime, s.MaxTime = min(s.MinTime, head.MinTime()), max(s.MaxTime, head.MaxTime())
	}
	return s, true
}
