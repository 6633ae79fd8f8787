package blockstore_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

func TestPartsOfABlocksFilesAreReadWhereTheyLie(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		dir, block, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))

		files, err := store.Files(t.Context(), acme, block)
		require.NoError(t, err)
		var names []string
		for _, file := range files {
			names = append(names, file.Name)
			content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(file.Name)))
			require.NoError(t, err)
			require.Len(t, content, int(file.Size))

			got := make([]byte, len(content)-3)
			require.NoError(t, store.ReadRange(t.Context(), acme, block, file.Name, got, 2))
			require.Equal(t, content[2:len(content)-1], got)
			require.ErrorIs(t, store.ReadRange(t.Context(), acme, block, file.Name, make([]byte, 10), file.Size-5), io.ErrUnexpectedEOF)
		}
		require.Contains(t, names, "index")
		require.Contains(t, names, "chunks/000001")
		require.NotContains(t, names, "meta.json")
		require.ErrorIs(t, store.ReadRange(t.Context(), acme, block, "chunks/000077", make([]byte, 1), 0), blockstore.ErrBlockNotFound)
	})
}

func TestFilesOfABlockWithoutMetaAreNotListed(t *testing.T) {
	store, bucket := filesystemStore(t)
	dir, block, _ := writeBlock(t)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	require.NoError(t, os.Remove(filepath.Join(bucket, string(acme), block.String(), "meta.json")))

	_, err := store.Files(t.Context(), acme, block)
	require.ErrorIs(t, err, blockstore.ErrBlockNotFound)
}

func TestASideFileGoesWithItsBlock(t *testing.T) {
	onEveryBucket(t, func(t *testing.T, store *blockstore.Store) {
		dir, block, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		require.NoError(t, store.WriteSideFile(t.Context(), acme, block, "side", []byte("content")))
		content, found, err := store.ReadSideFile(t.Context(), acme, block, "side")
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "content", string(content))

		require.NoError(t, store.Delete(t.Context(), acme, block))
		_, found, err = store.ReadSideFile(t.Context(), acme, block, "side")
		require.NoError(t, err)
		require.False(t, found)
	})
}

func TestTheExtensionOfAMetaIsReadBackAndLeavesTheRestAlone(t *testing.T) {
	store, _ := filesystemStore(t)
	dir, block, _ := writeBlock(t)
	path := filepath.Join(dir, "meta.json")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	extension := blockstore.Extension{
		Version:        1,
		Shard:          &blockstore.Shard{Index: 1, Count: 4},
		ExternalLabels: map[string]string{"cluster": "eu"},
		Deletions:      []ulid.ULID{ulid.MustNew(1, nil)},
	}
	text, err = blockstore.AddExtension(text, extension)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o666))

	require.NoError(t, store.Upload(t.Context(), acme, dir))
	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Equal(t, extension, blocks[block].Extension)
	require.Equal(t, blockstore.Shard{Index: 1, Count: 4}, blocks[block].Shard())
	var meta map[string]any
	require.NoError(t, json.Unmarshal(text, &meta))
	require.Equal(t, block.String(), meta["ulid"])
}

func TestABlockWhoseExtensionIsNotUnderstoodIsPartial(t *testing.T) {
	for _, extension := range []string{`{"version":2}`, `{"version":1,"shard":{"index":4,"count":4}}`, `{"version":1,"shard":{"index":0,"count":3}}`, `[]`} {
		store, bucket := filesystemStore(t)
		dir, block, _ := writeBlock(t)
		require.NoError(t, store.Upload(t.Context(), acme, dir))
		path := filepath.Join(bucket, string(acme), block.String(), "meta.json")
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		text = append([]byte(`{"hundredfold":`+extension+`,`), text[1:]...)
		require.NoError(t, os.WriteFile(path, text, 0o666))

		_, partial, err := store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Equal(t, []ulid.ULID{block}, partial)
	}
}

func TestAShardContainsTheShardsThatItIsSplitInto(t *testing.T) {
	require.True(t, blockstore.All().Contains(blockstore.Shard{Index: 3, Count: 8}))
	require.True(t, blockstore.Shard{Index: 1, Count: 2}.Contains(blockstore.Shard{Index: 3, Count: 4}))
	require.False(t, blockstore.Shard{Index: 1, Count: 2}.Contains(blockstore.Shard{Index: 2, Count: 4}))
	require.False(t, blockstore.Shard{Index: 3, Count: 4}.Contains(blockstore.Shard{Index: 1, Count: 2}))
}
