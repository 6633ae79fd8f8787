package pagefile

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// in runs test in a bubble of time, with a cache that is closed at its end.
func in(t *testing.T, change func(*Config, *tuning), test func(t *testing.T, c testCache)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newCache(t, t.TempDir(), change)) })
}

func TestPagesThatManyWantAreFetchedOnce(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(40*pageSize, 1)
		r.before = slow(time.Second)
		results := make(chan int64)
		for range 10 {
			go func() {
				f := c.file("k", r)
				defer f.Release()
				fetched, err := f.Load(t.Context(), Range{0, 10 * pageSize}, Range{30 * pageSize, r.size()})
				if err != nil {
					t.Error(err)
				}
				results <- fetched
			}()
		}
		var sum int64
		for range 10 {
			sum += <-results
		}
		require.EqualValues(t, 20*pageSize, sum)
		require.EqualValues(t, 20*pageSize, r.bytes.Load())
		require.EqualValues(t, 2, r.requests.Load())
	})
}

func TestOverlappingLoadsFetchOnlyWhatNobodyFetchesYet(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(10*pageSize, 1)
		r.before = slow(time.Second)
		f := c.file("k", r)
		defer f.Release()
		first := make(chan int64)
		go func() {
			fetched, err := f.Load(t.Context(), Range{3 * pageSize, 5 * pageSize})
			if err != nil {
				t.Error(err)
			}
			first <- fetched
		}()
		synctest.Wait()
		require.EqualValues(t, 8*pageSize, load(t, f, 0, 10*pageSize))
		require.EqualValues(t, 2*pageSize, <-first)
		requireBytes(t, f, r, 0, r.size())
	})
}

func TestCallerThatGoesAwayDoesNotFailTheOthers(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(10*pageSize, 1)
		r.before = slow(time.Second)
		f := c.file("k", r)
		defer f.Release()
		ctx, cancel := context.WithCancelCause(t.Context())
		first, second := make(chan error), make(chan error)
		go func() { _, err := f.Load(ctx, Range{0, r.size()}); first <- err }()
		synctest.Wait()
		go func() { _, err := f.Load(t.Context(), Range{0, r.size()}); second <- err }()
		synctest.Wait()

		cancel(errors.New("the client hung up"))
		require.ErrorContains(t, <-first, "the client hung up")
		require.NoError(t, <-second)
		requireBytes(t, f, r, 0, r.size())
		require.EqualValues(t, 1, r.requests.Load())
	})
}

func TestRequestEndsWhenNobodyWaitsForItAndIsMadeAnewForTheNext(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(10*pageSize, 1)
		ended := make(chan error, 1)
		r.before = func(ctx context.Context, _ Range) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}
		f := c.file("k", r)
		ctx, cancel := context.WithCancel(t.Context())
		loaded := make(chan error)
		go func() { _, err := f.Load(ctx, Range{0, r.size()}); loaded <- err }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-loaded, context.Canceled)
		require.ErrorIs(t, <-ended, context.Canceled)
		f.Release()

		r.before = nil
		f = c.file("k", r)
		defer f.Release()
		require.Equal(t, r.size(), load(t, f, 0, r.size()))
		requireBytes(t, f, r, 0, r.size())
	})
}

func TestBytesThatComeAfterEverybodyLeftAreDropped(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(pageSize, 1)
		arrive := make(chan struct{})
		r.before = func(context.Context, Range) error { // a store that does not hear of the end
			<-arrive
			return nil
		}
		f := c.file("k", r)
		defer f.Release()
		ctx, cancel := context.WithCancel(t.Context())
		loaded := make(chan error)
		go func() { _, err := f.Load(ctx, Range{0, r.size()}); loaded <- err }()
		synctest.Wait()
		cancel()
		require.Error(t, <-loaded)
		close(arrive)
		synctest.Wait()
		_, err := f.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, ErrNotResident)
		require.EqualValues(t, pageSize, load(t, f, 0, 1))
	})
}

func TestPassingErrorsAreTriedAgainAndPermanentOnesAreNot(t *testing.T) {
	for _, c := range []struct {
		name     string
		failures int
		err      error
		requests int64
		want     error
	}{
		{"three passing errors", 3, errPassing, 4, nil},
		{"four passing errors", 4, errPassing, 4, errPassing},
		{"a permanent error", 1, errPermanent, 1, errPermanent},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, nil, func(t *testing.T, cache testCache) {
				r := newRemote(pageSize, 1)
				failed := 0
				r.before = func(context.Context, Range) error {
					if failed++; failed <= c.failures {
						return c.err
					}
					return nil
				}
				f := cache.file("acme/index", r)
				defer f.Release()
				_, err := f.Load(t.Context(), Range{0, 1})
				require.Equal(t, c.requests, r.requests.Load())
				if c.want == nil {
					require.NoError(t, err)
					requireBytes(t, f, r, 0, pageSize)
					return
				}
				require.ErrorIs(t, err, c.want)
				require.ErrorContains(t, err, "acme/index")
				_, err = f.ReadAt(make([]byte, 1), 0)
				require.ErrorIs(t, err, ErrNotResident)
			})
		})
	}
}

