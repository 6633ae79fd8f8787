package querier

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// accept records a deletion of what is in the bucket now.
func (r *rig) accept(id tenant.ID, mint, maxt int64, selectors ...string) blockstore.Deletion {
	r.t.Helper()
	ctx := context.Background()
	d := blockstore.Deletion{ID: ulid.Make(), Selectors: selectors, MinMs: mint, MaxMs: maxt, Accepted: time.Now(), Blocks: []ulid.ULID{}}
	blocks, _, err := r.store.Blocks(ctx, id)
	require.NoError(r.t, err)
	for _, b := range blocks {
		d.Blocks = append(d.Blocks, blockstore.Sources(b.Meta)...)
	}
	require.NoError(r.t, r.store.PutDeletion(ctx, id, d))
	return d
}

func (r *rig) settle(id tenant.ID, d blockstore.Deletion, blocks ...ulid.ULID) {
	r.t.Helper()
	require.NoError(r.t, r.store.SettleDeletion(context.Background(), id, d.ID, blocks))
}

// counts returns how many samples of each metric there are between mint and maxt.
func (r *rig) counts(id tenant.ID, mint, maxt int64) map[string]int {
	r.t.Helper()
	q, err := r.Queryable().Querier(mint, maxt)
	require.NoError(r.t, err)
	defer func() { require.NoError(r.t, q.Close()) }()
	set := q.Select(as(id), true, nil, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+"))
	found := map[string]int{}
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() != 0 {
			found[set.At().Labels().Get(model.MetricNameLabel)]++
		}
		require.NoError(r.t, it.Err())
	}
	require.NoError(r.t, set.Err())
	return found
}

func TestADeletionHidesWhatExistedWhenItWasAccepted(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	r.upload(alice, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 60_000), blocktest.Floats("b", 0, 2*hour, 60_000))
	r.upload(bob, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 60_000))
	r.refresh()
	before, err := r.views.of(alice)
	require.NoError(t, err)

	d := r.accept(alice, 0, hour-1, `a`)
	r.settle(alice, d)
	r.refresh()

	require.Equal(t, map[string]int{"a": 60, "b": 120}, r.counts(alice, 0, 2*hour))
	require.Equal(t, map[string]int{"a": 120}, r.counts(bob, 0, 2*hour), "another tenant's")
	after, err := r.views.of(alice)
	require.NoError(t, err)
	require.NotEqual(t, before.version(0, hour), after.version(0, hour))
	require.Equal(t, before.version(hour, 2*hour), after.version(hour, 2*hour), "where nothing is hidden results stay good")

	// What comes later is seen, though its series and time are those of the deletion.
	r.upload(alice, 0, 2*hour, blocktest.Floats("a", 30_000, hour, 60_000))
	r.refresh()
	require.Equal(t, map[string]int{"a": 120, "b": 120}, r.counts(alice, 0, 2*hour))
}

func TestADeletionHidesAllUntilIngestersHaveCarriedItOut(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	now := time.Now().UnixMilli()
	r.push(alice, labels.FromStrings(model.MetricNameLabel, "a"), write.Sample{T: now - 60_000, V: 1})
	r.push(alice, labels.FromStrings(model.MetricNameLabel, "b"), write.Sample{T: now - 60_000, V: 1})
	d := r.accept(alice, 0, now, `a`)
	r.refresh()
	require.Equal(t, map[string]int{"b": 1}, r.counts(alice, now-hour, now+hour), "an ingester may not know of it")

	// An ingester uploads a block that was cut before it knew.
	late := r.upload(alice, 0, 2*hour, blocktest.Floats("a", 0, hour, 60_000))
	r.refresh()
	require.Empty(t, r.counts(alice, 0, 2*hour))

	r.settle(alice, d, late)
	other := r.upload(alice, 0, 2*hour, blocktest.Floats("a", hour, 2*hour, 60_000))
	r.refresh()
	require.Equal(t, map[string]int{"a": 60}, r.counts(alice, 0, 2*hour), "block %s came after it, block %s was there", other, late)
	require.Equal(t, map[string]int{"a": 1, "b": 1}, r.counts(alice, now-hour, now+hour), "it is the ingester's to hide now")
}

func TestARecordOfADeletionThatCannotBeReadFailsItsTenantOnly(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	r.upload(alice, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 60_000))
	r.upload(bob, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 60_000))
	d := r.accept(alice, 0, hour, `a`)
	require.NoError(t, r.bucket.Upload(context.Background(), "~deletions/active/alice/"+d.ID.String()+"/request.json", strings.NewReader(`{"version":2}`)))
	r.refresh()
	require.Equal(t, http.StatusServiceUnavailable, r.get(alice, "/api/v1/query?query=a&time=3600").Code)
	require.Equal(t, http.StatusOK, r.get(bob, "/api/v1/query?query=a&time=3600").Code)
}

