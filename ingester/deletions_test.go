package ingester

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func (f *fixture) store() *blockstore.Store { return f.deps.Store }

// accept records a deletion of series between two times after noon.
func (f *fixture) accept(id tenant.ID, from, to time.Duration, series ...string) blockstore.Deletion {
	f.t.Helper()
	d := blockstore.Deletion{
		ID: ulid.Make(), Accepted: f.Ingester.now(), Blocks: []ulid.ULID{},
		Selectors: []string{fmt.Sprintf(`{__name__="m",s=~"%s"}`, strings.Join(series, "|"))},
		MinMs:     noon.Add(from).UnixMilli(), MaxMs: min(noon.Add(to).UnixMilli(), f.Ingester.now().UnixMilli()),
	}
	require.NoError(f.t, f.store().PutDeletion(context.Background(), id, d))
	return d
}

func (f *fixture) apply(id tenant.ID) []CarriedOut {
	f.t.Helper()
	done, err := f.ApplyDeletions(context.Background(), id)
	require.NoError(f.t, err)
	return done
}

func TestADeletionHidesWhatIsThereAndNotWhatComesLater(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
	f.push("a", sample{"x", 3 * time.Minute, 3}, sample{"y", 3 * time.Minute, 3})
	f.push("a", sample{"x", 2 * time.Minute, 2}) // out of order
	f.advance(10 * time.Minute)
	d := f.accept("a", 0, 150*time.Second, "x")
	done := f.apply("a")
	require.Len(t, done, 1)
	require.Equal(t, d.ID, done[0].ID)
	require.NotEmpty(t, done[0].Blocks)
	want := map[string][]string{"x": {"3m0s 3"}, "y": {"1m0s 1", "3m0s 3"}}
	require.Equal(t, want, f.stored("a"))
	f.restart()
	require.Equal(t, want, f.stored("a"))

	// The same samples again, late, and others.
	f.push("a", sample{"x", time.Minute, 1}, sample{"x", 90 * time.Second, 9})
	want["x"] = []string{"1m0s 1", "1m30s 9", "3m0s 3"}
	require.Equal(t, want, f.stored("a"))
	require.Equal(t, done, f.apply("a"), "it is not carried out twice")
	require.Equal(t, want, f.stored("a"))
	require.NoError(t, f.Flush(context.Background(), "a"))
	f.restart()
	require.Equal(t, want, f.stored("a"))
	f.push("a", sample{"x", 5 * time.Minute, 5}, sample{"y", 5 * time.Minute, 5})
}

func TestNothingIsUploadedBeforeADeletionIsCarriedOut(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
	f.advance(2 * time.Hour) // the tenant is idle
	f.accept("a", 0, time.Hour, "x")
	require.ErrorIs(t, f.lookup("a").maintain(context.Background()), errDeletionsDue)
	require.Empty(t, f.uploads)
	f.round("a")
	require.NotEmpty(t, f.uploads)
	require.Equal(t, map[string][]string{"y": {"1m0s 1"}}, f.inBucket("a"))
}

func TestAnIngesterThatWasAwayCarriesOutWhatWasCompletedMeanwhile(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
	f.apply("a")
	require.NoError(t, f.close())
	f.advance(24 * time.Hour)
	d := f.accept("a", 0, time.Hour, "x")
	require.NoError(t, f.store().FinishDeletion(context.Background(), "a", blockstore.Receipt{Deletion: d}))
	f.advance(24 * time.Hour)
	f.open()
	require.Empty(t, f.apply("a"), "none is active")
	require.Equal(t, map[string][]string{"y": {"1m0s 1"}}, f.stored("a"))
}

func TestAnOlderDeletionDoesNotConcernATenantThatBegins(t *testing.T) {
	f := newFixture(t)
	d := f.accept("a", -time.Hour, 0, "x")
	require.Equal(t, []CarriedOut{{ID: d.ID}}, f.apply("a"))
	f.advance(time.Minute)
	f.push("a", sample{"x", -time.Minute, 1})
	require.Equal(t, []CarriedOut{{ID: d.ID}}, f.apply("a"))
	require.Len(t, f.stored("a")["x"], 1)
	require.NoError(t, os.Remove(filepath.Join(f.Ingester.cfg.Dir, deletionsFolder, "a.json")))
}

