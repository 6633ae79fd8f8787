package ingester

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

const (
	// maxRequestBytes bounds the frames of one request. A distributor's request is a
	// part of what a sender sent, which is smaller.
	maxRequestBytes = 48 << 20
	// maxBytesInWork bounds the frames in work on all streams. More wait in the
	// network, so that distributors notice.
	maxBytesInWork = 256 << 20
	// maxInWork bounds the requests of one stream that are in work, and maxPerTenant
	// those of one tenant, so that a tenant whose head is being cut does not hold up
	// the others. Each sender of a tenant may have dozens of requests under way.
	maxInWork    = 2048
	maxPerTenant = 1024
	// decodeAhead is how many requests of a tenant are decoded before it is their
	// turn: enough to keep the appending busy; decoded ones take more memory.
	decodeAhead = 4
	// maxDefinitions bounds the placements that a stream may define.
	maxDefinitions = 1024
	// pushTimeout bounds the time that a request waits for its turn. Distributors have
	// given up long before.
	pushTimeout = 30 * time.Second
	// maxPooledBytes is what a batch may keep for its next use.
	maxPooledBytes = 8 << 20
)

var (
	errSeed      = errors.New("the identities of series were made with another seed than here: both must use the same bucket")
	errTooLarge  = errors.New("the request is too large")
	errUndefined = errors.New("the placement is not defined on this stream; begin another one and define it")
	errPlacement = errors.New("the definition is that of another placement")
	errNoPlace   = errors.New("the request names no placement")
	errPanic     = errors.New("the push panicked; the log of the ingester has the details")
	errBusy      = errors.New("too many requests of the tenant wait here already")
	errNotMe     = errors.New("the request is for another ingester, whose address is used here now")
)

// Register serves distributors and queriers of a cluster on reg, as self.
func (i *Ingester) Register(reg grpc.ServiceRegistrar, self Member) {
	i.become(self)
	ingestv1.RegisterIngestServiceServer(reg, &pushServer{
		ing:   i,
		bytes: semaphore.NewWeighted(maxBytesInWork),
	})
	queryv1.RegisterRecentServiceServer(reg, &recentServer{ing: i})
}

// pushServer is the IngestService.
type pushServer struct {
	ingestv1.UnimplementedIngestServiceServer

	ing     *Ingester
	bytes   *semaphore.Weighted
	batches sync.Pool // of *pushBatch
}

// pushBatch is what decoding a request uses again and again.
type pushBatch struct {
	batch   write.Batch
	decoder frame.PushDecoder
}

// Push implements ingestv1.IngestServiceServer. Requests of one tenant are appended in
// the order in which they came, since older samples after newer ones would be stored
// out of order; they are decoded side by side all the same. Those of different
// tenants do not wait for each other.
//
// Requests that wait are not merged into one commit: that would spare 4% of what requests
// of 100 samples cost, and nothing of larger ones (ADR 027).
func (s *pushServer) Push(stream grpc.BidiStreamingServer[ingestv1.PushRequest, ingestv1.PushResponse]) error {
	p := &pushStream{
		server: s, stream: stream,
		slots:   make(chan struct{}, maxInWork),
		defined: map[uint64]*cluster.Placement{},
	}
	p.mu.lines = map[tenant.ID]line{}
	err := p.serve(stream.Context())
	p.working.Wait()
	return wire.GRPCError(err)
}

// pushStream is one stream of requests.
type pushStream struct {
	server  *pushServer
	stream  grpc.BidiStreamingServer[ingestv1.PushRequest, ingestv1.PushResponse]
	slots   chan struct{}
	defined map[uint64]*cluster.Placement // used by serve alone
	working sync.WaitGroup

	sending sync.Mutex // held to send

	mu struct {
		sync.Mutex
		lines map[tenant.ID]line
	}
}

// line is the requests of one tenant that are in work.
type line struct {
	length int
	// newest are the newest requests, the very newest first.
	newest [decodeAhead]<-chan struct{}
}

// queued is a request in work.
type queued struct {
	req    *ingestv1.PushRequest
	tenant tenant.ID
	placed Placed
	bytes  int64
	// before is closed once the one before it in its line is done, and decodable once
	// that is true of the one decodeAhead places before; nil: there is none.
	before, decodable <-chan struct{}
	done              chan struct{} // closed once it is appended, or never will be
}

// serve takes requests until the other side sends no more.
func (p *pushStream) serve(ctx context.Context) error {
	for {
		req, err := p.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		q, err := p.admit(req)
		if err != nil {
			p.answer(req.GetId(), write.Result{}, err)
			if errors.Is(err, errUndefined) {
				return wire.Unavailable(err, 0) // The next stream begins with definitions.
			}
			continue
		}
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := p.server.bytes.Acquire(ctx, q.bytes); err != nil {
			return err
		}
		if !p.enqueue(q) {
			p.server.ing.metrics.refused.WithLabelValues("busy").Inc()
			p.release(q)
			p.answer(req.GetId(), write.Result{}, wire.Unavailable(fmt.Errorf("tenant %s: %w", q.tenant, errBusy), time.Second))
			continue
		}
		p.working.Add(1)
		go func() {
			defer p.working.Done()
			defer p.release(q)
			result, err := p.guardedWork(ctx, q)
			p.answer(req.GetId(), result, err)
		}()
	}
}

