package compactor

import (
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// split adds a block of a day and the first n of the two shards that it was split into.
func (w *world) split(n int) (whole ulid.ULID, parts []ulid.ULID) {
	block := blockstore.Block{Meta: tsdb.BlockMeta{MinTime: 0, MaxTime: day}}
	block.Meta.Compaction.Level = 1
	whole = w.add("whole", block)
	for index := range uint64(n) {
		block.Meta.Compaction = tsdb.BlockMetaCompaction{Level: 2, Sources: []ulid.ULID{whole}}
		block.Extension = blockstore.Extension{Shard: &blockstore.Shard{Index: index, Count: 2}, Sources: []ulid.ULID{whole}}
		parts = append(parts, w.add("part", block))
	}
	return whole, parts
}

func TestWhatShardsBeyondTheQuotaWereMadeOfIsNotReadInTheirPlace(t *testing.T) {
	w := newWorld()
	whole, parts := w.split(2)
	w.now = time.UnixMilli(10 * day)
	w.mark(mark{block: whole, reason: blockstore.DeletionCompacted})
	w.mark(mark{block: parts[0], reason: blockstore.DeletionQuota})
	require.Equal(t, []ulid.ULID{parts[1]}, visibleOf(w.blocks))
}

func TestABlockBeyondTheQuotaIsDeletedAfterWhatItWasMadeOf(t *testing.T) {
	w := newWorld()
	whole, parts := w.split(2)
	w.now = time.UnixMilli(10 * day)
	w.over = map[ulid.ULID]struct{}{}
	for _, part := range parts {
		w.mark(mark{block: part, reason: blockstore.DeletionQuota})
		w.over[part] = struct{}{}
	}
	// A crash came before the block that was split was marked.
	w.now = w.now.Add(w.deletionDelay)
	for range 3 {
		todo := plan(w.state)
		require.Empty(t, todo.unmarks)
		require.Empty(t, todo.compactions)
		w.apply(todo)
		require.NotContains(t, visibleOf(w.blocks), whole)
		if _, ok := w.blocks[whole]; ok {
			require.Len(t, w.blocks, 3)
		}
		w.now = w.now.Add(w.deletionDelay)
	}
	require.Empty(t, w.blocks)
}

func TestABlockBeyondTheQuotaIsDeletedAfterACompactionThatReadsWhatItWasMadeOf(t *testing.T) {
	w := newWorld()
	whole, parts := w.split(2)
	block := w.blocks[whole]
	block.Meta.Stats.NumSeries, block.Meta.Stats.NumChunks = blockstore.MaxSeries+1, blockstore.MaxSeries+1
	w.blocks[whole] = block
	w.damage(parts[0])
	w.now = time.UnixMilli(10 * day)
	w.mark(mark{block: parts[1], reason: blockstore.DeletionQuota})
	w.over = map[ulid.ULID]struct{}{parts[1]: {}}
	w.now = w.now.Add(w.deletionDelay)
	require.Len(t, plan(w.state).compactions, 1, "of the shard that is damaged")
	for range 4 {
		w.apply(plan(w.state))
		require.NotContains(t, visibleOf(w.blocks), whole)
		w.now = w.now.Add(w.deletionDelay)
	}
	require.NotContains(t, w.blocks, whole)
	for _, block := range w.blocks {
		require.Zero(t, block.Shard().Index, "what the quota has taken away does not come again")
	}
}

func TestSamplesCountOnceForTheQuotaWhileTheirBlockIsBeingSplit(t *testing.T) {
	w := newWorld()
	whole, parts := w.split(1)
	sizes := map[ulid.ULID]int64{whole: 100, parts[0]: 50}
	require.Empty(t, overQuota(w.blocks, sizes, 100))
	require.Len(t, overQuota(w.blocks, sizes, 99), 1)
}
