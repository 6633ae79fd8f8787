package distributor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

func TestEverySampleGoesToItsWholeReplicaSet(t *testing.T) {
	for _, rf := range []int{1, 2, 3} {
		for _, members := range []int{3, 7} {
			t.Run(fmt.Sprintf("rf %d of %d", rf, members), func(t *testing.T) {
				r := newRing(t, rf, members)
				const series = 500
				for round := range int64(3) {
					result, err := r.Push(t.Context(), "team", batchOf(series, now+round))
					require.NoError(t, err)
					require.Equal(t, write.Result{Written: write.Counts{Samples: series}}, result)
				}
				for i := range series {
					for round := range int64(3) {
						for _, rep := range r.setOf("team", seriesName(i)) {
							r.eventually(func() bool {
								return rep.has("team", seriesName(i).String(), write.Sample{T: now + round, V: float64(i)})
							})
						}
					}
				}
				total := 0
				for _, rep := range r.replicas {
					total += rep.count("team")
				}
				require.Equal(t, 3*series*rf, total, "and to nobody else")
			})
		}
	}
}

func TestLabelsAreSentUntilTheyAreAcknowledged(t *testing.T) {
	r := newRing(t, 3, 3)
	for round := range int64(5) {
		_, err := r.Push(t.Context(), "team", batchOf(100, now+round))
		require.NoError(t, err)
		for _, rep := range r.replicas {
			r.eventually(func() bool { return rep.count("team") == 100*(int(round)+1) })
		}
		// What the last answer of a request taught is noted right after it came.
		r.eventually(func() bool { return r.acknowledgedSeries() == 100 })
	}
	for _, rep := range r.replicas {
		require.Equal(t, 100, rep.labelled)
		require.Zero(t, rep.unknown)
	}
}

// acknowledgedSeries counts the series that are known to be known.
func (r *ring) acknowledgedSeries() (n int) {
	for i := range r.sightings.shards {
		shard := &r.sightings.shards[i]
		shard.RLock()
		for _, e := range shard.recent.places {
			if e.mark&acknowledged != 0 {
				n++
			}
		}
		shard.RUnlock()
	}
	return n
}

func TestARestartedIngesterIsToldTheLabelsAndMissesNothing(t *testing.T) {
	r := newRing(t, 3, 3)
	_, err := r.Push(t.Context(), "team", batchOf(100, now))
	require.NoError(t, err)
	r.eventually(func() bool { return r.acknowledgedSeries() == 100 })
	r.die(1)
	_, err = r.Push(t.Context(), "team", batchOf(100, now+1))
	require.NoError(t, err, "two of three are enough")
	r.revive(1)
	for round := range int64(3) {
		_, err = r.Push(t.Context(), "team", batchOf(100, now+2+round))
		require.NoError(t, err)
		r.eventually(func() bool { return r.at(1).count("team") == 100*(2+int(round)) })
	}
	require.Equal(t, 100, r.at(1).unknown, "each series once")
	require.Equal(t, 200, r.at(1).labelled)
	require.Equal(t, 100, r.at(0).labelled, "the others are not told again")
	require.InDelta(t, 100, testutil.ToFloat64(r.metrics.resent.WithLabelValues("ingester-01")), 0)
}

func TestAnIngesterThatForgetsIsToldWithTheNextSamples(t *testing.T) {
	r := newRing(t, 3, 3)
	for round := range int64(2) {
		_, err := r.Push(t.Context(), "team", batchOf(10, now+round))
		require.NoError(t, err)
		r.eventually(func() bool { return r.at(2).count("team") == 10*(int(round)+1) && r.acknowledgedSeries() == 10 })
	}
	// It is slow, so that its answer comes when the labels are gone already.
	hold := make(chan struct{})
	r.at(2).set(func() { clear(r.at(2).known); r.at(2).hold = hold })
	_, err := r.Push(t.Context(), "team", batchOf(10, now+2))
	require.NoError(t, err)
	r.at(2).set(func() { r.at(2).release() })
	r.eventually(func() bool { return r.acknowledgedSeries() == 0 })
	_, err = r.Push(t.Context(), "team", batchOf(10, now+3))
	require.NoError(t, err)
	r.eventually(func() bool { return r.at(2).has("team", seriesName(9).String(), write.Sample{T: now + 3, V: 9}) })
}

