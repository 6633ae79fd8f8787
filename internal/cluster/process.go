package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// process is what a process says of itself: in the metadata of its gossip and in
// each Exchange.
type process struct {
	Peer
	// running says that it has made sure that nobody else runs under its ID.
	running bool
}

const (
	// processVersion is the version of the encoding of a process. As with records,
	// fields are added to the end and need no new one.
	processVersion = 1
	// maxString bounds an id, a zone or an address.
	maxString = 100
	// maxProcess is what memberlist takes as metadata.
	maxProcess = 512
)

var errProcess = errors.New("undecodable description of a node")

// roleBits are the roles in the order of their bits.
var roleBits = []Role{RoleDistributor, RoleIngester, RoleQuerier, RoleCompactor} //nolint:gochecknoglobals // a constant table

// encode appends p to dst:
//
//	version:byte id zone grpc http:string roles:uvarint incarnation:8 bytes rf:uvarint view:8 bytes running:byte
func (p process) encode(dst []byte) []byte {
	dst = append(dst, processVersion)
	for _, s := range []string{p.ID, p.Zone, p.GRPC, p.HTTP} {
		dst = binary.AppendUvarint(dst, uint64(len(s)))
		dst = append(dst, s...)
	}
	var roles uint64
	for bit, role := range roleBits {
		if p.Runs(role) {
			roles |= 1 << bit
		}
	}
	dst = binary.AppendUvarint(dst, roles)
	dst = binary.BigEndian.AppendUint64(dst, p.Incarnation)
	dst = binary.AppendUvarint(dst, uint64(p.RF))
	dst = binary.BigEndian.AppendUint64(dst, p.View)
	if p.running {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// decodeProcess returns the process that encode wrote. It aliases nothing of data.
func decodeProcess(data []byte) (process, error) {
	if len(data) == 0 || data[0] != processVersion {
		return process{}, fmt.Errorf("%w: its version is missing or unknown", errProcess)
	}
	d := decoder{rest: data[1:]}
	p := process{Peer: Peer{
		ID:   string(d.bytes(maxString)),
		Zone: string(d.bytes(maxString)),
		GRPC: string(d.bytes(maxString)),
		HTTP: string(d.bytes(maxString)),
	}}
	roles := d.uvarint(1<<64 - 1)
	for bit, role := range roleBits {
		if roles&(1<<bit) != 0 {
			p.Roles = append(p.Roles, role)
		}
	}
	p.Incarnation = d.uint64()
	p.RF = int(d.uvarint(1 << 16))
	p.View = d.uint64()
	if running := d.take(1); len(running) == 1 {
		p.running = running[0] != 0
	}
	switch {
	case d.failed:
		return process{}, fmt.Errorf("%w: it is malformed", errProcess)
	case p.ID == "":
		return process{}, fmt.Errorf("%w: it has no id", errProcess)
	}
	return p, nil
}

// key tells processes apart that run under one ID.
func (p process) key() processKey { return processKey{id: p.ID, incarnation: p.Incarnation} }

type processKey struct {
	id          string
	incarnation uint64
}

// equal reports whether nothing of what others go by differs.
func (p process) equal(o process) bool {
	return p.ID == o.ID && p.Zone == o.Zone && p.GRPC == o.GRPC && p.HTTP == o.HTTP && p.Incarnation == o.Incarnation &&
		p.RF == o.RF && p.View == o.View && p.running == o.running && slices.Equal(p.Roles, o.Roles)
}
