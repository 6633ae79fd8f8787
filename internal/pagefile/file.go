package pagefile

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// File is a handle on a remote file. It is safe for concurrent use, except that nothing
// may be called after Release.
type File struct {
	file     *file
	read     ReadFunc
	released atomic.Bool
}

// Size returns the size of the remote file.
func (f *File) Size() int64 { return f.file.size }

// Load makes ranges resident. It fetches what is absent, and waits for what others
// fetch already; when it returns without an error, ReadAt finds all of ranges until
// Release. fetched is how many bytes this call has asked the store for, pages that it
// shares with other calls counting for one of them. If ctx ends, requests that others
// wait for go on, and the rest is given up.
func (f *File) Load(ctx context.Context, ranges ...Range) (fetched int64, err error) {
	if f.released.Load() {
		return 0, fmt.Errorf("load %s: %w", f.file.key, ErrClosed)
	}
	absent, asked, err := f.file.absent(ranges)
	f.file.cache.metrics.requested.Add(float64(asked))
	if err != nil || len(absent) == 0 {
		return 0, err
	}
	f.file.believe(absent)
	flights, fetched := f.file.join(ctx, absent, f.read)
	for i, flight := range flights {
		if err := f.file.wait(ctx, flight); err != nil {
			for _, rest := range flights[i+1:] {
				f.file.leave(rest)
			}
			return fetched, fmt.Errorf("load %s: %w", f.file.key, err)
		}
	}
	return fetched, nil
}

// Absent returns how many bytes Load would fetch now. They are more than the ranges have,
// since pages are fetched whole, and with them what lies in small gaps.
func (f *File) Absent(ranges ...Range) (int64, error) {
	absent, _, err := f.file.absent(ranges)
	if err != nil || len(absent) == 0 {
		return 0, err
	}
	f.file.mu.Lock()
	defer f.file.mu.Unlock()
	_, requests := f.file.planLocked(f.file.unknownLocked(absent))
	return f.file.bytes(requests), nil
}

// ReadAt implements io.ReaderAt on what is resident. Of bytes that are not, it returns
// none, and ErrNotResident.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if f.released.Load() {
		return 0, fmt.Errorf("read %s: %w", f.file.key, ErrClosed)
	}
	return f.file.readAt(p, off)
}

// Discard makes the pages of ranges absent, since what was fetched is not what it should
// be. Whoever reads them at the same time may still see them.
func (f *File) Discard(ranges ...Range) error {
	for _, r := range ranges {
		s, err := f.file.span(r)
		if err != nil {
			return err
		}
		f.file.discard(s)
	}
	return nil
}

// Release gives the handle back, once. Further calls do nothing.
func (f *File) Release() {
	if !f.released.Swap(true) {
		f.file.cache.release(f.file)
	}
}

// file is the local part of a remote file. Nobody but its cache removes it, and only
// while nobody holds it.
type file struct {
	cache    *Cache
	key      string
	size     int64
	pages    int64
	name     string // of the local file, relative to the cache's directory
	resident bitmap

	// Guarded by cache.mu.
	refs int
	used int64         // bytes on disk
	idle *list.Element // in cache.mu.idle while refs is 0

	// disk is the open local file: nil until it is needed, and while nobody holds the file.
	disk    atomic.Pointer[os.File]
	opening sync.Mutex // held while disk is opened

	mu struct {
		sync.Mutex
		// flights are the requests under way. Their spans are disjoint.
		flights []*flight
		// restored are the pages that an earlier process left and that nobody has checked
		// against their checksums yet.
		restored map[uint32]uint32
		// journalEnd is where the checksum of the next page goes.
		journalEnd int64
	}
}

func newFile(c *Cache, key string, size int64, serial uint64) *file {
	pages := (size + pageSize - 1) / pageSize
	f := &file{cache: c, key: key, size: size, pages: pages, name: localName(key, serial), resident: newBitmap(pages)}
	f.mu.journalEnd = f.journalStart()
	return f
}

// span returns the pages that r touches.
func (f *file) span(r Range) (span, error) {
	if r.Start < 0 || r.End < r.Start || r.End > f.size {
		return span{}, fmt.Errorf("bytes [%d, %d) of %s, which has %d", r.Start, r.End, f.key, f.size)
	}
	if r.Start == r.End {
		return span{}, nil
	}
	return span{first: r.Start / pageSize, end: (r.End + pageSize - 1) / pageSize}, nil
}