func TestAQuerierThatCannotLearnOfDeletionsFailsItsQueries(t *testing.T) {
	for _, fenced := range []bool{true, false} {
		r := newRig(t, rigOption{inPlace: true})
		synctest.Test(t, func(t *testing.T) {
			d := newDeletions(r.store, fenced)
			_, err := d.of(alice)
			require.ErrorIs(t, err, errNotLoaded)
			require.NoError(t, d.refresh(context.Background()))
			<-time.After(maxDeletionsAge)
			_, err = d.of(alice)
			require.NoError(t, err)
			<-time.After(time.Second)
			_, err = d.of(alice)
			if fenced {
				require.ErrorContains(t, err, "last listed 31s ago")
			} else {
				require.NoError(t, err, "where nobody can delete anything")
			}
		})
	}
}

// hanging is a bucket that gives no answer to listings for a while.
type hanging struct {
	objstore.Bucket
	hangs atomic.Bool
	lists atomic.Int64
}

func (h *hanging) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	h.lists.Add(1)
	if h.hangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.Bucket.Iter(ctx, dir, f, options...)
}

func TestABucketThatHangsKeepsNobodyFromLearningOfDeletionsAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := &hanging{Bucket: objstore.NewInMemBucket()}
		r := newRig(t, rigOption{bucket: bucket})
		d := newDeletions(r.store, true)
		r.views.deletions = d
		bucket.hangs.Store(true)
		refreshed := make(chan error, 1)
		go func() { refreshed <- r.views.refresh(t.Context()) }()
		synctest.Wait()

		// Whoever asks meanwhile is not kept longer than it wants to wait.
		hasty, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		require.ErrorIs(t, d.refresh(hasty), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begun))

		// Those that wait for the one that hangs share one listing.
		const waiters = 10
		waited := make(chan error, waiters)
		for range waiters {
			go func() { waited <- d.refresh(t.Context()) }()
		}
		synctest.Wait()
		require.EqualValues(t, 1, bucket.lists.Load())
		bucket.hangs.Store(false)
		<-time.After(deletionsInterval - time.Second)
		require.ErrorIs(t, <-refreshed, context.DeadlineExceeded)
		for range waiters {
			require.NoError(t, <-waited)
		}
		_, err := d.of(alice)
		require.NoError(t, err)
	})
}

func TestARetentionRuleHidesOldSamplesOfItsSeries(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	now := time.Now().Truncate(time.Hour).UnixMilli()
	const day = 24 * hour
	start := (now - 10*day) / day * day
	r.upload(alice, start, start+day, blocktest.Floats("a", start, start+day, hour), blocktest.Floats("b", start, start+day, hour))
	r.limits.RetentionRules = []tenant.RetentionRule{{Selector: `a`, Retention: model.Duration(10 * 24 * time.Hour)}}
	r.refresh()
	left := int((start + day - (now - 10*day)) / hour)
	found := r.counts(alice, start, start+day)
	require.Equal(t, 24, found["b"])
	require.InDelta(t, left, found["a"], 1, "the clock may have struck the hour meanwhile")

	r.limits.RetentionRules = nil
	require.Equal(t, map[string]int{"a": 24, "b": 24}, r.counts(alice, start, start+day), "nothing is gone yet")
}

