package importer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	hour = int64(time.Hour / time.Millisecond)
	step = int64(15 * time.Second / time.Millisecond)
)

// bed is a source and a target.
type bed struct {
	source, bucket string
	store          *blockstore.Store
	cfg            Config
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{source: t.TempDir(), bucket: t.TempDir()}
	var err error
	b.store, err = blockstore.Open(local(b.bucket), nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.store.Close()) })
	b.cfg = Config{From: local(b.source), Scratch: filepath.Join(t.TempDir(), "scratch"), Depth: blockcheck.Full}
	return b
}

func local(dir string) blockstore.Config {
	return blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: dir}}
}

func (b *bed) run(t *testing.T) (Result, string) {
	t.Helper()
	result, out, err := b.try(t)
	require.NoError(t, err, out)
	return result, out
}

func (b *bed) try(t *testing.T) (Result, string, error) {
	t.Helper()
	var out bytes.Buffer
	result, err := Run(t.Context(), b.cfg, b.store, &out, slog.New(slog.DiscardHandler))
	return result, out.String(), err
}

func (b *bed) blocks(t *testing.T, id tenant.ID) map[ulid.ULID]blockstore.Block {
	t.Helper()
	blocks, partial, err := b.store.Blocks(t.Context(), id)
	require.NoError(t, err)
	require.Empty(t, partial)
	return blocks
}

// samples returns all samples in the target's blocks of a tenant.
func (b *bed) samples(t *testing.T, id tenant.ID) map[string][]string {
	t.Helper()
	var dirs []string
	for block := range b.blocks(t, id) {
		dirs = append(dirs, filepath.Join(b.bucket, string(id), block.String()))
	}
	return blocktest.Samples(t, dirs...)
}

// write writes a block, with keys of other programs in its meta.json.
func write(t *testing.T, parent string, mint, maxt int64, keys string, series ...blocktest.Series) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(parent, 0o750))
	dir := blocktest.Write(t, parent, mint, maxt, series...)
	if keys != "" {
		edit(t, dir, keys)
	}
	return dir
}

func edit(t *testing.T, dir, keys string) {
	t.Helper()
	path := filepath.Join(dir, "meta.json")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var meta map[string]any
	require.NoError(t, json.Unmarshal(text, &meta))
	require.NoError(t, json.Unmarshal([]byte(keys), &meta))
	text, err = json.Marshal(meta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
}

func idOf(dir string) ulid.ULID { return ulid.MustParse(filepath.Base(dir)) }

// state is a picture of a folder: names, sizes and contents.
func state(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[path] = string(text)
		return err
	}))
	return files
}

func TestBlocksAreLinkedAndASecondImportDoesNothing(t *testing.T) {
	b := newBed(t)
	first := write(t, b.source, 0, 2*hour, "", blocktest.Floats("a", 0, 2*hour, step))
	write(t, b.source, 2*hour, 4*hour, "", blocktest.Floats("a", 2*hour, 4*hour, step))
	before := state(t, b.source)
	b.cfg.PlanOnly = true
	result, out := b.run(t)
	require.Equal(t, 2, strings.Count(out, "copy default"))
	require.Zero(t, result.Imported)
	require.Empty(t, b.blocks(t, tenant.Default))

	b.cfg.PlanOnly = false
	result, _ = b.run(t)
	require.Equal(t, 2, result.Imported)
	require.Len(t, b.samples(t, tenant.Default), 1)
	require.Equal(t, before, state(t, b.source), "nothing at the source changes")
	one, err := os.Stat(filepath.Join(first, "index"))
	require.NoError(t, err)
	other, err := os.Stat(filepath.Join(b.bucket, "default", filepath.Base(first), "index"))
	require.NoError(t, err)
	require.True(t, os.SameFile(one, other))

	result, _ = b.run(t)
	require.Equal(t, Result{Present: 2}, result)
}