func TestAQuorumIsWaitedForAndNotMore(t *testing.T) {
	for _, c := range []struct {
		rf, slow int
		ok       bool
	}{{1, 0, true}, {1, 1, false}, {2, 1, true}, {2, 2, false}, {3, 1, true}, {3, 2, false}} {
		t.Run(fmt.Sprintf("rf %d, %d slow", c.rf, c.slow), func(t *testing.T) {
			r := newRing(t, c.rf, c.rf)
			_, err := r.Push(t.Context(), "team", batchOf(10, now))
			require.NoError(t, err)
			for i := range c.slow {
				rep := r.at(i)
				rep.set(func() { rep.hold = make(chan struct{}) })
			}
			ctx := t.Context()
			if !c.ok {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			result, err := r.Push(ctx, "team", batchOf(10, now+1))
			if c.ok {
				require.NoError(t, err)
				require.Equal(t, 10, result.Written.Samples)
			} else {
				require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err))
				require.ErrorContains(t, err, "no answer before the sender gave up")
				require.Zero(t, result.Written.Samples)
			}
			// The late answers are taken all the same.
			for i := range c.slow {
				rep := r.at(i)
				rep.set(func() { rep.release() })
				r.eventually(func() bool { return rep.count("team") == 20 })
			}
		})
	}
}

func TestDeadIngestersAreSkippedAtOnce(t *testing.T) {
	for _, c := range []struct {
		rf, members, dead int
		ok                bool
	}{{1, 1, 1, false}, {2, 2, 1, true}, {2, 2, 2, false}, {3, 3, 1, true}, {3, 3, 2, false}, {3, 2, 0, true}, {3, 1, 0, false}, {3, 2, 1, false}} {
		t.Run(fmt.Sprintf("rf %d, %d members, %d dead", c.rf, c.members, c.dead), func(t *testing.T) {
			r := newRing(t, c.rf, c.members)
			for i := range c.dead {
				r.die(i)
			}
			result, err := r.Push(t.Context(), "team", batchOf(10, now))
			if c.ok {
				require.NoError(t, err)
				require.NoError(t, r.Ready())
				require.Equal(t, 10, result.Written.Samples)
				return
			}
			require.Error(t, r.Ready())
			require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err))
			require.ErrorContains(t, err, "the replica set of ingester-00")
			delay, ok := wire.RetryAfter(err)
			require.True(t, ok)
			require.Equal(t, 5*time.Second, delay)
			if c.dead > 0 {
				require.ErrorContains(t, err, "ingester-00: it is not alive")
				require.ErrorContains(t, r.Ready(), "ingester-00: it is not alive")
			}
		})
	}
}

func TestAnIngesterThatDoesNotTakeWritesIsSkipped(t *testing.T) {
	r := newRing(t, 3, 3)
	rec := r.records["ingester-02"]
	rec.State, rec.Epoch = cluster.Restarting, 2
	r.records["ingester-02"] = rec
	r.publish()
	r.eventually(func() bool { return r.reached("ingester-02") != nil })
	_, err := r.Push(t.Context(), "team", batchOf(10, now))
	require.NoError(t, err)
	require.Zero(t, r.at(2).count("team"))
	require.EqualError(t, r.reached("ingester-02"), "it is RESTARTING")
}