func TestARetentionRuleHidesTheSameWhereverTheSamplesLie(t *testing.T) {
	const day = 24 * hour
	now := time.Now().Truncate(time.Hour).UnixMilli()
	start := now/day*day - 10*day
	names := []string{"a", "b", "c"}
	fill := map[string]func(*rig){
		"in the bucket": func(r *rig) {
			for at := start; at < start+10*day; at += day {
				var series []blocktest.Series
				for _, name := range names {
					series = append(series, blocktest.Floats(name, at, at+day, hour))
				}
				r.upload(alice, at, at+day, series...)
			}
		},
		"on an ingester": func(r *rig) {
			for at := start; at < start+10*day; at += hour {
				for _, name := range names {
					r.push(alice, labels.FromStrings(model.MetricNameLabel, name), write.Sample{T: at, V: 1})
				}
			}
		},
	}
	for where, fill := range fill {
		t.Run(where, func(t *testing.T) {
			r := newRig(t, rigOption{inPlace: true})
			fill(r)
			r.refresh()
			require.Equal(t, map[string]int{"a": 240, "b": 240, "c": 240}, r.counts(alice, start, now))

			r.limits.RetentionRules = []tenant.RetentionRule{
				{Selector: `a`, Retention: model.Duration(48 * time.Hour)},
				{Selector: `{__name__=~"a|b"}`, Retention: model.Duration(24 * 365 * time.Hour)},
				{Selector: `c`, Retention: model.Duration(24 * time.Hour)},
			}
			left := func(kept int64) int { return int((start + 10*day - (now - kept)) / hour) }
			found := r.counts(alice, start, now)
			require.Equal(t, 240, found["b"])
			require.InDelta(t, left(2*day), found["a"], 1, "the clock may have struck the hour meanwhile")
			require.InDelta(t, left(day), found["c"], 1)
			require.Equal(t, map[string]int{"b": 24}, r.counts(alice, start, start+day-1))
			chunked, err := r.Queryable().ChunkQuerier(start, now)
			require.NoError(t, err)
			defer func() { require.NoError(t, chunked.Close()) }()
			set := chunked.Select(as(alice), true, nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "a"))
			require.True(t, set.Next())
			n := 0
			for it := set.At().Iterator(nil); it.Next(); {
				n += it.At().Chunk.NumSamples()
			}
			require.InDelta(t, left(2*day), n, 1)
			require.False(t, set.Next())
			require.NoError(t, set.Err())
		})
	}
}

// noIngester is an edge without ingesters and queriers that answer.
type noIngester struct{}

func (noIngester) applyDeletions(context.Context, tenant.ID) (done [][]applied, missing, absent []string) {
	return nil, []string{"all"}, nil
}

func (noIngester) refreshDeletions(context.Context, tenant.ID) []string { return nil }

func TestADeletionWithAnEndInTheFutureEndsWhenItIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigOption{inPlace: true})
		now := time.Now().UnixMilli()
		series := labels.FromStrings(model.MetricNameLabel, "a")
		r.push(alice, series, write.Sample{T: now - 2*minute, V: 1})
		deleter := &Deleter{store: r.store, edge: noIngester{}}
		accepted, err := deleter.Accept(t.Context(), alice, blockstore.Deletion{Selectors: []string{`a`}, MinMs: 0, MaxMs: now + 24*hour})
		require.NoError(t, err)
		require.Equal(t, []string{"all"}, accepted.Missing)
		found, err := r.store.DeletionsOf(t.Context(), alice)
		require.NoError(t, err)
		require.Equal(t, now, found.Active[0].MaxMs)
		r.refresh()
		require.Empty(t, r.counts(alice, 0, now+24*hour))

		<-time.After(time.Minute)
		r.push(alice, series, write.Sample{T: now + 10*minute, V: 2}) // by a clock that is ahead
		require.Equal(t, map[string]int{"a": 1}, r.counts(alice, 0, now+24*hour))
		late := r.upload(alice, now-hour, now+hour, blocktest.Floats("a", now-minute, now+3*minute, minute))
		r.refresh()
		require.Equal(t, map[string]int{"a": 3}, r.counts(alice, 0, now+24*hour), "as long as nobody can tell, what may have been there is hidden")

		r.settle(alice, found.Active[0].Deletion)
		r.refresh()
		require.Equal(t, map[string]int{"a": 6}, r.counts(alice, 0, now+24*hour), "block %s came later, and ingesters have what they sent", late)
	})
}

func TestADeletionWhoseBlocksAreListedLateLeavesOutWhatWasMadeSince(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	block := r.upload(alice, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 60_000))
	want := map[ulid.ULID][]ulid.ULID{}
	for _, ago := range []time.Duration{0, listingSkew - time.Minute, time.Hour} { // clocks may differ
		d := blockstore.Deletion{ID: ulid.Make(), WholeTenant: true, MinMs: 0, MaxMs: 2 * hour, Accepted: time.Now().Add(-ago)}
		require.NoError(t, r.store.PutDeletion(t.Context(), alice, d))
		want[d.ID] = []ulid.ULID{}
		if ago < listingSkew {
			want[d.ID] = []ulid.ULID{block}
		}
	}
	deleter := &Deleter{store: r.store, edge: noIngester{}}
	missing, err := deleter.Settle(t.Context(), alice)
	require.NoError(t, err)
	require.Equal(t, []string{"all"}, missing)
	found, err := r.store.DeletionsOf(t.Context(), alice)
	require.NoError(t, err)
	require.Len(t, found.Active, 3)
	for _, d := range found.Active {
		require.Equal(t, want[d.ID], d.Blocks)
	}
}
