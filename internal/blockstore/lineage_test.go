package blockstore_test

import (
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

func TestSourcesDecideWhichBlockSupersedesWhich(t *testing.T) {
	id := func(n uint64) ulid.ULID { return ulid.MustNew(n, nil) }
	ids := func(ns ...uint64) (result []ulid.ULID) {
		for _, n := range ns {
			result = append(result, id(n))
		}
		return result
	}
	block := func(n uint64, level int, sources ...uint64) blockstore.Block {
		return blockstore.Block{Meta: tsdb.BlockMeta{ULID: id(n), Compaction: tsdb.BlockMetaCompaction{Level: level, Sources: ids(sources...)}}}
	}
	retention := block(9, 2, 1, 2)
	retention.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionRetention}
	compacted := block(9, 2, 1, 2)
	compacted.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionCompacted}
	quota := block(9, 2, 1, 2)
	quota.Deletion = &blockstore.DeletionMark{Reason: blockstore.DeletionQuota}
	quarantined := block(9, 2, 1, 2)
	quarantined.NoCompact = &blockstore.NoCompactMark{Reason: blockstore.NoCompactDamaged}

	for _, c := range []struct {
		name   string
		blocks []blockstore.Block
		want   map[uint64]uint64
	}{
		{"blocks of their own", []blockstore.Block{block(1, 1, 1), block(2, 1, 2)}, nil},
		{"the sources of a compaction", []blockstore.Block{block(1, 1, 1), block(2, 1, 2), block(9, 2, 1, 2)}, map[uint64]uint64{1: 9, 2: 9}},
		{"a source that is not in it", []blockstore.Block{block(3, 1, 3), block(9, 2, 1, 2)}, nil},
		{"only some of the sources", []blockstore.Block{block(8, 2, 2, 3), block(9, 2, 1, 2)}, nil},
		{"two results of one compaction: the older stays", []blockstore.Block{block(8, 2, 1, 2), block(9, 2, 1, 2)}, map[uint64]uint64{9: 8}},
		{"a rewritten block: the higher level stays", []blockstore.Block{block(1, 1, 1), block(9, 2, 1)}, map[uint64]uint64{1: 9}},
		{"sources named twice", []blockstore.Block{block(8, 2, 1, 2), block(9, 2, 1, 1, 2)}, map[uint64]uint64{9: 8}},
		{"no sources named", []blockstore.Block{block(1, 1), block(2, 1), block(9, 2, 1, 3)}, map[uint64]uint64{1: 9}},
		{"retention hides nothing", []blockstore.Block{block(1, 1, 1), retention}, nil},
		{"what a block beyond the quota was made of shares its fate", []blockstore.Block{block(1, 1, 1), quota}, map[uint64]uint64{1: 9}},
		{"a compacted one still does, its own successor has more", []blockstore.Block{block(1, 1, 1), compacted}, map[uint64]uint64{1: 9}},
		{"a quarantined one gives way to another result", []blockstore.Block{quarantined, block(10, 2, 1, 2)}, map[uint64]uint64{9: 10}},
		{"a quarantined one hides nothing", []blockstore.Block{block(1, 1, 1), quarantined}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocks := make(map[ulid.ULID]blockstore.Block)
			for _, b := range c.blocks {
				blocks[b.Meta.ULID] = b
			}
			want := make(map[ulid.ULID]ulid.ULID)
			for from, to := range c.want {
				want[id(from)] = id(to)
			}
			require.Equal(t, want, blockstore.Superseded(blocks))
		})
	}
}
