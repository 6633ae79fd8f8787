package compactor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestADamagedBlockIsQuarantinedAndTheOthersAreCompacted(t *testing.T) {
	rename := func(from, to string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
		}
	}
	edit := func(file string, change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) { rewrite(t, filepath.Join(dir, file), change) }
	}
	cut := func(text []byte) []byte { return text[:len(text)/2] }
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string
	}{
		{"an index cut short", edit("index", cut), "read TOC"},
		{"an empty index", edit("index", func([]byte) []byte { return nil }), "the index has 0 bytes"},
		{"a flipped bit in the symbols", edit("index", func(text []byte) []byte { text[40] ^= 1; return text }), "checksum"},
		{"no index", rename("index", "elsewhere"), "there is no index"},
		{"no chunks", rename("chunks", "elsewhere"), "there are no chunks"},
		{"a segment cut short", edit("chunks/000001", cut), "segment doesn't include enough bytes"},
		{"a flipped bit in a chunk", edit("chunks/000001", flipMiddle), "checksum mismatch"},
		{"a segment that is missing before another", rename("chunks/000001", "chunks/000002"), "segment 000001 of the chunks is missing"},
		{"tombstones that are none", edit("tombstones", func([]byte) []byte { return []byte("nonsense") }), "the tombstones have 8 bytes"},
		{"tombstones that make Prometheus panic", edit("tombstones", func(text []byte) []byte { return slices.Concat(text[:4], text[:4]) }), "the tombstones have 8 bytes"},
		{"a meta.json that states another range", func(t *testing.T, dir string) {
			editMeta(t, dir, func(meta *tsdb.BlockMeta) { meta.MaxTime -= hour })
		}, "not in the range that meta.json states"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			var ids []ulid.ULID
			for start := int64(0); start < 6*hour; start += 2 * hour {
				ids = append(ids, f.upload(t, start, start+2*hour, everyKind(start, start+2*hour)...))
			}
			bad := ids[1]
			c.damage(t, filepath.Join(f.root, string(acme), bad.String()))

			require.NoError(t, f.RunOnce(t.Context()), "the rest goes on")
			visible := f.visible(t)
			require.Len(t, visible, 2, "the damaged block, and the others in one")
			require.Equal(t, bad, visible[0])
			blocks, _, err := f.store.Blocks(t.Context(), acme)
			require.NoError(t, err)
			require.Equal(t, []ulid.ULID{ids[0], ids[2]}, blocks[visible[1]].Meta.Compaction.Sources)
			require.Equal(t, blockstore.NoCompactDamaged, blocks[bad].NoCompact.Reason)
			require.Contains(t, blocks[bad].NoCompact.Details, c.want)
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.quarantined), 0)
			require.InDelta(t, 1, f.board.Totals().Quarantined, 0)
			require.Equal(t, 1, strings.Count(f.log.String(), "level=ERROR"))
			require.Contains(t, f.log.String(), bad.String())

			require.NoError(t, f.RunOnce(t.Context()))
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.compactions), 0, "it is not tried again")
		})
	}
}

func TestADamagedMetaIsReportedOnceAndItsBlockKept(t *testing.T) {
	f := newFixture(t)
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	damageFile(t, f, id, "meta.json", func(text []byte) []byte { return text[:9] })
	f.clock = time.Now().Add(1000 * time.Hour)
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
	}
	require.Equal(t, []string{id.String()}, folders(t, filepath.Join(f.root, string(acme))))
	require.Equal(t, 1, strings.Count(f.log.String(), "level=ERROR"))
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.quarantined), 0)
	require.InDelta(t, 1, f.board.Totals().Quarantined, 0)
}

func TestABlockThatBecameWholeSinceItWasListedIsNeitherReportedNorDeleted(t *testing.T) {
	f := newFixture(t)
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	f.clock = time.Now().Add(1000 * time.Hour)
	require.NoError(t, f.cleanPartial(t.Context(), acme, []ulid.ULID{id}))
	require.Equal(t, []ulid.ULID{id}, f.visible(t))
	require.NotContains(t, f.log.String(), "level=ERROR")
}

func TestADamagedMetaIsReportedForEachTenant(t *testing.T) {
	f := newFixture(t)
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	for _, id := range []tenant.ID{"a", "b"} {
		require.NoError(t, f.store.Upload(t.Context(), id, dir))
		rewrite(t, filepath.Join(f.root, string(id), filepath.Base(dir), "meta.json"), func([]byte) []byte { return nil })
	}
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, 2, strings.Count(f.log.String(), "level=ERROR"))
	require.InDelta(t, 2, f.board.Totals().Quarantined, 0)
}

func TestAWorkDirectoryThatCannotBeWrittenQuarantinesNothing(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 4*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
	}
	require.NoError(t, os.WriteFile(f.cfg.Dir, nil, 0o600)) // a file in its place
	require.ErrorContains(t, f.RunOnce(t.Context()), "create compactor directory")
	require.Len(t, f.visible(t), 2)
	require.InDelta(t, 0, testutil.ToFloat64(f.metrics.quarantined), 0)
	require.InDelta(t, 1, f.board.Totals().Compactions, 0)
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.compactionFailures), 0)

	require.NoError(t, os.Remove(f.cfg.Dir))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, f.visible(t), 1)
	require.InDelta(t, 0, f.board.Totals().Compactions, 0)
}
