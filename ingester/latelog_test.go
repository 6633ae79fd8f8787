package ingester

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

func (f *fixture) lateLog() string { return f.lookup(acme).lateLogDir() }

func TestLogOfLateSamplesIsMadeForTheFirst(t *testing.T) {
	f := newFixture(t)
	inOrder := []sample{{"a", 0, 1}, {"a", time.Minute, 2}, {"b", 0, 3}}
	f.push(acme, inOrder...)
	f.restart()
	f.push(acme, inOrder...)
	require.NoDirExists(t, f.lateLog(), "what is sent again is not late")

	// One is between samples of its series; one is of a new series, and too old for the
	// head; one is in order and follows one that is late.
	f.push(acme, sample{"a", 30 * time.Second, 4}, sample{"c", -2 * time.Hour, 5}, sample{"c", 2 * time.Minute, 6}, sample{"b", time.Minute, 7})
	want := map[string][]string{"a": {"0s 1", "30s 4", "1m0s 2"}, "b": {"0s 3", "1m0s 7"}, "c": {"-2h0m0s 5", "2m0s 6"}}
	require.Equal(t, want, f.stored(acme))
	crashed := f.afterCrash()
	require.Equal(t, want, crashed.stored(acme))
	f.restart()
	require.Equal(t, want, f.stored(acme))
	f.push(acme, sample{"b", 30 * time.Second, 8})
	want["b"] = []string{"0s 3", "30s 8", "1m0s 7"}
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Equal(t, want, f.inBucket(acme))
}

func TestLateHistogramMakesTheLogOfLateSamples(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	for _, at := range []time.Duration{0, -2 * time.Hour, -time.Minute} {
		b := &write.Batch{}
		b.Add(write.NewHasher(), seriesLabels("h"), nil, []write.Histogram{{T: noon.Add(at).UnixMilli(), Int: testHistogram(1)}}, nil)
		require.NoError(t, resultErr(f.offer(acme, b)))
	}
	require.Len(t, f.stored(acme)["h"], 3)
	require.Equal(t, f.stored(acme), f.afterCrash().stored(acme))
}

func TestEmptyLogOfLateSamplesGoesAtACleanStop(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", time.Minute, 1}, sample{"a", 0, 2})
	f.restart()
	require.DirExists(t, f.lateLog(), "it has a sample")
	f.advance(4 * time.Hour)
	f.push(acme, sample{"a", 4 * time.Hour, 3})
	f.advance(maxCutJitter)
	f.round(acme) // Notes that a cut is due.
	f.advance(maxCutJitter)
	f.round(acme)
	require.Len(t, f.LocalBlocks(acme), 2, "one of the late sample")
	f.push(acme, sample{"a", 4*time.Hour + time.Minute, 4})
	want := f.stored(acme)
	require.NoError(t, f.close())
	require.NoError(t, os.RemoveAll(filepath.Join(f.dir, "ingester", string(acme), "chunks_head"))) // As if all of it were cut.
	f.open()
	require.NoError(t, f.close())
	require.NoDirExists(t, filepath.Join(f.dir, "ingester", string(acme), "wbl"))
	f.open()
	require.Equal(t, want, f.stored(acme))
}

func TestLateChunksWithoutTheirLogAreFollowedByALog(t *testing.T) {
	f := newFixture(t)
	f.advance(time.Hour)
	f.push(acme, sample{"a", time.Hour, 0})
	for i := range 40 { // More than a chunk of late samples.
		f.push(acme, sample{"a", time.Duration(i) * time.Minute, float64(i)})
	}
	require.NoError(t, f.close())
	require.NoError(t, os.RemoveAll(filepath.Join(f.dir, "ingester", string(acme), "wbl")))
	f.open()
	require.Len(t, f.stored(acme)["a"], 33)
	f.push(acme, sample{"a", 50 * time.Minute, 50})
	require.Len(t, f.afterCrash().stored(acme)["a"], 34)
}

