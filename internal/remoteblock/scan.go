package remoteblock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

const (
	tocLength = 6*8 + 4
	// scanWindow is how much is read at once while an index is scanned, in bytes.
	scanWindow = 1 << 20
	// maxSymbol bounds the length of a symbol; Prometheus has no bound, and writes none
	// beyond a few MB.
	maxSymbol = 64 << 20
	// maxMetricPostings bounds what is read to learn where metrics are, in bytes.
	maxMetricPostings = 32 << 20
)

// scan reads what a header says out of an index. All checksums of what it reads are
// verified. Its memory is bounded by the header's, a window, and the longest symbol.
func scan(ctx context.Context, f file, l layout) (*header, error) {
	h := &header{layout: l}
	if f.Size() != l.index {
		return nil, damagef("the index has %d bytes and was listed with %d", f.Size(), l.index)
	}
	if err := h.scanContents(ctx, f); err != nil {
		return nil, err
	}
	// The table of postings offsets stands last; what is loaded together is loaded at once.
	if _, err := f.Load(ctx, part(int64(h.toc.Symbols), min(int64(h.toc.Symbols)+scanWindow, int64(h.toc.Series))),
		part(int64(h.toc.PostingsTable), min(int64(h.toc.PostingsTable)+scanWindow, f.Size()))); err != nil {
		return nil, err
	}
	if err := h.scanSymbols(ctx, f); err != nil {
		return nil, fmt.Errorf("read the symbols: %w", err)
	}
	for limit := uint32(valuesPerGroup); ; limit *= 4 {
		groups, err := h.scanPostingsTable(ctx, f, limit)
		if err != nil {
			return nil, fmt.Errorf("read the table of postings offsets: %w", err)
		}
		if groups <= maxGroups || limit > math.MaxUint32/8 {
			break
		}
	}
	if err := h.scanMetrics(ctx, f); err != nil {
		return nil, fmt.Errorf("find the series of metrics: %w", err)
	}
	if err := h.check(); err != nil {
		return nil, damagef("%w", err)
	}
	return h, nil
}

// scanContents reads the head and the table of contents.
func (h *header) scanContents(ctx context.Context, f file) error {
	if f.Size() < index.HeaderLen+tocLength {
		return damagef("the index has %d bytes only", f.Size())
	}
	tocStart := f.Size() - tocLength
	if _, err := f.Load(ctx, part(0, index.HeaderLen), part(tocStart, f.Size())); err != nil {
		return err
	}
	var head [index.HeaderLen]byte
	if err := readFull(f, head[:], 0); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head[:]) != index.MagicIndex {
		return at(0, damagef("the index does not begin like one"))
	}
	h.version = head[4]
	if h.version != index.FormatV2 && h.version != index.FormatV3 {
		return at(4, fmt.Errorf("%w: version %d of the index", errVersion, h.version))
	}
	toc := make(contents, tocLength)
	if err := readFull(f, toc, tocStart); err != nil {
		return err
	}
	parsed, err := index.NewTOCFromByteSlice(toc)
	if err != nil {
		return at(tocStart, damagef("%w", err))
	}
	h.toc = *parsed
	for _, o := range []uint64{parsed.Symbols, parsed.Series, parsed.LabelIndices, parsed.Postings, parsed.PostingsTable} {
		if o > uint64(tocStart) {
			return at(tocStart, damagef("the table of contents leads to byte %d", o))
		}
	}
	if parsed.Series < parsed.Symbols {
		return at(tocStart, damagef("the series stand before the symbols"))
	}
	return nil
}

// contents is the bytes of a table of contents.
type contents []byte

func (c contents) Len() int { return len(c) }

func (c contents) Range(start, end int) []byte { return c[start:end] }

func (h *header) scanSymbols(ctx context.Context, f file) error {
	s, err := newSection(ctx, f, int64(h.toc.Symbols))
	if err != nil {
		return err
	}
	count, err := s.be32()
	if err != nil {
		return err
	}
	h.symbols = symbolTable{count: count}
	for i := range count {
		if i%symbolsPerPage == 0 {
			if i > 0 {
				h.symbols.pages[len(h.symbols.pages)-1].crc = s.cut()
			} else {
				s.cut()
			}
			h.symbols.pages = append(h.symbols.pages, symbolPage{start: s.offset()})
		}
		if _, err := s.text(); err != nil {
			return err
		}
	}
	if len(h.symbols.pages) > 0 {
		h.symbols.pages[len(h.symbols.pages)-1].crc = s.cut()
	}
	h.symbols.end = s.offset()
	return s.finish()
}

