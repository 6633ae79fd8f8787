package remoteblock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/externallabels"
)

// selectAll reads all samples of a metric.
func selectAll(t testing.TB, r *Reader, metric string) ([]string, error) {
	t.Helper()
	q, err := tsdb.NewBlockQuerier(r.Select(context.Background(), 0, 2*hour, true), 0, 2*hour)
	if err != nil {
		return nil, err
	}
	defer func() { require.NoError(t, q.Close()) }()
	out := lines(q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", metric)))
	if n := len(out); n > 0 && strings.HasPrefix(out[n-1], "error: ") {
		return out[:n-1], errors.New(out[n-1])
	}
	return out, nil
}

func TestABlockAnswersItsFirstSelectorInTwoRoundTripsIfItsIndexIsSmall(t *testing.T) {
	bucket := &rounds{Bucket: objstore.NewInMemBucket()}
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(100)...)
	store, block := upload(t, bucket, dir, true)
	bucket.reset()
	r := openBlock(t, openPool(t, store), block)
	got, err := selectAll(t, r, "up")
	require.NoError(t, err)
	require.NotEmpty(t, got)
	require.Equal(t, 2, bucket.count, "%v", bucket.names)
}

func TestABlockAnswersItsFirstSelectorInFourRoundTrips(t *testing.T) {
	bucket := &rounds{Bucket: objstore.NewInMemBucket()}
	var series []blocktest.Series
	long := strings.Repeat("x", 300)
	for i := range 4000 { // an index of more than 1 MiB
		series = append(series, blocktest.Series{
			Labels:  labels.FromStrings("__name__", []string{"small", "large"}[min(i%50, 1)], "pod", long+string(rune('a'+i%26))+strings.Repeat("y", i/26), "code", "200"),
			Samples: []blocktest.Sample{{T: 1, V: 1}, {T: 1000, V: float64(i)}},
		})
	}
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, series...)
	store, block := upload(t, bucket, dir, true)
	want := reference(t, dir)
	for _, ms := range [][]*labels.Matcher{
		{labels.MustNewMatcher(labels.MatchEqual, "__name__", "large")},
		{labels.MustNewMatcher(labels.MatchEqual, "__name__", "small"), labels.MustNewMatcher(labels.MatchEqual, "code", "200")},
		{labels.MustNewMatcher(labels.MatchEqual, "__name__", "large"), labels.MustNewMatcher(labels.MatchRegexp, "pod", ".*[abc]yyy.*")},
		{labels.MustNewMatcher(labels.MatchEqual, "__name__", "large"), labels.MustNewMatcher(labels.MatchNotEqual, "pod", long+"a"), labels.MustNewMatcher(labels.MatchRegexp, "code", "200|300")},
	} {
		bucket.reset()
		r := openBlock(t, openPool(t, store), block)
		require.False(t, r.indexResident)
		q, err := tsdb.NewBlockQuerier(r.Select(t.Context(), 0, hour, true), 0, hour)
		require.NoError(t, err)
		got := lines(q.Select(t.Context(), true, nil, slices.Clone(ms)...))
		require.LessOrEqual(t, bucket.count, 4, "%v: %v", ms, bucket.names)
		w, err := tsdb.NewBlockQuerier(want, 0, hour)
		require.NoError(t, err)
		require.Equal(t, lines(w.Select(t.Context(), true, nil, slices.Clone(ms)...)), got)
		require.NoError(t, errors.Join(q.Close(), w.Close()))
	}
}