func TestRequestThatHangsIsMadeAgain(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(pageSize, 1)
		r.before = func(ctx context.Context, _ Range) error {
			if r.requests.Load() == 1 {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		f := c.file("k", r)
		defer f.Release()
		start := time.Now()
		load(t, f, 0, 1)
		require.Less(t, time.Since(start), c.tuning.attemptTimeout+time.Second)
		requireBytes(t, f, r, 0, pageSize)
	})
}

func TestRequestsAreBoundedInNumberAndBytes(t *testing.T) {
	in(t, func(_ *Config, tn *tuning) { tn.maxGap = 0 }, func(t *testing.T, c testCache) {
		var now, most int
		r := newRemote(400*pageSize, 1)
		arrived, leave := make(chan struct{}), make(chan struct{})
		r.before = func(context.Context, Range) error {
			arrived <- struct{}{}
			<-leave
			return nil
		}
		f := c.file("k", r)
		defer f.Release()
		var ranges []Range
		for page := int64(0); page < 400; page += 2 {
			ranges = append(ranges, Range{page * pageSize, page*pageSize + 1})
		}
		done := make(chan error)
		go func() { _, err := f.Load(t.Context(), ranges...); done <- err }()
		for range ranges {
			synctest.Wait()
			for more := true; more; {
				select {
				case <-arrived:
					now++
					synctest.Wait()
				default:
					more = false
				}
			}
			most = max(most, now)
			leave <- struct{}{}
			now--
		}
		require.NoError(t, <-done)
		require.Equal(t, 64, most)
	})
}

func TestSlowRequestIsAskedASecondTime(t *testing.T) {
	in(t, func(_ *Config, tn *tuning) { tn.maxGap = 0 }, func(t *testing.T, c testCache) {
		r := newRemote(200*pageSize, 1)
		r.before = slow(20 * time.Millisecond)
		f := c.file("k", r)
		defer f.Release()
		for page := int64(0); page < 100; page++ {
			load(t, f, page*pageSize, page*pageSize+1)
		}
		require.Zero(t, count(c.metrics.hedges), "no request was slower than the others")

		var asked atomic.Int64
		r.before = func(ctx context.Context, what Range) error {
			if asked.Add(1) == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return slow(20*time.Millisecond)(ctx, what)
		}
		start := time.Now()
		load(t, f, 150*pageSize, 150*pageSize+1)
		require.Less(t, time.Since(start), 50*time.Millisecond)
		requireBytes(t, f, r, 150*pageSize, 151*pageSize)
		require.Equal(t, 1, count(c.metrics.hedges))
		require.Equal(t, 1, count(c.metrics.hedgesWon))
	})
}

func TestFewRequestsAreAskedASecondTimeWhenAllAreSlow(t *testing.T) {
	in(t, func(_ *Config, tn *tuning) { tn.maxGap = 0 }, func(t *testing.T, c testCache) {
		r := newRemote(1200*pageSize, 1)
		r.before = slow(20 * time.Millisecond)
		f := c.file("k", r)
		defer f.Release()
		for page := int64(0); page < 100; page++ {
			load(t, f, page*pageSize, page*pageSize+1)
		}
		requests := r.requests.Load()
		r.before = slow(200 * time.Millisecond)
		for page := int64(100); page < 1100; page++ {
			load(t, f, page*pageSize, page*pageSize+1)
		}
		hedged := r.requests.Load() - requests - 1000
		require.LessOrEqual(t, hedged, int64(hedgeBurst+50))
	})
}

func TestCloseWaitsForRequestsUnderWay(t *testing.T) {
	in(t, nil, func(t *testing.T, c testCache) {
		r := newRemote(pageSize, 1)
		r.before = slow(time.Second)
		f := c.file("k", r)
		loaded := make(chan error, 1)
		go func() { _, err := f.Load(t.Context(), Range{0, 1}); loaded <- err }()
		synctest.Wait()
		require.NoError(t, c.Close())
		require.NoError(t, <-loaded)
		_, err := f.Load(t.Context(), Range{0, 1})
		require.NoError(t, err, "it is resident")
		f.Release()
	})
}
