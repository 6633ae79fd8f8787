package ingester

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// adopting returns a fixture whose tenant acme has the directory of a Prometheus, with a
// block of two hours from noon on.
func adopting(t *testing.T, opts ...option) (f *fixture, dir string, block ulid.ULID) {
	t.Helper()
	dir = t.TempDir()
	start := noon.UnixMilli()
	end := noon.Add(2 * time.Hour).UnixMilli()
	block = ulid.MustParse(filepath.Base(blocktest.Write(t, dir, start, end, blocktest.Floats("old", start, end, 60_000))))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "else"), nil, 0o600))
	adopted := &Adopted{Tenant: acme, Dir: dir, Keep: []ulid.ULID{block}}
	f = newFixture(t, append(opts, withConfig(func(c *Config) { c.Adopted = adopted }))...)
	return f, dir, block
}

func TestBlocksOfAPrometheusStayAfterTheirUploadAndOursGo(t *testing.T) {
	f, dir, old := adopting(t)
	f.advance(20 * time.Hour)
	for at := 4 * time.Hour; at <= 12*time.Hour; at += 10 * time.Minute {
		f.push(acme, sample{"a", at, 1})
	}
	f.round(acme)
	f.round(acme)
	require.Contains(t, f.LocalBlocks(acme), old)
	require.Contains(t, f.uploads, "acme/"+old.String())
	require.Less(t, len(f.LocalBlocks(acme)), len(f.uploads), "ours are deleted once queries read them from the bucket")

	f.advance(2 * time.Hour) // idle: all of the head is cut
	f.round(acme)
	f.round(acme)
	require.Equal(t, []ulid.ULID{old}, f.LocalBlocks(acme))
	require.NotNil(t, f.lookup(acme).db, "the directory stays open")
	f.restart()
	require.Equal(t, []ulid.ULID{old}, f.LocalBlocks(acme))
	require.FileExists(t, filepath.Join(dir, "else"))
	require.NoDirExists(t, filepath.Join(f.dir, "ingester", string(acme)))
}

func TestABlockOfAPrometheusGoesWithTheRetentionOfItsTenant(t *testing.T) {
	f, _, old := adopting(t, withLimits(func(l *tenant.Limits) { l.Retention = model.Duration(48 * time.Hour) }))
	f.round(acme)
	f.advance(100 * time.Hour)
	f.round(acme)
	require.Equal(t, []ulid.ULID{old}, f.LocalBlocks(acme), "queries still read it from the bucket")
	f.seeAll = false
	f.round(acme)
	require.Empty(t, f.LocalBlocks(acme))
}

func TestAnAdoptedDirectoryIsWrittenSoThatEveryPrometheusReadsIt(t *testing.T) {
	f, dir, old := adopting(t)
	f.advance(20 * time.Hour)
	f.push(acme, sample{"a", 5 * time.Hour, 1}, sample{"a", 6 * time.Hour, 2})
	f.seeAll = false
	require.NoError(t, f.Flush(context.Background(), acme))
	for _, id := range f.LocalBlocks(acme) {
		if id == old {
			continue
		}
		block, err := tsdb.OpenBlock(nil, filepath.Join(dir, id.String()), nil, nil)
		require.NoError(t, err)
		q, err := tsdb.NewBlockChunkQuerier(block, block.MinTime(), block.MaxTime())
		require.NoError(t, err)
		set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
		for set.Next() {
			for it := set.At().Iterator(nil); it.Next(); {
				require.Equal(t, chunkenc.EncXOR, it.At().Chunk.Encoding())
			}
		}
		require.NoError(t, set.Err())
		require.NoError(t, q.Close())
		require.NoError(t, block.Close())
	}
	require.NoError(t, f.close())
	found, err := filepath.Glob(filepath.Join(dir, "chunk_snapshot.*"))
	require.NoError(t, err)
	require.Empty(t, found)
	f.open()
}

func TestWipingAnAdoptedDirectoryLeavesWhatPrometheusMade(t *testing.T) {
	f, dir, old := adopting(t)
	f.advance(6 * time.Hour)
	f.push(acme, sample{"a", 5 * time.Hour, 1})
	require.NoError(t, f.Wipe(t.Context()))
	require.DirExists(t, filepath.Join(dir, old.String()))
	require.FileExists(t, filepath.Join(dir, "else"))
	require.NoDirExists(t, filepath.Join(dir, "wal"))
	require.Equal(t, []string{"5h0m0s 1"}, f.inBucket(acme)["a"])
}

func TestADeletedTenantLeavesTheDirectoryOfAPrometheus(t *testing.T) {
	dir := t.TempDir()
	start, end := noon.UnixMilli(), noon.Add(2*time.Hour).UnixMilli()
	old := ulid.MustParse(filepath.Base(blocktest.Write(t, dir, start, end, blocktest.Floats("old", start, end, 60_000))))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "else"), nil, 0o600))
	f := newFixture(t, func(f *fixture) { f.dir = dir }, // so that our folder is in the adopted one
		withConfig(func(c *Config) { c.Adopted = &Adopted{Tenant: acme, Dir: dir, Keep: []ulid.ULID{old}} }))
	f.advance(6 * time.Hour)
	f.push(acme, sample{"a", 5 * time.Hour, 1})
	d := f.acceptTenant(acme, 0)
	// An attempt before this one ended half way.
	other := ulid.Make()
	partial := f.deletionsOf(acme).trash(d.ID) + ".partial"
	require.NoError(t, os.MkdirAll(filepath.Join(partial, other.String()), 0o750))

	done := f.apply(acme)
	require.ElementsMatch(t, []ulid.ULID{old, other}, done[0].Blocks)
	require.Empty(t, f.stored(acme))
	require.FileExists(t, filepath.Join(dir, "else"))
	require.NoDirExists(t, filepath.Join(dir, "wal"))
	require.NoDirExists(t, filepath.Join(dir, old.String()))
	require.NoDirExists(t, partial)
	require.NoDirExists(t, f.deletionsOf(acme).trash(d.ID))
	f.push(acme, sample{"a", 5 * time.Hour, 7})
	f.restart()
	require.Equal(t, done, f.apply(acme))
	require.Equal(t, map[string][]string{"a": {"5h0m0s 7"}}, f.stored(acme))
	f.round(acme)
}
