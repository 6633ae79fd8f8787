package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// retryEvery is how often others are looked for at the start.
	retryEvery = 500 * time.Millisecond
	// listedPatience bounds how long listed peers are waited for: unlike gossip, which
	// answers at once, they serve only after a start like this one, so that all of
	// them would wait for each other.
	listedPatience = 3 * time.Second
	// confirmEvery is how often live peers are asked while an instance joins.
	confirmEvery = 250 * time.Millisecond
)

// enter finds the others, makes sure that nobody runs under this ID, and claims the
// place of an ingester.
func (n *Node) enter(ctx context.Context) error {
	if err := n.meet(ctx); err != nil {
		return err
	}
	if err := n.refuse(ctx); err != nil {
		return err
	}
	if !n.self.Runs(RoleIngester) {
		return nil
	}
	n.own <- struct{}{}
	defer func() { <-n.own }()
	next, err := n.claim()
	if err != nil {
		return err
	}
	return n.tell(ctx, next)
}

// meet waits until another node was met, if any is configured. After a total outage
// somebody has to be the first, and goes on with what it knew, after a while.
func (n *Node) meet(ctx context.Context) error {
	if len(n.cfg.Peers) == 0 && len(n.cfg.Gossip.Join) == 0 {
		return nil
	}
	wait := n.tuning.patience
	if n.gossip == nil {
		wait = min(wait, listedPatience)
	}
	patience, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		alone, err := n.look(patience)
		if n.processes() > 1 || alone {
			return nil
		}
		select {
		case <-time.After(retryEvery):
		case <-patience.Done():
			if ctx.Err() != nil {
				return fmt.Errorf("look for other nodes: %w", ctx.Err())
			}
			n.logger.Warn("No other node can be reached. This one starts with what it knew of the cluster and keeps trying.",
				"instances", len(n.registry().Records()), "err", err)
			return nil
		}
	}
}

// look tries once to reach the nodes that are configured. alone says that they are
// none but this one, and that it never heard of others.
func (n *Node) look(ctx context.Context) (alone bool, err error) {
	if n.gossip == nil {
		return false, n.ask(ctx, n.cfg.Peers)
	}
	targets, err := n.gossip.resolve(ctx, n.cfg.Gossip.Join)
	if err == nil && len(targets) == 0 {
		others := slices.ContainsFunc(n.registry().Records(), func(r Record) bool { return r.ID != n.self.ID && r.State != Left })
		return !others, nil
	}
	_, joinErr := n.gossip.join(ctx, targets)
	return false, errors.Join(err, joinErr)
}

// ask exchanges registries with the nodes at addresses at once, all it knows for all
// they know.
func (n *Node) ask(ctx context.Context, addresses []string) error {
	faults := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() { _, faults[i] = n.exchange(ctx, address, n.registry().Records()...) })
	}
	wg.Wait()
	return errors.Join(faults...)
}

// refuse returns an error if another process runs under this ID. A process that has
// crashed does not answer, though others may not have noticed yet.
func (n *Node) refuse(ctx context.Context) error {
	rivals := n.rivals()
	// One that nobody hears of may be partitioned from all but its address.
	if rec, ok := n.registry().Get(n.self.ID); ok && rec.State != Left && rec.Address != n.self.GRPC && len(rivals) == 0 {
		if p, err := n.exchange(ctx, rec.Address); err == nil && p.ID == n.self.ID && p.Incarnation != n.self.Incarnation {
			rivals = append(rivals, p)
		}
	}
	for _, rival := range rivals {
		rival, alive := n.probe(ctx, rival)
		// Of two that start at the same moment one has to go on.
		if alive && (rival.running || rival.Incarnation > n.self.Incarnation) {
			return n.identityTaken(rival)
		}
	}
	return nil
}

func (n *Node) identityTaken(rival process) error {
	return fmt.Errorf("%w: %s is taken by the process at %s (HTTP %s). Stop that one, or give this one a data directory of its own (or another --instance-id): an id belongs to one process",
		ErrIdentity, n.self.ID, rival.GRPC, rival.HTTP)
}

