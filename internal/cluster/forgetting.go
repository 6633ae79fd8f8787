package cluster

import (
	"context"
	"slices"
	"time"
)

// tracker knows since when ingesters are away and tombstones are there, by this
// node's monotonic clock. It is guarded by the Node's lock.
type tracker struct {
	// seen says when an instance of the registry was last known to live: its process
	// was there, or it wrote its record.
	seen map[string]time.Time
	// written are the versions that seen knows of.
	written map[string]Record
	// left says since when an instance has a tombstone here.
	left map[string]time.Time
	// purged are tombstones that were dropped, so that they don't come back from
	// nodes that still have them.
	purged map[string]purge
}

type purge struct {
	epoch uint64
	at    time.Time
}

func newTracker() tracker {
	return tracker{seen: map[string]time.Time{}, written: map[string]Record{}, left: map[string]time.Time{}, purged: map[string]purge{}}
}

// learn notes what of the registry r is news.
func (t *tracker) learn(r Registry, now time.Time) {
	for _, rec := range r.Records() {
		if t.written[rec.ID] == rec {
			continue // nobody wrote it anew
		}
		t.written[rec.ID] = rec
		if rec.State == Left {
			t.left[rec.ID] = now
			delete(t.seen, rec.ID)
			continue
		}
		delete(t.left, rec.ID)
		delete(t.purged, rec.ID)
		t.seen[rec.ID] = now
	}
}

// sawUntil notes that the process of an instance was there until now.
func (t *tracker) sawUntil(id string, now time.Time) {
	if _, ok := t.seen[id]; ok {
		t.seen[id] = now
	}
}

// absence returns since when the instances of r are away that are not alive.
func (t *tracker) absence(r Registry, alive func(id string) bool, now time.Time) Absence {
	absent := Absence{}
	for _, rec := range r.Records() {
		if rec.State == Left || alive(rec.ID) {
			continue
		}
		absent[rec.ID] = 0 // r is older than what is known of it
		if seen, ok := t.seen[rec.ID]; ok {
			absent[rec.ID] = now.Sub(seen)
		}
	}
	return absent
}

// purge returns r without the tombstones that are older than keep.
func (t *tracker) purge(r Registry, keep time.Duration, now time.Time) Registry {
	var old []string
	for id, since := range t.left {
		rec, ok := r.Get(id)
		if !ok || now.Sub(since) < keep {
			continue
		}
		old = append(old, id)
		t.purged[id] = purge{epoch: rec.Epoch, at: now}
		delete(t.left, id)
		delete(t.written, id)
	}
	for id, p := range t.purged {
		if now.Sub(p.at) >= keep {
			delete(t.purged, id)
		}
	}
	if len(old) == 0 {
		return r
	}
	return r.Without(old...)
}

// withoutPurged returns records less the tombstones that were purged here, and less
// older versions of the same instances, which would rise from the dead. An instance
// that joins under such an ID is a new one, whatever its epoch.
func (t *tracker) withoutPurged(r Registry, records []Record) []Record {
	if len(t.purged) == 0 {
		return records
	}
	return slices.DeleteFunc(slices.Clone(records), func(rec Record) bool {
		p, purged := t.purged[rec.ID]
		_, known := r.Get(rec.ID)
		return purged && !known && rec.Epoch <= p.epoch && rec.State != Joining
	})
}

// forgetLoop declares dead ingesters Left and drops old tombstones, until ctx ends.
func (n *Node) forgetLoop(ctx context.Context) error {
	ticker := time.NewTicker(n.tuning.forgetEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			n.purge()
			n.forget()
		}
	}
}

func (n *Node) purge() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if kept := n.mu.tracker.purge(n.mu.registry, n.tuning.keepLeft, time.Now()); len(kept.records) != len(n.mu.registry.records) {
		n.mu.registry, n.mu.hash = kept, kept.Hash()
		signal(n.dirty)
	}
}

// forget declares at most one dead ingester Left, if that is this node's to do: all
// live ingesters would come to the same decision, but not about the same one at the
// same moment.
func (n *Node) forget() {
	if owner, ok := n.View().Owner(RoleIngester, "forget"); !ok || owner.ID != n.self.ID {
		return
	}
	n.mu.Lock()
	alive := map[string]bool{n.self.ID: true}
	for key := range n.mu.processes {
		alive[key.id] = true
	}
	absent := n.mu.tracker.absence(n.mu.registry, func(id string) bool { return alive[id] }, time.Now())
	dead, ok := n.mu.registry.forget(absent, n.tuning.forgetAfter)
	n.mu.Unlock()
	if !ok {
		return
	}
	n.metrics.forgotten.Inc()
	n.logger.Warn("An ingester has been away for too long and is declared to have left; its slots move to the others. If it comes back, it joins anew.",
		"id", dead.ID, "zone", dead.Zone, "rank", dead.Rank, "address", dead.Address, "absent", absent[dead.ID].Round(time.Second))
	n.merge(dead.Forgotten())
}
