package cluster

import (
	"fmt"
	"slices"
	"time"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

// replicaSet are the ids of the ingesters that hold the slots of one primary, which
// comes first.
type replicaSet []string

// replicaSets returns the sets of ring that have slots, by primary.
func replicaSets(ring *hashring.Ring) []replicaSet {
	led := make([]bool, len(ring.Members()))
	var sets []replicaSet
	for slot := range hashring.Slots {
		owners := ring.Owners(hashring.Slot(slot))
		if len(owners) == 0 || led[owners[0]] {
			continue
		}
		led[owners[0]] = true
		set := make(replicaSet, len(owners))
		for i, owner := range owners {
			set[i] = ring.Members()[owner].ID
		}
		sets = append(sets, set)
	}
	slices.SortFunc(sets, func(a, b replicaSet) int { return slices.Compare(a, b) })
	return sets
}

func slotsByMember(ring *hashring.Ring) map[string]int {
	slots := map[string]int{}
	for i, n := range ring.Load() {
		slots[ring.Members()[i].ID] = n
	}
	return slots
}

// dead returns the members of set that are not alive in v.
func (set replicaSet) dead(v *View) []string {
	return slices.DeleteFunc(slices.Clone(set), func(id string) bool { _, alive := v.Peer(id); return alive })
}

// health returns how whole set is in v.
func (set replicaSet) health(v *View) string {
	dead := len(set.dead(v))
	switch {
	case len(set)-dead < Quorum(v.Placement.RF()):
		return healthLostQuorum
	case dead > 0:
		return healthAtRisk
	default:
		return healthWhole
	}
}

// agrees reports whether p, as far as is known, knows the same registry as v and is
// configured alike.
func (v *View) agrees(p Peer) bool {
	return p.RF == v.Self.RF && (p.View == 0 || p.View == v.Self.View)
}

// Status is what a node knows of the cluster, for people and scripts. Hashes are in
// hexadecimal, times in seconds.
type Status struct {
	Cluster           string `json:"cluster"`
	ID                string `json:"id"`
	Zone              string `json:"zone"`
	Roles             []Role `json:"roles"`
	ReplicationFactor int    `json:"replication_factor"`
	// Registry and Placement are the hashes of what this node knows.
	Registry  string `json:"registry"`
	Placement string `json:"placement"`
	// Agree is whether all live processes know the same registry and are configured
	// with the same replication factor.
	Agree   bool           `json:"agree"`
	Members []MemberStatus `json:"members"`
	Peers   []PeerStatus   `json:"peers"`
	Sets    SetsStatus     `json:"replica_sets"`
}

// MemberStatus is an ingester of the registry.
type MemberStatus struct {
	ID         string `json:"id"`
	Zone       string `json:"zone"`
	Rank       int    `json:"rank"`
	State      string `json:"state"`
	Epoch      uint64 `json:"epoch"`
	Address    string `json:"address"`
	Generation string `json:"generation"`
	Alive      bool   `json:"alive"`
	// Displaced says that another ingester has its place, so that it owns no slots.
	Displaced bool `json:"displaced,omitempty"`
	// Slots is how many slots it holds, as primary or follower, of the 65536.
	Slots int `json:"slots"`
	// AbsentFor is how long this node has not known it to be alive.
	AbsentFor float64 `json:"absent_for,omitempty"`
}

// PeerStatus is a process that is alive as far as this node knows.
type PeerStatus struct {
	ID    string `json:"id"`
	Roles []Role `json:"roles"`
	Zone  string `json:"zone"`
	GRPC  string `json:"grpc"`
	HTTP  string `json:"http"`
	// Self says that it is the node that tells this.
	Self              bool `json:"self,omitempty"`
	ReplicationFactor int  `json:"replication_factor"`
	// Registry is the hash of what it knew when it was heard; empty if that is
	// unknown yet.
	Registry string `json:"registry"`
	Agrees   bool   `json:"agrees"`
	// HeardAgo is how long ago it was spoken to last; negative if it was not yet,
	// and others say that it is alive.
	HeardAgo float64 `json:"heard_ago"`
}

// SetsStatus counts replica sets, and lists those that are not whole.
type SetsStatus struct {
	Total      int         `json:"total"`
	AtRisk     int         `json:"at_risk"`
	LostQuorum int         `json:"lost_quorum"`
	Broken     []SetStatus `json:"broken"`
}

// SetStatus is a replica set.
type SetStatus struct {
	Members []string `json:"members"`
	Dead    []string `json:"dead"`
	// LostQuorum says that writes to it cannot be acknowledged.
	LostQuorum bool `json:"lost_quorum"`
}

// Status returns what this node knows now.
func (n *Node) Status() Status {
	p := n.current.Load()
	v := p.view
	s := Status{
		Cluster: n.cfg.Name, ID: v.Self.ID, Zone: v.Self.Zone, Roles: v.Self.Roles, ReplicationFactor: v.Self.RF,
		Registry: hexadecimal(v.Self.View), Placement: hexadecimal(v.Placement.Hash()),
		Agree:   !slices.ContainsFunc(v.Peers, func(p Peer) bool { return !v.agrees(p) }),
		Members: []MemberStatus{},
	}
	now := time.Now()
	n.mu.Lock()
	absent := n.mu.tracker.absence(v.Registry, func(id string) bool { _, alive := v.Peer(id); return alive }, now)
	heard := map[processKey]time.Time{}
	for key, p := range n.mu.processes {
		heard[key] = p.heard
	}
	n.mu.Unlock()
	for _, rec := range v.Registry.Records() {
		_, alive := v.Peer(rec.ID)
		s.Members = append(s.Members, MemberStatus{
			ID: rec.ID, Zone: rec.Zone, Rank: rec.Rank, State: rec.State.String(), Epoch: rec.Epoch, Address: rec.Address,
			Generation: hexadecimal(rec.Generation), Alive: alive, Displaced: v.Registry.Displaced(rec.ID),
			Slots: p.load[rec.ID], AbsentFor: absent[rec.ID].Round(time.Millisecond).Seconds(),
		})
	}
	for _, peer := range v.Peers {
		ps := PeerStatus{
			ID: peer.ID, Roles: peer.Roles, Zone: peer.Zone, GRPC: peer.GRPC, HTTP: peer.HTTP, Self: peer.ID == v.Self.ID,
			ReplicationFactor: peer.RF, Agrees: v.agrees(peer),
		}
		if peer.View != 0 || ps.Self {
			ps.Registry = hexadecimal(peer.View)
		}
		if at := heard[process{Peer: peer}.key()]; ps.Self {
			ps.HeardAgo = 0
		} else if at.IsZero() {
			ps.HeardAgo = -1
		} else {
			ps.HeardAgo = now.Sub(at).Round(time.Millisecond).Seconds()
		}
		s.Peers = append(s.Peers, ps)
	}
	s.Sets = setsStatus(p.sets, v)
	return s
}

func setsStatus(sets []replicaSet, v *View) SetsStatus {
	s := SetsStatus{Total: len(sets), Broken: []SetStatus{}}
	for _, set := range sets {
		health := set.health(v)
		switch health {
		case healthWhole:
			continue
		case healthAtRisk:
			s.AtRisk++
		case healthLostQuorum:
			s.LostQuorum++
		}
		s.Broken = append(s.Broken, SetStatus{Members: set, Dead: set.dead(v), LostQuorum: health == healthLostQuorum})
	}
	return s
}

func hexadecimal(n uint64) string { return fmt.Sprintf("%016x", n) }
