package remoteblock

import (
	"encoding/binary"

	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// A tombstones file has a magic number and a version before its entries, and a checksum
// behind them; the checksum does not cover the version.
const (
	tombstonesHead  = 4 + 1
	tombstonesEmpty = tombstonesHead + 4
	maxTombstones   = 256 << 20 // bytes
)

// readTombstones reads the whole file.
func (r *Reader) readTombstones() (tombstones.Reader, error) {
	size := r.header.tombstones
	if size == 0 || size == tombstonesEmpty {
		return tombstones.NewMemTombstones(), nil
	}
	if size < tombstonesEmpty || size > maxTombstones {
		return nil, damagef("it has %d bytes", size)
	}
	if err := r.hold(2 * size); err != nil {
		return nil, err
	}
	f, err := r.open(tombstonesName, size)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	if err := r.load(r.ctx, f, part(0, size)); err != nil {
		return nil, err
	}
	p := make([]byte, size)
	if err := readFull(f, p, 0); err != nil {
		return nil, err
	}
	entries, sum := p[4:len(p)-4], binary.BigEndian.Uint32(p[len(p)-4:])
	switch {
	case binary.BigEndian.Uint32(p) != tombstones.MagicTombstone:
		return nil, at(0, damagef("it does not begin like one"))
	case castagnoli(entries[1:]) != sum:
		return nil, at(size-4, damagef("its checksum does not match"))
	}
	stones, err := tombstones.Decode(entries)
	if err != nil {
		return nil, damagef("%w", err)
	}
	return stones, nil
}
