package remoteblock

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

const hour = int64(3600 * 1000)

// world returns series of all kinds: counters of several metrics with labels in many
// constellations, histograms, and one whose labels sort before its name.
func world(n int) []blocktest.Series {
	r := rand.New(rand.NewPCG(1, 2))
	var all []blocktest.Series
	add := func(l labels.Labels, f func(t int64, i int) blocktest.Sample) {
		s := blocktest.Series{Labels: l}
		for t, i := int64(0), 0; t < 2*hour; t, i = t+30_000+int64(r.IntN(3)), i+1 {
			s.Samples = append(s.Samples, f(t, i))
		}
		all = append(all, s)
	}
	float := func(t int64, i int) blocktest.Sample { return blocktest.Sample{T: t, V: float64(i) * r.Float64()} }
	for i := range n {
		add(labels.FromStrings("__name__", "requests_total", "pod", fmt.Sprintf("pod-%d", i), "code", strconv.Itoa(200+100*(i%4)), "job", "api"), float)
		if i%3 == 0 {
			add(labels.FromStrings("__name__", "up", "pod", fmt.Sprintf("pod-%d", i)), float)
		}
		if i%5 == 0 {
			add(labels.FromStrings("__name__", "empty_label", "zone", "", "pod", fmt.Sprintf("pod-%d", i)), float)
		}
	}
	add(labels.FromStrings("nameless", "x"), float)
	add(labels.FromStrings("__name__", "up", "Zone", "before"), float)
	add(labels.FromStrings("__name__", "h", "kind", "integer"), func(t int64, i int) blocktest.Sample {
		return blocktest.Sample{T: t, H: &histogram.Histogram{
			Count: uint64(i + 1), ZeroThreshold: 0.001, Sum: float64(i), Schema: 1,
			PositiveSpans: []histogram.Span{{Offset: 0, Length: 1}}, PositiveBuckets: []int64{int64(i + 1)},
		}}
	})
	add(labels.FromStrings("__name__", "h", "kind", "float"), func(t int64, i int) blocktest.Sample {
		return blocktest.Sample{T: t, FH: &histogram.FloatHistogram{
			Count: float64(i + 1), ZeroThreshold: 0.001, Sum: float64(i), Schema: 1,
			PositiveSpans: []histogram.Span{{Offset: 0, Length: 1}}, PositiveBuckets: []float64{float64(i + 1)},
		}}
	})
	return all
}

