package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// ErrIdentity says that another process runs under this one's ID.
var ErrIdentity = errors.New("another process runs under this instance's id")

// ErrNoRecord says that a process without an ingester has no state of its own.
var ErrNoRecord = errors.New("only ingesters have a record in the registry")

const (
	// publishDelay is how long changes are gathered before a view is published.
	publishDelay = 100 * time.Millisecond
	// saveEvery is how often a changed registry is written to disk; the own record
	// is written at once.
	saveEvery = time.Second
)

// Conns yields connections to other nodes by their gRPC addresses. It MUST be safe
// for concurrent use, and calls on the connections SHOULD fail fast when the node
// is down.
type Conns interface {
	Conn(address string) (grpc.ClientConnInterface, error)
}

// Deps is what a Node is and what it uses.
type Deps struct {
	// ID and Generation are those of the data directory (see Record).
	ID         string
	Generation uint64
	Roles      []Role
	// GRPC and HTTP are where others reach this process, as host:port.
	GRPC, HTTP string
	// Dir is where the registry is kept; it is made if need be. Empty: nowhere,
	// which ingesters may not.
	Dir string
	// Secret is Config.Secret; nil if there is none.
	Secret     []byte
	Conns      Conns
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// tuning is what tests change.
type tuning struct {
	transport   memberlist.Transport // nil: the network
	patience    time.Duration        // how long to look for others at the start
	settle      time.Duration        // how long an instance joins at most
	tendEvery   time.Duration        // how often the own record is looked after
	forgetEvery time.Duration        // how often to look for members to forget
	forgetAfter time.Duration
	keepLeft    time.Duration // how long tombstones are kept
}

func defaultTuning() tuning {
	return tuning{
		patience:    10 * time.Second,
		settle:      2 * time.Second,
		tendEvery:   time.Second,
		forgetEvery: time.Minute,
		forgetAfter: forgetAfter,
		keepLeft:    24 * time.Hour,
	}
}

// Node is a live member of a cluster: it knows the others, tells them of itself, and
// keeps the registry. It is a Source. Safe for concurrent use.
//
// Between Open and Run no new views are published. The order of a stop is Leave,
// then the servers, then Run's context, so that others stop sending first.
type Node struct {
	cfg     Config
	deps    Deps
	tuning  tuning
	logger  *slog.Logger
	metrics *metrics
	self    process // View and running are those of the start
	store   *store
	gossip  *gossip // nil with listed peers

	running  atomic.Bool
	rejoined atomic.Bool
	leaving  atomic.Bool

	dirty   chan struct{} // there is something to publish and save
	attend  chan struct{} // the own record, or another process under its ID, needs a look
	current atomic.Pointer[published]

	// own is held, by sending to it, while a version of the own record is decided on,
	// written to disk and told.
	own chan struct{}
	// publishing is held while a view is made; it is taken before mu.
	publishing sync.Mutex

	mu struct {
		sync.Mutex
		registry Registry
		hash     uint64 // of registry
		// written is the newest version of the own record that this process wrote.
		written Record
		// wanted is the state that the caller took the own record to; it is Active
		// also while an ingester joins again that was forgotten.
		wanted    State
		processes map[processKey]*liveProcess
		tracker   tracker
		heard     time.Time // when another process was heard last; zero if none was
	}
}

// liveProcess is a process that is alive as far as this node knows.
type liveProcess struct {
	process
	came  time.Time // when it was first heard of
	heard time.Time // when it was spoken to last
}

// published is a View and what is derived from it.
type published struct {
	view    *View
	sets    []replicaSet
	load    map[string]int // slots by member
	changed chan struct{}
}

// Open makes this process a member of the cluster: it finds the others and, for an
// ingester, claims its place. It returns an error that is ErrIdentity if another
// process runs under the ID. Run has to follow, with a context that has ended if
// the Node is not wanted after all.
func Open(ctx context.Context, cfg Config, deps Deps) (*Node, error) {
	return open(ctx, cfg, deps, defaultTuning())
}

func open(ctx context.Context, cfg Config, deps Deps, tune tuning) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg:    cfg,
		deps:   deps,
		tuning: tune,
		logger: deps.Logger,
		store:  newStore(deps.Dir),
		dirty:  make(chan struct{}, 1),
		attend: make(chan struct{}, 1),
		own:    make(chan struct{}, 1),
	}
	if n.logger == nil {
		n.logger = slog.New(slog.DiscardHandler)
	}
	n.self = process{Peer: Peer{
		ID: deps.ID, Roles: slices.Clone(deps.Roles), Zone: cfg.Zone, GRPC: deps.GRPC, HTTP: deps.HTTP,
		Incarnation: rand.Uint64(), RF: cfg.ReplicationFactor,
	}}
	if err := n.check(); err != nil {
		return nil, err
	}
	n.metrics = newMetrics(deps.Registerer, n.viewAge)
	n.mu.processes = map[processKey]*liveProcess{}
	n.mu.tracker = newTracker()
	registry, err := n.store.load()
	if err != nil {
		return nil, err
	}
	n.learnLocked(registry) // nobody else has n yet
	n.current.Store(&published{
		view:    &View{Self: n.self.Peer, Placement: NewPlacement(cfg.ReplicationFactor, nil)},
		changed: make(chan struct{}),
	})
	if cfg.gossips() {
		if err := n.openGossip(); err != nil {
			return nil, err
		}
	}
	if err := n.enter(ctx); err != nil {
		return nil, errors.Join(err, n.close())
	}
	n.running.Store(true)
	n.publish()
	return n, nil
}

