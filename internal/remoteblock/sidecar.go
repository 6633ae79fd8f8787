package remoteblock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

const (
	// SidecarName is the side file of a block that spares readers the way to its index.
	SidecarName = blockstore.SidecarFile

	sidecarMagic   = "HFSC"
	sidecarVersion = 1
	sidecarHead    = len(sidecarMagic) + 1 + 4 // and the length of the content

	// maxContent bounds the content of a sidecar, in bytes: it is checked before memory
	// is taken for it.
	maxContent = 64 << 20
	// wholeIndex is the size up to which an index is in its sidecar as a whole. An index
	// compresses to a fifth, so this costs less than two round trips.
	wholeIndex = 1 << 20

	contentWhole  = 0
	contentHeader = 1
)

// errSidecar says that a sidecar is not usable; it is made anew.
var errSidecar = errors.New("not a sidecar of this block")

// codec compresses and decompresses sidecars. It is safe for concurrent use.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

func newCodec() (*codec, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxMemory(maxContent), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	return &codec{encoder: e, decoder: d}, nil
}

// sidecar is what a sidecar says: the header of a block, or its index as a whole.
type sidecar struct {
	layout
	whole  []byte  // the index; nil: only the header is known
	header *header // nil if whole is set
}

// encode returns the bytes of a sidecar; docs/formats.md describes them.
func (c *codec) encode(block ulid.ULID, s sidecar) []byte {
	content := append([]byte(nil), block[:]...)
	files := s.files()
	content = binary.AppendUvarint(content, uint64(len(files)))
	for _, f := range files {
		content = appendText(content, f.Name)
		content = binary.AppendUvarint(content, uint64(f.Size))
	}
	if s.whole != nil {
		content = append(content, contentWhole)
		content = binary.AppendUvarint(content, uint64(len(s.whole)))
		content = append(content, s.whole...)
	} else {
		content = append(content, contentHeader)
		content = s.header.appendTo(content)
	}

	out := append([]byte(sidecarMagic), sidecarVersion)
	out = binary.BigEndian.AppendUint32(out, uint32(len(content)))
	out = c.encoder.EncodeAll(content, out)
	return binary.BigEndian.AppendUint32(out, castagnoli(out))
}

// decode is the opposite of encode. An error is an errSidecar.
func (c *codec) decode(block ulid.ULID, p []byte) (sidecar, error) {
	s, err := c.decodeContent(block, p)
	if err != nil {
		return sidecar{}, fmt.Errorf("%w: %w", errSidecar, err)
	}
	return s, nil
}

func (c *codec) decodeContent(block ulid.ULID, p []byte) (sidecar, error) {
	if len(p) < sidecarHead+4 || string(p[:4]) != sidecarMagic {
		return sidecar{}, errors.New("it does not begin like one")
	}
	if p[4] != sidecarVersion {
		return sidecar{}, fmt.Errorf("it has version %d, this build reads %d", p[4], sidecarVersion)
	}
	body, sum := p[:len(p)-4], binary.BigEndian.Uint32(p[len(p)-4:])
	if castagnoli(body) != sum {
		return sidecar{}, errors.New("its checksum does not match")
	}
	length := binary.BigEndian.Uint32(p[5:])
	if length > maxContent {
		return sidecar{}, fmt.Errorf("its content has %d bytes, more than %d", length, maxContent)
	}
	content, err := c.decoder.DecodeAll(body[sidecarHead:], make([]byte, 0, length))
	if err != nil {
		return sidecar{}, err
	}
	if len(content) != int(length) {
		return sidecar{}, errors.New("its content has another length than it says")
	}
	return parseSidecar(block, content)
}

func parseSidecar(block ulid.ULID, content []byte) (sidecar, error) {
	in := cursor{b: content}
	if string(in.bytes(16)) != string(block[:]) {
		return sidecar{}, errors.New("it is of another block")
	}
	files := make([]blockstore.File, in.count(2))
	for i := range files {
		files[i].Name, files[i].Size = string(in.text()), in.int63()
	}
	l, err := newLayout(files)
	if err != nil {
		return sidecar{}, err
	}
	s := sidecar{layout: l}
	switch kind := in.bytes(1); {
	case kind != nil && kind[0] == contentWhole:
		s.whole = in.text()
		if !in.bad && int64(len(s.whole)) != l.index {
			return sidecar{}, errors.New("the index in it has another size")
		}
	case kind != nil && kind[0] == contentHeader:
		s.header = parseHeader(&in, l)
		if !in.bad {
			err = s.header.check()
		}
	default:
		return sidecar{}, errors.New("its content is of an unknown kind")
	}
	if in.bad {
		return sidecar{}, errors.New("it ends early")
	}
	return s, err
}