// reference opens a block by Prometheus's own code.
func reference(t testing.TB, dir string) *tsdb.Block {
	t.Helper()
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// readers opens the block in dir in all the ways there are.
func readers(t *testing.T, dir string) map[string]*Reader {
	t.Helper()
	all := map[string]*Reader{}
	fs, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	store, block := upload(t, fs, dir, false)
	all["local"] = openBlock(t, openPool(t, store), block)
	store, block = upload(t, remoteBucket{objstore.NewInMemBucket()}, dir, true)
	all["remote"] = openBlock(t, openPool(t, store), block)
	store, block = upload(t, remoteBucket{objstore.NewInMemBucket()}, dir, false)
	all["without sidecar"] = openBlock(t, openPool(t, store), block)

	store, block = upload(t, remoteBucket{objstore.NewInMemBucket()}, dir, true)
	pool, err := New(Config{Dir: t.TempDir(), CacheBytes: 64 << 20}, store, nil, nil)
	require.NoError(t, err)
	all["by the page cache"] = openBlock(t, pool, block)

	// As a block is read whose index is too large to be read as a whole.
	store, block = upload(t, remoteBucket{objstore.NewInMemBucket()}, dir, false)
	parts := openBlock(t, openPool(t, store), block)
	parts.indexResident = false
	parts.index = &memoryPage{size: parts.header.index, read: func(ctx context.Context, p []byte, off int64) error {
		return store.ReadRange(ctx, tenantA, block.Meta.ULID, indexName, p, off)
	}, data: make([]byte, parts.header.index), resident: map[int64]bool{}}
	content, err := parts.pool.codec.decode(block.Meta.ULID, parts.pool.codec.encode(block.Meta.ULID, sidecar{layout: parts.header.layout, header: parts.header}))
	require.NoError(t, err)
	require.Equal(t, parts.header, content.header, "a header survives its sidecar")
	parts.header = content.header
	all["in parts"] = parts
	return all
}

func selectors(r *rand.Rand) []*labels.Matcher {
	names := []string{"__name__", "pod", "code", "job", "zone", "kind", "nameless", "Zone", "absent"}
	values := []string{
		"", "requests_total", "up", "pod-1", "pod-10", "200", "api", "x", "float", "zzz", ".*", ".+", "pod-1.*", "pod-(1|2|3)",
		"200|300", "|api", "u.*", "pod-1|pod-2|none", "[^r].*",
	}
	ms := make([]*labels.Matcher, 1+r.IntN(3))
	for i := range ms {
		ms[i] = labels.MustNewMatcher(labels.MatchType(r.IntN(4)), names[r.IntN(len(names))], values[r.IntN(len(values))])
	}
	return ms
}

// lines writes down what a set has, with an error at its end.
func lines(set storage.SeriesSet) []string {
	var out []string
	var it chunkenc.Iterator
	for set.Next() {
		s := set.At()
		out = append(out, s.Labels().String())
		it = s.Iterator(it)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			switch kind {
			case chunkenc.ValFloat:
				at, v := it.At()
				out = append(out, fmt.Sprint(at, it.AtST(), math.Float64bits(v)))
			case chunkenc.ValHistogram:
				at, h := it.AtHistogram(nil)
				out = append(out, fmt.Sprint(at, h, h.CounterResetHint))
			default:
				at, h := it.AtFloatHistogram(nil)
				out = append(out, fmt.Sprint(at, h, h.CounterResetHint))
			}
		}
		if it.Err() != nil {
			out = append(out, "error: "+it.Err().Error())
		}
	}
	if set.Err() != nil {
		out = append(out, "error: "+set.Err().Error())
	}
	return out
}

func TestEverySelectorReadsWhatPrometheusReads(t *testing.T) {
	t.Parallel()
	testSelectors(t, blocktest.Write(t, t.TempDir(), 0, 2*hour, world(60)...), false)
}

func TestEverySelectorReadsWhatPrometheusReadsWhereSamplesWereDeleted(t *testing.T) {
	t.Parallel()
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(60)...)
	deleteSome(t, dir)
	// Prometheus panics where a deletion reaches beyond the end of the selection, and
	// samples before it are cut off as well (Intervals.Add).
	testSelectors(t, dir, true)
}

func testSelectors(t *testing.T, dir string, disableTrimming bool) {
	want := reference(t, dir)
	for name, got := range readers(t, dir) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(3, 4))
			for range 100 {
				ms := selectors(r)
				hints := &storage.SelectHints{Start: int64(r.IntN(int(2 * hour))), Func: []string{"", "rate", "series"}[r.IntN(3)], DisableTrimming: disableTrimming}
				hints.End = hints.Start + int64(r.IntN(int(hour)))
				if r.IntN(4) == 0 {
					hints.ShardCount, hints.ShardIndex = 4, uint64(r.IntN(4))
				}
				wantQuerier, err := tsdb.NewBlockQuerier(want, hints.Start, hints.End)
				require.NoError(t, err)
				gotQuerier, err := tsdb.NewBlockQuerier(got.Select(context.Background(), hints.Start, hints.End, hints.Func != "series"), hints.Start, hints.End)
				require.NoError(t, err)
				defer wantQuerier.Close()
				defer gotQuerier.Close()
				expected := lines(wantQuerier.Select(t.Context(), true, hints, slices.Clone(ms)...))
				require.Equal(t, expected, lines(gotQuerier.Select(t.Context(), true, hints, slices.Clone(ms)...)), "%v", ms)
			}
			require.NoError(t, got.Err())
		})
	}
}

