package querier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// ownersOfNobody are owners whose connections are never used.
func ownersOfNobody() *owners {
	return newOwners(nil, noConns{}, slog.New(slog.DiscardHandler), nil)
}

type noConns struct{}

func (noConns) Conn(string) (grpc.ClientConnInterface, error) { return nil, nil }

// inquiryOfOne asks peers for one block as read does in their place.
func inquiryOfOne(ctx context.Context, peers []cluster.Peer, read func(ctx context.Context, r *reception, heard func()) error) (*inquiry, *ownedAnswer) {
	in := newInquiry(ctx, ownersOfNobody(), alice, request{})
	in.read = func(ctx context.Context, _ cluster.Peer, answers []*ownedAnswer, heard func()) error {
		r := &reception{inquiry: in, answers: answers, parts: make([]arrived, len(answers)), left: len(answers)}
		defer r.giveBack()
		return read(ctx, r, heard)
	}
	return in, in.add(&blockstore.Block{}, peers)
}

func TestOwnersAreAskedOneAfterTheOther(t *testing.T) {
	peers := []cluster.Peer{{ID: "first"}, {ID: "second"}}
	type step struct {
		after time.Duration // of silence; then
		err   error
	}
	broken := errors.New("broken")
	for _, c := range []struct {
		name   string
		steps  []step // of the peers, in the order in which they are asked
		talks  bool   // the first one says that it is at work
		want   int    // who answered; 0 is nobody
		asked  int
		within time.Duration
		avoids int
	}{
		{"the first answers", []step{{time.Second, nil}}, false, 1, 1, time.Second, 0},
		{"the first fails", []step{{time.Second, broken}, {time.Second, nil}}, false, 2, 2, 2 * time.Second, 0},
		{"both fail", []step{{0, broken}, {0, broken}}, false, 0, 2, 0, 0},
		{"the first is silent", []step{{time.Hour, nil}, {time.Second, nil}}, false, 2, 2, silentAfter + time.Second, 1},
		{"the first is slower than the second has patience", []step{{silentAfter + time.Second, nil}, {time.Minute, nil}}, false, 1, 2, silentAfter + time.Second, 1},
		{"both are silent", []step{{time.Hour, nil}, {time.Hour, nil}}, false, 0, 2, 2 * silentAfter, 2},
		{"the first is at work for long", []step{{time.Minute, nil}}, true, 1, 1, time.Minute, 0},
		{"the answer is too large", []step{{0, errTooLarge}}, false, 0, 1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				asked := 0
				start := time.Now()
				in, answer := inquiryOfOne(t.Context(), peers, func(ctx context.Context, r *reception, heard func()) error {
					mu.Lock()
					step := c.steps[asked]
					asked++
					me := asked
					mu.Unlock()
					for left := step.after; left > 0; left -= time.Second {
						select {
						case <-time.After(min(left, time.Second)):
						case <-ctx.Done():
							return ctx.Err()
						}
						if c.talks {
							heard()
						}
					}
					if step.err != nil {
						return step.err
					}
					return r.take(&queryv1.ReadBlocksResponse{Last: true, Values: []string{fmt.Sprint(me)}})
				})
				stop := in.begin(t.Context())
				<-answer.settled
				require.Equal(t, c.within, time.Since(start))
				stop()
				require.Equal(t, c.want == 0, answer.err != nil, "%v", answer.err)
				if answer.err == nil {
					require.Equal(t, []string{fmt.Sprint(c.want)}, answer.got.values)
				}
				require.Equal(t, c.asked, asked)
				require.Len(t, in.owners.avoided.until, c.avoids)
			})
		})
	}
}