// scanPostingsTable fills h.names, with up to limit values in a group.
func (h *header) scanPostingsTable(ctx context.Context, f file, limit uint32) (groups int, err error) {
	s, err := newSection(ctx, f, int64(h.toc.PostingsTable))
	if err != nil {
		return 0, err
	}
	count, err := s.be32()
	if err != nil {
		return 0, err
	}
	h.names = nil
	var (
		name      *labelName
		lastValue []byte
		lastList  int64
	)
	s.cut()
	// cut ends the current group, before the entry at offset.
	cut := func() {
		if name != nil {
			name.groups[len(name.groups)-1].crc = s.cut()
		}
	}
	for i := range count {
		entry, err := s.tableEntry()
		if err != nil {
			return 0, err
		}
		if entry.postings < uint64(lastList) || entry.postings >= uint64(f.Size()) {
			return 0, at(entry.offset, damagef("the postings at %d do not follow those at %d", entry.postings, lastList))
		}
		next := name == nil || string(entry.name) != name.name
		switch {
		case next && i > 0 && string(entry.name) <= name.name, !next && string(entry.value) <= string(lastValue):
			return 0, at(entry.offset, damagef("the table is not in order"))
		}
		list := int64(entry.postings)
		if next {
			cut()
			if name != nil {
				name.tableEnd, name.postingsEnd = entry.offset, list
			}
			h.names = append(h.names, labelName{name: string(entry.name)})
			name = &h.names[len(h.names)-1]
		} else if g := &name.groups[len(name.groups)-1]; g.count >= limit || list-g.postings > groupPostings {
			cut()
			next = true
		}
		if next {
			name.groups = append(name.groups, valueGroup{first: string(entry.value), table: entry.offset, postings: list})
			groups++
		}
		s.keep(entry.length)
		name.groups[len(name.groups)-1].count++
		name.values++
		lastValue = append(lastValue[:0], entry.value...)
		lastList = list
	}
	cut()
	if name != nil {
		name.tableEnd, name.postingsEnd = s.offset(), max(int64(h.toc.PostingsTable), lastList)
	}
	return groups, s.finish()
}

// scanMetrics learns where the series of each metric are. Without the knowledge
// reading is merely slower, so it is done only where it costs little.
func (h *header) scanMetrics(ctx context.Context, f file) error {
	if all := h.label(""); all != nil {
		n, _, _, err := postingsEnds(ctx, f, all.postingsRange(0, len(all.groups)))
		if err != nil {
			return err
		}
		h.series = n
	}
	name := h.label(model.MetricNameLabel)
	if name == nil || name.values > maxMetrics {
		return nil
	}
	lists := name.postingsRange(0, len(name.groups))
	if lists.End-lists.Start > maxMetricPostings {
		return nil
	}
	if _, err := f.Load(ctx, lists, name.tableRange(0, len(name.groups))); err != nil {
		return err
	}
	entries, err := readTable(f, name, 0, len(name.groups))
	if err != nil {
		return err
	}
	metrics := make([]metric, 0, len(entries))
	for i, e := range entries {
		end := lists.End
		if i+1 < len(entries) {
			end = entries[i+1].postings
		}
		n, first, last, err := postingsEnds(ctx, f, part(e.postings, end))
		if err != nil {
			return err
		}
		if n == 0 || last < first || i > 0 && first <= metrics[i-1].last {
			return nil // labels that sort before __name__: a metric's series are scattered
		}
		metrics = append(metrics, metric{name: e.value, first: first, last: last, series: n})
	}
	h.metrics = metrics
	return nil
}

