package distributor

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/write"
)

// lessonsOf returns the bytes of lessons that are under way to an ingester.
func (r *ring) lessonsOf(id string) int64 {
	for _, n := range r.routes.Load().nodes {
		if n.id == id && n.link != nil {
			n.link.mu.Lock()
			defer n.link.mu.Unlock()
			return n.link.mu.lessons
		}
	}
	return 0
}

// forgetful starts a ring of three whose third replica has lost its disk after it was sent
// 1,000 series, and takes lessons of 8 KiB at a time.
func forgetful(t *testing.T, rf int) *ring {
	r := newRing(t, rf, rf, func(r *Replicator) { r.lessonMost = 8 << 10 })
	_, err := r.Push(t.Context(), "team", batchOf(1000, now))
	require.NoError(t, err)
	rep := r.at(rf - 1)
	r.eventually(func() bool { return r.acknowledgedSeries() == 1000 && rep.count("team") == 1000 })
	rep.set(func() { clear(rep.known); rep.told, rep.labelled = nil, 0 })
	return r
}

func TestLabelsForAnIngesterThatLostItsDiskAreSentAFewAtATime(t *testing.T) {
	r := forgetful(t, 3)
	rep := r.at(2)
	rep.set(func() { rep.holdLabelled = make(chan struct{}) })
	push := func(round int64) error {
		result, err := r.Push(t.Context(), "team", batchOf(1000, now+round))
		if err == nil && result.Written.Samples != 1000 {
			err = fmt.Errorf("%d samples were written: %w", result.Written.Samples, result.Err())
		}
		return err
	}
	// The others keep the push from returning until it has begun to teach the third.
	quorum := make(chan struct{})
	others := func(hold chan struct{}) {
		for k := range 2 {
			r.at(k).set(func() { r.at(k).hold = hold })
		}
	}
	others(quorum)
	pushed := make(chan error, 1)
	go func() { pushed <- push(1) }()
	r.eventually(func() bool { return r.lessonsOf(rep.id) > 7<<10 })
	require.Less(t, r.lessonsOf(rep.id), int64(9<<10))
	others(nil)
	close(quorum)
	require.NoError(t, <-pushed)
	resent, putOff := r.metrics.resent.WithLabelValues(rep.id), r.metrics.putOff.WithLabelValues(rep.id)
	require.Less(t, testutil.ToFloat64(resent), 500.0)
	require.InDelta(t, 1000, testutil.ToFloat64(resent)+testutil.ToFloat64(putOff), 2, "all but what comes with labels to be checked")
	require.NoError(t, push(2)) // What it needs no labels for goes on.

	rep.set(func() { close(rep.holdLabelled); rep.holdLabelled = nil })
	round := int64(2)
	r.eventually(func() bool {
		round++
		require.NoError(t, push(round))
		return rep.has("team", seriesName(999).String(), write.Sample{T: now + round, V: 999}) &&
			rep.has("team", seriesName(0).String(), write.Sample{T: now + round, V: 0})
	})
	r.eventually(func() bool { return r.lessonsOf(rep.id) == 0 })
	require.Len(t, rep.known["team"], 1000)
}

func TestRequestsThatNeedAnIngesterWaitUntilItWasTold(t *testing.T) {
	r := forgetful(t, 1)
	rep := r.at(0)
	var g errgroup.Group
	for k := range int64(4) {
		g.Go(func() error {
			result, err := r.Push(t.Context(), "team", batchOf(1000, now+1+k))
			if err == nil && result.Written.Samples != 1000 {
				err = result.Err()
			}
			return err
		})
	}
	require.NoError(t, g.Wait())
	require.Equal(t, 5000, rep.count("team"))
	require.Zero(t, testutil.ToFloat64(r.metrics.putOff.WithLabelValues(rep.id)))
	require.Zero(t, r.lessonsOf(rep.id))
	rep.set(func() {
		require.Greater(t, len(rep.told), 8)
		for _, bytes := range rep.told {
			require.Less(t, bytes, 2<<10)
		}
	})
}

func TestLessonsEndWithTheIngester(t *testing.T) {
	r := forgetful(t, 1)
	rep := r.at(0)
	rep.set(func() { rep.holdLabelled = make(chan struct{}) })
	failed := make(chan error, 1)
	go func() {
		_, err := r.Push(t.Context(), "team", batchOf(1000, now+1))
		failed <- err
	}()
	r.eventually(func() bool { return r.lessonsOf(rep.id) > 7<<10 })
	rep.kill()
	require.Error(t, <-failed)
	rep.set(func() { rep.holdLabelled = nil })
	rep.start()
	r.eventually(func() bool {
		result, err := r.Push(t.Context(), "team", batchOf(1000, now+2))
		return err == nil && result.Written.Samples == 1000
	})
	require.Zero(t, r.lessonsOf(rep.id))
}

func TestSeriesThatAreAskedForTooLateComeAtABoundedRate(t *testing.T) {
	var l lateLessons
	at := time.Unix(1_700_000_000, 0)
	require.Equal(t, 70, l.take(70, 100, at))
	require.Equal(t, 30, l.take(70, 100, at))
	require.Equal(t, 0, l.take(70, 100, at.Add(time.Millisecond)))
	require.Equal(t, 50, l.take(70, 100, at.Add(500*time.Millisecond)))
	require.Equal(t, 100, l.take(1000, 100, at.Add(time.Hour)))
}

func TestLabelsThatAreSentAreCountedByReason(t *testing.T) {
	r := newRing(t, 3, 3)
	size := float64(seriesName(0).ByteSize())
	for round := range int64(2) {
		_, err := r.Push(t.Context(), "team", batchOf(10, now+round))
		require.NoError(t, err)
		r.eventually(func() bool { return r.at(2).count("team") == 10*(int(round)+1) && r.acknowledgedSeries() == 10 })
	}
	require.InDelta(t, 10, testutil.ToFloat64(r.metrics.labelled.fresh), 0)
	require.InDelta(t, 30*size, testutil.ToFloat64(r.metrics.labelBytes.fresh), 0)
	rep := r.at(2)
	rep.set(func() { clear(rep.known) })
	r.die(2)
	r.revive(2)
	_, err := r.Push(t.Context(), "team", batchOf(10, now+2))
	require.NoError(t, err)
	require.InDelta(t, 10, testutil.ToFloat64(r.metrics.unknownSeries.WithLabelValues(rep.id)), 0)
	require.InDelta(t, 10, testutil.ToFloat64(r.metrics.labelled.unknown), 0)
	require.InDelta(t, 10*size, testutil.ToFloat64(r.metrics.labelBytes.unknown), 0)
	require.InDelta(t, 30*size, testutil.ToFloat64(r.metrics.labelBytes.fresh), 0)
}