func TestADeletedTenantBeginsAnew(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	f.push("b", sample{"x", time.Minute, 1})
	require.NoError(t, f.Flush(context.Background(), "a"))
	uploads := len(f.uploads)
	f.push("a", sample{"x", 2 * time.Minute, 2})
	d := blockstore.Deletion{ID: ulid.Make(), WholeTenant: true, MinMs: math.MinInt64, MaxMs: math.MaxInt64, Accepted: f.Ingester.now(), Blocks: []ulid.ULID{}}
	require.NoError(t, f.store().PutDeletion(context.Background(), "a", d))
	done := f.apply("a")
	require.Len(t, done[0].Blocks, 1)
	require.Empty(t, f.stored("a"))
	require.Len(t, f.stored("b")["x"], 1)
	require.Len(t, f.uploads, uploads)
	f.push("a", sample{"x", time.Minute, 7})
	require.Equal(t, done, f.apply("a"))
	f.restart()
	require.Equal(t, done, f.apply("a"))
	require.Equal(t, map[string][]string{"x": {"1m0s 7"}}, f.stored("a"))
}

func TestAFolderThatACrashLeftInTheTrashIsCarriedOut(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	require.NoError(t, f.Flush(context.Background(), "a"))
	d := blockstore.Deletion{ID: ulid.Make(), WholeTenant: true, MinMs: math.MinInt64, MaxMs: math.MaxInt64, Accepted: f.Ingester.now(), Blocks: []ulid.ULID{}}
	require.NoError(t, f.store().PutDeletion(context.Background(), "a", d))
	require.NoError(t, f.close())
	log := f.deletionsOf("a")
	require.NoError(t, os.MkdirAll(log.dir, 0o750))
	require.NoError(t, os.Rename(filepath.Join(f.Ingester.cfg.Dir, "a"), log.trash(d.ID)))
	f.open()
	f.push("a", sample{"x", 2 * time.Minute, 2}) // it is the tenant's new beginning
	done := f.apply("a")
	require.Len(t, done[0].Blocks, 1)
	require.Equal(t, map[string][]string{"x": {"2m0s 2"}}, f.stored("a"))
	require.NoDirExists(t, f.deletionsOf("a").trash(d.ID))
}

// acceptTenant records a deletion of the tenant that was accepted at some time before now.
func (f *fixture) acceptTenant(id tenant.ID, before time.Duration) blockstore.Deletion {
	f.t.Helper()
	d := blockstore.Deletion{
		ID: ulid.Make(), WholeTenant: true, MinMs: math.MinInt64, MaxMs: math.MaxInt64,
		Accepted: f.Ingester.now().Add(-before), Blocks: []ulid.ULID{},
	}
	require.NoError(f.t, f.store().PutDeletion(context.Background(), id, d))
	return d
}

func TestWithoutItsFileAFolderIsNotConcernedByWhatEverybodyCarriedOut(t *testing.T) {
	f := newFixture(t)
	done, settled := f.acceptTenant("a", time.Hour), f.acceptTenant("a", time.Hour)
	require.NoError(t, f.store().FinishDeletion(t.Context(), "a", blockstore.Receipt{Deletion: done}))
	require.NoError(t, f.store().SettleDeletion(t.Context(), "a", settled.ID, nil))
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
	f.advance(5 * time.Minute)
	open := f.accept("a", 0, time.Hour, "y")
	require.NoError(t, f.close())
	require.NoError(t, os.Remove(filepath.Join(f.dir, "ingester", deletionsFolder, "a.json")))
	f.open()
	for range 2 {
		f.advance(time.Hour)
		require.Len(t, f.apply("a"), 2)
		require.Empty(t, f.stored("a")["y"], "%s is not settled", open.ID)
		require.Equal(t, []string{"1m0s 1"}, f.stored("a")["x"])
		f.restart()
	}
}

func TestADeletionOfATenantDoesNotConcernAFolderThatWasMadeSoonAfter(t *testing.T) {
	f := newFixture(t)
	active, complete := f.acceptTenant("a", 5*time.Minute), f.acceptTenant("a", 5*time.Minute)
	require.NoError(t, f.store().FinishDeletion(t.Context(), "a", blockstore.Receipt{Deletion: complete}))
	f.push("a", sample{"x", time.Minute, 1})
	for range 2 {
		require.Equal(t, []CarriedOut{{ID: active.ID}}, f.apply("a"))
		require.Equal(t, map[string][]string{"x": {"1m0s 1"}}, f.stored("a"))
		f.restart()
		f.advance(time.Hour)
	}
}

