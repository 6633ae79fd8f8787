package ingester

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
)

// pushFleet pushes samples of 30 series, every ten minutes for so long.
func (f *fixture) pushFleet(from, to time.Duration) {
	f.t.Helper()
	for at := from; at <= to; at += 10 * time.Minute {
		var samples []sample
		for i := range 30 {
			samples = append(samples, sample{fmt.Sprintf("s%d", i), at, float64(at)})
		}
		f.push(acme, samples...)
	}
}

func TestBlocksOfALargeTenantAreCutInShards(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(12 * time.Hour)
	f.pushFleet(0, 0)
	f.lookup(acme).cutter.most = 10
	f.pushFleet(10*time.Minute, 4*time.Hour)
	want := f.stored(acme)
	f.round(acme)
	require.Equal(t, want, f.stored(acme), "from the shards and the head")

	store := blockstore.New(f.bucket, nil)
	blocks, _, err := store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	shards := map[blockstore.Shard]bool{}
	for id, block := range blocks {
		require.Equal(t, []ulid.ULID{id}, blockstore.Sources(block.Meta), "it is a source of its own")
		require.Equal(t, uint64(4), block.Shard().Count)
		shards[block.Shard()] = true
		dir := filepath.Join(t.TempDir(), id.String())
		require.NoError(t, store.Download(context.Background(), acme, id, dir))
		requireShard(t, dir, block.Shard())
	}
	require.Len(t, shards, 4)
	require.Len(t, f.inBucket(acme)["s7"], 12, "the window of two hours that is complete")

	// A tenant that becomes small keeps its shards until the next restart, so that what
	// is merged fits.
	f.lookup(acme).cutter.most = 1000
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Equal(t, want, f.inBucket(acme))
	blocks, _, err = store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 12)
	f.restart()
	require.Equal(t, want, f.stored(acme))
}

func requireShard(t *testing.T, dir string, shard blockstore.Shard) {
	t.Helper()
	block, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, block.Close()) }()
	querier, err := tsdb.NewBlockQuerier(block, 0, 1<<60)
	require.NoError(t, err)
	defer func() { require.NoError(t, querier.Close()) }()
	set := querier.Select(context.Background(), false, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		require.Equal(t, shard.Index, labels.StableHash(set.At().Labels())%shard.Count)
	}
	require.NoError(t, set.Err())
}

func TestLateSamplesOfALargeTenantAreCutInShards(t *testing.T) {
	f := newFixture(t)
	f.advance(12 * time.Hour)
	f.pushFleet(0, 0)
	f.lookup(acme).cutter.most = 10
	f.pushFleet(time.Hour, 2*time.Hour)
	f.pushFleet(5*time.Minute, 30*time.Minute)
	want := f.stored(acme)
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Equal(t, want, f.inBucket(acme))
}

func TestACrashBetweenTheShardsOfACutLosesNothing(t *testing.T) {
	for committed := range 5 {
		f := newFixture(t)
		f.advance(12 * time.Hour)
		f.pushFleet(0, 4*time.Hour)
		want := f.stored(acme)
		db := f.lookup(acme).db
		mint, maxt := noon.UnixMilli(), noon.Add(2*time.Hour).UnixMilli()
		var specs []blockwriter.Spec
		for i := range uint64(4) {
			meta := tsdb.BlockMeta{ULID: ulid.MustNew(ulid.Now(), rand.Reader), MinTime: mint, MaxTime: maxt}
			meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{meta.ULID}}
			specs = append(specs, blockwriter.Spec{Meta: meta, Extension: blockstore.Extension{Shard: &blockstore.Shard{Index: i, Count: 4}}})
		}
		head := tsdb.NewRangeHead(db.Head(), mint, maxt-1)
		pending, err := blockwriter.Write(t.Context(), blockwriter.Config{Parent: f.lookup(acme).dir}, []tsdb.BlockReader{head}, specs)
		require.NoError(t, err)
		require.Len(t, pending, 4)
		for i, p := range pending[:committed] {
			if i < len(pending)-1 {
				p.Meta.Compaction.SetSelectedSeries()
			}
			_, err := p.Commit()
			require.NoError(t, err)
		}
		crashed := f.afterCrash()
		require.Equal(t, want, crashed.stored(acme), "%d shards had their names", committed)
		crashed.lookup(acme).cutter.most = 10
		crashed.round(acme)
		require.Equal(t, want, crashed.stored(acme))
		require.NoError(t, crashed.close())
		crashed.Ingester = nil
	}
}

func TestACutThatCannotNameAllItsShardsNamesNone(t *testing.T) {
	f := newFixture(t)
	f.advance(12 * time.Hour)
	f.pushFleet(0, 0)
	f.lookup(acme).cutter.most = 10
	f.pushFleet(10*time.Minute, 4*time.Hour)
	db := f.lookup(acme).db
	compactor := blockCompactor{&f.lookup(acme).cutter}
	ids, err := compactor.Write(filepath.Join(db.Dir(), "nowhere", "\x00"), tsdb.NewRangeHead(db.Head(), noon.UnixMilli(), noon.UnixMilli()+1), noon.UnixMilli(), noon.UnixMilli()+2, nil)
	require.Error(t, err)
	require.Empty(t, ids)
}

func TestACutThatFailedLosesNothingThoughWhatItWroteCannotBeRemoved(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(12 * time.Hour)
	f.pushFleet(0, 0)
	tdb := f.lookup(acme)
	tdb.cutter.most = 10
	f.pushFleet(10*time.Minute, 4*time.Hour)
	want := f.stored(acme)
	mint, maxt := noon.UnixMilli(), noon.Add(blockRange).UnixMilli()
	_, err := headCompactor{&tdb.cutter}.Write("", tsdb.NewRangeHead(tdb.db.Head(), mint, maxt-1), mint, maxt, nil)
	require.NoError(t, err)
	shards := slices.Clone(tdb.cutter.staged)
	require.Len(t, shards, 4)
	inTheWay := shards[3].dir + deletedSuffix
	require.NoError(t, os.MkdirAll(filepath.Join(inTheWay, "something"), 0o750))
	failure := errors.New("no")
	require.ErrorIs(t, tdb.cutter.cut(func() error { return failure }), failure)

	// The last shard says that the head was cut, so the others are needed.
	crashed := f.afterCrash()
	crashed.seeAll = false
	require.Equal(t, want, crashed.stored(acme))
	require.Equal(t, want, f.stored(acme))
}