// check finds fault with what the Node is.
func (n *Node) check() error {
	switch {
	case n.self.ID == "":
		return errors.New("this instance has no id")
	case len(n.self.encode(nil)) > maxProcess || max(len(n.self.ID), len(n.self.GRPC), len(n.self.HTTP)) > maxString:
		return fmt.Errorf("id or an address of this instance has more than %d bytes", maxString)
	case n.self.Runs(RoleIngester) && n.deps.Dir == "":
		return errors.New("an ingester needs a directory for the registry")
	case n.deps.Conns == nil:
		return errors.New("BUG: there are no connections")
	}
	return nil
}

// Run keeps this process a member until ctx ends. It ends early, with ErrIdentity,
// if another process runs under the same ID and has the better right to it: this
// process must not go on then.
func (n *Node) Run(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return n.publishLoop(running) })
	g.Go(func() error { return n.saveLoop(running) })
	g.Go(func() error { return n.tendLoop(running) })
	g.Go(func() error { return n.forgetLoop(running) })
	if n.gossip != nil {
		g.Go(func() error { return n.gossip.run(running) })
	}
	for _, address := range n.cfg.Peers {
		g.Go(func() error { return n.poll(running, address) })
	}
	err := g.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*leaveTimeout)
	defer cancel()
	return errors.Join(err, n.Leave(last), n.close(), n.store.save(n.registry()))
}

func (n *Node) close() error {
	if n.gossip == nil {
		return nil
	}
	return n.gossip.close()
}

// View implements Source.
func (n *Node) View() *View { return n.current.Load().view }

// Changed implements Source.
func (n *Node) Changed() <-chan struct{} { return n.current.Load().changed }

// Rejoined reports whether this ingester had been declared Left and joins anew. What
// it holds is asked for by no read any more, so it SHOULD be uploaded first.
func (n *Node) Rejoined() bool { return n.rejoined.Load() }

// registry returns the newest registry.
func (n *Node) registry() Registry {
	r, _ := n.known()
	return r
}

func (n *Node) hash() uint64 {
	_, hash := n.known()
	return hash
}

func (n *Node) known() (Registry, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.registry, n.mu.hash
}

// describe returns what this process says of itself; view is the registry's hash.
func (n *Node) describe(view uint64) process {
	p := n.self
	p.View, p.running = view, n.running.Load()
	return p
}

// take merges the records of a message.
func (n *Node) take(message []byte) {
	records, err := Decode(message)
	if err != nil {
		n.metrics.bad.WithLabelValues(badUndecodable).Inc()
		n.logger.Debug("A message of another node is dropped.", "err", err)
		return
	}
	n.merge(records...)
}

// merge merges records into the registry and tells others what was news.
func (n *Node) merge(records ...Record) {
	n.mu.Lock()
	records = n.mu.tracker.withoutPurged(n.mu.registry, records)
	merged, news, err := n.mu.registry.Merge(records...)
	if len(news) > 0 {
		n.learnLocked(merged)
		if n.gossip != nil {
			n.gossip.broadcast(news...) // under the lock, so that no older version is queued after a newer one
		}
	}
	n.mu.Unlock()
	if err != nil {
		n.metrics.bad.WithLabelValues(badInvalid).Inc()
		n.logger.Debug("Records of another node are dropped.", "err", err)
	}
	if len(news) == 0 {
		return
	}
	for _, rec := range news {
		n.logger.Debug("The registry has a new record.", "id", rec.ID, "state", rec.State.String(), "zone", rec.Zone, "rank", rec.Rank, "epoch", rec.Epoch)
	}
	signal(n.dirty)
	signal(n.attend)
}

func (n *Node) learnLocked(r Registry) {
	n.mu.registry, n.mu.hash = r, r.Hash()
	n.mu.tracker.learn(r, time.Now())
}

// signal makes sure that whoever waits for c wakes up once more.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// came notes that the process p is alive. Its view is unknown if it is 0.
func (n *Node) came(p process) {
	if p.key() == n.self.key() {
		return
	}
	n.mu.Lock()
	known, ok := n.mu.processes[p.key()]
	if !ok {
		known = &liveProcess{came: time.Now()}
		n.mu.processes[p.key()] = known
	}
	if p.View == 0 {
		p.View = known.View
	}
	news := !ok || !known.equal(p)
	known.process = p
	n.mu.Unlock()
	if !ok {
		n.logger.Info("Another node is there.", "id", p.ID, "roles", p.Roles, "zone", p.Zone, "address", p.GRPC)
		if p.RF != n.cfg.ReplicationFactor {
			n.logger.Warn("Another node is configured with another replication factor. What it writes is read all the same; give all nodes the same cluster.replication_factor.",
				"id", p.ID, "theirs", p.RF, "ours", n.cfg.ReplicationFactor)
		}
	}
	if news {
		signal(n.dirty)
	}
	if p.ID == n.self.ID {
		signal(n.attend)
	}
}