func TestADeletionIsCarriedOutThoughTheClockOfWhoAcceptedItIsBehind(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	f.advance(time.Hour)
	require.Empty(t, f.apply("a"))
	d := f.acceptTenant("a", 30*time.Minute)
	done := f.apply("a")
	require.Len(t, done, 1)
	require.Equal(t, d.ID, done[0].ID)
	require.Empty(t, f.stored("a"))
}

func TestADeletionOfATenantThatIsCarriedOutLateLeavesWhatCameSince(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1}, sample{"z", 2 * time.Minute, 2})
	f.advance(5 * time.Minute)
	f.acceptTenant("a", 0)
	f.advance(2 * time.Hour)
	f.push("a", sample{"x", 125 * time.Minute, 3}, sample{"w", 125 * time.Minute, 4})
	f.push("a", sample{"x", 121 * time.Minute, 5}, sample{"x", 3 * time.Minute, 6}) // late
	want := map[string][]string{"x": {"2h1m0s 5", "2h5m0s 3"}, "w": {"2h5m0s 4"}}
	done := f.apply("a")
	require.Equal(t, want, f.stored("a"))
	require.Equal(t, done, f.apply("a"))
	f.restart()
	require.Equal(t, want, f.stored("a"))

	// What is left is not among what the deletion takes from the bucket.
	f.push("a", sample{"x", 126 * time.Minute, 7})
	want["x"] = append(want["x"], "2h6m0s 7")
	require.NoError(t, f.Flush(t.Context(), "a"))
	require.Equal(t, want, f.inBucket("a"))
	blocks, _, err := f.store().Blocks(t.Context(), "a")
	require.NoError(t, err)
	for _, b := range blocks {
		for _, source := range blockstore.Sources(b.Meta) {
			require.NotContains(t, done[0].Blocks, source)
		}
	}
}

func TestALateDeletionOfATenantWaitsUntilItCanTellWhatCameSince(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	f.advance(5 * time.Minute)
	d := f.acceptTenant("a", 0)
	f.advance(2 * time.Hour)
	f.push("a", sample{"x", 125 * time.Minute, 3})
	db := f.lookup("a")
	db.use.Lock()
	require.NoError(t, db.closeLocked())
	db.openErr, db.retryAt = errors.New("too many open files"), f.Ingester.now().Add(time.Minute)
	db.use.Unlock()
	_, err := f.ApplyDeletions(t.Context(), "a")
	require.ErrorContains(t, err, d.ID.String())
	require.ErrorContains(t, err, "too many open files")

	// It opens again in a round, though the deletion that is due cannot be carried out before.
	db.deletionsDue.Store(true)
	require.Error(t, db.maintain(t.Context()))
	f.advance(time.Minute)
	f.round("a")
	require.False(t, db.deletionsDue.Load())
	require.Len(t, f.apply("a"), 1)
	require.Equal(t, map[string][]string{"x": {"2h5m0s 3"}}, f.stored("a"))
}

func TestADeletionOfATenantThatCouldNotTakeTheFolderAwayStaysDue(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	d := f.acceptTenant("a", 0)
	inTheWay := f.deletionsOf("a").trash(d.ID)
	require.NoError(t, os.MkdirAll(filepath.Join(inTheWay, "something"), 0o750))
	for range 2 {
		_, err := f.ApplyDeletions(t.Context(), "a")
		require.ErrorContains(t, err, d.ID.String())
	}
	require.NoError(t, os.RemoveAll(inTheWay))
	f.restart()
	require.Len(t, f.apply("a"), 1)
	require.Empty(t, f.stored("a"))
}

