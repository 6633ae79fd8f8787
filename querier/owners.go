package querier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

const (
	// ownersPerBlock is how many queriers own a block: the first one is asked for it, and
	// the second in its place. An owner reads its blocks itself.
	ownersPerBlock = 2
	// silentAfter is how long an owner may be silent before the next one is asked, too.
	// One that works says so more often (atWorkEvery): it is not the store that is slow.
	silentAfter = 3 * time.Second
	// labelsAfter is silentAfter for labels, whose answers come in one piece: an owner that
	// works, or waits for its turn to, cannot say so. So nobody is blamed for that silence.
	labelsAfter = 10 * time.Second
	// avoidedFor is for how long an owner that failed is not asked again. By then its
	// death has spread, or it is back.
	avoidedFor = 10 * time.Second
)

var (
	errSilent = errors.New("it is silent")
	// errTooLarge says that an owner cannot send its answer: no owner can, so the block is
	// read here. It is no fault of the owner.
	errTooLarge = errors.New("its answer is too large to be sent")
)

// patience is how long owners may be silent before the next one is asked, too.
type patience struct {
	limit time.Duration
	blame bool // an owner that works is never silent for that long, so others avoid it then
}

// owners are the other queriers of a cluster, which own blocks: each block is read by few
// queriers, so that their page caches hold different blocks. Nothing depends on them:
// when the owners of a block fail, it is read here. It is safe for concurrent use.
type owners struct {
	src     cluster.Source
	conns   Conns
	logger  *slog.Logger
	metrics *ownerMetrics

	avoided struct {
		sync.Mutex
		until map[string]time.Time // by id
	}
}

type ownerMetrics struct {
	requests  *prometheus.CounterVec
	hedges    prometheus.Counter
	fallbacks prometheus.Counter
	received  prometheus.Counter
}

func newOwnerMetrics(reg prometheus.Registerer) *ownerMetrics {
	f := promauto.With(reg)
	m := &ownerMetrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_requests_total",
			Help: "Requests for blocks to the queriers that own them, by outcome: ok, error, canceled.",
		}, []string{"outcome"}),
		hedges: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_hedges_total",
			Help: "Requests to the second owner of a block since the first was silent.",
		}),
		fallbacks: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_fallbacks_total",
			Help: "Reads of blocks that this querier made itself since no owner answered. They fill its page cache with blocks of others.",
		}),
		received: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_received_bytes_total",
			Help: "Bytes of series, chunks and labels that owners of blocks have sent.",
		}),
	}
	for _, outcome := range []string{"ok", "error", "canceled"} {
		m.requests.WithLabelValues(outcome)
	}
	return m
}

func newOwners(src cluster.Source, conns Conns, logger *slog.Logger, reg prometheus.Registerer) *owners {
	o := &owners{src: src, conns: conns, logger: logger, metrics: newOwnerMetrics(reg)}
	o.avoided.until = map[string]time.Time{}
	return o
}

// of returns whom to ask for a block, the first one first; nobody if this querier is to
// read it itself. The receiver may be nil, where there are no other queriers.
func (o *owners) of(id tenant.ID, block ulid.ULID) []cluster.Peer {
	if o == nil {
		return nil
	}
	view := o.src.View()
	peers := view.Owners(cluster.RoleQuerier, string(id)+"/"+block.String(), ownersPerBlock)
	if slices.ContainsFunc(peers, func(p cluster.Peer) bool { return p.ID == view.Self.ID }) {
		return nil
	}
	o.avoided.Lock()
	defer o.avoided.Unlock()
	now := time.Now()
	return slices.DeleteFunc(peers, func(p cluster.Peer) bool { return now.Before(o.avoided.until[p.ID]) })
}

// avoid says that an owner failed.
func (o *owners) avoid(p cluster.Peer, err error) {
	o.avoided.Lock()
	now := time.Now()
	already := now.Before(o.avoided.until[p.ID])
	o.avoided.until[p.ID] = now.Add(avoidedFor)
	for id, until := range o.avoided.until {
		if now.After(until) {
			delete(o.avoided.until, id)
		}
	}
	o.avoided.Unlock()
	if !already {
		o.logger.Warn("A querier failed to read a block that it owns; for a while others read its blocks", "querier", p.ID, "address", p.GRPC, "err", err)
	}
}

// isDown reports whether an owner failed for reasons of its own. Other errors are those of
// reading the block, which others would have too.
func isDown(err error) bool {
	var down *wire.UnavailableError
	return errors.As(err, &down) || errors.Is(err, errCutShort)
}

// overdrawn is an error that ends the query, whoever answers: its account is overdrawn.
type overdrawn struct{ error }

func (r overdrawn) Unwrap() error { return r.error }

