package pagefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// A local file is a header of up to one page, the pages of the remote file at the offsets
// that they have there plus one page, and after the last the journal: an entry for each
// page that was written, in any order. docs/formats.md has the fields.
const (
	magic   = "HFPG"
	version = 1

	dataStart = pageSize
	// headerSize is that of a header without its key.
	headerSize = 4 + 4 + 4 + 8 + 4 + 4
	// entrySize is that of a page's entry in the journal.
	entrySize = 12

	extension = ".pages"
	// maxNameLength is what file systems take, less the serial and the extension.
	maxNameLength = 200
)

var errNotOurs = errors.New("not a file of this page cache")

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// header says what remote file a local file has pages of.
type header struct {
	key  string
	size int64
}

// appendHeader appends the encoding of h to b.
func appendHeader(b []byte, h header) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, version)
	b = binary.BigEndian.AppendUint32(b, pageSize)
	b = binary.BigEndian.AppendUint64(b, uint64(h.size))
	b = binary.BigEndian.AppendUint32(b, uint32(len(h.key)))
	b = append(b, h.key...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli()))
}

// decodeHeader decodes the header at the start of b. A file of another version or another
// size of pages is errNotOurs like one that is damaged: it is a cache, and is filled again.
func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize || string(b[:4]) != magic {
		return header{}, fmt.Errorf("%w: it does not begin as one", errNotOurs)
	}
	if v, p := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]); v != version || p != pageSize {
		return header{}, fmt.Errorf("%w: version %d, pages of %d bytes", errNotOurs, v, p)
	}
	size, length := binary.BigEndian.Uint64(b[12:]), binary.BigEndian.Uint32(b[20:])
	if size > maxFileSize || length == 0 || length > maxKeyLength || int(length) > len(b)-headerSize {
		return header{}, fmt.Errorf("%w: %d bytes of a key of %d bytes", errNotOurs, size, length)
	}
	end := headerSize - 4 + int(length)
	if crc32.Checksum(b[:end], castagnoli()) != binary.BigEndian.Uint32(b[end:]) {
		return header{}, fmt.Errorf("%w: checksum of the header", errNotOurs)
	}
	return header{key: string(b[headerSize-4 : end]), size: int64(size)}, nil
}

// appendEntry appends the journal's entry of a page to b.
func appendEntry(b []byte, page, sum uint32) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, page)
	b = binary.BigEndian.AppendUint32(b, sum)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli()))
}

// decodeJournal returns the checksums of the pages that the journal b names, of which
// there are pages. Entries that were not written, or not wholly, are skipped; of several
// for a page the last counts.
func decodeJournal(b []byte, pages int64) map[uint32]uint32 {
	sums := map[uint32]uint32{}
	for ; len(b) >= entrySize; b = b[entrySize:] {
		page, sum := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if crc32.Checksum(b[:8], castagnoli()) == binary.BigEndian.Uint32(b[8:]) && int64(page) < pages {
			sums[page] = sum
		}
	}
	return sums
}

// journalStart is where the journal begins.
func (f *file) journalStart() int64 { return dataStart + f.pages*pageSize }

// localName returns the name of a local file of key: the first element of key is a folder,
// and the others are one name, as far as a file system takes them. A folder for each
// element would cost more than all else that a file of few pages does. The header has the
// key itself. No two files have the same serial, so that one that is being removed is never
// another one's.
func localName(key string, serial uint64) string {
	folder, rest, found := strings.Cut(key, "/")
	if !found {
		folder, rest = "", key
	} else {
		folder = localElement(folder)
	}
	elements := strings.Split(rest, "/")
	for i := range elements {
		elements[i] = localElement(elements[i])
	}
	name := bounded(strings.Join(elements, ",")) // a comma is none of an element
	return filepath.Join(folder, name+"."+strconv.FormatUint(serial, 36)+extension)
}

func localElement(element string) string {
	element = url.PathEscape(element)
	if element == "" || strings.HasPrefix(element, ".") {
		element = "%" + element
	}
	return bounded(element)
}

// bounded returns a name that a file system takes, the same or a shorter one.
func bounded(name string) string {
	if len(name) <= maxNameLength {
		return name
	}
	return name[:maxNameLength-20] + "~" + strconv.FormatUint(xxhash.Sum64String(name), 36)
}

// serialOf returns the serial in the name of a local file.
func serialOf(name string) (uint64, bool) {
	name, ok := strings.CutSuffix(name, extension)
	if !ok {
		return 0, false
	}
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return 0, false
	}
	serial, err := strconv.ParseUint(name[dot+1:], 36, 64)
	return serial, err == nil
}