func TestMaintenanceCarriesOutADeletionOfATenantOnceItsFolderCanBeTakenAway(t *testing.T) {
	for name, between := range map[string]func(*fixture){
		"nothing comes": func(*fixture) {},
		"a write comes": func(f *fixture) { f.push("a", sample{"y", 2 * time.Minute, 2}) },
		"a query comes": func(f *fixture) { require.Empty(f.t, f.stored("a")) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push("a", sample{"x", time.Minute, 1})
			require.NoError(t, f.Flush(t.Context(), "a"))
			d := f.acceptTenant("a", 0)
			inTheWay := f.deletionsOf("a").trash(d.ID)
			require.NoError(t, os.MkdirAll(filepath.Join(inTheWay, "something"), 0o750))
			_, err := f.ApplyDeletions(t.Context(), "a")
			require.ErrorContains(t, err, d.ID.String())
			between(f)
			require.ErrorContains(t, f.lookup("a").maintain(t.Context()), d.ID.String())

			require.NoError(t, os.RemoveAll(inTheWay))
			require.NoError(t, f.lookup("a").maintain(t.Context()))
			require.NoDirExists(t, filepath.Join(f.Ingester.cfg.Dir, "a"))
			require.NoDirExists(t, inTheWay)
			require.Empty(t, f.stored("a"))
			require.Len(t, f.apply("a")[0].Blocks, 1)
			f.push("a", sample{"x", time.Minute, 7})
			require.Equal(t, map[string][]string{"x": {"1m0s 7"}}, f.stored("a"))
			require.Len(t, f.apply("a"), 1)
			require.Equal(t, map[string][]string{"x": {"1m0s 7"}}, f.stored("a"))
		})
	}
}

func TestADeletionOfATenantThatCouldNotBeWrittenDownIsCompletedWithoutARestart(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	require.NoError(t, f.Flush(t.Context(), "a"))
	d := f.acceptTenant("a", 0)
	list := filepath.Join(f.deletionsOf("a").dir, "a.json")
	before, err := os.ReadFile(list)
	require.NoError(t, err)
	require.NoError(t, os.Remove(list))
	require.NoError(t, os.MkdirAll(filepath.Join(list, "something"), 0o750)) // so that it cannot be written
	_, err = f.ApplyDeletions(t.Context(), "a")
	require.ErrorContains(t, err, d.ID.String())
	require.DirExists(t, f.deletionsOf("a").trash(d.ID))
	require.Empty(t, f.stored("a"))

	require.NoError(t, os.RemoveAll(list))
	require.NoError(t, os.WriteFile(list, before, 0o600))
	require.NoError(t, f.lookup("a").maintain(t.Context()))
	require.NoDirExists(t, f.deletionsOf("a").trash(d.ID))
	f.restart()
	require.Len(t, f.apply("a")[0].Blocks, 1)
}

func TestADeletionOfSeriesLooksAtWhatADeletionOfTheTenantLeftBehind(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
	f.advance(10 * time.Minute)
	f.accept("a", 0, time.Hour, "x")
	left := f.lookup("a")
	require.NoError(t, left.close())
	f.forget(left) // as when it could not be closed
	require.Len(t, f.apply("a"), 1)
	require.Equal(t, map[string][]string{"y": {"1m0s 1"}}, f.stored("a"))
}

func TestADeletionDoesNotTakeATenantThatBeganAnewMeanwhile(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", time.Minute, 1})
	old := f.lookup("a")
	require.NoError(t, old.close())
	f.forget(old)
	f.push("a", sample{"x", 2 * time.Minute, 2})
	d := f.acceptTenant("a", 0)
	_, err := old.dropAll(t.Context(), f.deletionsOf("a"), d.ID)
	require.Error(t, err)
	require.Equal(t, map[string][]string{"x": {"1m0s 1", "2m0s 2"}}, f.stored("a"))
}

func TestADeletionThatACrashInterruptedNamesTheBlocksOfBefore(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
	require.NoError(t, f.Flush(t.Context(), "a"))
	inBucket, _, err := f.store().Blocks(t.Context(), "a")
	require.NoError(t, err)
	require.Len(t, inBucket, 1)
	f.advance(10 * time.Minute)
	d := f.accept("a", 0, time.Hour, "x")
	_, err = f.lookup("a").deleteSeries(t.Context(), &d) // nobody wrote down that it was done
	require.NoError(t, err)
	f.restart()
	done := f.apply("a")
	for name := range inBucket {
		require.Contains(t, done[0].Blocks, name)
	}
	require.Equal(t, map[string][]string{"y": {"1m0s 1"}}, f.stored("a"))
}