// heard notes that the process p, if it is alive, was spoken to.
func (n *Node) heard(p process) {
	if p.key() == n.self.key() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.heard = time.Now()
	known, ok := n.mu.processes[p.key()]
	if !ok {
		return
	}
	known.heard = n.mu.heard
	if p.View != 0 && known.View != p.View {
		known.View = p.View
		signal(n.dirty)
	}
}

// went notes that a process is not alive any more.
func (n *Node) went(key processKey) {
	n.mu.Lock()
	gone, ok := n.mu.processes[key]
	delete(n.mu.processes, key)
	if ok {
		n.mu.tracker.sawUntil(key.id, time.Now())
	}
	n.mu.Unlock()
	if !ok {
		return
	}
	n.logger.Info("Another node is gone.", "id", key.id, "roles", gone.Roles, "zone", gone.Zone, "address", gone.GRPC)
	signal(n.dirty)
}

// expire drops listed peers that were not heard for a while.
func (n *Node) expire() {
	var gone []processKey
	n.mu.Lock()
	for key, p := range n.mu.processes {
		if time.Since(p.heard) > aliveFor {
			gone = append(gone, key)
		}
	}
	n.mu.Unlock()
	for _, key := range gone {
		n.went(key)
	}
}

// processes returns how many processes are alive, this one included.
func (n *Node) processes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.mu.processes) + 1
}

// viewAge returns how long ago another process was heard.
func (n *Node) viewAge() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.heard.IsZero() {
		return 0
	}
	return time.Since(n.mu.heard)
}

// peersLocked returns the live processes, one for each ID.
func (n *Node) peersLocked() []Peer {
	byID := map[string]*liveProcess{}
	for _, p := range n.mu.processes {
		if p.ID == n.self.ID {
			continue
		}
		// A process that was killed and started again may count twice for a moment.
		if other, ok := byID[p.ID]; !ok || n.newerLocked(p, other) {
			byID[p.ID] = p
		}
	}
	peers := []Peer{n.describe(n.mu.hash).Peer}
	for _, p := range byID {
		peers = append(peers, p.Peer)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return peers
}

// newerLocked reports whether of two processes under one ID p is the one that lives.
func (n *Node) newerLocked(p, other *liveProcess) bool {
	if rec, ok := n.mu.registry.Get(p.ID); ok && (rec.Incarnation == p.Incarnation) != (rec.Incarnation == other.Incarnation) {
		return rec.Incarnation == p.Incarnation
	}
	return cmp.Or(p.came.Compare(other.came), cmp.Compare(p.Incarnation, other.Incarnation)) > 0
}

// publishLoop publishes views until ctx ends, gathering changes for a moment.
func (n *Node) publishLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.dirty:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(publishDelay):
		}
		n.publish()
	}
}

// publish makes a view of what is known, if it differs from the newest one.
func (n *Node) publish() {
	n.publishing.Lock()
	defer n.publishing.Unlock()
	old := n.current.Load()
	n.mu.Lock()
	v := &View{Registry: n.mu.registry, Peers: n.peersLocked(), Self: n.describe(n.mu.hash).Peer}
	n.mu.Unlock()
	v.Placement = v.Registry.PlacementAfter(old.view.Placement, n.cfg.ReplicationFactor)
	if slices.Equal(v.Registry.Records(), old.view.Registry.Records()) &&
		slices.EqualFunc(v.Peers, old.view.Peers, func(a, b Peer) bool { return (process{Peer: a}).equal(process{Peer: b}) }) {
		return
	}
	next := &published{view: v, sets: old.sets, load: old.load, changed: make(chan struct{})}
	if v.Placement != old.view.Placement {
		n.metrics.placements.Inc()
		// Computed here, so that no write has to wait for it.
		ring, err := v.Placement.Ring(0, 0)
		if err != nil {
			panic("BUG: the registry placed two instances in one place: " + err.Error())
		}
		next.sets, next.load = replicaSets(ring), slotsByMember(ring)
	}
	n.metrics.show(v, next.sets)
	n.current.Store(next)
	close(old.changed)
}

// saveLoop writes what the registry learned to disk, until ctx ends.
func (n *Node) saveLoop(ctx context.Context) error {
	ticker := time.NewTicker(saveEvery)
	defer ticker.Stop()
	var saved Registry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		registry := n.registry()
		if slices.Equal(registry.Records(), saved.Records()) {
			continue
		}
		if err := n.store.save(registry); err != nil {
			n.metrics.saveFailures.Inc()
			n.logger.Error("The registry cannot be written to disk. After an outage of all nodes this one would not know all ingesters; check the disk.", "err", err)
			continue
		}
		saved = registry
	}
}
