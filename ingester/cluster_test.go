package ingester

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// i0 is the member that the tests' ingesters are.
var i0 = Member{Instance: "i0", Generation: 7}

// placedAmong returns a placement of i0 and others with the replication factor 3.
func placedAmong(others ...string) Placed {
	members := []cluster.Placed{{Member: hashring.Member{ID: i0.Instance}, Generation: i0.Generation}}
	for n, id := range others {
		members = append(members, cluster.Placed{Member: hashring.Member{ID: id, Rank: n + 1}, Generation: 1})
	}
	return Placed{Placement: cluster.NewPlacement(3, members)}
}

// place pushes samples that placed sent here.
func (f *fixture) place(placed Placed, samples ...sample) {
	f.t.Helper()
	result, err := f.PushPlaced(context.Background(), acme, batch(samples...), placed)
	require.NoError(f.t, err)
	require.Equal(f.t, len(samples), result.Written.Samples)
}

func (f *fixture) file(name string) string {
	return filepath.Join(f.dir, "ingester", string(acme), name)
}

func TestPlacementsAreOnDiskBeforeTheFirstSampleIsAcknowledged(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	three, five := placedAmong("i1", "i2"), placedAmong("i1", "i2", "i3", "i4")
	five.Shard = 4
	f.place(three, sample{"a", 0, 1})
	require.Equal(t, []wire.PlacementRef{three.ref()}, f.Holding(acme).Placements)
	f.place(five, sample{"a", time.Second, 1})
	data, err := os.ReadFile(f.file(placementsFile))
	require.NoError(t, err)
	disk, err := decodePlacements(data)
	require.NoError(t, err)
	require.Len(t, disk.Placements, 2)

	f.restart()
	require.ElementsMatch(t, []wire.PlacementRef{three.ref(), five.ref()}, f.Holding(acme).Placements)
	held := f.Holding(acme)
	require.Equal(t, "i0", held.Instance)
	require.EqualValues(t, 7, held.Generation)

	require.NoError(t, os.Chmod(filepath.Dir(f.file("")), 0o500))
	t.Cleanup(func() { require.NoError(t, os.Chmod(filepath.Dir(f.file("")), 0o750)) })
	if os.Geteuid() != 0 { // root writes anywhere
		_, err = f.PushPlaced(context.Background(), acme, batch(sample{"a", time.Minute, 1}), placedAmong("i9", "i8"))
		var unavailable *wire.UnavailableError
		require.ErrorAs(t, err, &unavailable)
	}
}

func TestPlacementIsForgottenOnceItsSamplesAreUploaded(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	old, current := placedAmong("i1", "i2"), placedAmong("i1", "i2", "i3")
	f.place(old, sample{"a", 0, 1})
	for at := 10 * time.Minute; at <= 14*time.Hour; at += 10 * time.Minute {
		f.advance(10 * time.Minute)
		f.place(current, sample{"a", at, 1})
		f.round(acme)
		if at <= placementUnused {
			require.Len(t, f.Holding(acme).Placements, 2, "after %s", at)
		}
	}
	require.Equal(t, []wire.PlacementRef{current.ref()}, f.Holding(acme).Placements)
	f.restart()
	require.Equal(t, []wire.PlacementRef{current.ref()}, f.Holding(acme).Placements)
}

func TestPlacementIsKeptWhileItsSamplesAreNotUploaded(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	old, current := placedAmong("i1", "i2"), placedAmong("i1", "i2", "i3")
	f.place(old, sample{"a", 0, 1})
	for range 10 {
		f.advance(time.Hour)
		f.place(current, sample{"a", time.Minute, 1}) // no window is ever complete
		f.round(acme)
	}
	require.Len(t, f.Holding(acme).Placements, 2)
}