func TestExternalLabelsTakeOneRoundTripMoreAtMost(t *testing.T) {
	bucket := &rounds{Bucket: objstore.NewInMemBucket()}
	var series []blocktest.Series
	long := strings.Repeat("x", 300)
	for i := range 4000 { // an index of more than 1 MiB
		series = append(series, blocktest.Series{
			Labels:  labels.FromStrings("__name__", "up", "pod", long+string(rune('a'+i%26))+strings.Repeat("y", i/26)),
			Samples: []blocktest.Sample{{T: 1, V: 1}, {T: 1000, V: float64(i)}},
		})
	}
	store, block := upload(t, bucket, blocktest.Write(t, t.TempDir(), 0, 2*hour, series...), true)
	for _, hints := range []*storage.SelectHints{nil, {Start: 0, End: hour, ShardIndex: 1, ShardCount: 3}} {
		var counts, found []int
		for _, external := range []map[string]string{nil, {"cluster": "a"}} {
			bucket.reset()
			r := openBlock(t, openPool(t, store), block)
			require.False(t, r.indexResident)
			q, err := tsdb.NewBlockQuerier(externallabels.Add(r.Select(t.Context(), 0, hour, true), external), 0, hour)
			require.NoError(t, err)
			set := q.Select(t.Context(), true, hints, labels.MustNewMatcher(labels.MatchEqual, "__name__", "up"))
			n := 0
			for ; set.Next(); n++ {
				it := set.At().Iterator(nil)
				require.Equal(t, chunkenc.ValFloat, it.Next())
			}
			require.NoError(t, set.Err())
			require.NoError(t, q.Close())
			counts, found = append(counts, bucket.count), append(found, n)
		}
		require.LessOrEqual(t, counts[1], counts[0]+1, "%v", bucket.names)
		if hints == nil {
			require.Equal(t, []int{4000, 4000}, found)
		}
	}
}

func TestTheSeriesCallLoadsNoChunks(t *testing.T) {
	bucket := &rounds{Bucket: objstore.NewInMemBucket()}
	store, block := upload(t, bucket, blocktest.Write(t, t.TempDir(), 0, 2*hour, world(100)...), true)
	bucket.reset()
	r := openBlock(t, openPool(t, store), block)
	q, err := tsdb.NewBlockQuerier(r.Select(t.Context(), 0, hour, false), 0, hour)
	require.NoError(t, err)
	set := q.Select(t.Context(), true, &storage.SelectHints{Func: "series", End: hour}, labels.MustNewMatcher(labels.MatchEqual, "__name__", "up"))
	n := 0
	for ; set.Next(); n++ {
		require.Equal(t, "up", set.At().Labels().Get("__name__"))
	}
	require.NoError(t, set.Err())
	require.NoError(t, q.Close())
	require.NotZero(t, n)
	for _, name := range bucket.names {
		require.NotContains(t, name, "chunks")
	}
}

func TestADamagedSidecarIsMadeAnew(t *testing.T) {
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(20)...)
	bucket := objstore.NewInMemBucket()
	store, block := upload(t, remoteBucket{bucket}, dir, true)
	want, err := selectAll(t, openBlock(t, openPool(t, store), block), "up")
	require.NoError(t, err)
	name := string(tenantA) + "/" + block.Meta.ULID.String() + "/" + SidecarName
	content := slices.Clone(bucket.Objects()[name])
	require.NotEmpty(t, content)
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		func([]byte) []byte { return nil },
		func(b []byte) []byte { b[4] = 9; return b },
	} {
		require.NoError(t, bucket.Upload(t.Context(), name, strings.NewReader(string(damage(slices.Clone(content))))))
		got, err := selectAll(t, openBlock(t, openPool(t, store), block), "up")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestDamageIsAnErrorThatNamesItsPlace(t *testing.T) {
	whole := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(20)...)
	for name, c := range map[string]struct {
		file   string
		damage func(t *testing.T, path string)
	}{
		"a truncated index":       {"index", func(t *testing.T, path string) { truncate(t, path, 100) }},
		"a flipped bit in chunks": {"chunks/000001", func(t *testing.T, path string) { flip(t, path, 100) }},
		"a truncated segment":     {"chunks/000001", func(t *testing.T, path string) { truncate(t, path, 2000) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), filepath.Base(whole))
			require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
			c.damage(t, filepath.Join(dir, c.file))
			store, block := upload(t, remoteBucket{objstore.NewInMemBucket()}, dir, false)
			r, err := openPool(t, store).Open(t.Context(), tenantA, block, nil)
			if err == nil {
				_, _ = selectAll(t, r, "empty_label") // the first in the segment
				_, _ = selectAll(t, r, "up")
				err = r.Err()
				require.NoError(t, r.Close())
			}
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, `tenant "a"`)
			require.ErrorContains(t, err, block.Meta.ULID.String())
			require.ErrorContains(t, err, c.file)
		})
	}
}

