package compactor

import (
	"context"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/deletion"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const day = 24 * hour

// accept records a deletion of what is in the bucket.
func (f *fixture) accept(t testing.TB, d blockstore.Deletion) blockstore.Deletion {
	t.Helper()
	ctx := context.Background()
	d.ID, d.Accepted, d.Blocks = ulid.Make(), f.clock, []ulid.ULID{}
	blocks, _, err := f.store.Blocks(ctx, acme)
	require.NoError(t, err)
	for _, b := range blocks {
		d.Blocks = append(d.Blocks, blockstore.Sources(b.Meta)...)
	}
	require.NoError(t, f.store.PutDeletion(ctx, acme, d))
	return d
}

func (f *fixture) active(t testing.TB) []blockstore.ActiveDeletion {
	t.Helper()
	of, err := f.store.DeletionsOf(context.Background(), acme)
	require.NoError(t, err)
	require.NoError(t, of.Fault)
	return of.Active
}

// age lets so much time pass that blocks are marked and then deleted.
func (f *fixture) age(t testing.TB) {
	t.Helper()
	for range 3 {
		f.clock = f.clock.Add(3 * time.Hour)
		require.NoError(t, f.RunOnce(context.Background()))
	}
}

// counts returns how many samples of each metric the visible blocks have.
func (f *fixture) counts(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for series, lines := range f.samples(t) {
		counts[series] = len(lines)
	}
	return counts
}

const (
	a = `{__name__="a", job="test"}`
	b = `{__name__="b", job="test"}`
)

func TestADeletionIsCarriedOutInTheBlocksAndLeavesAReceipt(t *testing.T) {
	f := newFixture(t)
	old := f.upload(t, 0, day, blocktest.Floats("a", 0, day, step), blocktest.Floats("b", 0, day, step))
	other := f.upload(t, day, 2*day, blocktest.Floats("b", day, 2*day, step))
	d := f.accept(t, blockstore.Deletion{Selectors: []string{"a"}, MinMs: hour, MaxMs: 2*hour - 1})
	require.NoError(t, f.store.SettleDeletion(context.Background(), acme, d.ID, nil))

	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, map[string]int{a: 1440, b: 2880}, f.counts(t), "it waits for others to come")

	f.clock = f.clock.Add(eraseAfter)
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, map[string]int{a: 1380, b: 2880}, f.counts(t))
	require.Contains(t, f.visible(t), other, "nothing is deleted of it")
	require.Len(t, f.active(t), 1, "the block of before may come back as long as it is there")

	f.age(t)
	require.Empty(t, f.active(t))
	receipts, err := f.store.Receipts(context.Background(), acme, time.Time{})
	require.NoError(t, err)
	require.Len(t, receipts, 1)
	require.Equal(t, d.ID, receipts[0].ID)
	require.Len(t, receipts[0].Rewritten, 1)
	require.Equal(t, []ulid.ULID{old}, receipts[0].Rewritten[0].Blocks)
	require.Contains(t, f.visible(t), receipts[0].Rewritten[0].Into)
}

func TestABlockWithoutADeletedSeriesIsLeftAsItIs(t *testing.T) {
	f := newFixture(t)
	old := f.upload(t, 0, day, blocktest.Floats("a", 0, day, step), blocktest.Floats("b", 0, day, step))
	without := f.upload(t, day, 2*day, blocktest.Floats("b", day, 2*day, step))
	elsewhen := f.upload(t, 2*day, 3*day, blocktest.Floats("a", 2*day+12*hour, 3*day, step))
	external := f.upload(t, 3*day, 4*day, blocktest.Floats("b", 3*day, 4*day, step))
	f.extend(t, external, blockstore.Extension{Version: 1, ExternalLabels: map[string]string{"cluster": "eu"}})
	d := f.accept(t, blockstore.Deletion{Selectors: []string{"a", `{cluster="eu"}`}, MinMs: 0, MaxMs: 2*day + 6*hour})
	require.NoError(t, f.store.SettleDeletion(t.Context(), acme, d.ID, nil))
	require.NoError(t, f.store.AskCleaning(t.Context(), acme))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Subset(t, f.visible(t), []ulid.ULID{without, elsewhen, external})
	require.NotContains(t, f.visible(t), old)
	require.Len(t, f.active(t), 1, "the block of before is there still")

	// As after a restart: what was found out is found out again.
	clear(f.untouched)
	f.age(t)
	require.Empty(t, f.active(t))
	require.Subset(t, f.visible(t), []ulid.ULID{without, elsewhen, external})
	require.Equal(t, map[string]int{a: 720, b: 3 * 1440}, f.counts(t))
	receipts, err := f.store.Receipts(t.Context(), acme, time.Time{})
	require.NoError(t, err)
	require.Len(t, receipts[0].Rewritten, 1)
	require.Equal(t, []ulid.ULID{old}, receipts[0].Rewritten[0].Blocks)
}