// asksOwner asks one owner. It calls heard whenever a part of the answer has arrived.
type asksOwner[T any] func(ctx context.Context, client queryv1.BlocksServiceClient, heard func()) (T, error)

// askOwners asks the peers, of which there is one at least, one after the other: the next
// one when one has failed, or has been silent for so long. The first whole answer counts.
// What the others hold by the account in ctx is given back.
func askOwners[T any](ctx context.Context, o *owners, peers []cluster.Peer, waits patience, ask asksOwner[T]) (T, error) {
	r := &ownerRace[T]{o: o, ask: ask, rest: peers, answers: make(chan ownerAnswer[T], len(peers)), heard: make(chan struct{}, 1)}
	defer r.giveBack()
	defer r.running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return r.run(ctx, waits)
}

type ownerAnswer[T any] struct {
	peer  cluster.Peer
	value T
	err   error
	held  *account // by this answer, of what the query holds; nil: nothing is charged
}

// giveBack gives back what an answer holds that does not count.
func (a *ownerAnswer[T]) giveBack() {
	if a.held != nil {
		a.held.release()
	}
}

// ownerRace is one askOwners. One goroutine; those who ask send to answers.
type ownerRace[T any] struct {
	o       *owners
	ask     asksOwner[T]
	rest    []cluster.Peer // who was not asked yet
	asked   []cluster.Peer // who has not answered yet
	answers chan ownerAnswer[T]
	heard   chan struct{}
	running sync.WaitGroup
}

func (r *ownerRace[T]) run(ctx context.Context, waits patience) (T, error) {
	var (
		none T
		errs []error
	)
	r.next(ctx)
	timer := time.NewTimer(waits.limit)
	defer timer.Stop()
	for {
		select {
		case a := <-r.answers:
			if a.err == nil {
				return a.value, nil
			}
			a.giveBack()
			r.asked = slices.DeleteFunc(r.asked, func(p cluster.Peer) bool { return p.ID == a.peer.ID })
			var refused overdrawn
			switch {
			case errors.As(a.err, &refused) && len(r.asked) > 0:
				continue // what two answers hold is too much, so it is left to the other one
			case errors.As(a.err, &refused), errors.Is(a.err, errTooLarge):
				return none, a.err
			case ctx.Err() != nil:
				return none, context.Cause(ctx)
			}
			if isDown(a.err) {
				r.o.avoid(a.peer, a.err)
			}
			errs = append(errs, fmt.Errorf("querier %s: %w", a.peer.ID, a.err))
			if !r.next(ctx) && len(r.asked) == 0 {
				return none, errors.Join(errs...)
			}
			timer.Reset(waits.limit)
		case <-r.heard:
			timer.Reset(waits.limit)
		case <-timer.C:
			if waits.blame {
				for _, p := range r.asked {
					r.o.avoid(p, errSilent)
				}
			}
			if !r.next(ctx) {
				return none, errors.Join(append(errs, errSilent)...)
			}
			r.o.metrics.hedges.Inc()
			timer.Reset(waits.limit)
		case <-ctx.Done():
			return none, context.Cause(ctx)
		}
	}
}

// next asks the next one; false says that there is none.
func (r *ownerRace[T]) next(ctx context.Context) bool {
	if len(r.rest) == 0 {
		return false
	}
	peer := r.rest[0]
	r.rest, r.asked = r.rest[1:], append(r.asked, peer)
	var held *account
	if whole := accountOf(ctx); whole != nil {
		held = whole.part()
		ctx = withAccount(ctx, held)
	}
	r.running.Go(func() {
		value, err := r.askOne(ctx, peer)
		r.answers <- ownerAnswer[T]{peer, value, err, held}
	})
	return true
}

// giveBack gives back what those answers hold that nobody has waited for. All who ask have
// ended.
func (r *ownerRace[T]) giveBack() {
	close(r.answers)
	for a := range r.answers {
		a.giveBack()
	}
}

func (r *ownerRace[T]) askOne(ctx context.Context, peer cluster.Peer) (value T, err error) {
	conn, err := r.o.conns.Conn(peer.GRPC)
	if err == nil {
		value, err = r.ask(ctx, queryv1.NewBlocksServiceClient(conn), func() {
			select {
			case r.heard <- struct{}{}:
			default:
			}
		})
	}
	outcome := "ok"
	switch {
	case ctx.Err() != nil && err != nil:
		outcome = "canceled"
	case err != nil:
		outcome = "error"
	}
	r.o.metrics.requests.WithLabelValues(outcome).Inc()
	if status.Code(err) == codes.ResourceExhausted {
		return value, fmt.Errorf("%w: %w", errTooLarge, err)
	}
	return value, wire.FromGRPC(err)
}