func TestTheSamplesOfHealthySetsAreStoredThoughASetIsDead(t *testing.T) {
	r := newRing(t, 3, 9)
	const series = 900
	// ingester-00 and ingester-01 are neighbours: some sets have both.
	r.die(0)
	r.die(1)
	result, err := r.Push(t.Context(), "team", batchOf(series, now))
	require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err))
	require.ErrorContains(t, err, "ingester-00: it is not alive")
	require.ErrorContains(t, err, "ingester-01: it is not alive")
	healthy := 0
	for i := range series {
		dead := 0
		for _, rep := range r.setOf("team", seriesName(i)) {
			if r.dead[rep.id] {
				dead++
				continue
			}
			r.eventually(func() bool { return rep.has("team", seriesName(i).String(), write.Sample{T: now, V: float64(i)}) })
		}
		if dead < 2 {
			healthy++
		}
	}
	require.Greater(t, healthy, series/2)
	require.Less(t, healthy, series)
	require.Equal(t, healthy, result.Written.Samples)

	// The retry stores the rest, and nothing twice.
	r.revive(0)
	result, err = r.Push(t.Context(), "team", batchOf(series, now))
	require.NoError(t, err)
	require.Equal(t, series, result.Written.Samples)

	// A tenant whose shard avoids the dead never notices.
	r.die(0)
	stored := 0
	for k := range 30 {
		id := tenant.ID(fmt.Sprint("tenant-", k))
		limits := tenant.DefaultLimits()
		limits.ShardSize = 3
		r.mu.Lock()
		r.limits[id] = limits
		r.mu.Unlock()
		_, err := r.Push(t.Context(), id, batchOf(20, now))
		avoids := true
		for _, rep := range r.setOf(id, seriesName(0)) {
			avoids = avoids && !r.dead[rep.id]
		}
		require.Equal(t, avoids, err == nil, "%v", err)
		if avoids {
			stored++
		}
	}
	require.Positive(t, stored)
}

func TestAStreamThatBreaksFailsWhatItCarriedAndComesBack(t *testing.T) {
	r := newRing(t, 1, 1)
	rep := r.at(0)
	rep.set(func() { rep.hold = make(chan struct{}) })
	done := make(chan error, 1)
	go func() {
		_, err := r.Push(context.Background(), "team", batchOf(10, now))
		done <- err
	}()
	<-rep.arrived
	rep.kill()
	err := <-done
	require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err))
	require.ErrorContains(t, err, "ingester-00: the stream to it broke")
	rep.set(func() { rep.hold = nil })
	rep.start() // It is the same process for all that others know.
	r.eventually(func() bool { return r.Ready() == nil })
	_, err = r.Push(t.Context(), "team", batchOf(10, now))
	require.NoError(t, err)
}

func TestAStreamThatStaysSilentIsGivenUp(t *testing.T) {
	r := newRing(t, 3, 3, func(r *Replicator) { r.patience, r.interval = 20*time.Millisecond, 5*time.Millisecond })
	rep := r.at(0)
	rep.set(func() { rep.mute = true })
	_, err := r.Push(t.Context(), "team", batchOf(10, now))
	require.NoError(t, err)
	answered := func(i int) bool {
		link := r.routes.Load().nodes[i].link
		link.mu.Lock()
		defer link.mu.Unlock()
		return len(link.mu.pending) == 0
	}
	r.eventually(func() bool { return answered(0) })
	rep.set(func() { rep.mute = false })
	r.eventually(func() bool { return r.reached(rep.id) == nil })
	r.at(1).set(func() { r.at(1).mute = true })
	r.at(2).set(func() { r.at(2).mute = true })
	_, err = r.Push(t.Context(), "team", batchOf(10, now))
	require.ErrorContains(t, err, "ingester-01")
	r.eventually(func() bool { return answered(1) && answered(2) })
}

func TestAFullQueueIsAMissingVote(t *testing.T) {
	r := newRing(t, 3, 3, func(r *Replicator) { r.cfg.QueueBytes = 20_000 })
	rep := r.at(0)
	rep.set(func() { rep.hold = make(chan struct{}) })
	for round := range int64(20) {
		result, err := r.Push(t.Context(), "team", batchOf(100, now+round))
		require.NoError(t, err, "the other two suffice")
		require.Equal(t, 100, result.Written.Samples)
		for _, other := range []int{1, 2} {
			r.eventually(func() bool { return r.at(other).count("team") == 100*(int(round)+1) })
		}
	}
	require.Positive(t, testutil.ToFloat64(r.metrics.requests.WithLabelValues(rep.id, outcomeQueueFull)))
	require.LessOrEqual(t, testutil.ToFloat64(r.metrics.bytes.WithLabelValues(rep.id)), 20_000.0)
	r.die(1)
	_, err := r.Push(t.Context(), "team", batchOf(100, now+100))
	require.ErrorContains(t, err, "ingester-00: the queue to it is full")
	require.ErrorContains(t, err, "ingester-01: it is not alive")
}