// locateChunks adds the places of the metrics' chunks. It reads one series of each
// metric, so it is meant for files on this machine.
func (h *header) locateChunks(ctx context.Context, f file) error {
	reader := entryReader{f: f, h: h, load: f.Load}
	for i := range h.metrics {
		content, err := reader.read(ctx, h.metrics[i].first)
		if err != nil {
			return err
		}
		var found []chunks.Meta
		if err := decodeChunks(content, &found); err != nil {
			return at(int64(h.metrics[i].first)*seriesAlign, err)
		}
		if len(found) > 0 {
			h.metrics[i].chunk = uint64(found[0].Ref)
		}
	}
	return nil
}

// postingsEnds returns how many postings a list has, and the first and last.
func postingsEnds(ctx context.Context, f file, r Range) (n, first, last uint64, err error) {
	if r.End-r.Start < 12 {
		return 0, 0, 0, at(r.Start, damagef("the postings have %d bytes", r.End-r.Start))
	}
	if _, err := f.Load(ctx, part(r.Start, min(r.Start+12, r.End))); err != nil {
		return 0, 0, 0, err
	}
	var p [12]byte
	if err := readFull(f, p[:], r.Start); err != nil {
		return 0, 0, 0, at(r.Start, err)
	}
	length, count := uint64(binary.BigEndian.Uint32(p[:])), uint64(binary.BigEndian.Uint32(p[4:]))
	if length != 4+4*count || int64(length)+8 > r.End-r.Start {
		return 0, 0, 0, at(r.Start, damagef("%d postings in %d bytes", count, r.End-r.Start))
	}
	if count == 0 {
		return 0, 0, 0, nil
	}
	tail := r.Start + 4 + int64(length) - 4
	if _, err := f.Load(ctx, part(tail, tail+4)); err != nil {
		return 0, 0, 0, err
	}
	var q [4]byte
	if err := readFull(f, q[:], tail); err != nil {
		return 0, 0, 0, at(tail, err)
	}
	return count, uint64(binary.BigEndian.Uint32(p[8:])), uint64(binary.BigEndian.Uint32(q[:])), nil
}

// tableEntry is an entry of the table of postings offsets while it is scanned.
type tableEntry struct {
	offset, length int64
	name, value    []byte // valid until the next read
	postings       uint64
}

// section reads one section of an index from its start to its end, and checks it.
type section struct {
	ctx   context.Context //nolint:containedctx // a section lives as long as one call
	f     file
	start int64 // of its content
	size  int64

	buf       []byte
	bufOffset int64 // of buf[0]
	pos       int   // in buf: what has been read
	summed    int   // in buf: what crc covers
	crc, part uint32
}

func newSection(ctx context.Context, f file, offset int64) (*section, error) {
	if offset+8 > f.Size() {
		return nil, at(offset, damagef("a section begins at the end of the index"))
	}
	if _, err := f.Load(ctx, part(offset, offset+4)); err != nil {
		return nil, err
	}
	var head [4]byte
	if err := readFull(f, head[:], offset); err != nil {
		return nil, at(offset, err)
	}
	s := &section{ctx: ctx, f: f, start: offset + 4, size: int64(binary.BigEndian.Uint32(head[:])), bufOffset: offset + 4}
	if s.start+s.size+4 > f.Size() {
		return nil, at(offset, damagef("a section of %d bytes begins at byte %d of %d", s.size, offset, f.Size()))
	}
	return s, nil
}

// offset returns where the next byte is, in the file.
func (s *section) offset() int64 { return s.bufOffset + int64(s.pos) }

// peek returns at least n bytes without reading them, or all that are left.
func (s *section) peek(n int) ([]byte, error) {
	if len(s.buf)-s.pos >= n {
		return s.buf[s.pos:], nil
	}
	end := s.start + s.size
	have := s.bufOffset + int64(len(s.buf))
	if have == end {
		return s.buf[s.pos:], nil
	}
	s.sum()
	s.bufOffset += int64(s.pos)
	left := copy(s.buf, s.buf[s.pos:])
	s.pos, s.summed = 0, 0
	want := min(int64(max(n, scanWindow)), end-s.bufOffset)
	if int64(cap(s.buf)) < want {
		s.buf = append(make([]byte, 0, want), s.buf[:left]...)
	}
	s.buf = s.buf[:want]
	if _, err := s.f.Load(s.ctx, part(have, s.bufOffset+want)); err != nil {
		return nil, err
	}
	if err := readFull(s.f, s.buf[left:], have); err != nil {
		return nil, at(have, err)
	}
	return s.buf, nil
}