// absent returns the pages of ranges that are not resident, sorted and disjoint, and how
// many bytes the pages of ranges have.
func (f *file) absent(ranges []Range) (absent []span, asked int64, err error) {
	var wanted []span
	for _, r := range ranges {
		s, err := f.span(r)
		if err != nil {
			return nil, 0, err
		}
		asked += f.bytes([]span{s})
		if !f.resident.has(s) {
			wanted = append(wanted, s)
		}
	}
	return f.stillAbsent(union(wanted)), asked, nil
}

// stillAbsent returns the pages of spans that are not resident.
func (f *file) stillAbsent(spans []span) []span {
	var absent []span
	for _, s := range spans {
		absent = f.resident.absent(absent, s)
	}
	return absent
}

// unknownLocked returns the pages of spans of which there is nothing on disk.
func (f *file) unknownLocked(spans []span) []span {
	if len(f.mu.restored) == 0 {
		return spans
	}
	var unknown []span
	for _, s := range spans {
		for page := s.first; page < s.end; page++ {
			if _, ok := f.mu.restored[uint32(page)]; !ok {
				unknown = appendSpan(unknown, span{first: page, end: page + 1})
			}
		}
	}
	return unknown
}

// bytes returns how many bytes of the remote file the pages of spans hold: the last page
// may be short.
func (f *file) bytes(spans []span) int64 {
	var n int64
	for _, s := range spans {
		if s.first < s.end {
			n += min(s.end*pageSize, f.size) - s.first*pageSize
		}
	}
	return n
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d", f.key, off)
	}
	if off >= f.size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var short error
	if rest := f.size - off; int64(len(p)) > rest {
		p, short = p[:rest], io.EOF
	}
	s, err := f.span(Range{Start: off, End: off + int64(len(p))})
	if err != nil {
		return 0, err
	}
	if !f.resident.has(s) {
		return 0, fmt.Errorf("bytes [%d, %d) of %s: %w", off, off+int64(len(p)), f.key, ErrNotResident)
	}
	disk, err := f.open(false)
	if err != nil {
		return 0, err
	}
	if n, err := disk.ReadAt(p, dataStart+off); err != nil {
		return n, fmt.Errorf("read %s from the page cache: %w", f.key, err)
	}
	return len(p), short
}

func (f *file) discard(s span) {
	f.mu.Lock()
	var gone int64
	for page := s.first; page < s.end; page++ {
		one := span{first: page, end: page + 1}
		_, restored := f.mu.restored[uint32(page)]
		if restored || f.resident.has(one) {
			gone += f.bytes([]span{one})
		}
		delete(f.mu.restored, uint32(page))
		f.resident.remove(one)
	}
	f.mu.Unlock()
	// The space stays taken until the page is fetched again; it is not worth a second account.
	f.cache.shrink(f, gone)
}

// open returns the local file; if it is missing, it is created or an error. The caller
// holds f.
func (f *file) open(create bool) (*os.File, error) {
	if disk := f.disk.Load(); disk != nil {
		return disk, nil
	}
	f.opening.Lock()
	defer f.opening.Unlock()
	if disk := f.disk.Load(); disk != nil {
		return disk, nil
	}
	path := filepath.Join(f.cache.cfg.Dir, f.name)
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f.forget() // somebody else has removed it, or there never was one
		if !create {
			return nil, fmt.Errorf("the page cache's file of %s is gone: %w", f.key, ErrNotResident)
		}
		disk, err = f.create(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the page cache's file of %s: %w", f.key, err)
	}
	f.disk.Store(disk)
	return disk, nil
}

// forget makes all pages absent, since the local file is not there.
func (f *file) forget() {
	f.mu.Lock()
	f.resident.remove(span{end: f.pages})
	f.mu.restored, f.mu.journalEnd = nil, f.journalStart()
	f.mu.Unlock()
	f.cache.empty(f)
}

// create makes the local file with its header.
func (f *file) create(path string) (*os.File, error) {
	var (
		disk *os.File
		err  error
	)
	for range 3 { // an eviction may remove the folder, which it left empty, in between
		if err = os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			continue
		}
		if disk, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	head := appendHeader(nil, header{key: f.key, size: f.size})
	if _, err := disk.WriteAt(head, 0); err != nil {
		return nil, errors.Join(err, disk.Close(), os.Remove(path))
	}
	f.cache.grow(f, int64(len(head)))
	return disk, nil
}
