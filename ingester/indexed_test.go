package ingester

import (
	"bytes"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// index writes an index of acme's blocks in the bucket, those apart that are to be missing.
func (f *fixture) index(generation uint64, missing ...ulid.ULID) {
	f.t.Helper()
	store := blockstore.New(f.bucket, nil)
	blocks, _, err := store.Blocks(f.t.Context(), acme)
	require.NoError(f.t, err)
	maps.DeleteFunc(blocks, func(id ulid.ULID, _ blockstore.Block) bool { return slices.Contains(missing, id) })
	require.NoError(f.t, store.WriteIndex(f.t.Context(), acme, blockstore.Index{Generation: generation, Blocks: blocks}))
}

// old is a member of a cluster with three blocks in the bucket, of which two are so old
// that no late sample is compared with them.
func old(t *testing.T) *fixture {
	f := newFixture(t, withCluster(i0, time.Hour), withConfig(func(c *Config) { c.IdleTimeout = 48 * time.Hour }))
	f.advance(10 * time.Hour)
	f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3)
	return f
}

// pass lets time go by in small steps.
func (f *fixture) pass(d time.Duration) {
	for ; d > 0; d -= 2 * time.Minute {
		f.advance(2 * time.Minute)
		f.round(acme)
	}
}

func TestABlockThatNoIndexListsStaysForHours(t *testing.T) {
	f := old(t)
	f.pass(keepUnindexed - 10*time.Minute)
	require.Len(t, f.LocalBlocks(acme), 3)
	require.Zero(t, f.Holding(acme).IndexGeneration)
	f.pass(20 * time.Minute)
	require.Less(t, len(f.LocalBlocks(acme)), 3, "without a compactor the disk must not fill up")
	require.EqualValues(t, 1, f.Holding(acme).IndexGeneration, "any index will be later")
}

func TestABlockThatTheIndexLosesStays(t *testing.T) {
	f := old(t)
	blocks := f.LocalBlocks(acme)
	f.index(1)
	f.pass(50 * time.Minute)
	f.index(2, blocks...) // by a compactor that stood still for an hour
	f.pass(2 * time.Hour)
	require.Len(t, f.LocalBlocks(acme), 3)
	require.NoError(t, f.bucket.Upload(t.Context(), "~index/acme.json.gz", bytes.NewReader([]byte("damaged"))))
	f.pass(30 * time.Minute)
	require.Len(t, f.LocalBlocks(acme), 3)
	f.index(3)
	f.pass(2*time.Hour + lookMost)
	require.Less(t, len(f.LocalBlocks(acme)), 3)
	require.EqualValues(t, 3, f.Holding(acme).IndexGeneration)
}

func TestTheIndexIsReadSeldom(t *testing.T) {
	const keep = time.Hour
	var x indexed
	id := ulid.ULID{1}
	now := noon
	looks := 0
	index := blockstore.Index{Generation: 1}
	for age := time.Duration(0); age < 12*time.Hour; age += 15 * time.Second {
		local := copies{id: {age: age, settled: age > 3*time.Hour}}
		if age == 10*time.Minute {
			index.Blocks = map[ulid.ULID]blockstore.Block{id: {}}
		}
		if x.due(local, keep, now.Add(age)) {
			looks++
			x.saw(index, local, now.Add(age))
		}
		if x.lists(id, keep, now.Add(age)) && local[id].settled {
			break // it is deleted
		}
	}
	require.Less(t, looks, 12)
	require.True(t, x.lists(id, keep, now.Add(3*time.Hour+time.Minute)))
}