// rivals returns the other processes under this ID that count as alive.
func (n *Node) rivals() []process {
	n.mu.Lock()
	defer n.mu.Unlock()
	var rivals []process
	for key, p := range n.mu.processes {
		if key.id == n.self.ID {
			rivals = append(rivals, p.process)
		}
	}
	return rivals
}

// probe reports whether a process lives, and what it says of itself.
func (n *Node) probe(ctx context.Context, p process) (process, bool) {
	if p.GRPC != n.self.GRPC { // there it would be ourselves
		if answer, err := n.exchange(ctx, p.GRPC); err == nil && answer.key() == p.key() {
			return answer, true
		}
	}
	return p, n.gossip != nil && n.gossip.answers(p)
}

// claim returns the version of the own record with which this process goes on.
func (n *Node) claim() (Record, error) {
	registry := n.registry()
	fresh := Record{
		ID: n.self.ID, Zone: n.self.Zone, Rank: registry.FreeRank(n.self.Zone), Address: n.self.GRPC,
		State: Joining, Epoch: 1, Incarnation: n.self.Incarnation, Generation: n.deps.Generation,
	}
	rec, ok := registry.Get(n.self.ID)
	switch {
	case !ok:
		return fresh, nil
	case rec.State == Left:
		n.rejoined.Store(true)
		n.logger.Warn("This ingester had left the cluster and joins anew. Samples that it still holds are uploaded first.", "id", rec.ID, "zone", n.self.Zone)
		rec.Zone, rec.Rank = fresh.Zone, fresh.Rank
	case rec.Zone != n.self.Zone:
		return Record{}, fmt.Errorf("cluster.zone: this ingester belongs to zone %q and cannot move to %q: its series are placed by it. Drain it and start it with an empty data directory, or set the zone back",
			rec.Zone, n.self.Zone)
	}
	next := rec.Started(fresh)
	if next.State == Joining && registry.Displaced(next.ID) {
		next.Rank = fresh.Rank
	}
	return next, nil
}

// tell writes a version of the own record to disk and then tells the others. The
// caller holds n.own.
func (n *Node) tell(ctx context.Context, rec Record) error {
	if err := n.store.save(n.registry(), rec); err != nil {
		return err
	}
	n.mu.Lock()
	n.mu.written = rec
	n.mu.Unlock()
	n.merge(rec)
	n.publish()
	if n.gossip == nil {
		// The process may end before the next round. Who is missed here is asked then,
		// or hears of it from others.
		n.confirm(ctx, map[processKey]bool{})
	}
	n.logger.Info("This ingester tells its state.", "state", rec.State.String(), "zone", rec.Zone, "rank", rec.Rank, "epoch", rec.Epoch)
	return nil
}

// SetState takes this ingester to the state s, one step of its life, on disk and in
// the registry, before it returns. From Joining to Active it waits until the live
// peers know it, for two seconds at most. A state that it is in already is no error.
func (n *Node) SetState(ctx context.Context, s State) error {
	return n.withOwn(ctx, func(rec Record) error {
		err := n.step(ctx, rec, s)
		if err == nil {
			n.mu.Lock()
			n.mu.wanted = s
			n.mu.Unlock()
		}
		return err
	})
}

// State returns the state of this ingester, which the View may show a moment later.
// It is zero in a process without one.
func (n *Node) State() State {
	known, _ := n.ownRecords()
	return known.State
}

// step takes rec, the own record, to the state s. The caller holds n.own.
func (n *Node) step(ctx context.Context, rec Record, s State) error {
	switch {
	case rec.State == s:
		return nil
	case rec.State == Joining && s == Active:
		return n.activate(ctx)
	}
	next, err := rec.Next(s)
	if err != nil {
		return err
	}
	return n.tell(ctx, next)
}

// wanted returns the state that SetState took this ingester to last.
func (n *Node) wanted() State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.wanted
}