func TestSamplesOfASingleProcessCountAsPlacedOnItAlone(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	require.NoError(t, f.close())
	withCluster(i0, time.Hour)(f)
	f.open()
	alone := i0.alone()
	require.Equal(t, 1, alone.Placement.RF())
	require.Equal(t, []wire.PlacementRef{alone.ref()}, f.Holding(acme).Placements)
	three := placedAmong("i1", "i2")
	f.place(three, sample{"a", time.Second, 1})
	require.Len(t, f.Holding(acme).Placements, 2)
	f.round(acme)

	t.Run("also when it leaves the cluster for a while", func(t *testing.T) {
		f.advance(7 * time.Hour)
		f.place(three, sample{"a", 7 * time.Hour, 1})
		f.advance(3 * time.Hour)
		f.place(three, sample{"a", 10 * time.Hour, 1})
		f.round(acme)
		f.round(acme)
		require.Equal(t, []wire.PlacementRef{three.ref()}, f.Holding(acme).Placements)
		require.NoError(t, f.close())
		f.cluster = nil
		f.open()
		require.NoError(t, f.close())
		withCluster(i0, time.Hour)(f)
		f.open()
		require.Len(t, f.Holding(acme).Placements, 2)
	})
}

func TestNewTenantOfAMemberHasNoPlacementsBeforeItsFirstSample(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.offer(acme, batch(sample{"a", time.Hour, 1})) // in the future: rejected
	f.restart()
	require.Equal(t, []wire.PlacementRef{i0.alone().ref()}, f.Holding(acme).Placements, "Push without a placement is for samples that are only here")
}

func TestBlocksStayAnHourAfterTheirUpload(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour), withConfig(func(c *Config) { c.IdleTimeout = 5 * time.Hour }))
	f.advance(10 * time.Hour)
	f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3)
	require.Len(t, f.uploads, 3)
	start := f.Holding(acme).HeldFrom
	require.Equal(t, noon.Add(maxAhead).UnixMilli(), start, "what came before this process is not known")
	require.Zero(t, f.Holding(acme).IndexGeneration)
	f.index(7)
	f.advance(time.Minute)
	f.round(acme)
	f.advance(59 * time.Minute)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3, "the hour counts from when the index was seen to list them")
	require.Equal(t, start, f.Holding(acme).HeldFrom)

	f.restart()
	f.round(acme)
	f.advance(59 * time.Minute)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 3, "and anew after a restart")
	f.index(8)
	f.advance(time.Minute)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 1)
	held := f.Holding(acme)
	require.EqualValues(t, 8, held.IndexGeneration)
	require.Equal(t, noon.Add(4*time.Hour).UnixMilli(), held.HeldFrom)
	require.Equal(t, f.LocalBlocks(acme), held.Blocks)
	f.restart()
	require.Equal(t, held.HeldFrom, f.Holding(acme).HeldFrom)
}

func TestIdleTenantStaysUntilNobodyNeedsItHere(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.place(placedAmong("i1", "i2"), sample{"a", 0, 1})
	f.advance(time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 1, "uploaded just now")
	f.index(1)
	f.advance(time.Minute)
	f.round(acme)
	f.advance(time.Hour)
	f.round(acme)
	require.Empty(t, f.LocalBlocks(acme))
	held := f.Holding(acme)
	require.Len(t, held.Placements, 1, "other members may not have uploaded theirs")
	require.Greater(t, held.HeldFrom, noon.UnixMilli())
	require.Empty(t, f.stored(acme))

	t.Run("a write opens it again", func(t *testing.T) {
		f.place(placedAmong("i1", "i2"), sample{"a", 2 * time.Hour, 1})
		require.Len(t, f.stored(acme)["a"], 1)
		require.Equal(t, held.HeldFrom, f.Holding(acme).HeldFrom)
	})
	for n := range uint64(16) {
		f.index(2 + n)
		f.advance(30 * time.Minute)
		if f.lookup(acme) != nil {
			f.round(acme)
		}
	}
	require.Nil(t, f.lookup(acme))
	require.NoDirExists(t, f.file(""))
	gone := f.Holding(acme)
	require.Empty(t, gone.Placements)
	require.Greater(t, gone.HeldFrom, noon.Add(2*time.Hour).UnixMilli(), "all that was acknowledged here is in the bucket")

	f.place(placedAmong("i1", "i2"), sample{"a", 10 * time.Hour, 1})
	require.Equal(t, gone.HeldFrom, f.Holding(acme).HeldFrom)
}

