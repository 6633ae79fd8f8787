package ingester

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// damageNewest makes the newest local block one that cannot be opened, and returns its name
// and what mends it.
func (f *fixture) damageNewest() (name string, mend func()) {
	f.t.Helper()
	blocks := f.lookup(acme).blocks.get()
	b := blocks[len(blocks)-1]
	path := filepath.Join(b.dir, "index")
	good, err := os.ReadFile(path)
	require.NoError(f.t, err)
	require.NoError(f.t, os.WriteFile(path, good[:20], 0o600))
	return b.meta.ULID.String(), func() { require.NoError(f.t, os.WriteFile(path, good, 0o600)) }
}

// left is what the deletion of deletionsFailing leaves.
var left = map[string][]string{"b": {"5h30m0s 1", "8h0m0s 1"}}

// deletionsFailing is a tenant with two local blocks, of which the first may go once it is
// seen in the bucket, with a head whose next cut is due, and with a deletion of series "a" of all times.
func deletionsFailing(t *testing.T, options ...option) *fixture {
	t.Helper()
	f := newFixture(t, options...)
	f.seeAll = false
	f.advance(8 * time.Hour)
	f.pushHours(acme, 6*time.Hour)
	f.push(acme, sample{"b", 5*time.Hour + 30*time.Minute, 1})
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 2)
	require.Len(t, f.uploads, 2)
	f.push(acme, sample{"a", 7 * time.Hour, 1}, sample{"b", 8 * time.Hour, 1})
	f.visible[f.LocalBlocks(acme)[0]] = true
	f.accept(acme, -time.Hour, 8*time.Hour, "a")
	f.lookup(acme).deletionsDue.Store(true)
	return f
}

func TestMaintenanceGoesOnThoughADeletionFails(t *testing.T) {
	f := deletionsFailing(t)
	before := f.LocalBlocks(acme)
	name, mend := f.damageNewest()
	require.ErrorContains(t, f.lookup(acme).maintain(t.Context()), name)
	require.NotContains(t, f.LocalBlocks(acme), before[0], "what is in the bucket is deleted")
	require.Len(t, f.LocalBlocks(acme), 2, "and the next window is cut")
	require.Len(t, f.uploads, 2, "nothing is uploaded that the deletion concerns")

	mend()
	f.round(acme)
	require.Equal(t, left, f.stored(acme))
	require.Len(t, f.uploads, 3)
}

func TestADeletionThatFailsDoesNotTouchTheHead(t *testing.T) {
	f := deletionsFailing(t)
	name, mend := f.damageNewest()
	series := f.lookup(acme).db.Head().NumSeries()
	for range 3 {
		_, err := f.ApplyDeletions(t.Context(), acme)
		require.ErrorContains(t, err, name)
	}
	require.Equal(t, series, f.lookup(acme).db.Head().NumSeries())
	require.Len(t, f.LocalBlocks(acme), 2)
	mend()
	f.apply(acme)
	require.Equal(t, left, f.stored(acme))
}

func TestADeletionThatIsTriedAgainDoesNotCutWhatCameSince(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.advance(6 * time.Hour)
	for at := time.Duration(0); at <= 6*time.Hour; at += time.Hour {
		f.push(acme, sample{"a", at, 1}, sample{"b", at, 1})
	}
	f.round(acme)
	f.push(acme, sample{"a", 5*time.Hour + time.Minute, 1}) // late
	f.accept(acme, 0, 6*time.Hour, "a")
	// The block opens, and the last chunk in it, of series b, cannot be read.
	chunks := filepath.Join(f.lookup(acme).blocks.get()[0].dir, "chunks", "000001")
	good, err := os.ReadFile(chunks)
	require.NoError(t, err)
	bad := slices.Clone(good)
	bad[len(bad)-1] ^= 1
	require.NoError(t, os.WriteFile(chunks, bad, 0o600))

	f.lookup(acme).deletionsDue.Store(true)
	require.ErrorContains(t, f.lookup(acme).maintain(t.Context()), "checksum")
	require.EqualValues(t, 1, f.lookup(acme).db.Head().NumSeries(), "the series was cut out of the head")
	before := f.LocalBlocks(acme)
	for k := range 3 {
		f.advance(2 * time.Minute)
		at := 6*time.Hour + time.Duration(2*k+2)*time.Minute
		f.push(acme, sample{"a", at, 1})
		f.push(acme, sample{"a", at - time.Minute, 1}) // late
		require.ErrorContains(t, f.lookup(acme).maintain(t.Context()), "checksum")
		require.Equal(t, before, f.LocalBlocks(acme))
		require.EqualValues(t, 2, f.lookup(acme).db.Head().NumSeries())
	}
	require.NoError(t, os.WriteFile(chunks, good, 0o600))
	f.round(acme)
	require.Len(t, f.stored(acme)["a"], 6)
	require.Len(t, f.stored(acme)["b"], 7)
}

func TestADeletionThatHasNoRoomDoesNotHoldUpWhatMakesRoom(t *testing.T) {
	f := deletionsFailing(t)
	before := f.LocalBlocks(acme)
	full := func(string) (uint64, bool, error) { return 60 << 20, false, nil }
	f.disk.statf, f.disk.checked = full, time.Time{}
	require.ErrorIs(t, f.lookup(acme).maintain(t.Context()), errDisk)
	require.Equal(t, before[1:], f.LocalBlocks(acme))
	require.EqualValues(t, 2, f.lookup(acme).db.Head().NumSeries())

	f.disk.statf, f.disk.checked = statfs, time.Time{}
	f.round(acme)
	require.Equal(t, left, f.stored(acme))
}

func TestHeadsAreCutWhileTheBucketIsAwayAndADeletionIsDue(t *testing.T) {
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	f := deletionsFailing(t, func(f *fixture) { f.bucket = bucket })
	before := f.LocalBlocks(acme)
	bucket.FailFrom(1)
	require.Error(t, f.lookup(acme).maintain(t.Context()))
	require.Len(t, f.LocalBlocks(acme), 2, "one was cut and one deleted")
	require.NotContains(t, f.LocalBlocks(acme), before[0])
	require.True(t, f.lookup(acme).deletionsDue.Load())

	bucket.Heal()
	f.round(acme)
	require.Equal(t, left, f.stored(acme))
}