func TestLabelCallsReadWhatPrometheusReads(t *testing.T) {
	t.Parallel()
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(60)...)
	want := reference(t, dir)
	for name, got := range readers(t, dir) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(5, 6))
			for i := range 100 {
				var ms []*labels.Matcher
				if i%4 > 0 {
					ms = selectors(r)
				}
				label := []string{"__name__", "pod", "code", "absent", "Zone"}[r.IntN(5)]
				var hints *storage.LabelHints
				if r.IntN(3) == 0 {
					hints = &storage.LabelHints{Limit: 1 + r.IntN(40)}
				}
				w, err := want.Index()
				require.NoError(t, err)
				defer w.Close()
				g, err := got.Index()
				require.NoError(t, err)
				defer g.Close()
				wantValues, err := w.SortedLabelValues(t.Context(), label, hints, slices.Clone(ms)...)
				require.NoError(t, err)
				gotValues, err := g.SortedLabelValues(t.Context(), label, hints, slices.Clone(ms)...)
				require.NoError(t, err)
				if hints != nil && len(ms) > 0 { // Prometheus returns any so many; here they are the first
					all, err := w.SortedLabelValues(t.Context(), label, nil, slices.Clone(ms)...)
					require.NoError(t, err)
					require.Len(t, wantValues, min(hints.Limit, len(all)))
					wantValues = all[:len(wantValues)]
				}
				require.ElementsMatch(t, wantValues, gotValues, "%s %v %v", label, hints, ms)
				require.True(t, slices.IsSorted(gotValues))
				wantNames, err := w.LabelNames(t.Context(), slices.Clone(ms)...)
				require.NoError(t, err)
				gotNames, err := g.LabelNames(t.Context(), slices.Clone(ms)...)
				require.NoError(t, err)
				require.ElementsMatch(t, wantNames, gotNames, "%v", ms)
			}
		})
	}
}

func TestSymbolsAndSeriesAreThoseOfPrometheus(t *testing.T) {
	t.Parallel()
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(100)...)
	want, err := reference(t, dir).Index()
	require.NoError(t, err)
	defer want.Close()
	for name, got := range readers(t, dir) {
		t.Run(name, func(t *testing.T) {
			g, err := got.Index()
			require.NoError(t, err)
			ws, gs := want.Symbols(), g.Symbols()
			for ws.Next() {
				require.True(t, gs.Next())
				require.Equal(t, ws.At(), gs.At())
			}
			require.False(t, gs.Next())
			require.NoError(t, gs.Err())

			k, v := index.AllPostingsKey()
			wp, err := want.Postings(t.Context(), k, v)
			require.NoError(t, err)
			gp, err := g.Postings(t.Context(), k, v)
			require.NoError(t, err)
			var wb, gb labels.ScratchBuilder
			var wc, gc []chunks.Meta
			for wp.Next() {
				require.True(t, gp.Next())
				require.Equal(t, wp.At(), gp.At())
				require.NoError(t, want.Series(wp.At(), &wb, &wc))
				require.NoError(t, g.Series(gp.At(), &gb, &gc))
				require.Equal(t, wb.Labels(), gb.Labels())
				require.Equal(t, wc, gc)
			}
			require.False(t, gp.Next())
		})
	}
}

// deleteSome writes a tombstones file as the TSDB does.
func deleteSome(t testing.TB, dir string) {
	t.Helper()
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	require.NoError(t, b.Delete(context.Background(), hour/2, hour, labels.MustNewMatcher(labels.MatchEqual, "code", "300")))
	require.NoError(t, b.Close())
	stones, _, err := tombstones.ReadTombstones(dir)
	require.NoError(t, err)
	require.NotZero(t, stones.Total())
	require.FileExists(t, filepath.Join(dir, tombstonesName))
}