func TestFailuresAndNonsenseAreMissingVotes(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*replica)
		want   string
	}{
		"failure":                 {func(r *replica) { r.fail = wire.Unavailable(errors.New("the disk is full"), time.Second) }, "the disk is full"},
		"a sample out of nowhere": {func(r *replica) { r.twist = func(m *ingestv1.PushResponse) { m.Samples++ } }, "makes no sense"},
		"a sample forgotten":      {func(r *replica) { r.twist = func(m *ingestv1.PushResponse) { m.Samples-- } }, "makes no sense"},
		"an item out of range": {func(r *replica) {
			r.twist = func(m *ingestv1.PushResponse) {
				m.Rejected = []*ingestv1.Rejection{{Reason: "sample_too_old", Samples: []uint32{99}}}
			}
		}, "makes no sense"},
		"a series out of range": {func(r *replica) { r.twist = func(m *ingestv1.PushResponse) { m.Unknown = []uint32{10} } }, "makes no sense"},
		"unknown in spite of labels": {func(r *replica) {
			r.twist = func(m *ingestv1.PushResponse) { m.Unknown, m.Samples = []uint32{0}, m.GetSamples()-1 }
		}, "does not know series that came with their labels"},
		"full": {func(r *replica) {
			r.judge = func(string, write.Sample) *write.SeriesError {
				return &write.SeriesError{Reason: write.ReasonInstanceSeriesLimit, Detail: "no room"}
			}
		}, "instance_series_limit: no room"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, 3, 3)
			r.at(0).set(func() { c.change(r.at(0)) })
			result, err := r.Push(t.Context(), "team", batchOf(10, now))
			require.NoError(t, err)
			require.Equal(t, write.Result{Written: write.Counts{Samples: 10}}, result)
			r.at(1).set(func() { c.change(r.at(1)) })
			_, err = r.Push(t.Context(), "team", batchOf(10, now))
			require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err))
			require.ErrorContains(t, err, "ingester-00: ")
			require.ErrorContains(t, err, "ingester-01: ")
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWhatCannotBeStoredIsRejectedHere(t *testing.T) {
	r := newRing(t, 3, 3)
	b := batchOf(2, now)
	b.Add(write.NewHasher(), labels.FromStrings("job", "x"), []write.Sample{{T: now}, {T: now + 1}}, nil, nil)
	b.Add(write.NewHasher(), labels.FromStrings("__name__", "fine"), []write.Sample{{T: now}}, nil,
		[]exemplar.Exemplar{{Labels: labels.FromStrings("trace", "1"), Value: 1, Ts: now, HasTs: true}})
	for range 2 {
		result, err := r.Push(t.Context(), "team", b)
		require.NoError(t, err)
		require.Equal(t, write.Counts{Samples: 3, Exemplars: 1}, result.Written)
		require.Len(t, result.Rejected, 1)
		require.Equal(t, write.ReasonMissingName, result.Rejected[0].Reason)
		require.Equal(t, []write.Item{{Kind: write.KindSample, Index: 2}, {Kind: write.KindSample, Index: 3}}, result.Rejected[0].Items)
	}
	// The verdict is that of the limits in force.
	limits := tenant.DefaultLimits()
	limits.MaxLabelsPerSeries = 1
	r.mu.Lock()
	r.limits["team"] = limits
	r.mu.Unlock()
	result, err := r.Push(t.Context(), "team", batchOf(2, now))
	require.NoError(t, err)
	require.Equal(t, write.ReasonTooManyLabels, result.Rejected[0].Reason)
	require.Equal(t, 2, result.Rejected[0].Count)
}