func TestWiderWindowForLateSamplesIsHeededAtOnce(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.OutOfOrderWindow = 0 }))
	f.advance(10 * time.Hour)
	f.push(acme, sample{"a", 10 * time.Hour, 1})
	for _, window := range []time.Duration{0, 3 * time.Hour, 9 * time.Hour} {
		late := sample{"a", 10*time.Hour - window - time.Second, 2}
		require.Equal(t, 1, f.offer(acme, batch(late)).Rejected[0].Count)
		f.limits.OutOfOrderWindow = model.Duration(window + time.Minute)
		f.push(acme, late)
	}
	require.Len(t, f.stored(acme)["a"], 4)
	require.Equal(t, f.stored(acme), f.afterCrash().stored(acme))
}

func TestLateExemplarsAreTaken(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	send := func(at time.Duration) write.Result {
		b := &write.Batch{}
		b.Add(write.NewHasher(), seriesLabels("a"), nil, nil, []exemplar.Exemplar{{Labels: labels.FromStrings("at", at.String()), Ts: noon.Add(at).UnixMilli(), HasTs: true}})
		return f.offer(acme, b)
	}
	require.Equal(t, 1, send(0).Written.Exemplars)
	require.NoDirExists(t, f.lateLog())
	require.Equal(t, 1, send(-time.Hour).Written.Exemplars)
	require.Equal(t, 1, send(-2*time.Hour).Written.Exemplars)
	require.Equal(t, 1, send(-4 * time.Hour).Rejected[0].Count)
	require.Equal(t, 3, f.afterCrash().lookup(acme).ring.used)
	f.restart()
	require.Equal(t, 3, f.lookup(acme).ring.used)
}

func TestPushThatCannotHaveALogForItsLateSamplesMayBeRetried(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 2})
	require.NoError(t, os.WriteFile(f.lateLog(), nil, 0o600))
	request := []sample{{"a", -time.Minute, 3}, {"b", time.Minute, 4}}
	_, err := f.Push(context.Background(), acme, batch(request...))
	require.ErrorContains(t, err, "open the log of late samples of tenant acme")
	_, retryable := wire.RetryAfter(err)
	require.True(t, retryable)
	f.push(acme, sample{"a", time.Minute, 5}) // What is in order goes on.
	require.NoError(t, os.Remove(f.lateLog()))
	f.push(acme, request...)
	require.Equal(t, map[string][]string{"a": {"-1m0s 3", "0s 1", "1m0s 5"}, "b": {"0s 2", "1m0s 4"}}, f.stored(acme))
}

func TestFirstLateSamplesComeWhileQueriesAndCutsRun(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", -time.Minute, 0})
	ctx, stop := context.WithCancel(context.Background())
	var others errgroup.Group
	for _, work := range []func() error{
		func() error { f.Stats(acme, "s", 10); f.Summaries(); return f.readAll(acme) },
		func() error { return f.lookup(acme).maintain(context.Background()) },
	} {
		others.Go(func() error {
			for ctx.Err() == nil {
				if err := work(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	defer func() {
		stop()
		require.NoError(t, others.Wait())
	}()
	for i := range 50 {
		at := time.Duration(i) * 5 * time.Minute
		f.push(acme, sample{"a", at, 1}, sample{"b", at, 2})
		if i >= 25 {
			f.push(acme, sample{"a", at - time.Minute, 1})
		}
		f.advance(5 * time.Minute)
	}
	require.Len(t, f.stored(acme)["a"], 76)
	require.Len(t, f.stored(acme)["b"], 50)
}

// readAll reads all samples of a tenant.
func (f *fixture) readAll(id tenant.ID) error {
	q, err := f.Querier(id, math.MinInt64, math.MaxInt64)
	if err != nil {
		return err
	}
	set := q.Select(context.Background(), false, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		it := set.At().Iterator(nil)
		it.Seek(math.MaxInt64)
		err = errors.Join(err, it.Err())
	}
	return errors.Join(err, set.Err(), q.Close())
}