func TestWhatWasFoundOutForADeletionIsForgottenWithItAndWithItsBlocks(t *testing.T) {
	f := newFixture(t)
	goes := f.upload(t, 0, day, blocktest.Floats("b", 0, day, step))
	stays := f.upload(t, day, 2*day, blocktest.Floats("b", day, 2*day, step))
	f.upload(t, 2*day, 3*day, blocktest.Floats("a", 2*day, 3*day, step), blocktest.Floats("b", 2*day, 3*day, step))
	d := f.accept(t, blockstore.Deletion{Selectors: []string{"a"}, MinMs: 0, MaxMs: 3 * day})
	require.NoError(t, f.store.SettleDeletion(t.Context(), acme, d.ID, nil))
	require.NoError(t, f.store.AskCleaning(t.Context(), acme))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, f.untouched[d.ID], 2)

	require.NoError(t, f.store.Delete(t.Context(), acme, goes))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, map[blockName]struct{}{{acme, stays}: {}}, f.untouched[d.ID])

	// Another compactor completes it.
	require.NoError(t, f.store.FinishDeletion(t.Context(), acme, blockstore.Receipt{Deletion: d, Completed: f.clock}))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, f.untouched)
}

func TestADeletionBySomeExternalLabelIsCarriedOut(t *testing.T) {
	f := newFixture(t)
	external := f.upload(t, 0, day, blocktest.Floats("b", 0, day, step))
	f.extend(t, external, blockstore.Extension{Version: 1, ExternalLabels: map[string]string{"cluster": "eu"}})
	d := f.accept(t, blockstore.Deletion{Selectors: []string{`{cluster="eu"}`}, MinMs: 0, MaxMs: 12*hour - 1})
	require.NoError(t, f.store.SettleDeletion(t.Context(), acme, d.ID, nil))
	require.NoError(t, f.store.AskCleaning(t.Context(), acme))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, map[string]int{b: 720}, f.counts(t))
}

func TestABlockOfWhichNothingIsLeftIsDeleted(t *testing.T) {
	f := newFixture(t)
	old := f.upload(t, 0, day, blocktest.Floats("a", 0, day, step))
	d := f.accept(t, blockstore.Deletion{Selectors: []string{"a"}, MinMs: 0, MaxMs: day})
	require.NoError(t, f.store.SettleDeletion(context.Background(), acme, d.ID, nil))
	require.NoError(t, f.store.AskCleaning(context.Background(), acme))
	require.NoError(t, f.RunOnce(context.Background()))
	f.age(t)
	require.Empty(t, f.active(t))
	blocks, _, err := f.store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.Empty(t, blocks)
	receipts, err := f.store.Receipts(context.Background(), acme, time.Time{})
	require.NoError(t, err)
	require.Equal(t, []blockstore.Rewrite{{Blocks: []ulid.ULID{old}}}, receipts[0].Rewritten)
	of, err := f.store.DeletionsOf(context.Background(), acme)
	require.NoError(t, err)
	require.False(t, of.Cleaning)
}

func TestNothingIsWrittenAnewBeforeAllIngestersHaveCarriedOutADeletion(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, day, blocktest.Floats("a", 0, day, step))
	d := f.accept(t, blockstore.Deletion{Selectors: []string{"a"}, MinMs: 0, MaxMs: day})
	asked := 0
	f.settling = func(ctx context.Context, id tenant.ID) ([]string, error) {
		if asked++; asked < 2 {
			return []string{"ingester x: it is away"}, nil
		}
		return nil, f.store.SettleDeletion(ctx, id, d.ID, nil)
	}
	require.NoError(t, f.store.AskCleaning(context.Background(), acme))
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, map[string]int{a: 1440}, f.counts(t))
	require.NoError(t, f.store.AskCleaning(context.Background(), acme))
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, 2, asked)
	f.age(t)
	require.Empty(t, f.counts(t))
}

