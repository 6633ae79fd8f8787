package querier

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// stalled is a bucket that answers no read once it is stalled.
type stalled struct {
	objstore.Bucket
	now atomic.Bool
}

func (b *stalled) wait(ctx context.Context) error {
	if !b.now.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (b *stalled) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := b.wait(ctx); err != nil {
		return nil, err
	}
	return b.Bucket.Get(ctx, name)
}

func (b *stalled) GetRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := b.wait(ctx); err != nil {
		return nil, err
	}
	return b.Bucket.GetRange(ctx, name, offset, length)
}

func (b *stalled) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if err := b.wait(ctx); err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return b.Bucket.Attributes(ctx, name)
}

// answered counts what a server sends.
type answered struct {
	grpc.ServerStreamingServer[queryv1.ReadBlocksResponse]
	ctx     context.Context
	last    atomic.Int64
	failure atomic.Int64
}

func (a *answered) Context() context.Context { return a.ctx }

func (a *answered) Send(m *queryv1.ReadBlocksResponse) error {
	if m.GetLast() {
		a.last.Add(1)
	}
	if m.GetFailure() != "" {
		a.failure.Add(1)
	}
	return nil
}

func TestFetchingAheadTakesNoPlacesOfReads(t *testing.T) {
	bucket := &stalled{Bucket: objstore.NewInMemBucket()}
	r := newRig(t, rigOption{bucket: bucket})
	id := r.upload(alice, 0, hour, blocktest.Floats("a", 0, hour, minute))
	r.refresh()
	server := &blocksServer{q: r.Querier, serving: make(chan struct{}, servedAtOnce), fetching: make(chan struct{}, fetchedAtOnce)}
	ask := func(kind queryv1.ReadBlocksRequest_Kind, ids ...ulid.ULID) *queryv1.ReadBlocksRequest {
		req := &queryv1.ReadBlocksRequest{Tenant: string(alice), MaxMs: hour, Kind: kind}
		for _, id := range ids {
			req.Blocks = append(req.Blocks, &queryv1.Block{Id: id[:], MaxMs: hour, Series: 1, Chunks: 1})
		}
		return req
	}
	read := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		to := &answered{ctx: ctx}
		require.NoError(t, server.ReadBlocks(ask(queryv1.ReadBlocksRequest_KIND_CHUNKS, id), to))
		require.EqualValues(t, 1, to.last.Load())
		require.Zero(t, to.failure.Load())
	}
	read() // which makes it resident

	bucket.now.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	var fetching errgroup.Group
	for range servedAtOnce / servedOfOne {
		var ids []ulid.ULID
		for range servedOfOne {
			ids = append(ids, ulid.Make())
		}
		fetching.Go(func() error {
			return server.ReadBlocks(ask(queryv1.ReadBlocksRequest_KIND_PAGES, ids...), &answered{ctx: ctx})
		})
	}
	require.Eventually(t, func() bool { return len(server.fetching) == fetchedAtOnce }, 5*time.Second, time.Millisecond)
	read()
	cancel()
	require.Error(t, fetching.Wait())
}
