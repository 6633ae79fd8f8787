package distributor

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// opinion is what a replica of a script says of a sample.
type opinion int

const (
	accepts opinion = iota
	isInvalid
	isLimited
	isFull
)

// script says what each replica does with each sample of a push.
type script struct {
	rf, members int
	dead        []bool
	failing     []bool
	forgetful   []bool
	opinions    [][]opinion // by replica and sample
}

func randomScript(rng *rand.Rand, samples int) script {
	s := script{rf: 1 + rng.IntN(3)}
	s.members = s.rf
	if rng.IntN(5) == 0 {
		s.members = 1 + rng.IntN(s.rf)
	}
	for range s.members {
		s.dead = append(s.dead, rng.IntN(6) == 0)
		s.failing = append(s.failing, rng.IntN(6) == 0)
		s.forgetful = append(s.forgetful, rng.IntN(3) == 0)
		opinions := make([]opinion, samples)
		for k := range opinions {
			if rng.IntN(2) == 0 {
				opinions[k] = opinion(rng.IntN(4))
			}
		}
		s.opinions = append(s.opinions, opinions)
	}
	return s
}

// expect is the twin: it counts the votes on one sample, all of them known.
func (s script) expect(sample int) (verdict verdict, reasons []write.Reason) {
	var accepted, invalid, limited int
	for m := range s.members {
		if s.dead[m] || s.failing[m] {
			continue
		}
		switch s.opinions[m][sample] {
		case accepts:
			accepted++
		case isInvalid:
			invalid++
		case isLimited:
			limited++
		case isFull:
		}
	}
	quorum := cluster.Quorum(s.rf)
	switch {
	case accepted >= quorum:
		return verdictWritten, nil
	case invalid+limited > s.rf-quorum:
		if invalid > 0 && invalid > s.rf-quorum {
			reasons = append(reasons, write.ReasonTooOld)
		}
		if limited > 0 {
			reasons = append(reasons, write.ReasonTenantSeriesLimit)
		}
		return verdictRejected, reasons
	default:
		return verdictLost, nil
	}
}

func TestVotesAgreeWithADumbTwin(t *testing.T) {
	const samples, rounds = 12, 150
	rng := rand.New(rand.NewPCG(3, 4))
	rings := map[[2]int]*ring{}
	for round := range int64(rounds) {
		s := randomScript(rng, samples)
		r := rings[[2]int{s.rf, s.members}]
		if r == nil {
			r = newRing(t, s.rf, s.members)
			rings[[2]int{s.rf, s.members}] = r
		}
		s.play(t, r, round)
	}
}

// play pushes as the script says and compares what becomes of each sample.
func (s script) play(t *testing.T, r *ring, round int64) {
	samples := len(s.opinions[0])
	b, h := &write.Batch{}, write.NewHasher()
	for i := range samples / 2 { // Two samples per series.
		b.Add(h, seriesName(i), []write.Sample{{T: now + round, V: float64(2 * i)}, {T: now + round, V: float64(2*i + 1)}}, nil, nil)
	}
	for m := range s.members {
		rep := r.at(m)
		if s.dead[m] {
			r.die(m)
		}
		rep.set(func() {
			rep.fail = nil
			if s.failing[m] {
				rep.fail = wire.Unavailable(fmt.Errorf("it fails"), 0)
			}
			if s.forgetful[m] {
				clear(rep.known)
			}
			rep.judge = func(_ string, x write.Sample) *write.SeriesError {
				switch s.opinions[m][int(x.V)] {
				case isInvalid:
					return &write.SeriesError{Reason: write.ReasonTooOld}
				case isLimited:
					return &write.SeriesError{Reason: write.ReasonTenantSeriesLimit}
				case isFull:
					return &write.SeriesError{Reason: write.ReasonInstanceSeriesLimit}
				}
				return nil
			}
		})
	}
	result, err := r.Push(t.Context(), "team", b)
	got := map[uint32]write.Reason{}
	for _, rej := range result.Rejected {
		require.Len(t, rej.Items, rej.Count)
		for _, item := range rej.Items {
			require.Equal(t, write.KindSample, item.Kind)
			require.Empty(t, got[item.Index], "rejected twice")
			got[item.Index] = rej.Reason
		}
	}
	stored, lost := 0, false
	for k := range samples {
		verdict, reasons := s.expect(k)
		switch verdict {
		case verdictWritten:
			stored++
			require.Empty(t, got[uint32(k)], "%+v", s)
		case verdictRejected:
			require.True(t, slices.Contains(reasons, got[uint32(k)]), "sample %d of %+v is rejected for %q, not one of %v", k, s, got[uint32(k)], reasons)
		default:
			require.Empty(t, got[uint32(k)], "%+v", s)
			lost = true
		}
	}
	require.Equal(t, stored, result.Written.Samples, "%+v", s)
	require.Equal(t, lost, wire.HTTPStatus(err) == http.StatusServiceUnavailable, "%+v: %v", s, err)
	for m := range s.members {
		if s.dead[m] {
			r.revive(m)
		}
	}
}

