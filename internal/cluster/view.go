package cluster

import (
	"cmp"
	"slices"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

// Role is one of the four parts that a process may run.
type Role string

// The roles.
const (
	RoleDistributor Role = "distributor"
	RoleIngester    Role = "ingester"
	RoleQuerier     Role = "querier"
	RoleCompactor   Role = "compactor"
)

// Peer is a process of the cluster that is alive as far as this node knows.
type Peer struct {
	// ID is that of the process's data directory; for an ingester it is the ID of
	// its Record.
	ID    string
	Roles []Role
	Zone  string
	// GRPC and HTTP are where it serves, as host:port.
	GRPC, HTTP string
	// Incarnation is drawn anew at every start.
	Incarnation uint64
	// RF is the replication factor that it is configured with.
	RF int
	// View is the Hash of the registry it knows, so that nodes see whether they agree.
	View uint64
}

// Runs reports whether p has the role.
func (p Peer) Runs(role Role) bool { return slices.Contains(p.Roles, role) }

// View is what a node knows of the cluster at one moment. It is immutable. Registry
// decides where data is placed and who is read; Peers only says who can be reached.
type View struct {
	// Self is this process.
	Self Peer
	// Registry holds the records of all ingesters.
	Registry Registry
	// Placement is who takes writes now, by the Registry.
	Placement *Placement
	// Peers are the processes that are alive, this one included, by ID.
	Peers []Peer
}

// Source yields the newest View. A Node is one; tests have their own.
type Source interface {
	// View returns the newest view; never nil.
	View() *View
	// Changed returns a channel that is closed when there is a view newer than the
	// one that View returned before: call Changed first, then View.
	Changed() <-chan struct{}
}

// Peer returns the live peer with the ID.
func (v *View) Peer(id string) (Peer, bool) {
	at, found := slices.BinarySearchFunc(v.Peers, id, func(p Peer, id string) int { return cmp.Compare(p.ID, id) })
	if !found {
		return Peer{}, false
	}
	return v.Peers[at], true
}

// Running returns the live peers that have the role, by ID.
func (v *View) Running(role Role) []Peer {
	var peers []Peer
	for _, p := range v.Peers {
		if p.Runs(role) {
			peers = append(peers, p)
		}
	}
	return peers
}

// Owner returns the live peer with the role that a key belongs to, by rendezvous, so
// that one that comes or goes moves only its own share of the keys. ok is false if
// none is alive.
func (v *View) Owner(role Role, key string) (owner Peer, ok bool) {
	if owners := v.Owners(role, key, 1); len(owners) > 0 {
		return owners[0], true
	}
	return Peer{}, false
}

// Owners returns the n live peers with the role that a key belongs to, the first one
// first, as hashring.Rendezvous chooses them; fewer if fewer are alive.
func (v *View) Owners(role Role, key string, n int) []Peer {
	var ids []string
	for _, p := range v.Peers {
		if p.Runs(role) {
			ids = append(ids, p.ID)
		}
	}
	var owners []Peer
	for _, id := range hashring.Rendezvous(key, ids, n) {
		if p, ok := v.Peer(id); ok {
			owners = append(owners, p)
		}
	}
	return owners
}