// sum adds what has been read to the checksums.
func (s *section) sum() { s.sumTo(s.pos) }

func (s *section) sumTo(pos int) {
	if pos > s.summed {
		s.crc = updateCRC(s.crc, s.buf[s.summed:pos])
		s.part = updateCRC(s.part, s.buf[s.summed:pos])
		s.summed = pos
	}
}

// cut returns the checksum of what was read since the last cut.
func (s *section) cut() uint32 {
	s.sum()
	part := s.part
	s.part = 0
	return part
}

func (s *section) be32() (uint32, error) {
	p, err := s.peek(4)
	if err != nil {
		return 0, err
	}
	if len(p) < 4 {
		return 0, at(s.offset(), damagef("a section ends early"))
	}
	s.pos += 4
	return binary.BigEndian.Uint32(p), nil
}

// text reads a string with its length before it; it is valid until the next read.
func (s *section) text() ([]byte, error) {
	p, n, err := s.peekText(0)
	s.pos += n
	return p, err
}

// peekText returns the string that begins skip bytes from here, and where it ends.
func (s *section) peekText(skip int) (text []byte, end int, err error) {
	p, err := s.peek(skip + binary.MaxVarintLen64)
	if err != nil {
		return nil, skip, err
	}
	if skip > len(p) {
		return nil, skip, at(s.offset(), damagef("a section ends early"))
	}
	length, n := binary.Uvarint(p[skip:])
	if n <= 0 || length > maxSymbol {
		return nil, skip, at(s.offset(), damagef("a string has an impossible length"))
	}
	begin := skip + n
	if p, err = s.peek(begin + int(length)); err != nil {
		return nil, skip, err
	}
	if len(p) < begin+int(length) {
		return nil, skip, at(s.offset(), damagef("a section ends early"))
	}
	return p[begin : begin+int(length)], begin + int(length), nil
}

// tableEntry returns the next entry without reading it: keep does.
func (s *section) tableEntry() (tableEntry, error) {
	e := tableEntry{offset: s.offset()}
	keys, err := s.peek(1)
	if err != nil {
		return e, err
	}
	if len(keys) == 0 || keys[0] != 2 {
		return e, at(e.offset, damagef("an entry has not two keys"))
	}
	_, nameEnd, err := s.peekText(1)
	if err != nil {
		return e, err
	}
	_, valueEnd, err := s.peekText(nameEnd)
	if err != nil {
		return e, err
	}
	p, err := s.peek(valueEnd + binary.MaxVarintLen64)
	if err != nil {
		return e, err
	}
	// Now all of it is in the buffer.
	c := cursor{b: p[1:]}
	e.name, e.value, e.postings = c.text(), c.text(), c.uvarint()
	if c.bad {
		return e, at(e.offset, damagef("an entry ends early"))
	}
	e.length = int64(len(p) - len(c.b))
	return e, nil
}

// keep reads length bytes that were looked at.
func (s *section) keep(length int64) { s.pos += int(length) }

// finish checks the section as a whole.
func (s *section) finish() error {
	for {
		p, err := s.peek(1)
		if err != nil {
			return err
		}
		if len(p) == 0 {
			break
		}
		s.pos = len(s.buf)
	}
	s.sum()
	end := s.start + s.size
	if _, err := s.f.Load(s.ctx, part(end, end+4)); err != nil {
		return err
	}
	var sum [4]byte
	if err := readFull(s.f, sum[:], end); err != nil {
		return at(end, err)
	}
	if binary.BigEndian.Uint32(sum[:]) != s.crc {
		return at(s.start, damagef("the checksum of a section does not match"))
	}
	return nil
}

// withFile makes err a FileError of a file.
func (k blockKey) withFile(name string, err error) error {
	if err == nil {
		return nil
	}
	var known *FileError
	if errors.As(err, &known) {
		return err
	}
	fe := &FileError{Tenant: k.tenant, Block: k.block, File: name, Offset: -1, Err: err}
	var place *offsetError
	if errors.As(err, &place) {
		fe.Offset = place.offset
		if err == error(place) { //nolint:errorlint // the place is said once, if nothing stands around it
			fe.Err = place.err
		}
	}
	return fe
}
