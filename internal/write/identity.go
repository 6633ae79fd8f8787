package write

import (
	"encoding/binary"
	"hash/maphash"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/zeebo/xxh3"
)

// Identity identifies a series within a tenant: XXH3-128 of the canonical form
// of its labels under the seed of a Hasher. The zero value identifies nothing.
//
// The canonical form is the encoding of the labels field of prometheus.TimeSeries
// (https://prometheus.io/docs/specs/prw/remote_write_spec/): the labels sorted by
// name, none with an empty value, each as
//
//	0x0a <len of the rest> 0x0a <len> <name> 0x12 <len> <value>
//
// with lengths as minimal varints. It is unambiguous, the same for every
// protocol, and the very bytes that remote write 1.0 sends, so that its series
// are identified by hashing them where they lie.
//
// Labels that are sent in any other form hash to something that is no series'
// Identity, so a lookup by the hash of unchecked bytes can miss but never
// finds the wrong series.
type Identity struct{ Hi, Lo uint64 }

// IsZero reports whether id identifies nothing.
func (id Identity) IsZero() bool { return id == Identity{} }

// Hasher computes identities. It holds a buffer: one goroutine.
type Hasher struct {
	seed uint64
	buf  []byte
}

// seed keeps series of one tenant from being made to collide by a sender: XXH3 is no
// cryptographic hash, but its seed is secret. A process that is alone draws one; those
// of a cluster pass identities to each other and use the one in their bucket.
var seed = maphash.Comparable(maphash.MakeSeed(), "identity") //nolint:gochecknoglobals // one seed for all Hashers of the process

// SetSeed sets the seed of all Hashers that are made from now on. Call it before the
// first is made, or they disagree. To set the seed that there is already does nothing,
// so members of one cluster may be in one process.
func SetSeed(s uint64) {
	if s != seed {
		seed = s
	}
}

// SeedFingerprint tells processes whether their seeds are the same, without giving
// the seed away.
func SeedFingerprint() uint64 { return xxh3.HashStringSeed("fingerprint", seed) }

// NewHasher returns a Hasher. All Hashers of a process agree.
func NewHasher() *Hasher { return &Hasher{seed: seed} }

// Canonical returns the identity for labels that are given in canonical form.
func (h *Hasher) Canonical(encoded []byte) Identity {
	u := xxh3.Hash128Seed(encoded, h.seed)
	id := Identity{Hi: u.Hi, Lo: u.Lo}
	if id.IsZero() {
		id.Lo = 1
	}
	return id
}

// Labels returns the identity of ls, which must be sorted and without empty values.
func (h *Hasher) Labels(ls labels.Labels) Identity {
	h.buf = h.buf[:0]
	ls.Range(func(l labels.Label) { h.buf = AppendCanonical(h.buf, l.Name, l.Value) })
	return h.Canonical(h.buf)
}

// AppendCanonical appends the canonical form of one label to dst.
func AppendCanonical(dst []byte, name, value string) []byte {
	size := 2 + uvarintLen(len(name)) + len(name) + uvarintLen(len(value)) + len(value)
	dst = append(dst, 0x0a)
	dst = binary.AppendUvarint(dst, uint64(size))
	dst = append(dst, 0x0a)
	dst = binary.AppendUvarint(dst, uint64(len(name)))
	dst = append(dst, name...)
	dst = append(dst, 0x12)
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

func uvarintLen(n int) int {
	size := 1
	for n >= 0x80 {
		n >>= 7
		size++
	}
	return size
}