func TestAMetaThatLiesFailsTheQuery(t *testing.T) {
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, world(20)...)
	store, block := upload(t, remoteBucket{objstore.NewInMemBucket()}, dir, true)
	lie := block
	lie.Meta.MaxTime = hour
	r := openBlock(t, openPool(t, store), lie)
	_, err := selectAll(t, r, "up")
	require.ErrorContains(t, err, "meta.json says")
	require.ErrorIs(t, r.Err(), ErrDamaged)

	lie = block
	lie.Meta.Stats.NumSeries++
	_, err = openPool(t, store).Open(t.Context(), tenantA, lie, nil)
	require.ErrorIs(t, err, ErrDamaged)
}

type account struct{ fetched, held, limit int64 }

var errOverBudget = errors.New("more than the query may use")

func (a *account) Fetch(n int64) error {
	if a.fetched += n; a.limit > 0 && a.fetched > a.limit {
		return errOverBudget
	}
	return nil
}

func (a *account) Hold(n int64) error { a.held += n; return nil }

func TestAQueryIsChargedAndCanBeRefused(t *testing.T) {
	store, block := upload(t, remoteBucket{objstore.NewInMemBucket()}, blocktest.Write(t, t.TempDir(), 0, 2*hour, world(50)...), true)
	pool := openPool(t, store)
	a := &account{}
	r, err := pool.Open(t.Context(), tenantA, block, a)
	require.NoError(t, err)
	_, err = selectAll(t, r, "up")
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Positive(t, a.fetched)
	require.Positive(t, a.held)

	a = &account{limit: 1}
	r, err = pool.Open(t.Context(), tenantA, block, a)
	require.NoError(t, err)
	_, err = selectAll(t, r, "requests_total")
	require.ErrorContains(t, err, errOverBudget.Error())
	require.ErrorIs(t, r.Err(), errOverBudget)
	require.NoError(t, r.Close())
}

func flip(t *testing.T, path string, offset int64) {
	t.Helper()
	p, err := os.ReadFile(path)
	require.NoError(t, err)
	p[offset] ^= 1
	require.NoError(t, os.WriteFile(path, p, 0o600))
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	require.NoError(t, os.Truncate(path, size))
}

func TestABlockThatIsGivenItsSidecarLaterNeedsFewerRoundTrips(t *testing.T) {
	for name, size := range map[string]int{"a small index": 100, "a large index": 6000} {
		t.Run(name, func(t *testing.T) {
			bucket := &rounds{Bucket: objstore.NewInMemBucket()}
			dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, padded(size)...)
			store, block := upload(t, bucket, dir, false)
			require.False(t, block.HasSidecar)
			read := func() (got []string, requests int) {
				bucket.reset()
				got, err := selectAll(t, openBlock(t, openPool(t, store), block), "up")
				require.NoError(t, err)
				require.NotEmpty(t, got)
				return got, bucket.count
			}
			want, without := read()
			scratch := t.TempDir()
			require.NoError(t, AddSidecar(t.Context(), store, tenantA, block, scratch))
			got, with := read()
			require.Equal(t, want, got)
			require.Less(t, with, without)
			require.LessOrEqual(t, with, 4)

			left, err := os.ReadDir(scratch)
			require.NoError(t, err)
			require.Empty(t, left)
			added, found, err := store.ReadSideFile(t.Context(), tenantA, block.Meta.ULID, SidecarName)
			require.NoError(t, err)
			require.True(t, found)
			require.NoError(t, WriteSidecar(t.Context(), store, tenantA, dir))
			written, _, err := store.ReadSideFile(t.Context(), tenantA, block.Meta.ULID, SidecarName)
			require.NoError(t, err)
			require.Equal(t, written, added, "it is the one that comes with a block")
		})
	}
}