func TestLabelsOfThanosBecomeExternalLabelsAndWhatIsDownsampledOrMarkedStays(t *testing.T) {
	b := newBed(t)
	raw := write(t, b.source, 0, 2*hour, `{"thanos": {"labels": {"cluster": "eu", "__org_id__": "1"}, "downsample": {"resolution": 0}, "source": "sidecar"}}`,
		blocktest.Floats("a", 0, 2*hour, step))
	write(t, b.source, 0, 2*hour, `{"thanos": {"labels": {"cluster": "eu"}, "downsample": {"resolution": 300000}}}`, blocktest.Floats("a", 0, 2*hour, step))
	marked := write(t, b.source, 0, 2*hour, "", blocktest.Floats("b", 0, 2*hour, step))
	require.NoError(t, os.WriteFile(filepath.Join(marked, "deletion-mark.json"), []byte(`{"id": "x", "version": 1, "deletion_time": 1}`), 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(b.source, ulid.Make().String(), "chunks"), 0o750))
	b.cfg.ExternalLabels = map[string]string{"site": "x"}
	b.cfg.Tenant = "acme"
	result, out := b.run(t)
	require.Equal(t, 1, result.Imported)
	require.Equal(t, 3, result.Skipped, out)
	require.Contains(t, out, "downsampled to 5m0s")
	require.Contains(t, out, "marked for deletion")
	blocks := b.blocks(t, "acme")
	require.Equal(t, map[string]string{"cluster": "eu", "site": "x"}, blocks[idOf(raw)].Extension.ExternalLabels)
	require.True(t, blocks[idOf(raw)].HasSidecar, "so that its first query is quick")
}

func TestMarksAgainstCompactionComeAlong(t *testing.T) {
	b := newBed(t)
	for name, text := range map[string]string{
		"thanos":      `{"id": "x", "version": 1, "details": "large", "no_compact_time": 1600000000, "reason": "index-size-exceeding"}`,
		"hundredfold": `{"version": 1, "time": "2020-09-13T12:26:40Z", "reason": "index-size-exceeding", "details": "large"}`,
		"neither":     `{`,
	} {
		dir := write(t, b.source, 0, 2*hour, "", blocktest.Floats("a", 0, 2*hour, step))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "no-compact-mark.json"), []byte(text), 0o600))
		_, out := b.run(t)
		mark := b.blocks(t, tenant.Default)[idOf(dir)].NoCompact
		require.NotNil(t, mark, name)
		require.Contains(t, out, filepath.Base(dir))
		require.Contains(t, out, "mark against compaction ("+string(mark.Reason)+")")
		if name == "neither" {
			require.Equal(t, blockstore.NoCompactUnreadableMark, mark.Reason)
			continue
		}
		require.Equal(t, blockstore.NoCompactMark{Version: 1, Time: time.Unix(1600000000, 0).UTC(), Reason: "index-size-exceeding", Details: "large"}, *mark, name)
	}
}

func TestABlockThatMustNotBeCompactedDoesNotStandForOthersOfTheSource(t *testing.T) {
	b := newBed(t)
	whole := write(t, b.source, 0, 2*hour, "", blocktest.Floats("a", 0, 2*hour, step))
	keys := fmt.Sprintf(`{"compaction": {"level": 2, "sources": [%q]}}`, filepath.Base(whole))
	damaged := write(t, b.source, 0, 2*hour, keys, blocktest.Floats("b", 0, 2*hour, step))
	require.NoError(t, os.WriteFile(filepath.Join(damaged, "no-compact-mark.json"), []byte(`{"version": 1, "reason": "damaged"}`), 0o600))
	result, out := b.run(t)
	require.Equal(t, 1, result.Imported, out)
	require.Contains(t, b.blocks(t, tenant.Default), idOf(whole), "the damaged one may lack samples of it")
}

func TestTenantsOfMimirKeepTheirNamesAndShardsAreAllImported(t *testing.T) {
	b := newBed(t)
	source := ulid.Make()
	for shard := range 2 {
		keys := fmt.Sprintf(`{"compaction": {"level": 2, "sources": [%q]}, "thanos": {"labels": {"__compactor_shard_id__": "%d_of_2"}}}`, source, shard+1)
		write(t, filepath.Join(b.source, "team-a"), 0, 2*hour, keys, blocktest.Floats(fmt.Sprint("a", shard), 0, 2*hour, step))
	}
	write(t, filepath.Join(b.source, "team-b"), 0, 2*hour, "", blocktest.Floats("b", 0, 2*hour, step))
	require.NoError(t, os.MkdirAll(filepath.Join(b.source, "team-b", "markers"), 0o750))
	result, _ := b.run(t)
	require.Equal(t, 3, result.Imported)
	blocks := b.blocks(t, "team-a")
	require.Len(t, blocks, 2)
	require.Empty(t, blockstore.Superseded(blocks), "they have the same sources at the source and other series")
	require.Len(t, b.blocks(t, "team-b"), 1)

	b.cfg.Tenant = "all"
	_, _, err := b.try(t)
	require.ErrorContains(t, err, "--from-tenant")
	b.cfg.FromTenant = "team-b"
	b.run(t)
	require.Len(t, b.blocks(t, "all"), 1)
}