// withOwn calls change with the own record while nobody else changes it.
func (n *Node) withOwn(ctx context.Context, change func(Record) error) error {
	if !n.self.Runs(RoleIngester) {
		return ErrNoRecord
	}
	select {
	case n.own <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-n.own }()
	rec, err := n.mend(ctx)
	if err != nil {
		return err
	}
	return change(rec)
}

// mend returns the own record as this process stands by it, after it has answered
// what others, or an earlier process under this ID, wrote there. The caller holds
// n.own.
func (n *Node) mend(ctx context.Context) (Record, error) {
	known, written := n.ownRecords()
	var err error
	switch {
	case known.Incarnation != n.self.Incarnation:
		err = n.succeed(ctx, known, written)
	case known.State == Left && written.State != Left:
		err = n.revive(ctx, known, written)
	}
	known, _ = n.ownRecords()
	return known, err
}

// ownRecords returns the own record as the registry knows it and as this process
// wrote it last.
func (n *Node) ownRecords() (known, written Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	known, ok := n.mu.registry.Get(n.self.ID)
	if !ok {
		// Its tombstone was dropped.
		return n.mu.written, n.mu.written
	}
	return known, n.mu.written
}

// activate takes this ingester from Joining to Active, once its place is its own and
// those who place series had the time to hear of it. The caller holds n.own.
func (n *Node) activate(ctx context.Context) error {
	const rounds = 10 // nobody loses its place ten times in a row
	for range rounds {
		if err := n.settle(ctx); err != nil {
			return err
		}
		// It may have been settled otherwise meanwhile.
		rec, err := n.mend(ctx)
		if err != nil {
			return err
		}
		registry := n.registry()
		next := rec.Moved(registry.FreeRank(rec.Zone))
		if !registry.Displaced(rec.ID) {
			if next, err = rec.Next(Active); err != nil {
				return err
			}
		}
		if err := n.tell(ctx, next); err != nil {
			return err
		}
		if next.State == Active {
			return nil
		}
	}
	return errors.New("join the cluster: other instances took each rank that was free")
}

// settle returns once all live peers know the own record, or after a while.
func (n *Node) settle(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	deadline := time.After(n.tuning.settle)
	told := map[processKey]bool{}
	for {
		peers, known := n.confirm(ctx, told)
		if known && (peers > 0 || len(n.cfg.Peers)+len(n.cfg.Gossip.Join) == 0) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return nil
		case <-time.After(confirmEvery):
		}
	}
}

// confirm tells the own record to live peers that have not been told, and reports
// how many peers there are and whether all know it.
func (n *Node) confirm(ctx context.Context, told map[processKey]bool) (peers int, all bool) {
	rec, _ := n.ownRecords()
	n.mu.Lock()
	var ask []process
	for key, p := range n.mu.processes {
		if key.id == n.self.ID {
			continue
		}
		peers++
		if !told[key] {
			ask = append(ask, p.process)
		}
	}
	n.mu.Unlock()
	var (
		wg      sync.WaitGroup
		answers = make([]bool, len(ask))
	)
	for i, p := range ask {
		wg.Go(func() {
			answer, err := n.exchange(ctx, p.GRPC, rec)
			answers[i] = err == nil && answer.key() == p.key()
		})
	}
	wg.Wait()
	for i, p := range ask {
		told[p.key()] = answers[i]
	}
	return peers, !slices.Contains(answers, false)
}

// revive answers those who declared this ingester Left although it lives: its
// network was away for longer than they wait. It joins again; one that drains goes
// on with that. The caller holds n.own.
func (n *Node) revive(ctx context.Context, known, written Record) error {
	n.logger.Error("This ingester was declared to have left while it was cut off. It joins again; reads over the time in between may have missed its samples.", "id", known.ID)
	n.rejoined.Store(true)
	state := Joining
	if written.State == Draining {
		state = Draining
	}
	next := known.Revived(state)
	next.Generation = written.Generation
	registry, _, err := n.registry().Merge(next)
	if err != nil {
		return err
	}
	if registry.Displaced(next.ID) {
		next.Rank = registry.FreeRank(next.Zone)
	}
	return n.tell(ctx, next)
}