// Clocks may differ by deletionsSkew: the ingester's shows now.
func TestADeletionOfSeriesHoldsThoughClocksDiffer(t *testing.T) {
	const most = deletionsSkew - time.Second
	for ahead, want := range map[time.Duration][]string{
		// What its clock says had not come yet stays, though it was there.
		-most: {"8m0s 8", "10m0s 10"},
		0:     nil,
		most:  nil,
	} {
		f := newFixture(t) // the tenant is new: the deletion may seem older than its folder
		f.push("a", sample{"x", 0, 1}, sample{"x", 8 * time.Minute, 8}, sample{"x", 10 * time.Minute, 10})
		f.advance(10 * time.Minute)
		d := f.accept("a", -time.Hour, 10*time.Minute, "x")
		d.Accepted = f.Ingester.now().Add(ahead)
		d.MaxMs = min(d.MaxMs, d.Accepted.UnixMilli())
		require.NoError(t, f.store().PutDeletion(t.Context(), "a", d))
		require.Len(t, f.apply("a"), 1)
		require.Equal(t, want, f.stored("a")["x"], ahead)

		// What comes after it was carried out is new, be it within the time of the deletion.
		f.push("a", sample{"x", 7 * time.Minute, 7}, sample{"x", 11 * time.Minute, 11})
		f.apply("a")
		require.Equal(t, append(append([]string{"7m0s 7"}, want...), "11m0s 11"), f.stored("a")["x"], ahead)
	}
}

func TestAnIngesterThatWasAwayShortlyCarriesOutWhatWasCompletedMeanwhile(t *testing.T) {
	for _, behind := range []time.Duration{0, deletionsSkew - time.Second} {
		f := newFixture(t)
		f.push("a", sample{"x", time.Minute, 1}, sample{"y", time.Minute, 1})
		f.advance(20 * time.Minute)
		f.apply("a")
		f.accept("a", 0, time.Hour, "nothing") // so that the file is written
		f.apply("a")
		require.NoError(t, f.close())
		accepted := f.Ingester.now().Add(-behind)
		d := blockstore.Deletion{
			ID: ulid.MustNewDefault(accepted), Accepted: accepted, Selectors: []string{`{s="x"}`},
			MinMs: noon.UnixMilli(), MaxMs: noon.Add(time.Hour).UnixMilli(), Blocks: []ulid.ULID{},
		}
		require.NoError(t, f.store().FinishDeletion(t.Context(), "a", blockstore.Receipt{Deletion: d}))
		f.open()
		for range 3 { // each is soon after the last
			f.advance(4 * time.Minute)
			f.apply("a")
		}
		require.Equal(t, map[string][]string{"y": {"1m0s 1"}}, f.stored("a"), behind)
	}
}

func TestADeletionNamesTheSourcesOfBlocksThatAPrometheusMerged(t *testing.T) {
	for _, whole := range []bool{false, true} {
		f := newFixture(t)
		sources := []ulid.ULID{ulid.MustNew(1, nil), ulid.MustNew(2, nil)}
		folder := filepath.Join(f.Ingester.cfg.Dir, "a")
		merged := blocktest.Write(t, folder, noon.UnixMilli(), noon.Add(time.Hour).UnixMilli(), blocktest.Floats("m", noon.UnixMilli(), noon.Add(time.Hour).UnixMilli(), 60_000))
		path := filepath.Join(merged, "meta.json")
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		var meta tsdb.BlockMeta
		require.NoError(t, json.Unmarshal(text, &meta))
		meta.Compaction.Sources = sources
		text, err = json.Marshal(meta)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, text, 0o600))
		f.restart()
		f.advance(2 * time.Hour)
		if whole {
			f.acceptTenant("a", 0)
		} else {
			f.accept("a", 0, time.Hour, "x")
		}
		require.Equal(t, append(sources, meta.ULID), f.apply("a")[0].Blocks)
	}
}

