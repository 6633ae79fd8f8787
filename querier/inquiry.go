package querier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// maxAskedBlocks bounds the blocks of one request to an owner. More are asked in several.
const maxAskedBlocks = 1024

// valueOverhead is what a label name or value takes beside its bytes: the string's header, in the
// message and in the answer, and what the allocator rounds up.
const valueOverhead = 40

// overdrawn is an error that ends the query, whoever answers: its account is overdrawn.
type overdrawn struct{ error }

func (r overdrawn) Unwrap() error { return r.error }

// inquiry asks other queriers for what one call needs of the blocks that they own: each
// owner once for all its blocks. Those that it does not answer for are asked of their
// second owners; of one that has been silent for so long, too, while it may still answer.
// The first whole answer for a block counts. It is safe for concurrent use once it has begun.
type inquiry struct {
	owners  *owners
	account *account                   // is charged; what does not count is given back
	request *queryv1.ReadBlocksRequest // without its blocks
	answers map[ulid.ULID]*ownedAnswer
	order   []*ownedAnswer // in which they are needed
	// read receives the answers of one owner, and calls heard whenever a part has arrived. It
	// returns nil if all are whole.
	read    func(ctx context.Context, peer cluster.Peer, asked []*ownedAnswer, heard func()) error
	running sync.WaitGroup
}

// ownedAnswer is the answer for one block.
type ownedAnswer struct {
	block *blockstore.Block
	peers []cluster.Peer // whom to ask, the first one first

	once    sync.Once
	settled chan struct{} // closed once got and err are set, for good
	got     part
	err     error // nil: got is whole
}

// settle sets the answer, if nobody has before; counts says so.
func (a *ownedAnswer) settle(got part, err error) (counts bool) {
	a.once.Do(func() {
		a.got, a.err, counts = got, err, true
		close(a.settled)
	})
	return counts
}

func (a *ownedAnswer) isSettled() bool {
	select {
	case <-a.settled:
		return true
	default:
		return false
	}
}

// isTooLarge reports whether the answer is known to be more than may be held.
func (a *ownedAnswer) isTooLarge() bool { return a.isSettled() && errors.Is(a.err, errTooLarge) }

// newInquiry returns an inquiry about no block yet. It charges the account in ctx.
func newInquiry(ctx context.Context, o *owners, id tenant.ID, ask request) *inquiry {
	in := &inquiry{owners: o, account: accountOf(ctx), request: requestOfOwners(id, ask), answers: map[ulid.ULID]*ownedAnswer{}}
	if in.account == nil {
		in.account = newAccount(id, tenant.Limits{})
	}
	in.read = in.receive
	return in
}

// requestOfOwners returns what owners are asked for a call.
func requestOfOwners(id tenant.ID, ask request) *queryv1.ReadBlocksRequest {
	req := &queryv1.ReadBlocksRequest{
		Tenant: string(id), MinMs: ask.mint, MaxMs: ask.maxt, Matchers: wire.MatchersToProto(ask.matchers), Name: ask.name,
		Limit: uint32(max(ask.limit, 0)), //nolint:gosec // a bound above 4 G is none
	}
	switch ask.kind {
	case labelNames:
		req.Kind = queryv1.ReadBlocksRequest_KIND_LABEL_NAMES
	case labelValues:
		req.Kind = queryv1.ReadBlocksRequest_KIND_LABEL_VALUES
	case fetchPages:
		req.Kind = queryv1.ReadBlocksRequest_KIND_PAGES
	default:
		req.Kind = queryv1.ReadBlocksRequest_KIND_CHUNKS
	}
	if h := ask.hints; h != nil {
		req.Limit = uint32(max(h.Limit, 0)) //nolint:gosec // as above
		req.ShardIndex, req.ShardCount = h.ShardIndex, h.ShardCount
		if h.Func == seriesFunc {
			req.Kind = queryv1.ReadBlocksRequest_KIND_SERIES
		}
	}
	return req
}

// add adds a block before the inquiry begins.
func (in *inquiry) add(block *blockstore.Block, peers []cluster.Peer) *ownedAnswer {
	a := &ownedAnswer{block: block, peers: peers, settled: make(chan struct{})}
	in.answers[block.Meta.ULID] = a
	in.order = append(in.order, a)
	return a
}

// begin asks. Each answer is settled sooner or later, at the latest by stop, which waits until
// nothing is asked any more.
func (in *inquiry) begin(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	in.running.Go(func() {
		in.ask(ctx, 0, in.order, nil)
		for _, a := range in.order {
			a.settle(part{}, errCutShort)
		}
	})
	return func() {
		cancel()
		in.running.Wait()
	}
}

// ask asks the owners of a rank, 0 for the first ones, for what is not settled; what nobody
// is left for is settled with why.
func (in *inquiry) ask(ctx context.Context, rank int, answers []*ownedAnswer, why error) {
	var peers []cluster.Peer
	asked := map[string][]*ownedAnswer{}
	for _, a := range answers {
		switch {
		case a.isSettled():
		case rank >= len(a.peers):
			a.settle(part{}, why)
		default:
			peer := a.peers[rank]
			if asked[peer.ID] == nil {
				peers = append(peers, peer)
			}
			asked[peer.ID] = append(asked[peer.ID], a)
		}
	}
	var running sync.WaitGroup
	for _, peer := range peers {
		for some := range slices.Chunk(asked[peer.ID], maxAskedBlocks) {
			running.Go(func() { in.askOne(ctx, peer, rank, some) })
		}
	}
	running.Wait()
}

