// Package wire stands between the domain and what goes over the network. It holds the
// one table of errors: which HTTP status and which gRPC code an error becomes, whether
// a client should try again, and which error a gRPC status is on the other side. And it
// is the only converter between the messages of proto/ and the types of the domain, so
// that the roles know no messages.
//
// Messages come from peers that may be of another release, and are not trusted: what
// cannot be understood is an error and never a panic, and what is only unknown, such as
// a reason for a rejection, is passed on as it is.
//
// Strings in messages must be UTF-8, or gRPC refuses to send them. Labels of stored
// series are; everything else is made so.
package wire

import (
	"fmt"
	"math"
	"strings"

	"github.com/oklog/ulid/v2"

	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// text makes s fit for a message. It is meant for what people read.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Holding says what an ingester's answer to a query is an answer for.
type Holding struct {
	// Instance is the ingester's ID, and Generation that of its data directory.
	Instance   string
	Generation uint64
	// Placements are those under which samples of the tenant were written that may not
	// be in the bucket yet, and the one that is current as far as the ingester knows.
	Placements []PlacementRef
	// HeldFrom is in milliseconds: every sample of the tenant that was acknowledged by
	// the ingester and is at or after it is held there.
	HeldFrom int64
	// Blocks are the local blocks that the answer includes.
	Blocks []ulid.ULID
	// IndexGeneration is the least generation of the tenant's block index that lists
	// all blocks that the ingester has deleted; 0: it is not known.
	IndexGeneration uint64
	// HeldMin is the least time of any sample in the head, in milliseconds:
	// math.MaxInt64 if there is none, math.MinInt64 if that is not known.
	HeldMin int64
	// BlockMins is the least time of any sample in each of Blocks; nil if not known.
	BlockMins []int64
}

// PlacementRef names a cluster.Placement by its hash, and the tenant's shard size in it.
type PlacementRef struct {
	Hash  uint64
	Shard int
}

// HoldingToProto returns h as a message.
func HoldingToProto(h Holding) *queryv1.Holding {
	m := &queryv1.Holding{
		Instance:   h.Instance,
		Generation: h.Generation,
		HeldFromMs: h.HeldFrom,
		Blocks:     ULIDsToProto(h.Blocks),
		BlockMinMs: h.BlockMins,

		IndexGeneration: h.IndexGeneration,
	}
	if h.HeldMin != math.MinInt64 {
		m.HeldMinMs = &h.HeldMin
	}
	for _, p := range h.Placements {
		m.Placements = append(m.Placements, &queryv1.PlacementRef{Hash: p.Hash, Shard: uint32(max(p.Shard, 0))})
	}
	return m
}

// HoldingFromProto returns the Holding in m. Without a message, or without an instance
// in it, nobody can tell what was answered for: that is an error.
func HoldingFromProto(m *queryv1.Holding) (Holding, error) {
	if m.GetInstance() == "" {
		return Holding{}, fmt.Errorf("the answer does not say which ingester it is of")
	}
	blocks, err := ULIDsFromProto(m.GetBlocks())
	if err != nil {
		return Holding{}, fmt.Errorf("blocks of ingester %s: %w", m.GetInstance(), err)
	}
	h := Holding{
		Instance:   m.GetInstance(),
		Generation: m.GetGeneration(),
		HeldFrom:   m.GetHeldFromMs(),
		Blocks:     blocks,
		HeldMin:    math.MinInt64,
		BlockMins:  m.GetBlockMinMs(),

		IndexGeneration: m.GetIndexGeneration(),
	}
	if m.HeldMinMs != nil {
		h.HeldMin = m.GetHeldMinMs()
	}
	for _, p := range m.GetPlacements() {
		h.Placements = append(h.Placements, PlacementRef{Hash: p.GetHash(), Shard: int(p.GetShard())})
	}
	return h, nil
}

// ULIDsToProto returns ids as 16 bytes each.
func ULIDsToProto(ids []ulid.ULID) [][]byte {
	if len(ids) == 0 {
		return nil
	}
	const size = len(ulid.ULID{})
	memory := make([]byte, 0, len(ids)*size)
	encoded := make([][]byte, len(ids))
	for i, id := range ids {
		memory = append(memory, id[:]...)
		encoded[i] = memory[i*size : (i+1)*size : (i+1)*size]
	}
	return encoded
}

// ULIDsFromProto returns the ULIDs that ULIDsToProto encoded.
func ULIDsFromProto(encoded [][]byte) ([]ulid.ULID, error) {
	if len(encoded) == 0 {
		return nil, nil
	}
	ids := make([]ulid.ULID, len(encoded))
	for i, b := range encoded {
		if len(b) != len(ids[i]) {
			return nil, fmt.Errorf("ULID %d has %d bytes instead of %d", i, len(b), len(ids[i]))
		}
		copy(ids[i][:], b)
	}
	return ids, nil
}
