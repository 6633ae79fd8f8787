package mask

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"slices"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

// A tombstones file has a magic number and a version before its entries, and a checksum
// behind them; the checksum does not cover the version.
const (
	stonesMagic   = 4
	stonesHead    = stonesMagic + 1
	stonesSum     = crc32.Size
	stonesVersion = 1
)

var errStone = errors.New("an entry of the tombstones is cut short, or is not one")

// DecodeTombstones reads the content of a tombstones file. tombstones.Decode and
// tombstones.ReadTombstones panic on what Prometheus itself may have written: an interval
// without an end that comes after others. An error is the fault of the content.
func DecodeTombstones(file []byte) (tombstones.Reader, error) {
	switch {
	case len(file) < stonesHead+stonesSum:
		return nil, fmt.Errorf("the tombstones have %d bytes", len(file))
	case binary.BigEndian.Uint32(file) != tombstones.MagicTombstone:
		return nil, errors.New("the tombstones do not begin like some")
	case file[stonesMagic] != stonesVersion:
		return nil, fmt.Errorf("the tombstones are of version %d, this build reads %d", file[stonesMagic], stonesVersion)
	}
	rest, sum := file[stonesHead:len(file)-stonesSum], file[len(file)-stonesSum:]
	if crc32.Checksum(rest, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(sum) {
		return nil, errors.New("the checksum of the tombstones does not match")
	}
	all := stones{}
	for len(rest) > 0 {
		ref, n := binary.Uvarint(rest)
		if n <= 0 {
			return nil, errStone
		}
		rest = rest[n:]
		var i tombstones.Interval
		for _, v := range []*int64{&i.Mint, &i.Maxt} {
			if *v, n = binary.Varint(rest); n <= 0 {
				return nil, errStone
			}
			rest = rest[n:]
		}
		// One that ends before it begins hides nothing.
		if i.Mint <= i.Maxt {
			all[storage.SeriesRef(ref)] = append(all[storage.SeriesRef(ref)], i)
		}
	}
	for ref, intervals := range all {
		all[ref] = joined(Union(intervals))
	}
	return all, nil
}

// joined joins intervals, in order, that follow one another without a millisecond between
// them, as Prometheus does when it reads them.
func joined(in tombstones.Intervals) tombstones.Intervals {
	out := in[:1]
	for _, next := range in[1:] {
		if last := &out[len(out)-1]; last.Maxt != math.MaxInt64 && next.Mint == last.Maxt+1 {
			last.Maxt = next.Maxt
		} else {
			out = append(out, next)
		}
	}
	return slices.Clip(out)
}

// stones are the tombstones of a block. They are not changed any more, so that they are
// safe for concurrent use.
type stones map[storage.SeriesRef]tombstones.Intervals

// Get implements tombstones.Reader. Callers may append to what it returns, and change it.
func (s stones) Get(ref storage.SeriesRef) (tombstones.Intervals, error) {
	return slices.Clone(s[ref]), nil
}

// Iter implements tombstones.Reader.
func (s stones) Iter(each func(storage.SeriesRef, tombstones.Intervals) error) error {
	for _, ref := range slices.Sorted(maps.Keys(s)) {
		if err := each(ref, s[ref]); err != nil {
			return err
		}
	}
	return nil
}

// Total implements tombstones.Reader: the number of intervals.
func (s stones) Total() uint64 {
	total := uint64(0)
	for _, intervals := range s {
		total += uint64(len(intervals))
	}
	return total
}

// Close implements tombstones.Reader.
func (stones) Close() error { return nil }