func TestAPoisonSampleIsRejectedAlsoWhileAReplicaIsDead(t *testing.T) {
	r := newRing(t, 3, 3)
	r.die(0)
	var wg sync.WaitGroup
	for _, i := range []int{1, 2} {
		r.at(i).set(func() {
			r.at(i).judge = func(string, write.Sample) *write.SeriesError {
				return &write.SeriesError{Reason: write.ReasonDuplicateTimestamp}
			}
		})
	}
	// The first answer alone would leave it open; the second decides.
	hold := make(chan struct{})
	r.at(2).set(func() { r.at(2).hold = hold })
	wg.Go(func() {
		r.eventually(func() bool { return r.at(1).count("team") == 0 && r.served(1) > 0 })
		r.at(2).set(func() { r.at(2).release() })
	})
	result, err := r.Push(t.Context(), "team", batchOf(1, now))
	wg.Wait()
	require.NoError(t, err)
	require.Equal(t, write.ReasonDuplicateTimestamp, result.Rejected[0].Reason)
}

func (r *ring) served(i int) (n int) {
	rep := r.at(i)
	rep.set(func() { n = rep.requests })
	return n
}

func TestASlowTeacherDoesNotHoldUpAnAnswerForLong(t *testing.T) {
	r := newRing(t, 3, 3, func(r *Replicator) { r.teaching = 10 * time.Millisecond })
	rep := r.at(2)
	rep.set(func() { rep.hold = make(chan struct{}) })
	require.True(t, r.routes.Load().nodes[2].link.learning.Load(), "it is new")
	result, err := r.Push(t.Context(), "team", batchOf(1, now))
	require.NoError(t, err)
	require.Equal(t, 1, result.Written.Samples)
	require.False(t, r.routes.Load().nodes[2].link.learning.Load(), "the next answer does not wait for it at all")
}

func TestASeriesWithoutSamplesIsAnItemItself(t *testing.T) {
	b := &write.Batch{}
	b.Add(write.NewHasher(), labels.FromStrings("__name__", "x"), nil, nil, nil)
	require.Equal(t, []write.Item{{Kind: write.KindSeries, Index: 0}}, itemsOf(b, 0))
	require.Equal(t, itemsOf(b, 0), slices.Collect(eachItem(b, 0)))
}

func TestAReasonOfALaterReleaseIsTriedAgainIfItSaysSo(t *testing.T) {
	for class, status := range map[write.Class]int{
		write.ClassInvalid: http.StatusBadRequest, write.ClassLimited: http.StatusTooManyRequests, write.ClassUnavailable: http.StatusServiceUnavailable,
	} {
		r := newRing(t, 3, 3)
		for _, rep := range r.replicas {
			rep.set(func() {
				rep.judge = func(string, write.Sample) *write.SeriesError {
					return &write.SeriesError{Reason: "of_a_later_release", Class: class}
				}
			})
		}
		result, err := r.Push(t.Context(), "team", batchOf(1, now))
		if err == nil {
			err = result.Err()
		}
		require.Equal(t, status, wire.HTTPStatus(err), "%v", err)
	}
}