// appendTo encodes everything but the layout. Offsets rise, so they are written as
// differences.
func (h *header) appendTo(b []byte) []byte {
	b = append(b, h.version)
	for _, o := range []uint64{h.toc.Symbols, h.toc.Series, h.toc.LabelIndices, h.toc.LabelIndicesTable, h.toc.Postings, h.toc.PostingsTable, h.series} {
		b = binary.AppendUvarint(b, o)
	}
	b = binary.AppendUvarint(b, uint64(h.symbols.count))
	b = binary.AppendUvarint(b, uint64(len(h.symbols.pages)))
	last := int64(0)
	for _, p := range h.symbols.pages {
		b = binary.AppendUvarint(b, uint64(p.start-last))
		b = binary.BigEndian.AppendUint32(b, p.crc)
		last = p.start
	}
	b = binary.AppendUvarint(b, uint64(h.symbols.end-last))

	b = binary.AppendUvarint(b, uint64(len(h.names)))
	table, postings := int64(0), int64(0)
	for i := range h.names {
		n := &h.names[i]
		b = appendText(b, n.name)
		b = binary.AppendUvarint(b, n.values)
		b = binary.AppendUvarint(b, uint64(len(n.groups)))
		for _, g := range n.groups {
			b = appendText(b, g.first)
			b = binary.AppendUvarint(b, uint64(g.count))
			b = binary.BigEndian.AppendUint32(b, g.crc)
			b = binary.AppendUvarint(b, uint64(g.table-table))
			b = binary.AppendUvarint(b, uint64(g.postings-postings))
			table, postings = g.table, g.postings
		}
		b = binary.AppendUvarint(b, uint64(n.tableEnd-table))
		b = binary.AppendUvarint(b, uint64(n.postingsEnd-postings))
		table, postings = n.tableEnd, n.postingsEnd
	}

	b = binary.AppendUvarint(b, uint64(len(h.metrics)))
	ref := uint64(0)
	for _, m := range h.metrics {
		b = appendText(b, m.name)
		b = binary.AppendUvarint(b, m.first-ref)
		b = binary.AppendUvarint(b, m.last-m.first)
		b = binary.AppendUvarint(b, m.series)
		b = binary.AppendUvarint(b, m.chunk)
		ref = m.last
	}
	return b
}

// parseHeader is the opposite of appendTo. The caller looks at in.bad, and checks the
// header.
func parseHeader(in *cursor, l layout) *header {
	h := &header{layout: l}
	if v := in.bytes(1); v != nil {
		h.version = v[0]
	}
	h.toc = index.TOC{
		Symbols: in.uvarint(), Series: in.uvarint(), LabelIndices: in.uvarint(),
		LabelIndicesTable: in.uvarint(), Postings: in.uvarint(), PostingsTable: in.uvarint(),
	}
	h.series = in.uvarint()
	h.symbols.count = uint32(in.uvarint())
	h.symbols.pages = make([]symbolPage, in.count(5))
	last := int64(0)
	for i := range h.symbols.pages {
		last += in.int63()
		h.symbols.pages[i] = symbolPage{start: last, crc: in.be32()}
	}
	h.symbols.end = last + in.int63()

	h.names = make([]labelName, in.count(4))
	var values strings.Builder // one string for all of them
	table, postings := int64(0), int64(0)
	for i := range h.names {
		n := &h.names[i]
		n.name, n.values = string(in.text()), in.uvarint()
		n.groups = make([]valueGroup, in.count(8))
		values.Reset()
		lengths := make([]int, len(n.groups))
		for j := range n.groups {
			first := in.text()
			values.Write(first)
			lengths[j] = len(first)
			g := valueGroup{count: uint32(in.uvarint()), crc: in.be32()}
			table += in.int63()
			postings += in.int63()
			g.table, g.postings = table, postings
			n.groups[j] = g
		}
		all := values.String()
		for j, length := range lengths {
			n.groups[j].first, all = all[:length], all[length:]
		}
		table += in.int63()
		postings += in.int63()
		n.tableEnd, n.postingsEnd = table, postings
	}

	if n := in.count(5); n > 0 {
		h.metrics = make([]metric, n)
	}
	ref := uint64(0)
	for i := range h.metrics {
		m := metric{name: string(in.text())}
		m.first = ref + in.uvarint()
		m.last = m.first + in.uvarint()
		m.series, m.chunk = in.uvarint(), in.uvarint()
		h.metrics[i], ref = m, m.last
	}
	return h
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
