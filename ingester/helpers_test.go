package ingester

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// noon is the time that the tests' clock shows at first: the start of a window.
var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// fixture is an ingester over a folder and a bucket that outlive its restarts.
type fixture struct {
	*Ingester
	t      testing.TB
	dir    string
	bucket objstore.Bucket
	limits tenant.Limits
	cfg    func(*Config)

	cluster *Member
	keep    time.Duration
	opening *Opening

	registry prometheus.Registerer

	mu      sync.Mutex
	now     time.Time
	visible map[ulid.ULID]bool
	seeAll  bool // everything uploaded is visible
	uploads []string
}

type option func(*fixture)

func withLimits(change func(*tenant.Limits)) option {
	return func(f *fixture) { change(&f.limits) }
}

func withConfig(change func(*Config)) option {
	return func(f *fixture) { f.cfg = change }
}

func newFixture(t testing.TB, opts ...option) *fixture {
	t.Helper()
	f := &fixture{
		t: t, dir: t.TempDir(), bucket: objstore.NewInMemBucket(), now: noon,
		limits: tenant.DefaultLimits(), visible: map[ulid.ULID]bool{}, seeAll: true,
	}
	for _, o := range opts {
		o(f)
	}
	f.open()
	t.Cleanup(func() {
		if f.Ingester != nil {
			require.NoError(t, f.close())
		}
	})
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	cfg := DefaultConfig()
	cfg.Dir = filepath.Join(f.dir, "ingester")
	cfg.InstanceID = "test"
	if f.cfg != nil {
		f.cfg(&cfg)
	}
	store := blockstore.New(f.bucket, nil)
	f.opening = NewOpening(time.Now)
	deps := Deps{
		Store:        store,
		Limits:       func(tenant.ID) tenant.Limits { return f.limits },
		Uploaded:     func(id tenant.ID, block ulid.ULID) { f.uploaded(id, block) },
		Cluster:      f.cluster,
		KeepUploaded: f.keep,
		Opening:      f.opening,
		Registerer:   f.registry,
		Visible: func(_ tenant.ID, id ulid.ULID) bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.seeAll || f.visible[id]
		},
	}
	var err error
	f.Ingester, err = open(context.Background(), cfg, deps, func() time.Time {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.now
	})
	require.NoError(f.t, err)
}

func (f *fixture) uploaded(id tenant.ID, block ulid.ULID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uploads = append(f.uploads, fmt.Sprintf("%s/%s", id, block))
}

// withCluster makes the ingester a member of a cluster.
func withCluster(m Member, keep time.Duration) option {
	return func(f *fixture) { f.cluster, f.keep = &m, keep }
}

func (f *fixture) restart() {
	f.t.Helper()
	require.NoError(f.t, f.close())
	f.open()
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

// round maintains a tenant once and requires that it works.
func (f *fixture) round(id tenant.ID) {
	f.t.Helper()
	require.NoError(f.t, f.lookup(id).maintain(context.Background()))
}

// sample is a float sample of the series m{s="<series>"} at noon + at.
type sample struct {
	series string
	at     time.Duration
	v      float64
}

func seriesLabels(name string) labels.Labels {
	return labels.FromStrings("__name__", "m", "s", name)
}

func batch(samples ...sample) *write.Batch {
	b := &write.Batch{}
	h := write.NewHasher()
	for _, s := range samples {
		b.Add(h, seriesLabels(s.series), []write.Sample{{T: noon.Add(s.at).UnixMilli(), V: s.v}}, nil, nil)
	}
	return b
}

// push pushes and requires that all is written.
func (f *fixture) push(id tenant.ID, samples ...sample) {
	f.t.Helper()
	result := f.offer(id, batch(samples...))
	require.NoError(f.t, result.Err())
	require.Equal(f.t, len(samples), result.Written.Samples)
}

func (f *fixture) offer(id tenant.ID, b *write.Batch) write.Result {
	f.t.Helper()
	result, err := f.Push(context.Background(), id, b)
	require.NoError(f.t, err)
	return result
}

// stored returns all samples that the ingester answers with, by series, as text.
func (f *fixture) stored(id tenant.ID) map[string][]string {
	f.t.Helper()
	q, err := f.Querier(id, math.MinInt64, math.MaxInt64)
	require.NoError(f.t, err)
	defer func() { require.NoError(f.t, q.Close()) }()
	return f.drain(q)
}

type selector interface {
	Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet
}

func (f *fixture) drain(q selector) map[string][]string {
	f.t.Helper()
	out := map[string][]string{}
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		s := set.At()
		name := s.Labels().Get("s")
		it := s.Iterator(nil)
		for typ := it.Next(); typ != chunkenc.ValNone; typ = it.Next() {
			out[name] = append(out[name], describe(it, typ))
		}
		require.NoError(f.t, it.Err())
	}
	require.NoError(f.t, set.Err())
	return out
}

func describe(it chunkenc.Iterator, typ chunkenc.ValueType) string {
	switch typ {
	case chunkenc.ValHistogram:
		t, h := it.AtHistogram(nil)
		return fmt.Sprintf("%s %s", offset(t), h)
	case chunkenc.ValFloatHistogram:
		t, h := it.AtFloatHistogram(nil)
		return fmt.Sprintf("%s %s", offset(t), h)
	default:
		t, v := it.At()
		if math.IsNaN(v) {
			return fmt.Sprintf("%s NaN(%x)", offset(t), math.Float64bits(v))
		}
		return fmt.Sprintf("%s %v", offset(t), v)
	}
}

func offset(t int64) time.Duration { return time.UnixMilli(t).Sub(noon) }

// inBucket returns the samples of all blocks that the bucket holds for id, as
// often as they are there.
func (f *fixture) inBucket(id tenant.ID) map[string][]string {
	f.t.Helper()
	out := map[string][]string{}
	store := blockstore.New(f.bucket, nil)
	blocks, partial, err := store.Blocks(context.Background(), id)
	require.NoError(f.t, err)
	require.Empty(f.t, partial)
	for ulid := range blocks {
		dir := filepath.Join(f.t.TempDir(), ulid.String())
		require.NoError(f.t, store.Download(context.Background(), id, ulid, dir))
		b, err := tsdb.OpenBlock(nil, dir, nil, nil)
		require.NoError(f.t, err)
		q, err := tsdb.NewBlockQuerier(b, math.MinInt64, math.MaxInt64)
		require.NoError(f.t, err)
		for name, samples := range f.drain(q) {
			out[name] = append(out[name], samples...)
		}
		require.NoError(f.t, q.Close())
		require.NoError(f.t, b.Close())
	}
	for _, s := range out {
		sort.Slice(s, func(i, j int) bool { return durationOf(s[i]) < durationOf(s[j]) })
	}
	return out
}

func durationOf(s string) time.Duration {
	var text, rest string
	_, _ = fmt.Sscanf(s, "%s %s", &text, &rest)
	d, _ := time.ParseDuration(text)
	return d
}

func testHistogram(n int64) *histogram.Histogram {
	return &histogram.Histogram{
		Schema: 1, Count: uint64(2 * n), Sum: float64(n), ZeroThreshold: 0.001,
		PositiveSpans:   []histogram.Span{{Offset: 0, Length: 2}},
		PositiveBuckets: []int64{n, 0},
	}
}
