package cluster

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

// placementVersion is the version of a Placement's encoding.
const placementVersion = 1

var errPlacement = errors.New("undecodable placement")

// Quorum returns how many replicas must accept a sample before it counts as
// written, at the replication factor rf. With two replicas one is enough, since
// writes would not survive the death of either otherwise.
func Quorum(rf int) int {
	if rf == 2 {
		return 1
	}
	return rf/2 + 1
}

// Placed is a member of a Placement.
type Placed struct {
	hashring.Member
	// Generation is that of the member's data (Record.Generation): an ingester
	// that lost its disk keeps its place but not the samples.
	Generation uint64
}

// Placement says who series were placed among and how often each was replicated.
// Ingesters remember the placements under which their samples were written, so that
// reads know whom to ask for all of them. It is immutable and safe for concurrent
// use; make one with NewPlacement.
type Placement struct {
	rf      int
	members []Placed // by ID
	hash    uint64

	mu        sync.Mutex
	rings     map[ringKey]*hashring.Ring
	ringBytes int // of rings
	// base is the ring of all members of an earlier placement, from which that of
	// this one is computed; nil if there is none or it is computed.
	base *hashring.Ring
}

type ringKey struct {
	tenant uint64
	shard  int
}

// NewPlacement returns the placement of members, in any order, with the replication
// factor rf, from 1 to hashring.MaxRF.
func NewPlacement(rf int, members []Placed) *Placement {
	p := &Placement{rf: rf, members: slices.Clone(members), rings: map[ringKey]*hashring.Ring{}}
	slices.SortFunc(p.members, func(a, b Placed) int { return cmp.Compare(a.ID, b.ID) })
	p.hash = xxhash.Sum64(p.Encode(nil))
	return p
}

// Next returns the placement of members with the replication factor rf as
// NewPlacement does: p itself if it is equal, else one that computes its ring of all
// members from p's, which is far cheaper when few members differ.
func (p *Placement) Next(rf int, members []Placed) *Placement {
	next := NewPlacement(rf, members)
	if next.hash == p.hash {
		return p
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// The earlier ring and not the earlier placement: that would keep all before it.
	next.base = p.base
	if ring, ok := p.rings[ringKey{}]; ok {
		next.base = ring
	}
	if rf != p.rf {
		next.base = nil
	}
	return next
}

// RF returns the replication factor.
func (p *Placement) RF() int { return p.rf }

// Members returns the members by ID. The slice belongs to the Placement.
func (p *Placement) Members() []Placed { return p.members }

// Hash identifies the placement: equal for equal ones, on all nodes.
func (p *Placement) Hash() uint64 { return p.hash }

// smallShard is how many members a shard has at most whose ring keeps no table: to
// compare so few scores takes hardly longer than to look one up.
const smallShard = 16

// maxRingBytes bounds the rings of shuffle shards that a placement keeps: tens of
// thousands of small ones, or a few hundred of more than 16 members. A tenant without a
// shard of its own shares the ring of all members.
const maxRingBytes = 32 << 20

// Ring returns the ring by which a tenant's series are placed. shard is the tenant's
// shard size in members, 0 for all.
func (p *Placement) Ring(tenant uint64, shard int) (*hashring.Ring, error) {
	members := make([]hashring.Member, len(p.members))
	for i, m := range p.members {
		members[i] = m.Member
	}
	key := ringKey{tenant: tenant, shard: shard}
	if shard <= 0 || shard >= len(members) {
		key = ringKey{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ring, ok := p.rings[key]; ok {
		return ring, nil
	}
	ring, err := p.computeLocked(members, key)
	if err != nil {
		return nil, fmt.Errorf("place series: %w", err)
	}
	if p.ringBytes += ring.Bytes(); p.ringBytes > maxRingBytes {
		clear(p.rings)
		p.ringBytes = ring.Bytes()
	}
	p.rings[key] = ring
	return ring, nil
}

func (p *Placement) computeLocked(members []hashring.Member, key ringKey) (*hashring.Ring, error) {
	if key == (ringKey{}) && p.base != nil {
		base := p.base
		p.base = nil
		return base.Next(members)
	}
	shard := hashring.Shard(members, key.tenant, key.shard)
	if key != (ringKey{}) && len(shard) <= smallShard {
		return hashring.NewSmall(shard, p.rf)
	}
	return hashring.New(shard, p.rf)
}

// Encode appends p to dst:
//
//	version:byte rf:byte { id zone:string rank:uvarint generation:8 bytes }
//
// Strings are preceded by their length as a uvarint; the generation is big-endian.
func (p *Placement) Encode(dst []byte) []byte {
	dst = append(dst, placementVersion, byte(p.rf))
	for _, m := range p.members {
		for _, s := range []string{m.ID, m.Zone} {
			dst = binary.AppendUvarint(dst, uint64(len(s)))
			dst = append(dst, s...)
		}
		dst = binary.AppendUvarint(dst, uint64(m.Rank))
		dst = binary.BigEndian.AppendUint64(dst, m.Generation)
	}
	return dst
}

// DecodePlacement returns the placement that Encode wrote. It aliases nothing of data.
func DecodePlacement(data []byte) (*Placement, error) {
	if len(data) < 2 {
		return nil, fmt.Errorf("%w: it is cut short", errPlacement)
	}
	if data[0] != placementVersion {
		return nil, fmt.Errorf("%w: version %d is unknown", errPlacement, data[0])
	}
	rf := int(data[1])
	if rf < 1 || rf > hashring.MaxRF {
		return nil, fmt.Errorf("%w: the replication factor %d is outside 1 to %d", errPlacement, rf, hashring.MaxRF)
	}
	var members []Placed
	d := decoder{rest: data[2:]}
	for len(d.rest) > 0 {
		m := Placed{Member: hashring.Member{
			ID:   string(d.bytes(maxEncodedRecord)),
			Zone: string(d.bytes(maxEncodedRecord)),
			Rank: int(d.uvarint(1 << 16)),
		}}
		m.Generation = d.uint64()
		if d.failed {
			return nil, fmt.Errorf("%w: member %d is malformed", errPlacement, len(members))
		}
		members = append(members, m)
	}
	p := NewPlacement(rf, members)
	// A ring would find these faults as well, but takes long to compute.
	type place struct {
		zone string
		rank int
	}
	taken := map[place]bool{}
	for i, m := range p.members {
		at := place{zone: m.Zone, rank: m.Rank}
		if m.ID == "" || i > 0 && m.ID == p.members[i-1].ID || taken[at] {
			return nil, fmt.Errorf("%w: the id or the place of %q is missing or there twice", errPlacement, m.ID)
		}
		taken[at] = true
	}
	return p, nil
}
