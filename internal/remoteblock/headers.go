package remoteblock

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// maxHeaders bounds the memory that headers take, in bytes. One of a block of 1,000
// series takes 10 KB, of 1,000,000 series 3 MB.
const maxHeaders = 64 << 20

type blockKey struct {
	tenant tenant.ID
	block  ulid.ULID
}

// headers keeps the headers that were used last. It is safe for concurrent use.
type headers struct {
	mu struct {
		sync.Mutex
		known  map[blockKey]*list.Element // of *knownHeader
		recent *list.List                 // the last used first
		bytes  int64
	}
}

// knownHeader is a header, or one that is being read.
type knownHeader struct {
	key    blockKey
	ready  chan struct{} // closed once header or err is set
	header *header
	err    error
}

func newHeaders() *headers {
	h := &headers{}
	h.mu.known = map[blockKey]*list.Element{}
	h.mu.recent = list.New()
	return h
}

// get returns the header of a block, and calls read for it if it must, once however
// many ask. If the caller whose read it is gives up, the next one reads.
func (h *headers) get(ctx context.Context, key blockKey, read func(context.Context) (*header, error)) (*header, error) {
	for {
		h.mu.Lock()
		element, ok := h.mu.known[key]
		if ok {
			h.mu.recent.MoveToFront(element)
		} else {
			element = h.mu.recent.PushFront(&knownHeader{key: key, ready: make(chan struct{})})
			h.mu.known[key] = element
		}
		h.mu.Unlock()
		k := element.Value.(*knownHeader)
		if !ok {
			h.fill(ctx, element, read)
		}
		select {
		case <-k.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if k.err == nil || ctx.Err() != nil || !errors.Is(k.err, context.Canceled) && !errors.Is(k.err, context.DeadlineExceeded) {
			return k.header, k.err
		}
	}
}

func (h *headers) fill(ctx context.Context, element *list.Element, read func(context.Context) (*header, error)) {
	k := element.Value.(*knownHeader)
	k.header, k.err = read(ctx)
	h.mu.Lock()
	if k.err != nil {
		h.removeLocked(element)
	} else {
		h.mu.bytes += k.header.memory()
		for e := h.mu.recent.Back(); e != nil && e != element && h.mu.bytes > maxHeaders; {
			before := e.Prev()
			if old := e.Value.(*knownHeader); old.header != nil && isClosed(old.ready) {
				h.mu.bytes -= old.header.memory()
				h.removeLocked(e)
			}
			e = before
		}
	}
	h.mu.Unlock()
	close(k.ready)
}

func (h *headers) removeLocked(element *list.Element) {
	h.mu.recent.Remove(element)
	delete(h.mu.known, element.Value.(*knownHeader).key)
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// header returns the header of a block, from the first place that has it: memory, the local
// disk, the sidecar, the index. files are those of the block, if they are known; else nil.
func (p *Pool) header(ctx context.Context, key blockKey, files []blockstore.File) (*header, error) {
	return p.headers.get(ctx, key, func(ctx context.Context) (*header, error) { return p.readHeader(ctx, key, files) })
}

func (p *Pool) readHeader(ctx context.Context, key blockKey, files []blockstore.File) (*header, error) {
	if f, ok := p.store.OpenFile(key.tenant, key.block, indexName); ok {
		return p.localHeader(ctx, key, f)
	}
	if h := p.headerOnDisk(ctx, key, files); h != nil {
		return h, nil
	}
	h, err := p.headerOfSidecar(ctx, key)
	if h == nil && err == nil {
		h, err = p.headerOfIndex(ctx, key, files)
	}
	if err != nil {
		return nil, key.withFile(indexName, err)
	}
	if h.index <= wholeIndex && len(files) > 0 {
		return h, nil // the index itself is kept, and what files there are is known
	}
	if err := p.keepHeader(p.headerPath(key), p.codec.encode(key.block, sidecar{layout: h.layout, header: h})); err != nil {
		p.logger.Warn("What was learned about a block could not be kept; it is read again after a restart",
			"tenant", key.tenant, "block", key.block, "err", err)
	}
	return h, nil
}

// headerOnDisk returns the header of a block that was read before, by this process or an
// earlier one, if enough of it is on the local disk; else nil.
func (p *Pool) headerOnDisk(ctx context.Context, key blockKey, files []blockstore.File) *header {
	path := p.headerPath(key)
	if text, err := os.ReadFile(path); err == nil {
		s, err := p.codec.decode(key.block, text)
		if err == nil && s.header != nil {
			return s.header
		}
		p.damagedSidecar(key, "its copy on disk", errors.Join(err, os.Remove(path)))
	}
	l, err := newLayout(files)
	if err != nil || l.index > wholeIndex {
		return nil // files may not be known
	}
	f, err := p.openRemote(key, indexName, l.index, nil)
	if err != nil {
		return nil
	}
	defer f.Release()
	whole := part(0, l.index)
	kept, ok := f.(interface{ Absent(...Range) (int64, error) })
	if !ok {
		return nil
	}
	if n, err := kept.Absent(whole); err != nil || n > 0 {
		return nil
	}
	if _, err := f.Load(ctx, whole); err != nil { // verifies it
		return nil
	}
	h, err := scan(ctx, f, l)
	if err != nil {
		return nil // whoever reads the block will say what is wrong with it
	}
	return h
}

// headerOfSidecar returns nil without an error if there is no sidecar that is usable.
func (p *Pool) headerOfSidecar(ctx context.Context, key blockKey) (*header, error) {
	text, found, err := p.store.ReadSideFile(ctx, key.tenant, key.block, SidecarName)
	if err != nil {
		return nil, fmt.Errorf("read its sidecar: %w", err)
	}
	if !found {
		p.metrics.sidecars.WithLabelValues("missing").Inc()
		return nil, nil
	}
	s, err := p.codec.decode(key.block, text)
	if err != nil {
		p.damagedSidecar(key, "its sidecar", err)
		return nil, nil
	}
	p.metrics.sidecars.WithLabelValues("read").Inc()
	p.metrics.fetched.WithLabelValues("sidecar").Add(float64(len(text)))
	if s.header != nil {
		return s.header, nil
	}
	h, err := scan(ctx, memoryFile(s.whole), s.layout)
	if err != nil {
		p.damagedSidecar(key, "the index in its sidecar", err)
		return nil, nil
	}
	// The index is at hand: what is read of it later is read from disk.
	f, err := p.openRemote(key, indexName, s.index, memoryFile(s.whole))
	if err != nil {
		return nil, err
	}
	defer f.Release()
	_, err = f.Load(ctx, part(0, s.index))
	return h, err
}

// headerOfIndex reads the index of a block that has no sidecar.
func (p *Pool) headerOfIndex(ctx context.Context, key blockKey, files []blockstore.File) (*header, error) {
	if len(files) == 0 {
		var err error
		if files, err = p.store.Files(ctx, key.tenant, key.block); err != nil {
			return nil, err
		}
	}
	l, err := newLayout(files)
	if err != nil {
		return nil, err
	}
	f, err := p.openRemote(key, indexName, l.index, nil)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	if l.index <= wholeIndex {
		if _, err := f.Load(ctx, part(0, l.index)); err != nil {
			return nil, err
		}
	}
	p.metrics.sidecars.WithLabelValues("rebuilt").Inc()
	return scan(ctx, f, l)
}

// localHeader reads the header of a block on this machine.
func (p *Pool) localHeader(ctx context.Context, key blockKey, f *os.File) (*header, error) {
	local, err := newLocalFile(f)
	if err != nil {
		return nil, key.withFile(indexName, err)
	}
	defer local.Release()
	files, err := p.localFiles(key, local.Size())
	if err != nil {
		return nil, key.withFile("chunks", err)
	}
	l, err := newLayout(files)
	if err != nil {
		return nil, key.withFile("chunks", err)
	}
	if l.index > wholeIndex { // to scan it takes longer than to read a sidecar
		text, found, err := p.store.ReadSideFile(ctx, key.tenant, key.block, SidecarName)
		if err == nil && found {
			s, err := p.codec.decode(key.block, text)
			if err == nil && s.header != nil && s.header.index == l.index && len(s.header.segments) == len(l.segments) {
				p.metrics.sidecars.WithLabelValues("read").Inc()
				return s.header, nil
			}
			p.damagedSidecar(key, "its sidecar", err)
		}
		p.metrics.sidecars.WithLabelValues("rebuilt").Inc()
	}
	h, err := scan(ctx, local, l)
	return h, key.withFile(indexName, err)
}

// localFiles lists the files of a block on this machine.
func (p *Pool) localFiles(key blockKey, index int64) ([]blockstore.File, error) {
	dir, ok := p.store.LocalDir(key.tenant, key.block)
	if !ok {
		return nil, blockstore.ErrBlockNotFound
	}
	return dirFiles(dir, index)
}

// dirFiles lists the files of a block in a folder, whose index has a known size.
func dirFiles(dir string, index int64) ([]blockstore.File, error) {
	files := []blockstore.File{{Name: indexName, Size: index}}
	if info, err := os.Stat(filepath.Join(dir, tombstonesName)); err == nil {
		files = append(files, blockstore.File{Name: tombstonesName, Size: info.Size()})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "chunks"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil {
			return nil, err
		} else if isNumber(e.Name()) {
			files = append(files, blockstore.File{Name: segmentPrefix + e.Name(), Size: info.Size()})
		}
	}
	return files, nil
}

func isNumber(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

func (p *Pool) damagedSidecar(key blockKey, what string, err error) {
	p.metrics.sidecars.WithLabelValues("damaged").Inc()
	p.logger.Warn("What was written down about a block is not usable; its index is read instead",
		"tenant", key.tenant, "block", key.block, "what", what, "err", err)
}

func (p *Pool) headerPath(key blockKey) string {
	return filepath.Join(p.cfg.Dir, headersDir, string(key.tenant), key.block.String())
}

// keepHeader writes a header down. A file that was not written wholly has not its checksum,
// and is as if it were absent.
func (*Pool) keepHeader(path string, content []byte) error {
	err := os.WriteFile(path, content, 0o666)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o777); err == nil {
			err = os.WriteFile(path, content, 0o666)
		}
	}
	return err
}

func (c *codec) close() {
	c.decoder.Close()
	_ = c.encoder.Close() // it writes nowhere
}
