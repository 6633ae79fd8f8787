package remoteblock

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// BenchmarkSelect reads series of a block of 1,000 series, 24 h at 60 s, as queries do who
// each open what they need, beside Prometheus's reader on the same block, which is open.
func BenchmarkSelect(b *testing.B) {
	const day = 24 * hour
	var series []blocktest.Series
	for i := range 1000 {
		s := blocktest.Series{Labels: labels.FromStrings("__name__", fmt.Sprintf("metric_%d", i/420), "pod", fmt.Sprintf("pod-%d", i),
			"cluster", "eu-1", "namespace", "shop", "job", "api", "instance", fmt.Sprintf("10.0.0.%d:8080", i%50), "code", strconv.Itoa(200+i%5), "le", strconv.Itoa(i%14))}
		for t := int64(0); t < day; t += 60_000 {
			s.Samples = append(s.Samples, blocktest.Sample{T: t, V: float64(t*int64(i%7)) / 3})
		}
		series = append(series, s)
	}
	dir := blocktest.Write(b, b.TempDir(), 0, day, series...)
	files, err := blockstore.OpenFilesystem(b.TempDir())
	require.NoError(b, err)
	store, _ := upload(b, files, dir, true)
	local := openPool(b, store)
	store, block := upload(b, remoteBucket{files}, dir, true)
	paged, err := New(Config{Dir: b.TempDir(), CacheBytes: 64 << 20}, store, nil, nil)
	require.NoError(b, err)
	want := reference(b, dir)
	open := func(p *Pool) func() (tsdb.BlockReader, func() error) {
		return func() (tsdb.BlockReader, func() error) {
			r, err := p.Open(context.Background(), tenantA, block, nil)
			require.NoError(b, err)
			return r.Select(context.Background(), 0, day, true), r.Close
		}
	}
	for _, m := range []struct {
		name    string
		matcher *labels.Matcher
	}{
		{"1 series", labels.MustNewMatcher(labels.MatchEqual, "pod", "pod-77")},
		{"420 series", labels.MustNewMatcher(labels.MatchEqual, "__name__", "metric_1")},
	} {
		for _, reader := range []struct {
			name string
			open func() (tsdb.BlockReader, func() error)
		}{
			{"Prometheus", func() (tsdb.BlockReader, func() error) { return want, func() error { return nil } }},
			{"in place", open(local)},
			{"by pages", open(paged)},
		} {
			b.Run(m.name+"/"+reader.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					r, closeReader := reader.open()
					benchmarkSelect(b, r, m.matcher, day)
					require.NoError(b, closeReader())
				}
			})
		}
	}
}

func benchmarkSelect(b *testing.B, r tsdb.BlockReader, m *labels.Matcher, end int64) {
	q, err := tsdb.NewBlockQuerier(r, 0, end)
	require.NoError(b, err)
	set := q.Select(context.Background(), true, &storage.SelectHints{Start: 0, End: end, Step: 60_000}, m)
	var it chunkenc.Iterator
	n := 0
	for set.Next() {
		it = set.At().Iterator(it)
		for it.Next() != chunkenc.ValNone {
			n++
		}
		require.NoError(b, it.Err())
	}
	require.NoError(b, set.Err())
	require.NotZero(b, n)
	require.NoError(b, q.Close())
}