func TestADeletedTenantGoesWithItsBlocksAndMayBeginAnew(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, day, blocktest.Floats("a", 0, day, step))
	d := f.accept(t, blockstore.Deletion{WholeTenant: true, MinMs: deletion.MinTime, MaxMs: deletion.MaxTime})
	anew := f.upload(t, day, 2*day, blocktest.Floats("b", day, 2*day, step))
	require.NoError(t, f.store.SettleDeletion(context.Background(), acme, d.ID, nil))
	require.NoError(t, f.RunOnce(context.Background()))
	blocks, _, err := f.store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.Len(t, blocks, 2)
	for name, block := range blocks {
		require.Equal(t, name != anew, block.Hidden(), name)
	}
	f.age(t)
	require.Empty(t, f.active(t))
	require.Equal(t, []ulid.ULID{anew}, f.visible(t))
}

// everything is a deletion of the tenant.
func everything() blockstore.Deletion {
	return blockstore.Deletion{WholeTenant: true, MinMs: deletion.MinTime, MaxMs: deletion.MaxTime}
}

func TestWhatCameAfterADeletionOfTheTenantStaysThoughItWasMergedWithWhatIsDeleted(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, 12*hour, blocktest.Floats("a", 0, 12*hour, step))
	d := f.accept(t, everything())
	f.upload(t, 12*hour, day, blocktest.Floats("b", 12*hour, day, step))
	require.NoError(t, f.store.SettleDeletion(t.Context(), acme, d.ID, nil))
	// A pass that began before the deletion has planned this.
	todo, err := f.look(t.Context(), acme, blockstore.TenantDeletions{})
	require.NoError(t, err)
	require.Len(t, todo.compactions, 1)
	require.NoError(t, f.compact(t.Context(), acme, todo.compactions[0]))
	require.Equal(t, []ulid.ULID{d.ID}, f.deletionsOf(t, f.only(t).ULID))
	for _, block := range todo.compactions[0].ids() {
		require.NoError(t, f.store.Delete(t.Context(), acme, block))
	}

	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, map[string]int{b: 720}, f.counts(t))
	f.age(t)
	require.Equal(t, map[string]int{b: 720}, f.counts(t))
	require.Empty(t, f.active(t), "it is complete, though a block names those that it took away")
}

func TestWhatADeletionOfTheTenantTakesAwayIsNotMergedWithWhatComesAfterIt(t *testing.T) {
	f := newFixture(t)
	// A block of a day whose sources are still there.
	f.upload(t, 0, 6*hour, blocktest.Floats("a", 0, 6*hour, step))
	f.upload(t, 6*hour, 12*hour, blocktest.Floats("a", 6*hour, 12*hour, step))
	require.NoError(t, f.RunOnce(t.Context()))
	f.only(t)
	d := f.accept(t, everything())
	require.NoError(t, f.store.SettleDeletion(t.Context(), acme, d.ID, nil))
	anew := f.upload(t, 12*hour, day, blocktest.Floats("b", 12*hour, day, step))
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
		require.Contains(t, f.visible(t), anew)
		blocks, _, err := f.store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Len(t, blocks, 4, "nothing was merged")
		for name, block := range blocks {
			require.Equal(t, name == anew, block.Deletion == nil, name)
		}
	}
	f.age(t)
	require.Equal(t, map[string]int{b: 720}, f.counts(t))
	require.Equal(t, []ulid.ULID{anew}, f.visible(t))
	require.Empty(t, f.active(t))
}

func (f *fixture) deletionsOf(t *testing.T, block ulid.ULID) []ulid.ULID {
	t.Helper()
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return blocks[block].Extension.Deletions
}

