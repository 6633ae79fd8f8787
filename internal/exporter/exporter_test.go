package exporter

import (
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/retention"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	hour = int64(time.Hour / time.Millisecond)
	step = int64(15 * time.Second / time.Millisecond)
)

// bucket has blocks of two days, of which some overlap and one has external labels.
func bucket(t *testing.T) (store *blockstore.Store, want map[string][]string) {
	t.Helper()
	store, err := blockstore.Open(blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: t.TempDir()}}, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	histograms := blocktest.Series{Labels: labels.FromStrings("__name__", "h")}
	for at := int64(0); at < 2*hour; at += step {
		histograms.Samples = append(histograms.Samples, blocktest.Sample{T: at, H: tsdbutil.GenerateTestHistogram(at / step)})
	}
	day := 24 * hour
	dirs := []string{
		blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step), histograms),
		blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", hour, 2*hour, step), blocktest.Floats("late", 0, hour, step)),
		blocktest.Write(t, t.TempDir(), day+2*hour, day+4*hour, blocktest.Floats("a", day+2*hour, day+4*hour, step)),
	}
	for _, dir := range dirs {
		require.NoError(t, store.Upload(t.Context(), "acme", dir))
	}
	want = blocktest.Samples(t, dirs...)
	labelled := blocktest.Write(t, t.TempDir(), 2*hour, 4*hour, blocktest.Floats("x", 2*hour, 4*hour, step))
	text, err := os.ReadFile(filepath.Join(labelled, "meta.json"))
	require.NoError(t, err)
	text, err = blockstore.AddExtension(text, blockstore.Extension{ExternalLabels: map[string]string{"cluster": "eu"}})
	require.NoError(t, err)
	require.NoError(t, store.UploadAs(t.Context(), "acme", labelled, text))
	for name, samples := range blocktest.Samples(t, labelled) {
		want[strings.Replace(name, ", job", `, cluster="eu", job`, 1)] = samples
	}
	return store, want
}

func config(t *testing.T) Config {
	return Config{Tenant: "acme", Mint: math.MinInt64, Maxt: math.MaxInt64, Output: t.TempDir(), BlockLength: 24 * time.Hour}
}

func exported(t *testing.T, cfg Config) (dirs []string, samples map[string][]string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(cfg.Output, "*"))
	require.NoError(t, err)
	return dirs, blocktest.Samples(t, dirs...)
}

func TestAnExportHasEverySampleOnceInBlocksOfADay(t *testing.T) {
	store, want := bucket(t)
	cfg := config(t)
	result, err := Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	require.Equal(t, 2, result.Blocks)
	dirs, samples := exported(t, cfg)
	require.Equal(t, want, samples)

	// One that is broken off goes on, and one that is complete has nothing to do.
	require.NoError(t, os.RemoveAll(dirs[0]))
	require.NoError(t, os.MkdirAll(dirs[0]+".tmp-for-creation", 0o750))
	result, err = Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{result.Blocks, result.Present})
	again, samples := exported(t, cfg)
	require.Equal(t, dirs, again)
	require.Equal(t, want, samples)
}

func TestAnExportForOlderReadersHasPlainEncodingsOnly(t *testing.T) {
	store, want := bucket(t)
	cfg := config(t)
	cfg.Plain = true
	_, err := Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	dirs, samples := exported(t, cfg)
	require.Equal(t, want, samples)
	for _, dir := range dirs {
		block, err := tsdb.OpenBlock(nil, dir, nil, nil)
		require.NoError(t, err)
		q, err := tsdb.NewBlockChunkQuerier(block, math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
		for set.Next() {
			for it := set.At().Iterator(nil); it.Next(); {
				require.Contains(t, []chunkenc.Encoding{chunkenc.EncXOR, chunkenc.EncHistogram}, it.At().Chunk.Encoding())
			}
		}
		require.NoError(t, set.Err())
		require.NoError(t, q.Close())
		require.NoError(t, block.Close())
	}
}

func TestAnExportOfSelectedSeriesAndTimesHasNothingElse(t *testing.T) {
	store, want := bucket(t)
	cfg := config(t)
	cfg.Mint, cfg.Maxt = hour, 3*hour
	cfg.Selectors = [][]*labels.Matcher{
		{labels.MustNewMatcher(labels.MatchEqual, "__name__", "a")},
		{labels.MustNewMatcher(labels.MatchEqual, "cluster", "eu")},
	}
	_, err := Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	_, samples := exported(t, cfg)
	require.Equal(t, []string{`{__name__="a", job="test"}`, `{__name__="x", cluster="eu", job="test"}`}, slices.Sorted(maps.Keys(samples)))
	require.Len(t, samples[`{__name__="a", job="test"}`], int(hour/step))
	require.Equal(t, want[`{__name__="x", cluster="eu", job="test"}`][:hour/step], samples[`{__name__="x", cluster="eu", job="test"}`])
}

func TestAnExportLeavesOutWhatQueriesHide(t *testing.T) {
	store, want := bucket(t)
	cfg := config(t)
	_, err := Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	before, samples := exported(t, cfg)
	require.Equal(t, want, samples)

	// A rule for one series, and a deletion that selects by an external label.
	cfg = config(t)
	cfg.Policy, err = retention.New(tenant.Limits{RetentionRules: []tenant.RetentionRule{{Selector: "a", Retention: model.Duration(time.Hour)}}})
	require.NoError(t, err)
	deletion := blockstore.Deletion{ID: ulid.Make(), Selectors: []string{`x{cluster="eu"}`}, MinMs: 2 * hour, MaxMs: 3*hour - 1, Accepted: time.Now(), Blocks: []ulid.ULID{}}
	blocks, _, err := store.Blocks(t.Context(), "acme")
	require.NoError(t, err)
	for name := range blocks {
		deletion.Blocks = append(deletion.Blocks, name)
	}
	require.NoError(t, store.PutDeletion(t.Context(), "acme", deletion))
	_, err = Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	after, samples := exported(t, cfg)
	delete(want, `{__name__="a", job="test"}`)
	x := `{__name__="x", cluster="eu", job="test"}`
	want[x] = want[x][hour/step:]
	require.Equal(t, want, samples)
	for _, dir := range before {
		require.NotContains(t, after, filepath.Join(cfg.Output, filepath.Base(dir)), "a block with other samples has another name")
	}
	result, err := Run(t.Context(), cfg, store, io.Discard)
	require.NoError(t, err)
	require.Equal(t, []int{0, len(after)}, []int{result.Blocks, result.Present})
}