func TestLabelsInAnyOrderAreOneSeries(t *testing.T) {
	r := newRing(t, 3, 3)
	b := &write.Batch{Source: unsorted{}, Series: []write.Series{{ID: write.Identity{Hi: 1, Lo: 2}, Samples: write.Span{Len: 1}}}, Samples: []write.Sample{{T: now}}}
	for range 2 {
		_, err := r.Push(t.Context(), "team", b)
		require.NoError(t, err)
		r.eventually(func() bool { return r.acknowledgedSeries() == 1 })
	}
	require.True(t, r.at(0).has("team", `{__name__="up", a="1", b="2"}`, write.Sample{T: now}))
	require.Equal(t, 1, r.at(0).labelled)
}

type unsorted struct{}

func (unsorted) AppendLabels(_ int, b *labels.ScratchBuilder) error {
	b.Add("b", "2")
	b.Add("__name__", "up")
	b.Add("a", "1")
	return nil
}

func TestMetadataGoesToItsSetAndHoldsNothingUp(t *testing.T) {
	r := newRing(t, 3, 9)
	only := &write.Batch{}
	for i := range 50 {
		only.Metadata = append(only.Metadata, write.Metadata{Metric: fmt.Sprint("metric_", i)})
	}
	_, err := r.Push(t.Context(), "team", only)
	require.NoError(t, err)
	r.eventually(func() bool {
		total := 0
		for _, rep := range r.replicas {
			rep.set(func() { total += len(rep.metadata) })
		}
		return total == 150
	})
	r.die(0)
	r.die(1)
	_, err = r.Push(t.Context(), "team", only)
	require.Error(t, err, "some of it is not stored")
	// Along with samples whose sets are well it does not count.
	i := 0
	for ; ; i++ {
		well := true
		for _, rep := range r.setOf("team", seriesName(i)) {
			well = well && !r.dead[rep.id]
		}
		if well {
			break
		}
	}
	only.Add(write.NewHasher(), seriesName(i), []write.Sample{{T: now}}, nil, nil)
	_, err = r.Push(t.Context(), "team", only)
	require.NoError(t, err)
}

func TestNothingAcknowledgedIsLostWhileTheClusterChanges(t *testing.T) {
	r := newRing(t, 3, 3)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const series, senders = 50, 3
	acknowledged := make([][]int64, senders)
	for sender := range senders {
		wg.Go(func() {
			id := tenant.ID(fmt.Sprint("tenant-", sender))
			for at := now; ctx.Err() == nil; at++ {
				if _, err := r.Push(context.Background(), id, batchOf(series, at)); err == nil {
					acknowledged[sender] = append(acknowledged[sender], at)
				}
			}
		})
	}
	pushes := func() {
		before := testutil.ToFloat64(r.metrics.pushes.WithLabelValues("written"))
		r.eventually(func() bool { return testutil.ToFloat64(r.metrics.pushes.WithLabelValues("written")) > before+10 })
	}
	pushes()
	for i := 3; i < 6; i++ {
		r.join(i)
		r.publish()
		r.awaitConnected(i + 1)
		pushes()
	}
	r.die(1)
	pushes()
	r.revive(1)
	pushes()
	cancel()
	wg.Wait()
	for sender, times := range acknowledged {
		require.NotEmpty(t, times)
		id := tenant.ID(fmt.Sprint("tenant-", sender))
		for i := range series {
			copies := map[int64]int{}
			for _, rep := range r.replicas {
				rep.set(func() {
					for _, s := range rep.points[string(id)][seriesName(i).String()] {
						copies[s.T]++
					}
				})
			}
			for _, at := range times {
				require.GreaterOrEqual(t, copies[at], 2)
			}
		}
	}
}

func TestLargeRequestsGoInParts(t *testing.T) {
	r := newRing(t, 3, 3)
	b, h := &write.Batch{}, write.NewHasher()
	value := strings.Repeat("v", 4000)
	const series = 5000
	for i := range series {
		b.Add(h, labels.FromStrings("__name__", "m", "n", fmt.Sprint(i), "v", value), []write.Sample{{T: now}}, nil, nil)
	}
	result, err := r.Push(t.Context(), "team", b)
	require.NoError(t, err)
	require.Equal(t, series, result.Written.Samples)
	require.Greater(t, r.at(0).requests+r.at(1).requests, 2)
}

