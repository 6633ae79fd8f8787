package distributor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// ReplicatorConfig says how much memory a Replicator takes.
type ReplicatorConfig struct {
	// QueueBytes bounds the memory of what is sent to one ingester and not yet
	// answered: 1 MiB or more. What comes beyond it goes to the other replicas only.
	QueueBytes int64
	// CacheBytes bounds the memory for series that were seen before: 1 MiB or more. A
	// series takes 43 to 85 bytes; those that come and go need twice that.
	CacheBytes int64
}

// DefaultReplicatorConfig returns the configuration of a Replicator that nobody
// configured: good for 1.5 million series at a time.
func DefaultReplicatorConfig() ReplicatorConfig {
	return ReplicatorConfig{QueueBytes: 64 << 20, CacheBytes: 128 << 20}
}

// Validate reports all faults of c.
func (c ReplicatorConfig) Validate() error {
	const least = 1 << 20
	var errs []error
	if c.QueueBytes < least {
		errs = append(errs, fmt.Errorf("queue bytes: %d is below %d", c.QueueBytes, least))
	}
	if c.CacheBytes < least {
		errs = append(errs, fmt.Errorf("cache bytes: %d is below %d", c.CacheBytes, least))
	}
	return errors.Join(errs...)
}

const (
	// patience is how long a request may wait for ingesters, and how long an ingester
	// may be silent that has something to answer.
	patience = 30 * time.Second
	// teachingTime is how long an answer waits for ingesters that are new and may have to
	// be told labels, which only the request has. Without it, they would miss the
	// first sample of each series.
	teachingTime = 250 * time.Millisecond
	// drainTime is how long requests may take to finish at the end.
	drainTime = 5 * time.Second
	// labelBytes bounds labels and metadata in the frames of requests that are being
	// received: symbols of remote write 2.0 may expand a thousandfold. chargeStep is
	// how much a request takes unasked.
	labelBytes = 512 << 20
	chargeStep = 256 << 10
	// checkInterval is how often ingesters that do not answer are looked for.
	checkInterval = time.Second
)

var (
	errNotStarted = errors.New("the ingesters of the cluster are not known yet")
	errNoIngester = errors.New("no ingester of the cluster takes samples")
	errDead       = errors.New("it is not alive")
	errTimeout    = fmt.Errorf("no answer within %s", patience)
)

// Replicator is the Ingester of a cluster: it finds the replica set of each series on
// the hash ring, sends the series to all of its ingesters, and reports as written what
// a quorum of them has. Run must be running. It is safe for concurrent use.
type Replicator struct {
	cfg       ReplicatorConfig
	source    cluster.Source
	conns     Conns
	limits    tenant.LimitsFunc
	logger    *slog.Logger
	metrics   *replicaMetrics
	checks    *write.Checks
	patience  time.Duration
	teaching  time.Duration
	interval  time.Duration
	labelMost int64 // labelBytes
	// lessonMost is lessonBytes, and lateRate is lateSeriesRate.
	lessonMost int64
	lateRate   float64
	labelled   atomic.Int64 // bytes of labels and metadata in frames of requests being received
	sightings  *sightings
	calls      sync.Pool // of *call
	routes     atomic.Pointer[routes]

	// Of Run.
	links map[string]*link // by the ingester's ID
	wg    sync.WaitGroup   // of the links
}

// NewReplicator returns a Replicator that sends to the ingesters that src knows, over
// conns.
func NewReplicator(cfg ReplicatorConfig, src cluster.Source, conns Conns, limits tenant.LimitsFunc, logger *slog.Logger, reg prometheus.Registerer) (*Replicator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("distributor: replication: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	r := &Replicator{
		cfg: cfg, source: src, conns: conns, limits: limits, logger: logger,
		patience: patience, teaching: teachingTime, interval: checkInterval, labelMost: labelBytes, lessonMost: lessonBytes, lateRate: lateSeriesRate,
		sightings: newSightings(cfg.CacheBytes),
		links:     map[string]*link{},
	}
	r.metrics = newReplicaMetrics(reg, r.sightings)
	r.checks = write.NewChecks("distributor", logger, reg)
	r.calls.New = func() any { return newCall(r) }
	return r, nil
}

// Ready returns nil once samples can be written: the ingesters are known, and enough of
// them for a quorum can be reached.
func (r *Replicator) Ready() error {
	rt := r.routes.Load()
	if rt == nil {
		return errNotStarted
	}
	var missing []string
	reached := 0
	for _, n := range rt.nodes {
		err := n.why
		if n.link != nil {
			err = n.link.ready()
		}
		if err == nil {
			reached++
		} else {
			missing = append(missing, fmt.Sprintf("%s: %s", n.id, err))
		}
	}
	if reached >= rt.quorum() {
		return nil
	}
	const most = 5
	if len(missing) > most {
		missing = append(missing[:most], "…")
	}
	text := fmt.Sprintf("%d of %d ingesters can be written to, and a quorum is %d", reached, len(rt.nodes), rt.quorum())
	return errors.New(strings.Join(append([]string{text}, missing...), "; "))
}