func TestShardsOfHundredfoldAndPartitionsOfCortexAreAllImported(t *testing.T) {
	source := ulid.Make()
	for name, keys := range map[string]string{
		"hundredfold": `{"hundredfold": {"version": 1, "shard": {"index": %d, "count": 2}, "external_labels": {"cluster": "eu"}, "sources": [%q]}}`,
		"cortex":      `{"thanos": {"labels": {"cluster": "eu"}, "extensions": {"partition_info": {"partition_id": %d, "partition_count": 2}}}, "compaction": {"level": 2, "sources": [%q]}}`,
	} {
		for _, external := range []map[string]string{nil, {"site": "x"}} {
			t.Run(fmt.Sprint(name, external), func(t *testing.T) {
				b := newBed(t)
				b.cfg.ExternalLabels = external
				var dirs []string
				for shard := range 2 {
					dirs = append(dirs, write(t, filepath.Join(b.source, "team-a"), 0, 2*hour, fmt.Sprintf(keys, shard, source), blocktest.Floats(fmt.Sprint("a", shard), 0, 2*hour, step)))
				}
				result, out := b.run(t)
				require.Equal(t, 2, result.Imported, out)
				blocks := b.blocks(t, "team-a")
				require.Len(t, blocks, 2)
				require.Empty(t, blockstore.Superseded(blocks))
				want := map[string]string{"cluster": "eu"}
				maps.Copy(want, external)
				for shard, dir := range dirs {
					block := blocks[idOf(dir)]
					require.Equal(t, want, block.Extension.ExternalLabels)
					if name == "hundredfold" {
						require.Equal(t, blockstore.Shard{Index: uint64(shard), Count: 2}, block.Shard())
						require.Equal(t, []ulid.ULID{source}, block.Meta.Compaction.Sources)
					}
				}
				result, _ = b.run(t)
				require.Equal(t, Result{Present: 2}, result)
			})
		}
	}
}

func TestABlockThatIsBeingDeletedIsNotTakenForPresent(t *testing.T) {
	mark := func(reason blockstore.DeletionReason) func(*testing.T, *bed, ulid.ULID) {
		return func(t *testing.T, b *bed, block ulid.ULID) {
			require.NoError(t, b.store.MarkForDeletion(t.Context(), tenant.Default, block, blockstore.DeletionMark{Time: time.Now(), Reason: reason}))
		}
	}
	for name, doom := range map[string]func(*testing.T, *bed, ulid.ULID){
		"tenant": mark(blockstore.DeletionTenant), "quota": mark(blockstore.DeletionQuota), "empty": mark(blockstore.DeletionEmpty),
		"compacted, into a block that is gone": mark(blockstore.DeletionCompacted),
		"a deletion of the tenant": func(t *testing.T, b *bed, block ulid.ULID) {
			d := blockstore.Deletion{ID: ulid.Make(), WholeTenant: true, MaxMs: 100 * hour, Accepted: time.Now(), Blocks: []ulid.ULID{block}}
			require.NoError(t, b.store.PutDeletion(t.Context(), tenant.Default, d))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			block := idOf(write(t, b.source, 0, 2*hour, "", blocktest.Floats("a", 0, 2*hour, step)))
			b.run(t)
			doom(t, b, block)
			result, out, err := b.try(t)
			require.ErrorIs(t, err, errIncomplete)
			require.Equal(t, Result{Refused: 1}, result)
			require.Contains(t, out, "refuse "+block.String())

			// Once it is gone it is imported.
			require.NoError(t, b.store.Delete(t.Context(), tenant.Default, block))
			require.NoError(t, os.RemoveAll(filepath.Join(b.bucket, "~deletions")))
			result, _ = b.run(t)
			require.Equal(t, 1, result.Imported)
		})
	}
}