func TestOnlyTheAnswerThatCountsIsHeld(t *testing.T) {
	peers := []cluster.Peer{{ID: "first"}, {ID: "second"}}
	for _, c := range []struct {
		name  string
		first error // nil: it hangs
		held  int64 // by the query in the end
		fails error
		limit int64
		own   [2]int // what the first and the second hold
	}{
		{name: "the first one fails", first: errCutShort, held: 60, limit: 400, own: [2]int{60, 60}},
		{name: "the first one hangs", held: 60, own: [2]int{60, 60}},
		{name: "the first one hangs and leaves too little", limit: 400, own: [2]int{60, 60}, fails: errTooLarge},
		{name: "both are too large", first: errCutShort, limit: 200, own: [2]int{40, 60}, fails: errTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				whole := newAccount(alice, tenant.Limits{MaxQueryBytes: c.limit})
				var asked atomic.Int32
				in, answer := inquiryOfOne(withAccount(t.Context(), whole.part()), peers, func(ctx context.Context, r *reception, _ func()) error {
					me := asked.Add(1)
					if err := r.take(&queryv1.ReadBlocksResponse{Frame: make([]byte, c.own[me-1]), FetchedBytes: 1}); err != nil {
						return err
					}
					if me == 2 {
						return r.take(&queryv1.ReadBlocksResponse{Last: true})
					}
					if c.first == nil {
						<-ctx.Done()
						return ctx.Err()
					}
					return c.first
				})
				stop := in.begin(t.Context())
				<-answer.settled
				stop()
				require.ErrorIs(t, answer.err, c.fails)
				require.Equal(t, c.held, whole.held.Load())
				require.Equal(t, c.held, whole.owned.Load())
				require.EqualValues(t, 2, whole.fetched.Load(), "it was fetched for the query")
				in.account.release()
				require.Zero(t, whole.held.Load())
				require.Zero(t, whole.owned.Load())
			})
		})
	}
}

// pods returns series whose chunks take some 10 KB each.
func pods(n int, from, to int64) []blocktest.Series {
	var out []blocktest.Series
	for pod := range n {
		one := blocktest.Floats("requests", from, to, 10_000)
		one.Labels = labels.FromStrings(model.MetricNameLabel, "requests", "pod", fmt.Sprintf("%03d", pod))
		out = append(out, one)
	}
	return out
}

func TestQueryHoldsABoundedPartOfWhatOwnersSend(t *testing.T) {
	r := newRig(t, rigOption{})
	for i := range int64(10) {
		r.upload(alice, i*hour, (i+1)*hour, pods(300, i*hour, (i+1)*hour)...)
	}
	r.refresh()
	read := func(limit int64) (a *account) {
		a = newAccount(alice, tenant.Limits{MaxQueryBytes: limit})
		n, err := count(t, withAccount(as(alice), a), r.Queryable(), "requests", 0, 10*hour-1)
		require.NoError(t, err)
		require.Equal(t, 10*300*360, n)
		return a
	}
	alone := read(0).peak.Load()
	r.lend()
	all := read(0).owned.Load()
	require.Zero(t, r.fallbacks(fallbackSize))
	limit := all // of which a quarter may be of owners
	require.Less(t, limit/4+alone, all, "else this says nothing")
	a := read(limit)
	require.LessOrEqual(t, a.owned.Load(), limit/4)
	require.LessOrEqual(t, a.peak.Load(), limit/4+alone)
	require.Positive(t, r.fallbacks(fallbackSize))
	require.Zero(t, r.fallbacks(fallbackFailed))
	require.Positive(t, read(limit).owned.Load(), "what fits is asked of owners still")
}

func TestOwnersAreAskedOnceForAllTheirBlocks(t *testing.T) {
	r := newRig(t, rigOption{})
	for i := range int64(24) {
		r.upload(alice, i*hour, (i+1)*hour, blocktest.Floats("a", i*hour, (i+1)*hour, minute))
	}
	r.refresh()
	s := r.lend()
	requests := func() int { return int(testutil.ToFloat64(r.owners.metrics.requests.WithLabelValues("ok"))) }
	n, err := count(t, as(alice), r.Queryable(), "a", 0, 24*hour-1)
	require.NoError(t, err)
	require.Equal(t, 24*60, n)
	require.Equal(t, 3, requests(), "one of each owner")
	require.JSONEq(t, `["a"]`, string(r.get(alice, "/api/v1/label/__name__/values").Data))
	require.Equal(t, 6, requests())

	s.sharers[1].server.Stop()
	n, err = count(t, as(alice), r.Queryable(), "a", 0, 24*hour-1)
	require.NoError(t, err)
	require.Equal(t, 24*60, n)
	require.Zero(t, r.fallbacks(fallbackFailed), "their second owners have the blocks")
}