// TestDeletionsAgainstATwin does what may happen to a tenant in any order and compares
// what is seen with a map.
func TestDeletionsAgainstATwin(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			f := newFixture(t)
			f.seeAll = false // so that all stays here
			twin := map[string]map[int64]bool{"x": {}, "y": {}, "z": {}}
			names := []string{"x", "y", "z"}
			newest := time.Duration(0)
			for step := range 60 {
				switch k := random.IntN(20); {
				case k < 9:
					newest += time.Duration(random.IntN(900)) * time.Second
					f.advance(noon.Add(newest).Sub(f.Ingester.now()))
					f.twinPush(twin, names[random.IntN(3)], newest)
				case k < 13:
					f.twinPush(twin, names[random.IntN(3)], newest-time.Duration(random.IntN(9000))*time.Second)
				case k < 16:
					from := newest - time.Duration(random.IntN(9000))*time.Second
					to := from + time.Duration(random.IntN(7200))*time.Second
					name := names[random.IntN(3)]
					d := f.accept("a", from, to, name, "nothing")
					for at := range twin[name] {
						if at >= d.MinMs && at <= d.MaxMs {
							delete(twin[name], at)
						}
					}
					f.apply("a")
				case k < 17:
					f.restart()
				case k < 18:
					require.NoError(t, f.Flush(context.Background(), "a"))
				case f.lookup("a") != nil:
					f.round("a")
				}
				f.requireTwin(twin, step)
			}
		})
	}
}

func (f *fixture) twinPush(twin map[string]map[int64]bool, series string, at time.Duration) {
	f.t.Helper()
	result := f.offer("a", batch(sample{series, at, 1}))
	if result.Written.Samples == 1 {
		twin[series][noon.Add(at).UnixMilli()] = true
	}
}

func (f *fixture) requireTwin(twin map[string]map[int64]bool, step int) {
	f.t.Helper()
	want := map[string][]string{}
	for series, times := range twin {
		var ats []int64
		for at := range times {
			ats = append(ats, at-noon.UnixMilli())
		}
		slices.Sort(ats)
		for _, at := range ats {
			want[series] = append(want[series], fmt.Sprintf("%s 1", time.Duration(at)*time.Millisecond))
		}
	}
	require.Equal(f.t, want, f.stored("a"), "step %d", step)
}

// silent is a bucket that does not answer listings for a while.
type silent struct {
	objstore.Bucket
	silent atomic.Bool
}

func (s *silent) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	if s.silent.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.Bucket.Iter(ctx, dir, f, options...)
}

func TestABucketThatDoesNotAnswerDoesNotHoldUpATenantForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := &silent{Bucket: objstore.NewInMemBucket()}
		f := newFixture(t, func(f *fixture) { f.bucket = bucket })
		f.push("a", sample{"x", time.Minute, 1})
		bucket.silent.Store(true)
		f.advance(2 * time.Hour) // the tenant is idle
		begun := time.Now()
		require.ErrorIs(t, f.lookup("a").maintain(t.Context()), context.DeadlineExceeded)
		require.Equal(t, deletionsPatience, time.Since(begun))
		require.Empty(t, f.uploads)
		bucket.silent.Store(false)
		f.round("a")
		require.NotEmpty(t, f.uploads)
	})
}

func FuzzDeletionsLog(f *testing.F) {
	for _, text := range []string{
		`{"version":1,"begun_ms":1600000000000,"checked_ms":1700000000000,"done":{"01BX5ZZKBKACTAV9WEVGEMMVRZ":["00000000000000000000000000"],"00000000000000000000000001":null}}`,
		`{"version":1,"checked_ms":-9223372036854775808,"done":null}`,
		`{"version":1,"done":{"":[]}}`,
		`{"version":2}`, `{}`, `null`, ``,
	} {
		f.Add([]byte(text))
	}
	at := time.UnixMilli(1_700_000_000_000)
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "acme.json")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		open := func() (*tenantDeletions, error) {
			d := &tenantDeletions{dir: dir, name: "acme", applying: newTurn()}
			_, _, err := d.concerns([]blockstore.ActiveDeletion{{Deletion: blockstore.Deletion{ID: ulid.MustNewDefault(at), Accepted: at}}})
			return d, err
		}
		d, err := open()
		if err != nil {
			require.ErrorContains(t, err, path, "it says which file is in the way")
			kept, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, text, kept, "nothing is forgotten for it")
			return
		}
		id := ulid.MustNewDefault(at)
		require.NoError(t, d.carriedOut(id, []ulid.ULID{id}))
		again, err := open()
		require.NoError(t, err)
		require.Equal(t, d.disk, again.disk)
		require.Equal(t, []ulid.ULID{id}, again.disk.Done[id])
		_, err = again.checked(nil, at)
		require.NoError(t, err)
	})
}