func TestADamagedBlockIsNamedAndTheOthersAreImported(t *testing.T) {
	b := newBed(t)
	bad := write(t, b.source, 0, 2*hour, "", blocktest.Floats("a", 0, 2*hour, step))
	segment := filepath.Join(bad, "chunks", "000001")
	text, err := os.ReadFile(segment)
	require.NoError(t, err)
	text[len(text)/2] ^= 1
	require.NoError(t, os.WriteFile(segment, text, 0o600))
	lying := write(t, b.source, 0, 2*hour, `{"stats": {"numSeries": 7, "numChunks": 1, "numSamples": 1}}`, blocktest.Floats("b", 0, 2*hour, step))
	good := write(t, b.source, 2*hour, 4*hour, "", blocktest.Floats("a", 2*hour, 4*hour, step))
	result, out, err := b.try(t)
	require.ErrorIs(t, err, errIncomplete)
	require.Equal(t, 2, result.Damaged)
	require.Contains(t, out, "damaged "+filepath.Base(bad))
	require.Contains(t, out, "damaged "+filepath.Base(lying))
	require.Contains(t, b.blocks(t, tenant.Default), idOf(good))
	require.Len(t, b.blocks(t, tenant.Default), 1)
}

func TestTheHeadOfAPrometheusIsImportedOnceAndItsDirectoryNotTouched(t *testing.T) {
	b := newBed(t)
	options := tsdb.DefaultOptions()
	options.OutOfOrderTimeWindow = 10 * hour
	db, err := tsdb.Open(b.source, nil, nil, options, nil)
	require.NoError(t, err)
	db.DisableCompactions()
	start := 1000 * 2 * hour
	add := func(name string, from, to int64) {
		for at := from; at < to; at += 60_000 {
			app := db.AppenderV2(context.Background())
			_, err := app.Append(0, labels.FromStrings("__name__", name), 0, at, float64(at), nil, nil, storage.AOptions{})
			require.NoError(t, err)
			require.NoError(t, app.Commit())
		}
	}
	add("a", start+hour, start+5*hour)
	add("late", start+4*hour, start+5*hour)
	add("late", start+3*hour, start+4*hour) // out of order

	_, _, err = b.try(t)
	require.ErrorContains(t, err, "runs on")
	require.NoError(t, db.Close())

	before := state(t, b.source)
	result, _ := b.run(t)
	require.Equal(t, before, state(t, b.source))
	require.GreaterOrEqual(t, result.Imported, 3)
	samples := b.samples(t, tenant.Default)
	require.Len(t, samples[`{__name__="a"}`], 240)
	require.Len(t, samples[`{__name__="late"}`], 120)
	again, _ := b.run(t)
	require.Zero(t, again.Imported)
	require.Equal(t, samples, b.samples(t, tenant.Default))
	require.NoDirExists(t, b.cfg.Scratch)
}

// prometheus makes the source the data directory of a Prometheus whose head has what fill
// appends: a sample each minute, the last before to.
func (b *bed) prometheus(t *testing.T, fill func(add func(name string, from, to int64))) {
	t.Helper()
	options := tsdb.DefaultOptions()
	options.OutOfOrderTimeWindow = 10 * hour
	db, err := tsdb.Open(b.source, nil, nil, options, nil)
	require.NoError(t, err)
	db.DisableCompactions()
	fill(func(name string, from, to int64) {
		for at := from; at < to; at += 60_000 {
			app := db.AppenderV2(context.Background())
			_, err := app.Append(0, labels.FromStrings("__name__", name), 0, at, float64(at), nil, nil, storage.AOptions{})
			require.NoError(t, err)
			require.NoError(t, app.Commit())
		}
	})
	require.NoError(t, db.Close())
}

func TestABlockOfSomeSeriesHidesNoSamplesOfTheHead(t *testing.T) {
	start := 1000 * 2 * hour
	for _, hint := range []string{tsdb.CompactionHintFromStaleSeries, tsdb.CompactionHintFromSelectedSeries, tsdb.CompactionHintFromOutOfOrder} {
		t.Run(hint, func(t *testing.T) {
			b := newBed(t)
			b.prometheus(t, func(add func(string, int64, int64)) { add("a", start, start+hour) })
			dir := write(t, b.source, start, start+2*hour, "", blocktest.Floats("gone", start, start+2*hour, step))
			edit(t, dir, fmt.Sprintf(`{"compaction": {"level": 1, "sources": [%q], "hints": [%q]}}`, filepath.Base(dir), hint))
			b.run(t)
			require.Len(t, b.samples(t, tenant.Default)[`{__name__="a"}`], 60)
		})
	}
}

