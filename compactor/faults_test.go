package compactor

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func TestABlockFromTheFutureIsLeftAloneAndHoldsUpNobody(t *testing.T) {
	f := newFixture(t)
	var past []ulid.ULID
	for start := int64(0); start < 6*hour; start += 2 * hour {
		past = append(past, f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step)))
	}
	ahead := f.clock.UnixMilli() + 30*24*hour
	ahead -= ahead % (2 * hour)
	future := f.upload(t, ahead, ahead+2*hour, blocktest.Floats("a", ahead, ahead+2*hour, step))
	want := f.samples(t)
	f.retention = 30 * 24 * time.Hour

	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, want, f.samples(t))
	visible := f.visible(t)
	require.Len(t, visible, 2)
	require.Contains(t, visible, future)
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Nil(t, blocks[future].Deletion)
	require.Nil(t, blocks[future].NoCompact)
	for _, id := range past {
		require.NotNil(t, blocks[id].Deletion)
	}
}

func TestABlockOfANewerVersionIsReportedAndKept(t *testing.T) {
	for name, newer := range map[string]string{
		"of Prometheus's part": `{"ulid":"%s","minTime":0,"maxTime":7200000,"version":2}`,
		"of ours":              `{"ulid":"%s","minTime":0,"maxTime":7200000,"version":1,"hundredfold":{"version":2}}`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
			f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
			f.upload(t, 4*hour, 6*hour, blocktest.Floats("a", 4*hour, 6*hour, step))
			damageFile(t, f, id, "meta.json", func([]byte) []byte { return []byte(strings.ReplaceAll(newer, "%s", id.String())) })
			f.clock = time.Now().Add(1000 * time.Hour)
			require.NoError(t, f.RunOnce(t.Context()))
			require.Len(t, f.visible(t), 1, "the others are compacted")
			require.DirExists(t, filepath.Join(f.root, string(acme), id.String()))
			status := f.Status().Tenants[0]
			require.Equal(t, id, status.Quarantined[0].Block)
		})
	}
}

func TestAnIndexOfANewerVersionIsQuarantinedAndNamed(t *testing.T) {
	f := newFixture(t)
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
	f.upload(t, 4*hour, 6*hour, blocktest.Floats("a", 4*hour, 6*hour, step))
	damageFile(t, f, id, "index", func(text []byte) []byte { text[4] = 9; return text })
	require.NoError(t, f.RunOnce(t.Context()))
	status := f.Status().Tenants[0]
	require.Contains(t, status.Quarantined[0].Details, "unknown index file version 9")
	require.Len(t, f.visible(t), 2)
}

// extend rewrites the meta.json of a block in the bucket.
func (f *fixture) extend(t *testing.T, id ulid.ULID, e blockstore.Extension) {
	t.Helper()
	damageFile(t, f, id, "meta.json", func(text []byte) []byte {
		extended, err := blockstore.AddExtension(text, e)
		require.NoError(t, err)
		return extended
	})
}

func TestABlockWithSeriesOfAnotherShardThanItSaysIsQuarantined(t *testing.T) {
	f := newFixture(t)
	liar := f.upload(t, 0, 2*hour, everyKind(0, 2*hour)...)
	f.extend(t, liar, blockstore.Extension{Shard: &blockstore.Shard{Index: 1, Count: 2}})
	f.upload(t, 2*hour, 4*hour, everyKind(2*hour, 4*hour)...)
	want := f.samples(t)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, want, f.samples(t))
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Contains(t, blocks[liar].NoCompact.Details, "is not of the shard that meta.json states, 1 of 2")
}

func TestStatsThatLieLoseNothing(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		id := f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...)
		damageFile(t, f, id, "meta.json", func(text []byte) []byte {
			var meta tsdb.BlockMeta
			require.NoError(t, json.Unmarshal(text, &meta))
			meta.Stats = tsdb.BlockStats{NumSamples: 3 + uint64(start), NumSeries: 1 << 60, NumChunks: 1 << 62}
			lie, err := json.Marshal(meta)
			require.NoError(t, err)
			return lie
		})
	}
	want := f.samples(t)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, want, f.samples(t))
	require.Zero(t, f.board.Totals().Compactions)
}

func TestBlocksWithOtherExternalLabelsAreMergedApart(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 8*hour; start += 2 * hour {
		id := f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
		cluster := "eu"
		if start >= 4*hour {
			cluster = "us"
		}
		f.extend(t, id, blockstore.Extension{ExternalLabels: map[string]string{"cluster": cluster}})
	}
	require.NoError(t, f.RunOnce(t.Context()))
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	found := map[string]int64{}
	for _, id := range f.visible(t) {
		found[blocks[id].Extension.ExternalLabels["cluster"]] += blocks[id].Meta.MaxTime - blocks[id].Meta.MinTime
	}
	require.Equal(t, map[string]int64{"eu": 4 * hour, "us": 4 * hour}, found)
}

func TestResultsOfTwelveHoursHaveLargerChunksAndTheSameSamples(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 12*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...)
	}
	want := f.samples(t)
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	chunks := uint64(0)
	for _, block := range blocks {
		chunks += block.Meta.Stats.NumChunks
	}
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, want, f.samples(t))
	require.Less(t, f.only(t).Stats.NumChunks, chunks-6, "histograms keep theirs")
}

func TestShardsAndWholeBlocksBecomeShardsWithTheSameSamples(t *testing.T) {
	f := newFixture(t)
	var dirs []string
	for start := int64(0); start < 6*hour; start += 2 * hour {
		dirs = append(dirs, blocktest.Write(t, t.TempDir(), start, start+2*hour, everyKind(start, start+2*hour)...))
	}
	for _, dir := range append(append(shardsOf(t, dirs[0], 2), dirs[1]), shardsOf(t, dirs[2], 4)...) {
		require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	}
	want := blocktest.Samples(t, dirs...)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, want, f.samples(t))
	ids := f.visible(t)
	require.Len(t, ids, 4)
	together := map[string][]string{}
	for _, id := range ids {
		dir := filepath.Join(t.TempDir(), id.String())
		require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(f.root, string(acme), id.String()))))
		samples := blocktest.Samples(t, dir)
		for series := range samples {
			require.NotContains(t, together, series, "a series is in one shard")
		}
		maps.Copy(together, samples)
	}
	require.Equal(t, want, together, "and nothing is doubled")
}