func TestShippedFileOfTheReleaseBeforeIsRead(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour), withConfig(func(c *Config) { c.IdleTimeout = 5 * time.Hour }))
	f.advance(10 * time.Hour)
	f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	blocks := f.LocalBlocks(acme)
	require.NoError(t, f.close())

	// The release before drops the fields that it does not know, and may delete blocks.
	var old struct {
		Version int         `json:"version"`
		Blocks  []ulid.ULID `json:"blocks"`
	}
	data, err := os.ReadFile(f.file(shippedFile))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &old), "it reads our file")
	require.Equal(t, 1, old.Version)
	require.Equal(t, blocks, old.Blocks)
	data, err = json.Marshal(old)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(f.file(shippedFile), data, 0o600))

	uploads := len(f.uploads)
	f.open()
	f.round(acme)
	require.Len(t, f.uploads, uploads, "nothing is uploaded twice")
	require.Equal(t, noon.Add(10*time.Hour+maxAhead).UnixMilli(), f.Holding(acme).HeldFrom, "nobody knows what it deleted")
	require.Len(t, f.LocalBlocks(acme), 3, "nor when it uploaded")
	f.index(1)
	f.advance(time.Minute)
	f.round(acme)
	f.advance(time.Hour)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 1)
}

func TestBlocksThatAnotherReleaseDeletedAreNoticed(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.advance(10 * time.Hour)
	f.pushHours(acme, 8*time.Hour)
	f.round(acme)
	blocks := f.LocalBlocks(acme)
	before := f.Holding(acme).HeldFrom
	require.NoError(t, f.close())
	require.NoError(t, os.RemoveAll(f.file(blocks[1].String())))
	f.open()
	require.Less(t, before, f.Holding(acme).HeldFrom)
	require.Equal(t, noon.Add(4*time.Hour).UnixMilli(), f.Holding(acme).HeldFrom)
}

func TestUnreadablePlacementsKeepTheTenantClosed(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.place(placedAmong("i1", "i2"), sample{"a", 0, 1})
	require.NoError(t, f.close())
	require.NoError(t, os.WriteFile(f.file(placementsFile), []byte(`{"version": 1, "placements": [{"definition": "AAAA"}]}`), 0o600))
	f.open()
	_, err := f.Querier(acme, 0, math.MaxInt64)
	var unavailable *wire.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	require.ErrorContains(t, err, placementsFile)
}

func FuzzDecodePlacements(f *testing.F) {
	f.Add([]byte(`{"version":1,"placements":[{"definition":"AQMCaTAAAAAAAAAAAAAH","shard":3,"used":"2026-05-04T12:00:00Z"}],"alone":true}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"placements":[{"shard":-1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := decodePlacements(data)
		if err != nil {
			return
		}
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, placementsFile), data, 0o600))
		p, err := openPlacements(dir, noon, i0.alone())
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(p.used), len(d.Placements))
		p.mu.Lock()
		require.NoError(t, p.saveLocked())
		p.mu.Unlock()
		again, err := openPlacements(dir, noon, i0.alone())
		require.NoError(t, err)
		require.Equal(t, p.refs(), again.refs())
	})
}

func FuzzDecodeShipped(f *testing.F) {
	f.Add([]byte(`{"version":1,"blocks":["01K8ZQ4W0N8S5J2H7D6M3V9XTB"]}`))
	f.Add([]byte(`{"version":1,"blocks":["01K8ZQ4W0N8S5J2H7D6M3V9XTB"],"held_from_ms":5,"uploads":{"01K8ZQ4W0N8S5J2H7D6M3V9XTB":{"time_ms":1,"max_ms":9}}}`))
	f.Add([]byte(`{"version":1,"blocks":[],"cut_before_ms":-7}`))
	f.Add([]byte(`{"version":3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := decodeShipped(data); err != nil {
			return
		}
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, shippedFile), data, 0o600))
		s, err := openShipped(dir, noon, 0)
		require.NoError(t, err)
		require.NoError(t, s.save())
		again, err := openShipped(dir, noon, 0)
		require.NoError(t, err)
		require.Equal(t, s.uploads, again.uploads)
		require.Equal(t, s.from(), again.from())
		require.Equal(t, s.cutBefore(), again.cutBefore())
	})
}