func TestAHeadThatHasOnlyLateSamplesIsImported(t *testing.T) {
	start := 1000 * 2 * hour
	b := newBed(t)
	b.prometheus(t, func(add func(string, int64, int64)) {
		add("a", start+2*hour, start+3*hour)
		add("a", start+hour, start+2*hour) // out of order
	})
	// What came in order is in a block.
	write(t, b.source, start+2*hour, start+4*hour, "", blocktest.Floats("other", start+2*hour, start+4*hour, step))
	b.run(t)
	require.Len(t, b.samples(t, tenant.Default)[`{__name__="a"}`], 60)
}

func TestReplicasAreNeverInterleavedAndAGapOfOneIsFilledByTheOther(t *testing.T) {
	b := newBed(t)
	replica := func(name string, phase, from, to, gapFrom, gapTo int64) {
		s := blocktest.Series{Labels: labels.FromStrings("__name__", "a")}
		for at := from + phase; at < to; at += step {
			if at < gapFrom || at >= gapTo {
				s.Samples = append(s.Samples, blocktest.Sample{T: at, V: float64(phase)})
			}
		}
		only := blocktest.Floats("only"+name, from, to, step)
		write(t, b.source, from, to, fmt.Sprintf(`{"thanos": {"labels": {"cluster": "eu", "replica": %q}}}`, name), s, only)
	}
	day := 24 * hour
	replica("0", 0, day-2*hour, day+2*hour, day+hour, day+hour+30*60_000)
	replica("1", 7000, day-2*hour, day+2*hour, 0, 0)
	replica("1", 7000, day+2*hour, day+4*hour, 0, 0) // alone, so it is copied

	b.cfg.ReplicaLabels = []string{"replica"}
	result, out := b.run(t)
	require.Equal(t, 3, result.Imported, out)
	for _, block := range b.blocks(t, tenant.Default) {
		require.Equal(t, map[string]string{"cluster": "eu"}, block.Extension.ExternalLabels)
		require.True(t, block.Meta.MinTime >= day || block.Meta.MaxTime <= day, "blocks lie within days")
	}
	samples := b.samples(t, tenant.Default)
	require.Contains(t, samples, `{__name__="only0", job="test"}`)
	require.Contains(t, samples, `{__name__="only1", job="test"}`)
	var last int64
	changes := 0
	var from string
	for k, line := range samples[`{__name__="a"}`] {
		var at int64
		var v, bits string
		_, err := fmt.Sscan(line, &at, &v, &bits)
		require.NoError(t, err)
		if k > 0 {
			require.GreaterOrEqual(t, at-last, int64(7000), "never two samples of two replicas beside each other")
			require.LessOrEqual(t, at-last, 2*step)
		}
		if v != from {
			changes++
		}
		last, from = at, v
	}
	require.LessOrEqual(t, changes, 5)

	result, _ = b.run(t)
	require.Zero(t, result.Imported)
}

func TestAnImportFromS3IsTakenUpAgain(t *testing.T) {
	s3 := s3test.Start(t)
	source, err := blockstore.Open(s3, nil, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, source.Close()) }()
	dir := write(t, t.TempDir(), 0, 2*hour, "", blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, source.Upload(t.Context(), "acme", dir))
	b := newBed(t)
	b.cfg.From = s3
	// As if an earlier run had fetched the index and was killed.
	scratch := filepath.Join(b.cfg.Scratch, filepath.Base(dir))
	require.NoError(t, os.MkdirAll(scratch, 0o750))
	require.NoError(t, syscall.Link(filepath.Join(dir, "index"), filepath.Join(scratch, "index")))
	result, _ := b.run(t)
	require.Equal(t, 1, result.Imported)
	require.Equal(t, blocktest.Samples(t, dir), b.samples(t, "acme"))
	require.NoDirExists(t, b.cfg.Scratch)
}
