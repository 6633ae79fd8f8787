package resultcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
)

// magic begins a file; its last byte is the version of the format.
const magic = "HFRC\x01"

// Entry is what is known of one query.
type Entry struct {
	// Key names the query, its step, and all else that its results depend on but the range.
	Key string
	// Step is in ms, above 0 if there are extents.
	Step int64
	// Extents have no step in common; their order is the user's.
	Extents []Extent
}

// Extent is the result at the steps from Start to End, both in ms and inclusive.
type Extent struct {
	Start, End int64
	Version    uint64 // of the data
	Series     []Series
}

// Series is a part of a result; its points are at steps, in the order of time.
type Series struct {
	Labels labels.Labels
	Points []promql.FPoint
}

// size estimates how long the encoded entry is.
func (e *Entry) size() int64 {
	size := 0
	for _, x := range e.Extents {
		for _, s := range x.Series {
			size += 16 + 8*len(s.Points)
		}
	}
	return int64(size)
}

var errDamaged = errors.New("the file of a result is damaged")

// Encode returns an entry as it is on disk: docs/formats.md describes it.
func Encode(e Entry) []byte {
	out := append(make([]byte, 0, e.size()+4096), magic...)
	out = append(out, 0, 0, 0, 0) // the checksum
	out = appendString(out, e.Key)
	out = binary.AppendUvarint(out, uint64(max(e.Step, 0))) //nolint:gosec // it is not negative
	sets := map[string]uint64{}
	var known []labels.Labels
	buf := make([]byte, 0, 1024)
	for _, x := range e.Extents {
		for _, s := range x.Series {
			buf = s.Labels.Bytes(buf)
			if _, ok := sets[string(buf)]; !ok {
				sets[string(buf)] = uint64(len(known))
				known = append(known, s.Labels)
			}
		}
	}
	out = binary.AppendUvarint(out, uint64(len(known)))
	for _, ls := range known {
		out = binary.AppendUvarint(out, uint64(ls.Len())) //nolint:gosec // it is not negative
		ls.Range(func(l labels.Label) { out = appendString(appendString(out, l.Name), l.Value) })
	}
	out = binary.AppendUvarint(out, uint64(len(e.Extents)))
	for _, x := range e.Extents {
		out = binary.AppendVarint(out, x.Start)
		out = binary.AppendUvarint(out, uint64((x.End-x.Start)/e.Step)) //nolint:gosec // it is not negative
		out = binary.LittleEndian.AppendUint64(out, x.Version)
		out = binary.AppendUvarint(out, uint64(len(x.Series)))
		for _, s := range x.Series {
			buf = s.Labels.Bytes(buf)
			out = binary.AppendUvarint(out, sets[string(buf)])
			out = appendPoints(out, s.Points, x.Start, e.Step)
		}
	}
	binary.LittleEndian.PutUint32(out[len(magic):], checksum(out[len(magic)+4:]))
	return out
}

func checksum(data []byte) uint32 {
	return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
}

func appendString(out []byte, s string) []byte {
	return append(binary.AppendUvarint(out, uint64(len(s))), s...)
}

// appendPoints writes runs of steps that have points: how many steps are left out before each run,
// how many are in it; then the values.
func appendPoints(out []byte, points []promql.FPoint, start, step int64) []byte {
	var runs []uint64
	next := start
	for _, p := range points {
		if skipped := (p.T - next) / step; skipped > 0 || len(runs) == 0 {
			runs = append(runs, uint64(skipped), 0) //nolint:gosec // it is not negative
		}
		runs[len(runs)-1]++
		next = p.T + step
	}
	out = binary.AppendUvarint(out, uint64(len(runs)/2))
	for _, n := range runs {
		out = binary.AppendUvarint(out, n)
	}
	for _, p := range points {
		out = binary.LittleEndian.AppendUint64(out, math.Float64bits(p.F))
	}
	return out
}