// Push implements Ingester. It returns as soon as a quorum of each replica set has
// decided. With an error, what Written counts is stored all the same, and sending the
// batch again stores nothing twice.
func (r *Replicator) Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	start := time.Now()
	rt := r.routes.Load()
	if rt == nil {
		return write.Result{}, r.metrics.pushed(start, write.Result{}, wire.Unavailable(errNotStarted, defaultDelay))
	}
	limits, tenantHash := r.limits(id), hashring.TenantHash(string(id))
	layout, err := rt.layouts.get(tenantHash, limits.ShardSize)
	if err != nil {
		return write.Result{}, r.metrics.pushed(start, write.Result{}, err)
	}
	if len(layout.sets) == 0 {
		return write.Result{}, r.metrics.pushed(start, write.Result{}, wire.Unavailable(errNoIngester, defaultDelay))
	}
	c := r.calls.Get().(*call)
	defer c.release()
	defer c.discharge()
	c.begin(rt, layout, id, limits.ShardSize, b)
	if err := c.fill(b, sightingSalt(tenantHash, limits), tenantHash, limits); err != nil {
		c.reset()
		return write.Result{}, r.metrics.pushed(start, write.Result{}, err)
	}
	c.dispatch()
	result, err := c.wait(ctx, b)
	return result, r.metrics.pushed(start, result, err)
}

// wait counts votes until the batch is decided, and returns what became of it.
func (c *call) wait(ctx context.Context, b *write.Batch) (write.Result, error) {
	timer := time.NewTimer(c.r.patience)
	defer timer.Stop()
	var waited error
	teaching := false
	for {
		c.mu.Lock()
		c.teachLocked(b)
		settled := len(c.mu.inbox) == 0 && c.settledLocked(b)
		if settled || waited != nil {
			c.putOffLocked()
		}
		learners := c.mu.learners > 0
		if waited != nil || settled && !learners {
			defer c.mu.Unlock()
			c.mu.detached = true
			return c.resultLocked(b, waited)
		}
		inbox := c.mu.inbox
		c.mu.inbox = nil
		c.mu.Unlock()
		if settled && !teaching {
			teaching = true
			timer.Reset(c.r.teaching)
		}
		for _, a := range inbox {
			c.consider(a, b)
		}
		if len(inbox) > 0 {
			continue
		}
		select {
		case <-c.signal:
		case <-timer.C:
			waited = errTimeout
			if teaching {
				c.giveUpTeaching()
			}
		case <-ctx.Done():
			waited = fmt.Errorf("no answer before the sender gave up: %w", context.Cause(ctx))
		}
	}
}

func slotOf(ls labels.Labels, tenantHash uint64) hashring.Slot {
	return hashring.SlotOf(labels.StableHash(ls), tenantHash)
}

// Run keeps streams to the ingesters until ctx ends. Before it returns it lets what was
// sent be answered, for a moment.
func (r *Replicator) Run(ctx context.Context) error {
	// Links outlive ctx by the time that requests may take to finish.
	linkCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer r.wg.Wait()
	defer cancel()
	check := time.NewTicker(r.interval)
	defer check.Stop()
	changed := r.source.Changed()
	r.follow(linkCtx, r.source.View())
	for {
		select {
		case <-ctx.Done():
			r.drain()
			return nil
		case <-changed:
			changed = r.source.Changed()
			r.follow(linkCtx, r.source.View())
		case now := <-check.C:
			for _, l := range r.links {
				l.check(now)
			}
		}
	}
}

// drain lets the links finish what they were given.
func (r *Replicator) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, l := range r.links {
		wg.Go(func() { l.close(ctx) })
	}
	wg.Wait()
}

// follow makes the routes and links those of v.
func (r *Replicator) follow(ctx context.Context, v *cluster.View) {
	kept := map[string]bool{}
	for _, rec := range v.Registry.Records() {
		peer, alive := v.Peer(rec.ID)
		if !alive || !rec.State.Reads() {
			continue
		}
		// One that drains answers what it was sent before.
		kept[rec.ID] = true
		address := peer.GRPC
		if address == "" {
			address = rec.Address
		}
		r.connect(ctx, rec.ID, address, peer.Incarnation)
	}
	for id, l := range r.links {
		if !kept[id] {
			l.retire()
			delete(r.links, id)
		}
		if rec, ok := v.Registry.Get(id); !ok || rec.State == cluster.Left {
			r.metrics.forget(id)
		}
	}
	rt := &routes{placement: v.Placement, layouts: newLayouts(v.Placement)}
	if last := r.routes.Load(); last != nil && last.placement.Hash() == v.Placement.Hash() {
		rt.layouts = last.layouts
	}
	// Compute it before anybody waits for it. Its error is that of each Push.
	if _, err := rt.layouts.get(0, 0); err != nil {
		r.logger.Error("Series can't be placed; writes fail until the registry is mended", "err", err)
	}
	for _, m := range v.Placement.Members() {
		n := node{id: m.ID, link: r.links[m.ID]}
		if n.link == nil {
			n.why = errDead
		} else if rec, _ := v.Registry.Get(m.ID); rec.State != cluster.Active {
			n.link, n.why = nil, fmt.Errorf("it is %s", rec.State)
		}
		rt.nodes = append(rt.nodes, n)
	}
	r.routes.Store(rt)
}

// connect makes a link to an ingester unless there is one already.
func (r *Replicator) connect(ctx context.Context, id, address string, incarnation uint64) {
	if l := r.links[id]; l != nil {
		if l.address == address && l.incarnation == incarnation {
			return
		}
		l.retire()
	}
	ctx, cancel := context.WithCancel(ctx)
	l := newLink(id, address, incarnation, r, cancel)
	r.links[id] = l
	r.wg.Go(func() { l.run(ctx) })
}
