package compactor

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	acme = tenant.ID("acme")
	hour = int64(time.Hour / time.Millisecond)
	step = hour / 60
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a compactor over a real bucket, with a clock of its own.
type fixture struct {
	*Compactor
	store     *blockstore.Store
	root      string // of the bucket
	clock     time.Time
	retention time.Duration
	log       bytes.Buffer
}

// newFixture returns a compactor over a filesystem bucket; it is a week after the
// blocks that the tests write.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	bucket, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	f := fixtureOver(t, blockstore.New(bucket, nil))
	f.root = bucket.LocalPath("")
	return f
}

func fixtureOver(t *testing.T, store *blockstore.Store) *fixture {
	t.Helper()
	f := &fixture{store: store, clock: time.UnixMilli(7 * 24 * hour)}
	limits := func(tenant.ID) tenant.Limits { return tenant.Limits{Retention: model.Duration(f.retention)} }
	config := Default()
	config.Dir = filepath.Join(t.TempDir(), "work")
	var err error
	f.Compactor, err = New(config, Deps{
		Store: store, Limits: limits,
		Logger: slog.New(slog.NewTextHandler(&f.log, nil)), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	f.now = func() time.Time { return f.clock }
	return f
}

// upload writes a block and puts it into the bucket.
func (f *fixture) upload(t *testing.T, mint, maxt int64, series ...blocktest.Series) ulid.ULID {
	t.Helper()
	dir := blocktest.Write(t, t.TempDir(), mint, maxt, series...)
	require.NoError(t, f.store.Upload(t.Context(), acme, dir))
	return ulid.MustParse(filepath.Base(dir))
}

// visible returns the names of the blocks that readers read, in order.
func (f *fixture) visible(t *testing.T) []ulid.ULID {
	t.Helper()
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return visibleOf(blocks)
}

func visibleOf(blocks map[ulid.ULID]blockstore.Block) []ulid.ULID {
	superseded := blockstore.Superseded(blocks)
	var ids []ulid.ULID
	for _, id := range sorted(blocks) {
		if _, ok := superseded[id]; !ok && !blocks[id].Hidden() {
			ids = append(ids, id)
		}
	}
	return ids
}

// only returns the meta of the only visible block.
func (f *fixture) only(t *testing.T) tsdb.BlockMeta {
	t.Helper()
	ids := f.visible(t)
	require.Len(t, ids, 1)
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return blocks[ids[0]].Meta
}

// samples returns what readers read.
func (f *fixture) samples(t *testing.T) map[string][]string {
	t.Helper()
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return f.samplesOf(t, blocks)
}

// samplesOf returns what readers read who know of these blocks.
func (f *fixture) samplesOf(t *testing.T, blocks map[ulid.ULID]blockstore.Block) map[string][]string {
	t.Helper()
	var dirs []string
	for _, id := range visibleOf(blocks) {
		dir := filepath.Join(t.TempDir(), id.String())
		require.NoError(t, f.store.Download(t.Context(), acme, id, dir))
		dirs = append(dirs, dir)
	}
	return blocktest.Samples(t, dirs...)
}

// everyKind returns series of each kind of sample there is, from start to end.
func everyKind(start, end int64) []blocktest.Series {
	series := func(name string) blocktest.Series {
		return blocktest.Series{Labels: labels.FromStrings(model.MetricNameLabel, name, "instance", "a")}
	}
	histograms, floatHistograms, custom, mixed := series("histogram"), series("float_histogram"), series("custom"), series("mixed")
	stale := series("stale")
	for t := start; t < end; t += step {
		i := t / step
		histograms.Samples = append(histograms.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestHistogram(i)})
		floatHistograms.Samples = append(floatHistograms.Samples, blocktest.Sample{T: t, FH: tsdbutil.GenerateTestFloatHistogram(i)})
		custom.Samples = append(custom.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestCustomBucketsHistogram(i)})
		v := float64(i)
		switch i % 10 {
		case 7:
			v = math.Float64frombits(value.StaleNaN)
		case 8:
			v = math.NaN()
		case 9:
			v = math.Inf(-1)
		}
		stale.Samples = append(stale.Samples, blocktest.Sample{T: t, V: v})
		// One series that is of another kind every other hour.
		if sample := (blocktest.Sample{T: t, V: v}); (t/hour)%2 == 0 {
			mixed.Samples = append(mixed.Samples, sample)
		} else {
			mixed.Samples = append(mixed.Samples, blocktest.Sample{T: t, H: tsdbutil.GenerateTestHistogram(i)})
		}
	}
	return []blocktest.Series{blocktest.Floats("float", start, end, step), histograms, floatHistograms, custom, stale, mixed}
}

func editMeta(t *testing.T, dir string, edit func(*tsdb.BlockMeta)) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	require.NoError(t, err)
	var meta tsdb.BlockMeta
	require.NoError(t, json.Unmarshal(text, &meta))
	edit(&meta)
	text, err = json.Marshal(meta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o600))
}

// rewrite changes a file without changing those that share its content by a link.
func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, change(text), 0o600))
}

func damageFile(t *testing.T, f *fixture, id ulid.ULID, file string, change func([]byte) []byte) {
	t.Helper()
	rewrite(t, filepath.Join(f.root, string(acme), id.String(), file), change)
}

func flipMiddle(text []byte) []byte {
	text[len(text)/2] ^= 1
	return text
}

// contents returns the files of a block in the bucket.
func contents(t *testing.T, f *fixture, id ulid.ULID) map[string]string {
	t.Helper()
	files := make(map[string]string)
	dir := filepath.Join(f.root, string(acme), id.String())
	for _, name := range []string{"meta.json", "index", "tombstones", "chunks/000001"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		files[name] = string(text)
	}
	return files
}

// folders lists the folders in dir, but for that of the bucket's temporary files.
func folders(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), "~") {
			names = append(names, entry.Name())
		}
	}
	return names
}

func jobs(t *testing.T, f *fixture) []string {
	t.Helper()
	return folders(t, f.cfg.Dir)
}
