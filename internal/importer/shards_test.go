package importer

import (
	"fmt"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// several returns series of which each of two shards gets some.
func several() (series []blocktest.Series) {
	for i := range 8 {
		series = append(series, blocktest.Floats(fmt.Sprint("a", i), 0, 2*hour, step))
	}
	return series
}

// split splits the block in dir into two, as a compactor does: they have it as their source.
func split(t *testing.T, dir string) (shards []string) {
	t.Helper()
	block, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, block.Close()) }()
	var specs []blockwriter.Spec
	for i := range uint64(2) {
		spec := blockwriter.Spec{Meta: block.Meta()}
		spec.Meta.ULID = ulid.Make()
		spec.Meta.Compaction = tsdb.BlockMetaCompaction{Level: 2}
		spec.Extension = blockstore.Extension{Shard: &blockstore.Shard{Index: i, Count: 2}, Sources: []ulid.ULID{idOf(dir)}}
		specs = append(specs, spec)
	}
	pending, err := blockwriter.Write(t.Context(), blockwriter.Config{Parent: t.TempDir(), KeepEmpty: true}, []tsdb.BlockReader{block}, specs)
	require.NoError(t, err)
	for _, p := range pending {
		shard, err := p.Commit()
		require.NoError(t, err)
		require.NotEmpty(t, blocktest.Samples(t, shard))
		shards = append(shards, shard)
	}
	return shards
}

func TestABlockOfWhichOneShardIsThereIsImportedForTheRest(t *testing.T) {
	b := newBed(t)
	dir := write(t, b.source, 0, 2*hour, "", several()...)
	want := blocktest.Samples(t, dir)
	shards := split(t, dir)
	require.NoError(t, b.store.Upload(t.Context(), tenant.Default, shards[0]))
	require.Less(t, len(b.samples(t, tenant.Default)), len(want))
	result, out := b.run(t)
	require.Equal(t, 1, result.Imported, out)
	require.Equal(t, want, b.samples(t, tenant.Default))

	// All shards together are the block.
	require.NoError(t, b.store.Upload(t.Context(), tenant.Default, shards[1]))
	require.NoError(t, b.store.Delete(t.Context(), tenant.Default, idOf(dir)))
	result, _ = b.run(t)
	require.Equal(t, Result{Present: 1}, result)
	require.Equal(t, want, b.samples(t, tenant.Default))
}

func TestAShardIsImportedThoughAnotherOneOfTheSameSourceIsThere(t *testing.T) {
	b := newBed(t)
	dir := write(t, t.TempDir(), 0, 2*hour, "", several()...)
	shards := split(t, dir)
	require.NoError(t, b.store.Upload(t.Context(), tenant.Default, shards[0]))
	from, err := blockstore.Open(local(b.source), nil, nil)
	require.NoError(t, err)
	for _, shard := range shards {
		require.NoError(t, from.Upload(t.Context(), tenant.Default, shard))
	}
	require.NoError(t, from.Close())
	result, out := b.run(t)
	require.Equal(t, Result{Imported: 1, Present: 1, Bytes: result.Bytes}, result, out)
	require.Equal(t, blocktest.Samples(t, dir), b.samples(t, tenant.Default))
}
