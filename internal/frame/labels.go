package frame

import (
	"encoding/binary"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/write"
)

// maxLabelsBytes bounds the labels of a series, which keeps each of them below the
// 16 MiB at which labels.ScratchBuilder panics.
const maxLabelsBytes = 1<<24 - 1

// labelWriter appends labels in the canonical form of write.Identity, after their
// length. It keeps a buffer.
type labelWriter struct{ buf []byte }

func (w *labelWriter) append(dst []byte, ls labels.Labels) []byte {
	w.buf = w.buf[:0]
	ls.Range(func(l labels.Label) { w.buf = write.AppendCanonical(w.buf, l.Name, l.Value) })
	dst = binary.AppendUvarint(dst, uint64(len(w.buf)))
	return append(dst, w.buf...)
}

// addLabels adds the labels in encoded, which are in canonical form, to b. The strings
// alias encoded.
func addLabels(encoded []byte, b *labels.ScratchBuilder) error {
	if len(encoded) > maxLabelsBytes {
		return errLabelForm
	}
	var previous string
	for first := true; len(encoded) > 0; first = false {
		name, value, rest, ok := nextLabel(encoded)
		if !ok {
			return errLabelForm
		}
		if !first && name <= previous {
			return errLabelOrder
		}
		b.Add(name, value)
		previous, encoded = name, rest
	}
	return nil
}

// nextLabel reads one label: 0a, the length of the rest, 0a, the name, 12, the value.
func nextLabel(encoded []byte) (name, value string, rest []byte, ok bool) {
	if len(encoded) >= 6 && encoded[0] == 0x0a && encoded[1] < 0x80 && encoded[2] == 0x0a {
		// All lengths are of one byte, as nearly always. A name's length of two does not
		// pass for one: it would reach beyond the end.
		end, n := 2+int(encoded[1]), int(encoded[3])
		if end <= len(encoded) && 6+n <= end && encoded[4+n] == 0x12 && int(encoded[5+n]) == end-6-n {
			return alias(encoded[4 : 4+n]), alias(encoded[6+n : end]), encoded[end:], true
		}
	}
	return nextLongLabel(encoded)
}

// nextLongLabel is nextLabel for lengths of any size.
func nextLongLabel(encoded []byte) (name, value string, rest []byte, ok bool) {
	c := cursor{rest: encoded}
	if c.byte() != 0x0a {
		return "", "", nil, false
	}
	label := cursor{rest: c.bytes()}
	if c.failed || label.byte() != 0x0a {
		return "", "", nil, false
	}
	name = label.text()
	if label.byte() != 0x12 {
		return "", "", nil, false
	}
	value = label.text()
	return name, value, c.rest, !label.failed && len(label.rest) == 0
}