func TestARuleTakesSamplesOutOfABlockOnce(t *testing.T) {
	f := newFixture(t)
	f.clock = time.UnixMilli(100 * day)
	now := f.clock.UnixMilli()
	start := now/day*day - 10*day
	f.upload(t, start, start+day, blocktest.Floats("a", start, start+day, step), blocktest.Floats("b", start, start+day, step))
	young := now/day*day - 2*day
	f.upload(t, young, young+day, blocktest.Floats("a", young, young+day, step))
	rules := []tenant.RetentionRule{{Selector: "a", Retention: model.Duration(5 * 24 * time.Hour)}}
	limits := f.limits
	f.limits = func(id tenant.ID) tenant.Limits {
		l := limits(id)
		l.Retention, l.RetentionRules = 0, rules
		return l
	}
	before := f.visible(t)
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, before, f.visible(t), "a rule can be taken back until the deletion delay has passed")

	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, map[string]int{a: 1440, b: 1440}, f.counts(t), "the old block lost a, the young one is as it was")
	after := f.visible(t)
	require.NotEqual(t, before, after)

	f.pruned = map[blockName][]string{} // as after a restart
	require.NoError(t, f.RunOnce(context.Background()))
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, after, f.visible(t), "it is not written again")
}

func TestTheOldestBlocksBeyondTheQuotaGo(t *testing.T) {
	f := newFixture(t)
	var names []ulid.ULID
	for k := range int64(4) {
		names = append(names, f.upload(t, k*day, (k+1)*day, blocktest.Floats("a", k*day, (k+1)*day, step)))
	}
	blocks, _, err := f.store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	sizes, err := f.sizes.of(context.Background(), f.store, acme, blocks)
	require.NoError(t, err)
	quota := sizes[names[2]] + sizes[names[3]]
	limits := f.limits
	f.limits = func(id tenant.ID) tenant.Limits {
		l := limits(id)
		l.MaxBucketBytes = quota
		return l
	}
	require.NoError(t, f.RunOnce(context.Background()))
	blocks, _, err = f.store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	for k, name := range names {
		block := blocks[name]
		require.Equal(t, k < 2, block.Hidden(), k)
	}
	// A larger quota saves what is not gone yet.
	quota += sizes[names[1]]
	require.NoError(t, f.RunOnce(context.Background()))
	blocks, _, err = f.store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	require.True(t, blocks[names[0]].Hidden())
	require.False(t, blocks[names[1]].Hidden())
	f.age(t)
	require.Equal(t, names[1:], f.visible(t))
}

func TestALargerQuotaSavesBlocksThatWereMarkedLongAgo(t *testing.T) {
	f := newFixture(t)
	names := []ulid.ULID{
		f.upload(t, 0, day, blocktest.Floats("a", 0, day, step)),
		f.upload(t, day, 2*day, blocktest.Floats("a", day, 2*day, step)),
	}
	f.quota(1)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, f.visible(t))
	// It was not running for a while.
	f.clock = f.clock.Add(2 * time.Duration(f.cfg.DeletionDelay))
	f.quota(1 << 40)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, names, f.visible(t))
}

func TestTheSourcesOfABlockBeyondTheQuotaGoWithIt(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, 12*hour, blocktest.Floats("a", 0, 12*hour, step))
	f.upload(t, 12*hour, day, blocktest.Floats("a", 12*hour, day, step))
	kept := f.upload(t, 5*day, 6*day, blocktest.Floats("a", 5*day, 6*day, step))
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	sizes, err := f.sizes.of(t.Context(), f.store, acme, blocks)
	require.NoError(t, err)
	f.quota(sizes[kept])
	for range 3 {
		require.NoError(t, f.RunOnce(t.Context()))
		blocks, _, err = f.store.Blocks(t.Context(), acme)
		require.NoError(t, err)
		require.Len(t, blocks, 4, "they are merged once")
		for name, block := range blocks {
			require.Equal(t, name == kept, block.Deletion == nil, name)
		}
	}
	f.age(t)
	blocks, _, err = f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	require.Equal(t, []ulid.ULID{kept}, sorted(blocks))
}

// quota limits the bytes in the bucket.
func (f *fixture) quota(bytes int64) {
	limits := f.limits
	f.limits = func(id tenant.ID) tenant.Limits {
		l := limits(id)
		l.MaxBucketBytes = bytes
		return l
	}
}

