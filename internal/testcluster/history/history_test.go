package history

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
)

func twoDays() Config {
	c := Year()
	c.End = c.Start.Add(48 * time.Hour)
	c.Interval = 10 * time.Minute
	return c
}

func TestTheYearHasTheSeriesThatItsQueriesSelect(t *testing.T) {
	streams, err := Mix(Year())
	require.NoError(t, err)
	count := map[string]int{}
	for _, s := range streams {
		count[s.Name()]++
	}
	require.Len(t, streams, 1000)
	require.Equal(t, 420, count[Buckets])
	require.Equal(t, 9, count[Counter])
	require.Equal(t, 9, count[Gauge])
}

func TestBlocksHoldTheSamplesOfTheStreams(t *testing.T) {
	joined := twoDays()
	joined.Joined, joined.ChunkSamples = true, 20
	plain := twoDays()
	plain.Encoding = chunkenc.EncXOR
	for _, c := range []Config{twoDays(), plain, joined} {
		dir := t.TempDir()
		n, err := Write(t.Context(), c, dir)
		require.NoError(t, err)
		require.Equal(t, uint64(1000*2*24*6), n)

		require.NoError(t, os.Mkdir(filepath.Join(dir, "wal"), 0o755)) // it opens data directories only
		db, err := tsdb.OpenDBReadOnly(dir, t.TempDir(), nil)
		require.NoError(t, err)
		q, err := db.Querier(math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		streams, err := Mix(c)
		require.NoError(t, err)
		for _, s := range streams {
			var matchers []*labels.Matcher
			s.Labels().Range(func(l labels.Label) {
				matchers = append(matchers, labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value))
			})
			set := q.Select(t.Context(), true, nil, matchers...)
			require.True(t, set.Next(), "%s", s.Labels())
			it := set.At().Iterator(nil)
			from, to := s.Ticks(c.Start.UnixMilli(), c.End.UnixMilli())
			for tick := from; tick < to; tick++ {
				wantT, wantV := s.Sample(tick)
				require.Equal(t, chunkenc.ValFloat, it.Next())
				gotT, gotV := it.At()
				require.Equal(t, wantT, gotT)
				require.Equal(t, wantV, gotV)
			}
			require.Equal(t, chunkenc.ValNone, it.Next())
			require.False(t, set.Next())
			require.NoError(t, set.Err())
		}
		require.NoError(t, q.Close())
		require.NoError(t, db.Close())
	}
}

func TestTheSameHistoryIsTheSameBytesAndIsNotWrittenTwice(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		_, err := Write(t.Context(), twoDays(), dir)
		require.NoError(t, err)
	}
	blocks, err := os.ReadDir(first)
	require.NoError(t, err)
	require.Len(t, blocks, 2)
	for _, block := range blocks {
		for _, name := range []string{"meta.json", "index", "chunks/000001"} {
			a, err := os.ReadFile(filepath.Join(first, block.Name(), name))
			require.NoError(t, err)
			b, err := os.ReadFile(filepath.Join(second, block.Name(), name))
			require.NoError(t, err)
			require.Equal(t, a, b)
		}
		var meta tsdb.BlockMeta
		text, err := os.ReadFile(filepath.Join(first, block.Name(), "meta.json"))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &meta))
		require.Len(t, meta.Compaction.Sources, 12)
	}

	index := filepath.Join(first, blocks[0].Name(), "index")
	before, err := os.Stat(index)
	require.NoError(t, err)
	n, err := Write(t.Context(), twoDays(), first)
	require.NoError(t, err)
	require.Equal(t, uint64(1000*2*24*6), n)
	after, err := os.Stat(index)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
}

func TestFaultsOfAHistoryAreNamed(t *testing.T) {
	c := twoDays()
	c.Series, c.ChunkSamples, c.Start = 0, 0, c.Start.Add(time.Second)
	_, err := Write(t.Context(), c, t.TempDir())
	require.ErrorContains(t, err, "series: 0")
	require.ErrorContains(t, err, "chunk samples: 0")
	require.ErrorContains(t, err, "2025-01-01T00:00:01Z is no multiple of 24h0m0s")
}
