package blockstore_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// leaves is how many shards the twin tells apart.
const leaves = 8

// pair is the smallest amount of data that the twin knows.
type pair struct {
	source ulid.ULID
	leaf   uint64
}

// pairs returns what a block holds.
func pairs(b blockstore.Block) map[pair]bool {
	held := map[pair]bool{}
	for _, source := range blockstore.Sources(b.Meta) {
		for leaf := range uint64(leaves) {
			if b.Shard().Contains(blockstore.Shard{Index: leaf, Count: leaves}) {
				held[pair{source, leaf}] = true
			}
		}
	}
	return held
}

// mayHide tells whether a block can supersede others.
func mayHide(b blockstore.Block) bool {
	return b.NoCompact == nil && (b.Deletion == nil || b.Deletion.Reason != blockstore.DeletionRetention)
}

// goesBefore is the order of blocks, spelt out.
func goesBefore(a, b blockstore.Block) bool {
	sources := func(b blockstore.Block) map[ulid.ULID]bool {
		set := map[ulid.ULID]bool{}
		for _, source := range blockstore.Sources(b.Meta) {
			set[source] = true
		}
		return set
	}
	inA, inB := sources(a), sources(b)
	for source := range inB {
		if !inA[source] {
			return false
		}
	}
	switch {
	case len(inA) != len(inB):
		return true
	case b.NoCompact != nil:
		return true
	case a.Meta.Compaction.Level != b.Meta.Compaction.Level:
		return a.Meta.Compaction.Level > b.Meta.Compaction.Level
	default:
		return a.Meta.ULID.Compare(b.Meta.ULID) < 0
	}
}

// twin is Superseded by sets of pairs.
func twin(blocks map[ulid.ULID]blockstore.Block) map[ulid.ULID]bool {
	hidden := map[ulid.ULID]bool{}
	for id, block := range blocks {
		missing := pairs(block)
		for other, a := range blocks {
			if other == id || !mayHide(a) || !goesBefore(a, block) {
				continue
			}
			for p := range pairs(a) {
				delete(missing, p)
			}
		}
		hidden[id] = len(missing) == 0
	}
	return hidden
}

func randomBlocks(r *rand.Rand) map[ulid.ULID]blockstore.Block {
	blocks := map[ulid.ULID]blockstore.Block{}
	sources := 1 + r.IntN(4)
	for n := range 1 + r.IntN(12) {
		id := ulid.MustNew(uint64(n+1), nil)
		block := blockstore.Block{Meta: tsdb.BlockMeta{ULID: id}}
		block.Meta.Compaction.Level = 1 + r.IntN(3)
		for range r.IntN(4) {
			block.Meta.Compaction.Sources = append(block.Meta.Compaction.Sources, ulid.MustNew(uint64(1+r.IntN(sources)), nil))
		}
		if count := uint64(1) << r.IntN(4); count > 1 || r.IntN(2) == 0 {
			block.Extension.Shard = &blockstore.Shard{Index: r.Uint64N(count), Count: count}
		}
		switch r.IntN(12) {
		case 0:
			block.NoCompact = &blockstore.NoCompactMark{Reason: blockstore.NoCompactDamaged}
		case 1:
			block.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionRetention}
		case 2:
			block.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionCompacted}
		}
		blocks[id] = block
	}
	return blocks
}

func TestWhatSupersedesAShardAgreesWithSetsOfSourcesAndShards(t *testing.T) {
	for seed := range uint64(20_000) {
		blocks := randomBlocks(rand.New(rand.NewPCG(seed, 4)))
		superseded := blockstore.Superseded(blocks)
		readable := map[pair]bool{}
		for id, block := range blocks {
			if _, ok := superseded[id]; !ok {
				for p := range pairs(block) {
					readable[p] = true
				}
			}
		}
		hidden := twin(blocks)
		for id, block := range blocks {
			by, ok := superseded[id]
			require.Equal(t, hidden[id], ok, "seed %d: block %s of %v", seed, id, blocks)
			if ok {
				require.True(t, mayHide(blocks[by]), "seed %d", seed)
			}
			for p := range pairs(block) {
				require.True(t, readable[p], "seed %d: nobody reads source %s of shard %d any more", seed, p.source, p.leaf)
			}
		}
	}
}

func TestDeletingSupersededBlocksInAnyOrderLosesNothing(t *testing.T) {
	for seed := range uint64(2_000) {
		r := rand.New(rand.NewPCG(seed, 5))
		blocks := randomBlocks(r)
		want := map[pair]bool{}
		for _, block := range blocks {
			for p := range pairs(block) {
				want[p] = true
			}
		}
		for {
			superseded := blockstore.Superseded(blocks)
			if len(superseded) == 0 {
				break
			}
			for id := range superseded { // one of them; a map has no order
				delete(blocks, id)
				break
			}
		}
		left := map[pair]bool{}
		for _, block := range blocks {
			for p := range pairs(block) {
				left[p] = true
			}
		}
		require.Equal(t, want, left, "seed %d", seed)
	}
}

func TestASplitBlockIsSupersededByAllItsPartsOnly(t *testing.T) {
	id := func(n uint64) ulid.ULID { return ulid.MustNew(n, nil) }
	blocks := map[ulid.ULID]blockstore.Block{}
	add := func(n uint64, level int, index, count uint64, sources ...uint64) {
		block := blockstore.Block{Meta: tsdb.BlockMeta{ULID: id(n), Compaction: tsdb.BlockMetaCompaction{Level: level}}}
		if count > 1 {
			block.Extension.Shard = &blockstore.Shard{Index: index, Count: count}
		}
		for _, source := range sources {
			block.Meta.Compaction.Sources = append(block.Meta.Compaction.Sources, id(source))
		}
		blocks[id(n)] = block
	}
	add(1, 1, 0, 1, 1)
	add(2, 2, 0, 2, 1)
	require.Empty(t, blockstore.Superseded(blocks), "half of it")
	add(3, 2, 1, 4, 1)
	require.Empty(t, blockstore.Superseded(blocks), "three quarters")
	add(4, 2, 3, 4, 1)
	require.Equal(t, map[ulid.ULID]ulid.ULID{id(1): id(2)}, blockstore.Superseded(blocks))
	add(5, 3, 0, 2, 1, 9)
	require.Equal(t, map[ulid.ULID]ulid.ULID{id(1): id(2), id(2): id(5)}, blockstore.Superseded(blocks), "a part was merged on")
}

func TestAShardOfOtherSourcesLooksLikeABlockOfItsOwnToThoseWhoKnowNoShards(t *testing.T) {
	id, source := ulid.MustNew(9, nil), ulid.MustNew(1, nil)
	meta := tsdb.BlockMeta{ULID: id, MaxTime: 1, Compaction: tsdb.BlockMetaCompaction{Level: 2, Sources: []ulid.ULID{source}}}
	text, err := blockstore.EncodeMeta(meta, blockstore.Extension{Shard: &blockstore.Shard{Index: 1, Count: 2}, Sources: []ulid.ULID{source}})
	require.NoError(t, err)
	var plain tsdb.BlockMeta
	require.NoError(t, json.Unmarshal(text, &plain))
	require.Equal(t, []ulid.ULID{id}, plain.Compaction.Sources, "what Prometheus and releases without shards read")
	known, extension, err := blockstore.DecodeMeta(id, text)
	require.NoError(t, err)
	require.Equal(t, []ulid.ULID{source}, blockstore.Sources(*known))
	require.Equal(t, blockstore.Shard{Index: 1, Count: 2}, blockstore.Block{Extension: extension}.Shard())
}