// admit checks all of a request but its frames.
func (p *pushStream) admit(req *ingestv1.PushRequest) (*queued, error) {
	id, err := tenant.Parse(req.GetTenant())
	if err != nil {
		return nil, err
	}
	q := &queued{req: req, tenant: id, done: make(chan struct{})}
	for _, f := range req.GetFrames() {
		q.bytes += int64(len(f))
	}
	refused := p.server.ing.metrics.refused
	if q.bytes > maxRequestBytes {
		refused.WithLabelValues("size").Inc()
		return nil, wire.Invalid(fmt.Errorf("%w: its frames have %d bytes, at most %d are taken", errTooLarge, q.bytes, maxRequestBytes))
	}
	if self := p.server.ing.self.Load(); req.GetInstance() != self.Instance {
		// The sender's view is old, and it may count this ingester's vote twice.
		refused.WithLabelValues("instance").Inc()
		return nil, wire.Unavailable(fmt.Errorf("%w: it is for %q, and this is %q", errNotMe, req.GetInstance(), self.Instance), time.Second)
	}
	if req.GetSeed() != write.SeedFingerprint() {
		// The sender's samples are fine, so it must not drop them.
		refused.WithLabelValues("seed").Inc()
		return nil, wire.Unavailable(errSeed, 10*time.Second)
	}
	if q.placed, err = p.placed(req); err != nil {
		refused.WithLabelValues("placement").Inc()
		return nil, err
	}
	return q, nil
}

// placed returns the placement of a request, and remembers its definition.
func (p *pushStream) placed(req *ingestv1.PushRequest) (Placed, error) {
	hash := req.GetPlacement()
	if definition := req.GetPlacementDefinition(); len(definition) > 0 {
		placement, err := cluster.DecodePlacement(definition)
		if err != nil {
			return Placed{}, wire.Invalid(err)
		}
		if placement.Hash() != hash {
			return Placed{}, wire.Invalid(errPlacement)
		}
		if len(p.defined) >= maxDefinitions {
			clear(p.defined)
		}
		p.defined[hash] = placement
	}
	placement, ok := p.defined[hash]
	switch {
	case ok:
		return Placed{Placement: placement, Shard: int(req.GetShard())}, nil
	case hash == 0:
		return Placed{}, wire.Invalid(errNoPlace)
	default:
		return Placed{}, wire.Unavailable(errUndefined, 0)
	}
}

// enqueue lines q up behind the other requests of its tenant, unless they are too many.
func (p *pushStream) enqueue(q *queued) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.mu.lines[q.tenant]
	if l.length >= maxPerTenant {
		return false
	}
	q.before, q.decodable = l.newest[0], l.newest[decodeAhead-1]
	copy(l.newest[1:], l.newest[:])
	l.newest[0] = q.done
	l.length++
	p.mu.lines[q.tenant] = l
	return true
}

// guardedWork is work for which a panic, which is a bug, fails the request alone: here
// nobody else catches it.
func (p *pushStream) guardedWork(ctx context.Context, q *queued) (result write.Result, err error) {
	defer func() {
		if failure := recover(); failure != nil {
			p.server.ing.metrics.refused.WithLabelValues("panic").Inc()
			p.server.ing.logger.Error("A push panicked and was answered with an error. This is a bug; please report it with the stack.",
				"tenant", q.tenant, "panic", failure, "stack", string(debug.Stack()))
			result, err = write.Result{}, fmt.Errorf("%w: %v", errPanic, failure)
		}
	}()
	return p.work(ctx, q)
}

// work decodes and appends a request.
func (p *pushStream) work(ctx context.Context, q *queued) (write.Result, error) {
	defer p.finish(q)
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	if err := await(ctx, q.decodable); err != nil {
		return write.Result{}, err
	}
	b, _ := p.server.batches.Get().(*pushBatch)
	if b == nil {
		b = &pushBatch{}
	}
	defer p.server.recycle(b)
	if err := b.decoder.Decode(&b.batch, q.req.GetFrames()...); err != nil {
		return write.Result{}, wire.Invalid(err)
	}
	if err := await(ctx, q.before); err != nil {
		return write.Result{}, err
	}
	return p.server.ing.PushPlaced(ctx, q.tenant, &b.batch, q.placed)
}

// await waits until done is closed, if there is one.
func await(ctx context.Context, done <-chan struct{}) error {
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for other writes of the tenant: %w", ctx.Err())
	}
}

// finish lets the next request of the tenant go on.
func (p *pushStream) finish(q *queued) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(q.done)
	l := p.mu.lines[q.tenant]
	if l.length--; l.length == 0 {
		delete(p.mu.lines, q.tenant)
		return
	}
	p.mu.lines[q.tenant] = l
}

// recycle keeps b for another request.
func (s *pushServer) recycle(b *pushBatch) {
	b.batch.Reset()
	b.decoder.Forget()
	const perSample, perSeries = 24, 64 // roughly
	if b.decoder.Retained()+cap(b.batch.Samples)*perSample+cap(b.batch.Series)*perSeries <= maxPooledBytes {
		s.batches.Put(b)
	}
}

func (p *pushStream) release(q *queued) {
	p.server.bytes.Release(q.bytes)
	<-p.slots
}

// answer sends what became of a request. If it cannot be sent the stream is broken,
// which Recv tells.
func (p *pushStream) answer(id uint64, result write.Result, err error) {
	response := wire.ResultToProto(id, result, err)
	p.sending.Lock()
	defer p.sending.Unlock()
	_ = p.stream.Send(response)
}
