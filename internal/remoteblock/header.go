package remoteblock

import (
	"errors"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/tsdb/index"
)

const (
	// symbolsPerPage is how many symbols are read and checked at once, about 2.5 KB.
	symbolsPerPage = 128
	// valuesPerGroup is how many label values are looked up together. A group is
	// smaller if its postings would be more than groupPostings bytes, so that a value
	// with many series costs no bytes of others.
	valuesPerGroup = 32
	groupPostings  = 64 << 10
	// maxGroups bounds the groups of a block: above it groups are larger.
	maxGroups = 64 << 10
	// maxMetrics bounds the metrics of a block whose places are known.
	maxMetrics = 32 << 10

	seriesAlign = 16 // a reference to a series is its offset divided by this
)

// header says where in the files of a block things are, as far as is needed to find
// the rest with few reads. It carries a checksum for each part of the index that the
// index itself has none for. It is immutable.
type header struct {
	layout
	version byte // of the index
	toc     index.TOC
	series  uint64 // number of series

	symbols symbolTable
	names   []labelName // in order of name; the first may be "", which has all series
	metrics []metric    // in order of name; nil if not known
}

// symbolTable is where the symbols are: those of page i at offset pages[i].start.
type symbolTable struct {
	count uint32
	pages []symbolPage
	end   int64
}

type symbolPage struct {
	start int64
	crc   uint32
}

// pageRange returns the bytes of a page.
func (t *symbolTable) pageRange(page int) Range {
	end := t.end
	if page+1 < len(t.pages) {
		end = t.pages[page+1].start
	}
	return part(t.pages[page].start, end)
}

// labelName is where the values of a label and their postings are.
type labelName struct {
	name   string
	values uint64
	groups []valueGroup // in order of first
	// The ends of what the last group refers to.
	tableEnd, postingsEnd int64
}

// valueGroup is some values that follow each other.
type valueGroup struct {
	first    string // the first value
	count    uint32
	crc      uint32 // of its entries in the table
	table    int64  // offset of its first entry in the table of postings offsets
	postings int64  // offset of the postings of its first value
}

// tableRange and postingsRange return the bytes of the groups from, ..., to-1.
func (n *labelName) tableRange(from, to int) Range {
	end := n.tableEnd
	if to < len(n.groups) {
		end = n.groups[to].table
	}
	return part(n.groups[from].table, end)
}

func (n *labelName) postingsRange(from, to int) Range {
	end := n.postingsEnd
	if to < len(n.groups) {
		end = n.groups[to].postings
	}
	return part(n.groups[from].postings, end)
}

// group returns the group that has value if any has; ok is false if none can.
func (n *labelName) group(value string) (i int, ok bool) {
	i, found := slices.BinarySearchFunc(n.groups, value, func(g valueGroup, v string) int { return strings.Compare(g.first, v) })
	if found {
		return i, true
	}
	return i - 1, i > 0
}

// metric is where the series of one metric are. Other series may be among them.
type metric struct {
	name        string
	first, last uint64 // references to series
	series      uint64
	// chunk is the reference to the first chunk of the first series; 0: not known.
	chunk uint64
}

// label returns what is known of a label name, or nil if no series has it.
func (h *header) label(name string) *labelName {
	i, found := slices.BinarySearchFunc(h.names, name, func(l labelName, name string) int { return strings.Compare(l.name, name) })
	if !found {
		return nil
	}
	return &h.names[i]
}

// metricRange returns the bytes of the series entries of a metric.
func (h *header) metricRange(name string) (r Range, ok bool) {
	i, found := slices.BinarySearchFunc(h.metrics, name, func(m metric, name string) int { return strings.Compare(m.name, name) })
	if !found {
		return Range{}, false
	}
	end := h.seriesEnd()
	if i+1 < len(h.metrics) {
		end = int64(h.metrics[i+1].first) * seriesAlign
	}
	return part(int64(h.metrics[i].first)*seriesAlign, end), true
}

// seriesEnd is where the series entries end: what follows are sections that are not
// read any more, and the postings.
func (h *header) seriesEnd() int64 {
	if end := int64(h.toc.LabelIndices); end > int64(h.toc.Series) {
		return end
	}
	return int64(h.toc.Postings)
}

// entryGuess is how long the entry of a series likely is at most, in bytes.
func (h *header) entryGuess() int64 {
	if h.series == 0 {
		return 1 << 10
	}
	return min(2*(h.seriesEnd()-int64(h.toc.Series))/int64(h.series)+256, 64<<10)
}

// memory returns about how many bytes the header takes.
func (h *header) memory() int64 {
	n := int64(512 + 16*len(h.symbols.pages) + 64*len(h.segments))
	for i := range h.names {
		n += 96 + int64(len(h.names[i].name))
		for _, g := range h.names[i].groups {
			n += 48 + int64(len(g.first))
		}
	}
	for _, m := range h.metrics {
		n += 56 + int64(len(m.name))
	}
	return n
}

// check refuses a header that would lead to reads outside of the index. It is what
// allows all other code to calculate with offsets.
func (h *header) check() error {
	const maxIndex = 1 << 44
	if h.index < 0 || h.index > maxIndex || h.tombstones < 0 || h.tombstones > maxIndex {
		return errors.New("a file has an impossible size")
	}
	for _, s := range h.segments {
		if s.Size < 0 || s.Size > maxIndex {
			return errors.New("a segment has an impossible size")
		}
	}
	inside := func(offsets ...int64) bool {
		for i, o := range offsets {
			if o < 0 || o > h.index || i > 0 && o < offsets[i-1] {
				return false
			}
		}
		return true
	}
	toc := h.toc
	for _, o := range []uint64{toc.Symbols, toc.Series, toc.LabelIndices, toc.LabelIndicesTable, toc.Postings, toc.PostingsTable} {
		if o > uint64(h.index) {
			return errors.New("the table of contents leads outside of the index")
		}
	}
	if h.version != index.FormatV2 && h.version != index.FormatV3 {
		return errors.New("the index has another version")
	}
	if h.seriesEnd() < int64(toc.Series) {
		return errors.New("the series end before they begin")
	}
	if (int(h.symbols.count)+symbolsPerPage-1)/symbolsPerPage != len(h.symbols.pages) {
		return errors.New("the number of symbols is not that of their pages")
	}
	last := int64(0)
	for _, p := range h.symbols.pages {
		if !inside(last, p.start, h.symbols.end) {
			return errors.New("the symbols are not in order")
		}
		last = p.start
	}
	if err := h.checkNames(inside); err != nil {
		return err
	}
	for i, m := range h.metrics {
		if m.last < m.first || !inside(int64(toc.Series), int64(m.first)*seriesAlign, h.seriesEnd()) ||
			i > 0 && (m.name <= h.metrics[i-1].name || m.first <= h.metrics[i-1].last) {
			return errors.New("the metrics are not in order")
		}
	}
	return nil
}

func (h *header) checkNames(inside func(...int64) bool) error {
	for i := range h.names {
		n := &h.names[i]
		if i > 0 && n.name <= h.names[i-1].name || len(n.groups) == 0 {
			return errors.New("the label names are not in order")
		}
		for j, g := range n.groups {
			if g.count == 0 || j > 0 && g.first <= n.groups[j-1].first {
				return errors.New("the label values are not in order")
			}
			t, p := n.tableRange(j, j+1), n.postingsRange(j, j+1)
			if !inside(t.Start, t.End) || !inside(p.Start, p.End) {
				return errors.New("the postings are not in order")
			}
		}
	}
	return nil
}
