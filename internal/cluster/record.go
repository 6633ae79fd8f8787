package cluster

import (
	"cmp"
	"errors"
	"fmt"
)

// State is where an instance is in its life.
type State uint8

// The states. An instance goes through them from top to bottom; only between
// Active and Restarting does it go to and fro.
const (
	// Joining has claimed its rank and takes no writes yet; reads ask it already.
	Joining State = iota + 1
	// Active takes writes for its slots and serves reads.
	Active
	// Restarting is away by plan, and keeps its slots.
	Restarting
	// Draining takes no new writes and still serves reads.
	Draining
	// Left is gone for good: all its samples are in the bucket, or it was forgotten.
	Left
)

var stateNames = map[State]string{ //nolint:gochecknoglobals // a constant table
	Joining: "JOINING", Active: "ACTIVE", Restarting: "RESTARTING", Draining: "DRAINING", Left: "LEFT",
}

// String implements fmt.Stringer.
func (s State) String() string {
	if name, ok := stateNames[s]; ok {
		return name
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Places reports whether an instance in state s owns slots.
func (s State) Places() bool { return s == Active || s == Restarting }

// Reads reports whether reads have to ask an instance in state s. One that joins is
// asked before it takes its first sample: whoever places data may know sooner than
// whoever reads that it is Active.
func (s State) Reads() bool { return s == Joining || s == Active || s == Restarting || s == Draining }

// follows reports whether an instance may go from state s to next by itself.
func (s State) follows(next State) bool {
	switch s {
	case Active:
		return next == Restarting || next == Draining
	case Restarting:
		return next == Active
	case Joining:
		// It drains if it was forgotten with data and is not wanted back.
		return next == Active || next == Draining || next == Left
	case Draining:
		return next == Left
	default:
		return false
	}
}

// Record is what the registry says of one instance. The instance owns it: it alone
// writes new versions, except that others may declare it Left when it has died.
type Record struct {
	// ID is kept in the instance's data directory and never used again.
	ID string
	// Zone and Rank are the instance's place (see hashring.Member), for life.
	Zone string
	Rank int
	// Address is where its gRPC server listens, as host:port.
	Address string
	State   State
	// Epoch grows with every version. It orders the versions of a record; clocks
	// do not, since those of different nodes differ.
	Epoch uint64
	// Incarnation is drawn anew at every start. Two processes that run under the
	// same ID differ in it.
	Incarnation uint64
	// Generation is drawn when the instance's data directory is made. An instance
	// that comes back under its ID with another one has lost its samples.
	Generation uint64
}

var (
	errRecord = errors.New("invalid registry record")
	errStep   = errors.New("no such step in an instance's life")
)

// Validate finds fault with a record that no instance writes.
func (r Record) Validate() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w of %q: %s", errRecord, r.ID, fmt.Sprintf(format, args...))
	}
	switch {
	case r.ID == "":
		return invalid("it has no id")
	case len(r.ID) > maxString || len(r.Zone) > maxString || len(r.Address) > maxString:
		return invalid("id, zone or address has more than %d bytes", maxString)
	case r.Rank < 0 || r.Rank >= 1<<16:
		return invalid("rank %d is outside 0 to 65535", r.Rank)
	case stateNames[r.State] == "":
		return invalid("%s is unknown", r.State)
	case r.Epoch == 0:
		return invalid("its epoch is 0")
	}
	return nil
}

// Next returns the next version of r, in state s.
func (r Record) Next(s State) (Record, error) {
	if !r.State.follows(s) {
		return Record{}, fmt.Errorf("%w: from %s to %s", errStep, r.State, s)
	}
	r.State = s
	r.Epoch++
	return r, nil
}

// Forgotten returns the version of r with which another instance declares it Left. It
// has no generation: nobody vouches that its samples are in the bucket, as one that
// drained does, so reads go on to miss it.
func (r Record) Forgotten() Record {
	r.State = Left
	r.Generation = 0
	r.Epoch++
	return r
}

// Started returns the version of r with which its owner goes on after a start. self
// is what has changed since: address, incarnation and generation. An instance that
// held slots keeps them; one that was declared Left joins anew.
func (r Record) Started(self Record) Record {
	switch r.State {
	case Active:
		r.State = Restarting
	case Left:
		r.State = Joining
	}
	return r.ownedBy(self)
}

// Revived returns the version of r, in state s, with which its living owner answers
// somebody who declared it Left.
func (r Record) Revived(s State) Record {
	r.State = s
	r.Epoch++
	return r
}

// Moved returns the version of r with which its owner claims another rank.
func (r Record) Moved(rank int) Record {
	r.Rank = rank
	r.Epoch++
	return r
}

// ownedBy returns the next version of r, as one of the process self.
func (r Record) ownedBy(self Record) Record {
	r.Address, r.Incarnation, r.Generation = self.Address, self.Incarnation, self.Generation
	r.Epoch++
	return r
}

// Compare orders the versions of a record: the greater wins everywhere. Versions of
// one epoch exist only when two processes run under one ID or when an instance
// came back while it was being forgotten; then the later state wins, and after
// that any order will do as long as it is everybody's.
func (r Record) Compare(other Record) int {
	return cmp.Or(
		cmp.Compare(r.Epoch, other.Epoch),
		cmp.Compare(r.State, other.State),
		cmp.Compare(r.Incarnation, other.Incarnation),
		cmp.Compare(r.Address, other.Address),
		cmp.Compare(r.Zone, other.Zone),
		cmp.Compare(r.Rank, other.Rank),
		cmp.Compare(r.Generation, other.Generation),
	)
}
