package querier

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	// ownersPerBlock is how many queriers own a block: the first one is asked for it, and
	// the second in its place. An owner reads its blocks itself.
	ownersPerBlock = 2
	// silentAfter is how long an owner may be silent before the next one is asked, too.
	// One that works says so more often (atWorkEvery): it is not the store that is slow.
	silentAfter = 3 * time.Second
	// avoidedFor is for how long an owner that failed is not asked again. By then its
	// death has spread, or it is back.
	avoidedFor = 10 * time.Second
)

var (
	errSilent   = errors.New("it is silent")
	errCutShort = errors.New("its answer ended before it was whole")
	errUnread   = errors.New("it cannot read a block")
	// errTooLarge says that an owner cannot send its answer, or that the query cannot hold it as a
	// whole: so the block is read here, and no other owner is asked. It is nobody's fault.
	errTooLarge = errors.New("the answer is too large to be sent, or to be held with those of other blocks")
)

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

// Why blocks of others are read here.
const (
	fallbackFailed = "failed"
	fallbackSize   = "size"
)

type ownerMetrics struct {
	requests  *prometheus.CounterVec
	hedges    prometheus.Counter
	fallbacks *prometheus.CounterVec
	received  prometheus.Counter
}

func newOwnerMetrics(reg prometheus.Registerer) *ownerMetrics {
	f := promauto.With(reg)
	m := &ownerMetrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_requests_total",
			Help: "Requests to the queriers that own blocks, for one block or many, by outcome: ok, error, canceled.",
		}, []string{"outcome"}),
		hedges: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_hedges_total",
			Help: "Requests for blocks to their second owners since the first was silent.",
		}),
		fallbacks: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_fallbacks_total",
			Help: "Reads of blocks of others that this querier made itself, by reason: no owner answered (failed), or their answers were too large to be held (size). They fill its page cache.",
		}, []string{"reason"}),
		received: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_owner_received_bytes_total",
			Help: "Bytes of series, chunks and labels that owners of blocks have sent.",
		}),
	}
	for _, outcome := range []string{"ok", "error", "canceled"} {
		m.requests.WithLabelValues(outcome)
	}
	for _, reason := range []string{fallbackFailed, fallbackSize} {
		m.fallbacks.WithLabelValues(reason)
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
// reading blocks, which others would have too.
func isDown(err error) bool {
	var down *wire.UnavailableError
	return errors.As(err, &down) || errors.Is(err, errCutShort)
}
