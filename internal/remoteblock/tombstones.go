package remoteblock

import (
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/mask"
)

const (
	// tombstonesEmpty is how many bytes a file without entries has.
	tombstonesEmpty = 4 + 1 + 4
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
	stones, err := mask.DecodeTombstones(p)
	if err != nil {
		return nil, damagef("%w", err)
	}
	return stones, nil
}