// Leave tells the others that this process goes away by plan: an Active ingester is
// Restarting from now on and keeps its slots. Peers stop calling it. It is not
// undone; the process ends next.
func (n *Node) Leave(ctx context.Context) error {
	if n.leaving.Swap(true) {
		return nil
	}
	var err error
	if n.self.Runs(RoleIngester) {
		if known, _ := n.ownRecords(); known.State == Active && known.Incarnation == n.self.Incarnation {
			err = n.SetState(ctx, Restarting)
		}
	}
	if n.gossip != nil {
		n.gossip.leave()
	}
	return err
}

// tendLoop looks after the own record and for other processes under this ID, until
// ctx ends.
func (n *Node) tendLoop(ctx context.Context) error {
	ticker := time.NewTicker(n.tuning.tendEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-n.attend:
		}
		if err := n.tend(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// tend returns an error only if this process must not go on.
func (n *Node) tend(ctx context.Context) error {
	if n.leaving.Load() {
		return nil
	}
	for _, rival := range n.rivals() {
		if rival, alive := n.probe(ctx, rival); alive && n.yields(rival) {
			return n.identityTaken(rival)
		}
	}
	if !n.self.Runs(RoleIngester) {
		return nil
	}
	if err := n.tendRecord(ctx); err != nil {
		if errors.Is(err, ErrIdentity) {
			return err
		}
		n.logger.Error("The own record in the registry cannot be mended; it is tried again.", "err", err)
	}
	return nil
}

// yields reports whether this process and not the living rival under its ID ends.
func (n *Node) yields(rival process) bool {
	if n.self.Runs(RoleIngester) {
		if known, _ := n.ownRecords(); known.Incarnation == rival.Incarnation || known.Incarnation == n.self.Incarnation {
			return known.Incarnation == rival.Incarnation
		}
	}
	return rival.running && rival.Incarnation > n.self.Incarnation
}

// tendRecord looks after the own record. It returns ErrIdentity if that belongs to
// another process now.
func (n *Node) tendRecord(ctx context.Context) error {
	known, written := n.ownRecords()
	displaced := known.State != Left && known.State != Joining && n.registry().Displaced(known.ID)
	rejoins := known.State == Joining && n.wanted() == Active
	if known.Incarnation == n.self.Incarnation && (known.State != Left || written.State == Left) && !displaced && !rejoins {
		return nil
	}
	return n.withOwn(ctx, func(rec Record) error {
		registry := n.registry()
		switch {
		case rec.State == Joining && n.wanted() == Active:
			return n.activate(ctx)
		case rec.State == Left || rec.State == Joining || !registry.Displaced(rec.ID):
			return nil
		}
		next := rec.Moved(registry.FreeRank(rec.Zone))
		n.logger.Warn("Another ingester has this one's place; it takes the next free one.", "zone", rec.Zone, "rank", rec.Rank, "next", next.Rank)
		return n.tell(ctx, next)
	})
}

// succeed writes over the record of another process under this ID, which is known
// only now, unless that one lives. The caller holds n.own.
func (n *Node) succeed(ctx context.Context, known, written Record) error {
	rival := process{Peer: Peer{ID: known.ID, GRPC: known.Address, Incarnation: known.Incarnation}}
	if p, alive := n.probe(ctx, rival); alive {
		return n.identityTaken(p)
	}
	next := known.ownedBy(written)
	next.State = written.State
	switch {
	case written.State == Joining && known.State.Places():
		next.State = Restarting // it keeps the slots that it turns out to have
	case known.State == Left && written.State.Places():
		next.State = Joining // and it turns out to have none
		n.rejoined.Store(true)
	}
	if known.Zone != written.Zone {
		next.Zone, next.Rank = written.Zone, written.Rank
	}
	n.logger.Info("An earlier record of this ingester turned up late; it goes on from there.", "epoch", next.Epoch, "rank", next.Rank)
	return n.tell(ctx, next)
}