func TestAPreviewSaysWhatWouldGoAndChangesNothing(t *testing.T) {
	f := newFixture(t)
	f.clock = time.UnixMilli(100 * day)
	now := f.clock.UnixMilli() / day * day
	old := f.upload(t, now-40*day, now-39*day, blocktest.Floats("a", now-40*day, now-39*day, step))
	kept := f.upload(t, now-10*day, now-9*day, blocktest.Floats("a", now-10*day, now-9*day, step))
	preview := func(query string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		f.ServePreview(w, httptest.NewRequest("GET", "/compactor/retention?tenant=acme&"+query, nil))
		return w
	}
	require.Equal(t, 200, preview("retention=0s").Code)
	l := tenant.DefaultLimits()
	l.Retention = model.Duration(30 * 24 * time.Hour)
	l.RetentionRules = []tenant.RetentionRule{{Selector: "a", Retention: model.Duration(2 * 24 * time.Hour)}}
	p, err := f.Preview(context.Background(), acme, l)
	require.NoError(t, err)
	require.Equal(t, 1, p.Deleted.Blocks)
	require.Equal(t, 1, p.Pruned.Blocks)
	require.Equal(t, 1, p.Kept.Blocks)
	actions := map[ulid.ULID]string{}
	for _, entry := range p.Blocks {
		require.Positive(t, entry.Bytes)
		actions[entry.Block] = entry.Action
	}
	require.Equal(t, map[ulid.ULID]string{old: "delete", kept: "prune"}, actions)
	require.Equal(t, 400, preview("retention=1h").Code)
	require.Equal(t, 400, preview("retention_rules=[{selector:%20x}]").Code)
	blocks, _, err := f.store.Blocks(context.Background(), acme)
	require.NoError(t, err)
	for _, block := range blocks {
		require.Nil(t, block.Deletion)
	}
}

func TestADeletionSurvivesACrashAtEveryStep(t *testing.T) {
	for calls := int64(1); ; calls++ {
		files, err := blockstore.OpenFilesystem(t.TempDir())
		require.NoError(t, err)
		faulty := blocktest.NewFaulty(files)
		f := fixtureOver(t, blockstore.New(faulty, nil))
		f.upload(t, 0, day, blocktest.Floats("a", 0, day, step), blocktest.Floats("b", 0, day, step))
		d := f.accept(t, blockstore.Deletion{Selectors: []string{"a"}, MinMs: 0, MaxMs: 12*hour - 1})
		require.NoError(t, f.store.SettleDeletion(context.Background(), acme, d.ID, nil))
		f.clock = f.clock.Add(eraseAfter)

		faulty.FailFrom(calls)
		err = f.RunOnce(context.Background())
		faulty.Heal()
		require.NoError(t, f.RunOnce(context.Background()), calls)
		f.age(t)
		require.Equal(t, map[string]int{a: 720, b: 1440}, f.counts(t), calls)
		require.Empty(t, f.active(t), calls)
		receipts, receiptErr := f.store.Receipts(context.Background(), acme, time.Time{})
		require.NoError(t, receiptErr)
		require.Len(t, receipts, 1, calls)
		into := receipts[0].Rewritten[len(receipts[0].Rewritten)-1].Into
		require.True(t, slices.Contains(f.visible(t), into), calls)
		if err == nil {
			return // It came to its end.
		}
	}
}

func TestACompactionLeavesOutWhatIsDeletedAndKeepsWhatCameLate(t *testing.T) {
	f := newFixture(t)
	f.upload(t, 0, 12*hour, blocktest.Floats("a", 0, 12*hour, step))
	f.upload(t, 12*hour, day, blocktest.Floats("a", 12*hour, day, step))
	d := f.accept(t, blockstore.Deletion{Selectors: []string{"a"}, MinMs: 0, MaxMs: 6*hour - 1})
	late := f.upload(t, 0, 12*hour, blocktest.Floats("a", 0, hour, step))

	require.NoError(t, f.RunOnce(context.Background()))
	require.Len(t, f.visible(t), 3, "what came late could not be told from the rest any more")

	require.NoError(t, f.store.SettleDeletion(context.Background(), acme, d.ID, nil))
	require.NoError(t, f.RunOnce(context.Background()))
	require.Equal(t, map[string]int{a: 60 + 18*60}, f.counts(t))
	only := f.only(t)
	require.Contains(t, only.Compaction.Sources, late)
	f.age(t)
	require.Empty(t, f.active(t))
	receipts, err := f.store.Receipts(context.Background(), acme, time.Time{})
	require.NoError(t, err)
	require.Len(t, receipts[0].Rewritten, 1)
	require.Equal(t, only.ULID, receipts[0].Rewritten[0].Into)
	require.Len(t, receipts[0].Rewritten[0].Blocks, 3)
}