// askOne asks one owner, and those of the next rank for what it does not answer.
func (in *inquiry) askOne(ctx context.Context, peer cluster.Peer, rank int, answers []*ownedAnswer) {
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	heard, ended := make(chan struct{}, 1), make(chan error, 1)
	in.running.Go(func() {
		ended <- in.read(own, peer, answers, func() {
			select {
			case heard <- struct{}{}:
			default:
			}
		})
	})
	timer := time.NewTimer(silentAfter)
	defer timer.Stop()
	for {
		select {
		case <-heard:
			timer.Reset(silentAfter)
		case <-timer.C:
			in.owners.avoid(peer, errSilent)
			in.owners.metrics.hedges.Inc()
			in.ask(ctx, rank+1, answers, errSilent)
			return
		case err := <-ended:
			cancel() // a stream that nobody reads any more must not keep its owner at work
			in.failed(ctx, peer, rank, answers, err)
			return
		}
	}
}

// failed goes on after an owner has answered, with err for what it did not.
func (in *inquiry) failed(ctx context.Context, peer cluster.Peer, rank int, answers []*ownedAnswer, err error) {
	var refused overdrawn
	switch {
	case err == nil:
		return
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &refused), errors.Is(err, errTooLarge):
	default:
		if isDown(err) {
			in.owners.avoid(peer, err)
		}
		in.ask(ctx, rank+1, answers, fmt.Errorf("querier %s: %w", peer.ID, err))
		return
	}
	for _, a := range answers {
		a.settle(part{}, err)
	}
}

// receive asks one owner and takes what it sends.
func (in *inquiry) receive(ctx context.Context, peer cluster.Peer, answers []*ownedAnswer, heard func()) error {
	err := in.stream(ctx, peer, answers, heard)
	outcome := "ok"
	switch {
	case err != nil && ctx.Err() != nil:
		outcome = "canceled"
	case err != nil:
		outcome = "error"
	}
	in.owners.metrics.requests.WithLabelValues(outcome).Inc()
	if status.Code(err) == codes.ResourceExhausted {
		return fmt.Errorf("%w: %w", errTooLarge, err)
	}
	return wire.FromGRPC(err)
}

func (in *inquiry) stream(ctx context.Context, peer cluster.Peer, answers []*ownedAnswer, heard func()) error {
	conn, err := in.owners.conns.Conn(peer.GRPC)
	if err != nil {
		return err
	}
	r := &reception{inquiry: in, answers: answers, parts: make([]arrived, len(answers)), left: len(answers)}
	defer r.giveBack()
	stream, err := queryv1.NewBlocksServiceClient(conn).ReadBlocks(ctx, in.requestFor(answers))
	if err != nil {
		return err
	}
	for r.left > 0 {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errCutShort
		}
		if err != nil {
			return err
		}
		heard()
		if err := r.take(message); err != nil {
			return err
		}
	}
	return r.failure
}

func (in *inquiry) requestFor(answers []*ownedAnswer) *queryv1.ReadBlocksRequest {
	blocks := make([]*queryv1.Block, len(answers))
	for i, a := range answers {
		blocks[i] = blockToProto(a.block)
	}
	of := in.request
	return &queryv1.ReadBlocksRequest{
		Tenant: of.GetTenant(), Blocks: blocks, MinMs: of.GetMinMs(), MaxMs: of.GetMaxMs(), Matchers: of.GetMatchers(),
		Limit: of.GetLimit(), Kind: of.GetKind(), Name: of.GetName(), ShardIndex: of.GetShardIndex(), ShardCount: of.GetShardCount(),
	}
}

// reception is what arrives from one owner. One goroutine.
type reception struct {
	*inquiry
	answers []*ownedAnswer
	parts   []arrived
	left    int   // of answers that have not ended
	failure error // of one of those that did
}

// arrived is what has arrived of the answer for one block.
type arrived struct {
	part
	held  int64 // by the query
	ended bool
}

// take takes one message.
func (r *reception) take(m *queryv1.ReadBlocksResponse) error {
	if fetched := m.GetFetchedBytes(); fetched > 0 {
		if err := r.account.Fetch(int64(fetched)); err != nil { //nolint:gosec // less than there is in the bucket
			return overdrawn{err}
		}
	}
	size := len(m.GetFrame())
	for _, value := range m.GetValues() {
		size += len(value)
	}
	if size == 0 && !m.GetLast() && m.GetFailure() == "" {
		return nil // it is at work
	}
	r.owners.metrics.received.Add(float64(size))
	i := int(m.GetBlock())
	if i >= len(r.parts) || r.parts[i].ended {
		return fmt.Errorf("it sends something of block %d of %d that was not asked", i, len(r.parts))
	}
	p, a := &r.parts[i], r.answers[i]
	holds := int64(size + valueOverhead*len(m.GetValues()))
	switch {
	case m.GetFailure() != "":
		r.failure = fmt.Errorf("%w: %s: %s", errUnread, a.block.Meta.ULID, m.GetFailure())
		r.drop(p)
		p.ended = true
		r.left--
		return nil
	case a.isSettled():
		r.drop(p) // another owner was quicker
	case !r.account.holdOwned(holds):
		return errTooLarge
	default:
		p.held += holds
		if len(m.GetFrame()) > 0 {
			p.frames = append(p.frames, m.GetFrame())
		}
		p.values = append(p.values, m.GetValues()...)
		p.warnings = append(p.warnings, m.GetWarnings()...)
	}
	if m.GetLast() {
		p.ended = true
		r.left--
		if a.settle(p.part, nil) {
			p.held = 0 // until the query ends
		}
	}
	return nil
}

// drop gives back what is held of an answer that does not count.
func (r *reception) drop(p *arrived) {
	r.account.dropOwned(p.held)
	p.held, p.part = 0, part{}
}

func (r *reception) giveBack() {
	for i := range r.parts {
		r.drop(&r.parts[i])
	}
}
