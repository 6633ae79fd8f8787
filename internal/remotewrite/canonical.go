package remotewrite

import (
	"fmt"

	"github.com/prometheus/common/model"

	"github.com/hundredfold/hundredfold/internal/write"
)

// noRef stands for "no such symbol".
const noRef = ^uint32(0)

// form is the canonical form of the labels of a series, and which part of it comes from
// which pair of references. Series that follow each other come from one target, so most
// of their labels are the same: those are copied from the form of the series before in
// runs, without a look at a symbol.
type form struct {
	bytes []byte
	// pairs is how many of the arrays' elements are of the series: by label in the order
	// sent, the reference to its name above that to its value, and where it ends in bytes,
	// which is where it begins if its value is empty.
	pairs   int
	refs    [formPairs]uint64
	ends    [formPairs]int
	metrics uint64 // bit k is set if label k is __name__
}

// formPairs is how many labels of a series are remembered: more than nearly all have.
const formPairs = 64

// identify sets the identity of s, or its Err, and returns which symbol is the
// value of __name__. Its error is about the request as a whole.
func (d *Decoder) identify(s *write.Series, r region) (name uint32, err error) {
	raw := d.bytes(r)
	d.at ^= 1
	f := &d.forms[d.at]
	name, s.Err, err = d.canonicalize(raw, f, &d.forms[d.at^1])
	if err != nil || s.Err != nil {
		f.pairs = 0
		if err == nil {
			err = errReferences(raw)
		}
		return noRef, err
	}
	if d.expanded += len(f.bytes); d.expanded > maxExpandedBytes {
		return noRef, errExpanded
	}
	s.ID = d.hasher.Canonical(f.bytes)
	return name, nil
}

// canonicalize sets f to the canonical form of the labels that raw refers to; before is
// that of the series before. The fault is that of the series alone. With a fault or an
// error f is good for nothing.
func (d *Decoder) canonicalize(raw []byte, f, before *form) (name uint32, fault, err error) {
	name = noRef
	out := f.bytes[:0]
	f.pairs, f.metrics = 0, 0
	from, to := 0, 0 // what has yet to be copied of before.bytes
	for k, p := 0, 0; p < len(raw); k++ {
		var label, value uint32
		if label, p = reference(raw, p); p < 0 {
			return noRef, nil, errReferences(raw)
		}
		if p == len(raw) {
			return noRef, errOddRefs, nil
		}
		if value, p = reference(raw, p); p < 0 {
			return noRef, nil, errReferences(raw)
		}
		refs := uint64(label)<<32 | uint64(value)
		metric := false
		if k < before.pairs && before.refs[k] == refs {
			if from == to && k > 0 {
				from = before.ends[k-1]
			}
			to = before.ends[k]
			metric = before.metrics>>k&1 != 0
		} else {
			if out, fault = copyRun(out, before, from, to); fault != nil {
				return noRef, fault, nil
			}
			from, to = 0, 0
			if out, metric, fault = d.appendPair(out, label, value); fault != nil {
				return noRef, fault, nil
			}
		}
		if metric {
			name = value
		}
		if k < formPairs {
			f.refs[k], f.ends[k], f.pairs = refs, len(out)+to-from, k+1
			if metric {
				f.metrics |= 1 << k
			}
		}
	}
	if out, fault = copyRun(out, before, from, to); fault == nil && len(out) > maxLabelsBytes {
		fault = errLabelsTooLong(len(out))
	}
	f.bytes = out
	return name, fault, nil
}

// copyRun appends before.bytes[from:to] to out.
func copyRun(out []byte, before *form, from, to int) ([]byte, error) {
	if size := len(out) + to - from; size > maxLabelsBytes {
		return out, errLabelsTooLong(size)
	}
	return append(out, before.bytes[from:to]...), nil
}

// appendPair appends the label that the references are to, unless its value is empty, and
// reports whether it is __name__.
func (d *Decoder) appendPair(out []byte, name, value uint32) (_ []byte, metric bool, fault error) {
	n, ok1 := d.symbol(name)
	v, ok2 := d.symbol(value)
	if !ok1 || !ok2 {
		return out, false, fmt.Errorf("label references %d and %d exceed the %d symbols", name, value, len(d.symbols))
	}
	if v == "" {
		return out, false, nil
	}
	if size := len(out) + len(n) + len(v); size > maxLabelsBytes {
		return out, false, errLabelsTooLong(size)
	}
	return appendLabel(out, n, v), n == model.MetricNameLabel, nil
}

// reference reads the reference at p and returns where the next one is, or a negative
// number if there is none at p.
func reference(raw []byte, p int) (ref uint32, next int) {
	if raw[p] < 0x80 {
		return uint32(raw[p]), p + 1
	}
	return longReference(raw, p)
}

func longReference(raw []byte, p int) (ref uint32, next int) {
	if p+1 < len(raw) && raw[p+1] < 0x80 {
		return uint32(raw[p]&0x7f) | uint32(raw[p+1])<<7, p + 2
	}
	c := cursor{data: raw, pos: p, end: len(raw)}
	v, err := c.uvarint()
	if err != nil {
		return 0, -1
	}
	return uint32(v), c.pos
}

// appendLabel is write.AppendCanonical with a shorter way for short labels.
func appendLabel(dst []byte, name, value string) []byte {
	size := 4 + len(name) + len(value)
	if size >= 0x80 {
		return write.AppendCanonical(dst, name, value)
	}
	off := len(dst)
	if cap(dst)-off < size+2 {
		dst = append(dst, make([]byte, size+2)...)
	} else {
		dst = dst[:off+size+2]
	}
	p := dst[off : off+size+2]
	p[0], p[1], p[2], p[3] = 0x0a, byte(size), 0x0a, byte(len(name))
	n := 4 + copy(p[4:], name)
	p[n], p[n+1] = 0x12, byte(len(value))
	copy(p[n+2:], value)
	return dst
}