// padded returns n series with long labels: 6000 of them make an index of more than 1 MiB.
func padded(n int) (series []blocktest.Series) {
	long := strings.Repeat("x", 300)
	for i := range n {
		series = append(series, blocktest.Series{
			Labels:  labels.FromStrings("__name__", []string{"up", "down"}[min(i%50, 1)], "pod", long+string(rune('a'+i%26))+strings.Repeat("y", i/26), "code", "200"),
			Samples: []blocktest.Sample{{T: 1, V: 1}, {T: 1000, V: float64(i)}},
		})
	}
	return series
}

func TestADamagedBlockGetsNoSidecar(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, bucket *objstore.InMemBucket, prefix string){
		"a flipped bit": func(t *testing.T, bucket *objstore.InMemBucket, prefix string) {
			text := slices.Clone(bucket.Objects()[prefix+"index"])
			text[len(text)-60] ^= 1
			require.NoError(t, bucket.Upload(t.Context(), prefix+"index", strings.NewReader(string(text))))
		},
		"no index": func(t *testing.T, bucket *objstore.InMemBucket, prefix string) {
			require.NoError(t, bucket.Delete(t.Context(), prefix+"index"))
		},
		"an empty index": func(t *testing.T, bucket *objstore.InMemBucket, prefix string) {
			require.NoError(t, bucket.Upload(t.Context(), prefix+"index", strings.NewReader("")))
		},
		"no first segment": func(t *testing.T, bucket *objstore.InMemBucket, prefix string) {
			require.NoError(t, bucket.Upload(t.Context(), prefix+"chunks/000003", strings.NewReader("x")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			bucket := objstore.NewInMemBucket()
			store, block := upload(t, remoteBucket{bucket}, blocktest.Write(t, t.TempDir(), 0, 2*hour, world(20)...), false)
			prefix := string(tenantA) + "/" + block.Meta.ULID.String() + "/"
			damage(t, bucket, prefix)
			require.ErrorIs(t, AddSidecar(t.Context(), store, tenantA, block, t.TempDir()), ErrDamaged)
			require.NotContains(t, bucket.Objects(), prefix+SidecarName)
		})
	}
}

func TestABlockThatWasReadIsReadAgainAfterARestartWithoutTheBucket(t *testing.T) {
	for name, size := range map[string]int{"a small index": 100, "a large index": 6000} {
		t.Run(name, func(t *testing.T) {
			bucket := &rounds{Bucket: objstore.NewInMemBucket()}
			store, block := upload(t, bucket, blocktest.Write(t, t.TempDir(), 0, 2*hour, padded(size)...), true)
			var err error
			block.Files, err = store.Files(t.Context(), tenantA, block.Meta.ULID) // as the index of the tenant says them
			require.NoError(t, err)
			cfg := Config{Dir: t.TempDir(), CacheBytes: 64 << 20}
			read := func() []string {
				p, err := New(cfg, store, nil, nil)
				require.NoError(t, err)
				r, err := p.Open(t.Context(), tenantA, block, nil)
				require.NoError(t, err)
				got, err := selectAll(t, r, "up")
				require.NoError(t, errors.Join(err, r.Close()))
				return got
			}
			want := read()
			require.NotEmpty(t, want)
			bucket.reset()
			require.Equal(t, want, read())
			require.Zero(t, bucket.count, "%v", bucket.names)
		})
	}
}