// Decode returns what Encode wrote. Whatever data is, it takes memory in proportion to it.
func Decode(data []byte) (e Entry, err error) {
	if len(data) < len(magic)+4 || string(data[:len(magic)]) != magic {
		return e, fmt.Errorf("%w: it is none, or of another version", errDamaged)
	}
	d := decoder{data: data[len(magic)+4:]}
	if binary.LittleEndian.Uint32(data[len(magic):]) != checksum(d.data) {
		return e, fmt.Errorf("%w: its checksum differs", errDamaged)
	}
	e.Key = d.string()
	e.Step = int64(d.uvarint()) //nolint:gosec // checked below
	sets := make([]labels.Labels, d.count(1))
	builder := labels.NewScratchBuilder(16)
	for i := range sets {
		builder.Reset()
		for range d.count(2) {
			name := d.string()
			builder.Add(name, d.string())
		}
		sets[i] = builder.Labels()
	}
	e.Extents = make([]Extent, d.count(11))
	if len(e.Extents) > 0 && e.Step <= 0 {
		d.failed = true
	}
	for i := range e.Extents {
		if d.failed {
			break
		}
		e.Extents[i] = d.extent(e.Step, sets)
	}
	if d.failed || len(d.data) > 0 {
		return Entry{}, errDamaged
	}
	return e, nil
}

// decoder reads from the front of data. After a fault everything is zero.
type decoder struct {
	data   []byte
	failed bool
}

func (d *decoder) take(n int) []byte {
	if d.failed || n < 0 || n > len(d.data) {
		d.failed, d.data = true, nil
		return nil
	}
	taken := d.data[:n]
	d.data = d.data[n:]
	return taken
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 {
		n = -1
	}
	if d.take(n) == nil {
		return 0
	}
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.data)
	if n <= 0 {
		n = -1
	}
	if d.take(n) == nil {
		return 0
	}
	return v
}

// count reads how many things follow, each of which takes size bytes or more.
func (d *decoder) count(size int) int {
	v := d.uvarint()
	if v > uint64(len(d.data)/size) { //nolint:gosec // it is not negative
		d.failed, d.data = true, nil
		return 0
	}
	return int(v) //nolint:gosec // it is bounded
}

func (d *decoder) string() string { return string(d.take(d.count(1))) }

func (d *decoder) fixed() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) extent(step int64, sets []labels.Labels) Extent {
	x := Extent{Start: d.varint()}
	steps := d.uvarint()
	if x.Start < -1<<60 || x.Start > 1<<60 || steps > uint64((1<<60)/step) { //nolint:gosec // step is above 0
		d.failed, d.data = true, nil
		return x
	}
	x.End = x.Start + int64(steps)*step //nolint:gosec // it is bounded
	x.Version = d.fixed()
	x.Series = make([]Series, d.count(2))
	for i := range x.Series {
		set := d.uvarint()
		if d.failed || set >= uint64(len(sets)) {
			d.failed = true
			return x
		}
		x.Series[i] = Series{Labels: sets[set], Points: d.points(x, step)}
	}
	return x
}

func (d *decoder) points(x Extent, step int64) []promql.FPoint {
	runs := make([][2]int64, d.count(2))
	at, total := x.Start, int64(0)
	for i := range runs {
		skipped, length := d.uvarint(), d.uvarint()
		left := uint64((x.End-at)/step + 1) //nolint:gosec // at is at most a step behind End
		if skipped > left || length == 0 || length > left-skipped {
			d.failed, d.data = true, nil
			return nil
		}
		runs[i] = [2]int64{at + int64(skipped)*step, int64(length)} //nolint:gosec // they are bounded
		at += int64(skipped+length) * step                          //nolint:gosec // they are bounded
		total += int64(length)                                      //nolint:gosec // it is bounded
	}
	if total > int64(len(d.data)/8) {
		d.failed, d.data = true, nil
		return nil
	}
	points := make([]promql.FPoint, 0, total)
	for _, run := range runs {
		for i := range run[1] {
			points = append(points, promql.FPoint{T: run[0] + i*step, F: math.Float64frombits(d.fixed())})
		}
	}
	return points
}