func TestOneBlockThatCannotBeReadCostsTheOthersNothing(t *testing.T) {
	s := newSharing(t, 4)
	blocks := s.upload(alice, 12)
	asker := s.stranger(alice, blocks[5])
	require.NoError(t, s.store.Delete(context.Background(), alice, blocks[5]))
	_, err := count(t, as(alice), asker.Queryable(), "a", 0, 12*hour-1)
	require.ErrorContains(t, err, blocks[5].String())
	require.Equal(t, 1, asker.fallbacks(fallbackFailed))
	for _, block := range blocks {
		require.Subset(t, []int{0, 2}, []int{len(asker.owners.of(alice, block))}, "nobody is to blame")
	}
}

func TestPartsOfAnAnswerThatNobodyAskedForAreRefused(t *testing.T) {
	in, _ := inquiryOfOne(t.Context(), nil, nil)
	r := &reception{inquiry: in, answers: in.order, parts: make([]arrived, 1), left: 1}
	require.ErrorContains(t, r.take(&queryv1.ReadBlocksResponse{Block: 1, Frame: []byte{1}}), "was not asked")
	require.NoError(t, r.take(&queryv1.ReadBlocksResponse{Block: 0, Last: true}))
	require.NoError(t, r.take(&queryv1.ReadBlocksResponse{}), "it is at work")
	require.ErrorContains(t, r.take(&queryv1.ReadBlocksResponse{Block: 0, Last: true}), "was not asked")

	server := &blocksServer{}
	for _, req := range []*queryv1.ReadBlocksRequest{
		{Tenant: "../x"},
		{Tenant: "x", MinMs: 1, Kind: queryv1.ReadBlocksRequest_KIND_CHUNKS},
		{Tenant: "x"},
		{Tenant: "x", Kind: queryv1.ReadBlocksRequest_KIND_CHUNKS, Blocks: make([]*queryv1.Block, maxAskedBlocks+1)},
		{Tenant: "x", Kind: queryv1.ReadBlocksRequest_KIND_CHUNKS, Blocks: []*queryv1.Block{{Id: []byte{1}}}},
	} {
		require.Error(t, server.ReadBlocks(req, nil), "%v", req)
	}
}

func TestStreamOfAnOwnerEndsBeforeTheNextOneIsAsked(t *testing.T) {
	peers := []cluster.Peer{{ID: "first"}, {ID: "second"}}
	streams := make(chan context.Context, 2)
	in, answer := inquiryOfOne(t.Context(), peers, func(ctx context.Context, r *reception, _ func()) error {
		streams <- ctx
		if len(streams) == 1 {
			return r.take(&queryv1.ReadBlocksResponse{Block: 7, Last: true}) // which breaks the protocol
		}
		require.Error(t, (<-streams).Err(), "nobody reads the first one any more")
		return r.take(&queryv1.ReadBlocksResponse{Last: true})
	})
	stop := in.begin(t.Context())
	defer stop()
	<-answer.settled
	require.NoError(t, answer.err)
}

func TestShortLabelValuesOfOwnersAreBounded(t *testing.T) {
	in, _ := inquiryOfOne(withAccount(t.Context(), newAccount(alice, tenant.Limits{MaxQueryBytes: 40_000})), nil, nil)
	r := &reception{inquiry: in, answers: in.order, parts: make([]arrived, 1), left: 1}
	require.NoError(t, r.take(&queryv1.ReadBlocksResponse{Values: make([]string, 100), Frame: []byte{1}}))
	require.ErrorIs(t, r.take(&queryv1.ReadBlocksResponse{Values: make([]string, 1000), Frame: []byte{1}}), errTooLarge)
}
