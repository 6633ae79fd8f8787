package remoteblock

import (
	"context"
	"encoding/binary"
	"unsafe"
)

// symbolReader looks up the symbols of one index. What it returns stays valid as long
// as anybody holds it. One goroutine.
type symbolReader struct {
	h     *header
	f     file
	load  func(context.Context, ...Range) (int64, error)
	hold  func(int64) error
	pages []*loadedSymbols // nil: not read yet
}

// loadedSymbols is a page of symbols.
type loadedSymbols struct {
	text []byte
	// bounds are the start and end of each symbol in text.
	bounds [symbolsPerPage][2]uint32
	count  uint32
}

func newSymbolReader(h *header, f file, load func(context.Context, ...Range) (int64, error), hold func(int64) error) symbolReader {
	return symbolReader{h: h, f: f, load: load, hold: hold}
}

// lookup returns a symbol.
func (s *symbolReader) lookup(ctx context.Context, ref uint32) (string, error) {
	if ref >= s.h.symbols.count {
		return "", damagef("there is no symbol %d among %d", ref, s.h.symbols.count)
	}
	page := int(ref / symbolsPerPage)
	if s.pages == nil {
		s.pages = make([]*loadedSymbols, len(s.h.symbols.pages))
	}
	p := s.pages[page]
	if p == nil {
		var err error
		if p, err = s.read(ctx, page); err != nil {
			return "", err
		}
		s.pages[page] = p
	}
	i := ref % symbolsPerPage
	if i >= p.count {
		return "", damagef("there is no symbol %d", ref)
	}
	b := p.bounds[i]
	return textOf(p.text[b[0]:b[1]]), nil
}

// textOf returns p as a string. p must never change.
func textOf(p []byte) string { return unsafe.String(unsafe.SliceData(p), len(p)) }

func (s *symbolReader) read(ctx context.Context, page int) (*loadedSymbols, error) {
	r := s.h.symbols.pageRange(page)
	if err := s.hold(r.End - r.Start + symbolsPerPage*8); err != nil {
		return nil, err
	}
	if _, err := s.load(ctx, r); err != nil {
		return nil, err
	}
	p := &loadedSymbols{text: make([]byte, r.End-r.Start)}
	if err := readFull(s.f, p.text, r.Start); err != nil {
		return nil, at(r.Start, err)
	}
	if castagnoli(p.text) != s.h.symbols.pages[page].crc {
		return nil, at(r.Start, damagef("the symbols are not what they were when the block's header was made"))
	}
	pos := 0
	for pos < len(p.text) && p.count < symbolsPerPage {
		length, n := binary.Uvarint(p.text[pos:])
		if n <= 0 || length > uint64(len(p.text)-pos-n) {
			return nil, at(r.Start+int64(pos), damagef("a symbol cannot be decoded"))
		}
		pos += n
		p.bounds[p.count] = [2]uint32{uint32(pos), uint32(pos + int(length))}
		p.count++
		pos += int(length)
	}
	return p, nil
}

// symbolIterator goes through all symbols, page by page.
type symbolIterator struct {
	ctx    context.Context //nolint:containedctx // index.StringIter has no place for it
	reader symbolReader
	ahead  int // pages that were loaded
	next   uint32
	at     string
	err    error
}

func (s *symbolIterator) Next() bool {
	if s.err != nil || s.next >= s.reader.h.symbols.count {
		return false
	}
	page := int(s.next / symbolsPerPage)
	if page >= s.ahead { // load many pages at once
		t := &s.reader.h.symbols
		from := page
		for s.ahead = page; s.ahead < len(t.pages) && t.pageRange(s.ahead).End-t.pages[from].start < scanWindow; {
			s.ahead++
		}
		s.ahead = max(s.ahead, page+1)
		if _, s.err = s.reader.load(s.ctx, part(t.pages[from].start, t.pageRange(s.ahead-1).End)); s.err != nil {
			return false
		}
	}
	if s.next%symbolsPerPage == 0 && page > 0 && s.reader.pages != nil {
		s.reader.pages[page-1] = nil
	}
	s.at, s.err = s.reader.lookup(s.ctx, s.next)
	s.next++
	return s.err == nil
}

func (s *symbolIterator) At() string { return s.at }

func (s *symbolIterator) Err() error { return s.err }
