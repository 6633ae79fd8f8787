package verifier

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const hour = int64(time.Hour / time.Millisecond)

const acme = tenant.ID("acme")

// bucket has two blocks of acme and an index that lists them.
func bucket(t *testing.T) (store *blockstore.Store, root string, first ulid.ULID) {
	t.Helper()
	root = t.TempDir()
	store, err := blockstore.Open(blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: root}}, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	for start := int64(0); start < 4*hour; start += 2 * hour {
		dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, 15000), blocktest.Floats("b", start, start+2*hour, 15000))
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		if start == 0 {
			first = ulid.MustParse(filepath.Base(dir))
		}
	}
	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.NoError(t, store.WriteIndex(t.Context(), acme, blockstore.Index{Generation: 1, Writer: "test", Listed: time.Now(), Blocks: blocks}))
	return store, root, first
}

func verify(t *testing.T, store *blockstore.Store) (Result, string) {
	t.Helper()
	var out bytes.Buffer
	result, err := Run(t.Context(), Config{Depth: blockcheck.Full, Scratch: t.TempDir()}, store, &out)
	require.NoError(t, err)
	return result, out.String()
}

func TestABucketThatIsWholeHasNoFault(t *testing.T) {
	store, _, _ := bucket(t)
	result, out := verify(t, store)
	require.Empty(t, out)
	require.Equal(t, Result{Tenants: 1, Blocks: 2, Samples: 4 * 480}, result)
}

func TestEveryKindOfFaultIsNamedWithItsBlock(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string
	}{
		"a flipped bit": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, "chunks", "000001"), func(text []byte) []byte { text[len(text)/2] ^= 1; return text })
		}, "checksum mismatch"},
		"an index cut short": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, "index"), func(text []byte) []byte { return text[:len(text)/2] })
		}, "open: "},
		"a meta.json that lies": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, "meta.json"), func(text []byte) []byte {
				return bytes.Replace(text, []byte(`"numSamples": 960`), []byte(`"numSamples": 961`), 1)
			})
		}, "meta.json states 961 samples, there are 960"},
		"a meta.json that is none": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, "meta.json"), func([]byte) []byte { return []byte("{") })
		}, "its meta.json cannot be understood"},
		"a block that is gone": {func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) }, "the index lists it"},
	} {
		t.Run(name, func(t *testing.T) {
			_, root, first := bucket(t)
			c.damage(t, filepath.Join(root, string(acme), first.String()))
			// Another process than the one that knew the blocks.
			store, err := blockstore.Open(blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: root}}, nil, nil)
			require.NoError(t, err)
			defer func() { require.NoError(t, store.Close()) }()
			result, out := verify(t, store)
			require.Positive(t, result.Faults)
			require.Contains(t, out, "fault acme "+first.String())
			require.Contains(t, out, c.want)
		})
	}
}

func change(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path)) // it is a link
	require.NoError(t, os.WriteFile(path, change(text), 0o600))
}

func TestChunksThatOverlapAreNotedAndNoFault(t *testing.T) {
	store, _, _ := bucket(t)
	series := []blocktest.Series{blocktest.Floats("a", 0, 2*hour, 15000)}
	dir := blocktest.WriteOverlapping(t, t.TempDir(), 0, 2*hour, series, series)
	require.NoError(t, store.Upload(t.Context(), "other", dir))
	result, out := verify(t, store)
	require.Zero(t, result.Faults, out)
	require.Contains(t, out, "note other "+filepath.Base(dir)+": 1 series have chunks that overlap")
}