func TestAReplicatorThatDoesNotRunTakesNothing(t *testing.T) {
	r := newRing(t, 3, 3)
	fresh, err := NewReplicator(DefaultReplicatorConfig(), r.source, r, r.limitsOf, nil, nil)
	require.NoError(t, err)
	_, err = fresh.Push(t.Context(), "team", batchOf(1, now))
	require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err))
	require.Error(t, fresh.Ready())
	_, err = NewReplicator(ReplicatorConfig{}, r.source, r, r.limitsOf, nil, nil)
	require.ErrorContains(t, err, "queue bytes")
	require.ErrorContains(t, err, "cache bytes")
}

func TestLabelsOfRequestsBeingReceivedAreBounded(t *testing.T) {
	r := newRing(t, 1, 1, func(r *Replicator) { r.labelMost = 2 * chargeStep })
	rep := r.at(0)
	rep.set(func() { rep.hold = make(chan struct{}) })
	first := make(chan error, 1)
	go func() {
		_, err := r.Push(t.Context(), "team", batchOfLong(10, now))
		first <- err
	}()
	<-rep.arrived
	_, err := r.Push(t.Context(), "other", batchOfLong(10, now))
	require.Equal(t, http.StatusServiceUnavailable, wire.HTTPStatus(err), "%v", err)
	require.ErrorContains(t, err, "524288 are allowed")
	rep.set(func() { rep.release() })
	require.NoError(t, <-first)
	require.Zero(t, r.labelled.Load())
	_, err = r.Push(t.Context(), "other", batchOfLong(10, now))
	require.NoError(t, err)
}

func TestMetadataIsSentAsShortAsItIsKept(t *testing.T) {
	r := newRing(t, 1, 1)
	b := &write.Batch{Metadata: []write.Metadata{
		{Metric: strings.Repeat("m", 2000)}, {Metric: "unit", Metadata: metadata.Metadata{Unit: strings.Repeat("u", 2000)}},
	}}
	help := strings.Repeat("ä", 1<<19) // a symbol that many refer to
	for i := range 70 {
		b.Metadata = append(b.Metadata, write.Metadata{Metric: fmt.Sprint("m", i), Metadata: metadata.Metadata{Help: help}})
	}
	_, err := r.Push(t.Context(), "team", b)
	require.NoError(t, err)
	rep := r.at(0)
	require.Len(t, rep.metadata, 70)
	require.Less(t, rep.largest, 70*1100)
	require.Len(t, b.Metadata[2].Help, 1<<20, "the batch is the caller's")
}

func TestASeriesTooLargeForAMessageIsRefusedAtOnce(t *testing.T) {
	r := newRing(t, 1, 1)
	b := &write.Batch{}
	b.Add(write.NewHasher(), seriesName(0), make([]write.Sample, seriesMost/9+1), nil, nil)
	_, err := r.Push(t.Context(), "team", b)
	require.Equal(t, http.StatusBadRequest, wire.HTTPStatus(err), "%v", err)
	require.ErrorContains(t, err, `{__name__="metric", n="0"}`)
	require.Zero(t, r.served(0))
}

// batchOfLong returns a batch of series with 50 kB of labels each.
func batchOfLong(n int, t int64) *write.Batch {
	b, h := &write.Batch{}, write.NewHasher()
	for i := range n {
		ls := labels.NewBuilder(seriesName(i))
		for k := range 25 {
			ls.Set(fmt.Sprint("long_", k), strings.Repeat("x", 2000))
		}
		b.Add(h, ls.Labels(), []write.Sample{{T: t, V: 1}}, nil, nil)
	}
	return b
}

func TestSeriesAreTaughtInMessagesOfBoundedSize(t *testing.T) {
	const series = 400
	r := newRing(t, 1, 1)
	push := func(at int64) {
		result, err := r.Push(t.Context(), "team", batchOfLong(series, at))
		require.NoError(t, err)
		require.Equal(t, series, result.Written.Samples)
	}
	push(now)
	r.eventually(func() bool { return r.acknowledgedSeries() == series })
	rep := r.at(0)
	rep.set(func() { clear(rep.known) })
	push(now + 1)
	require.Equal(t, series, rep.unknown)
	require.LessOrEqual(t, rep.largest, deliveryBytes)
}
