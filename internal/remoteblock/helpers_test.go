package remoteblock

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const tenantA = tenant.ID("a")

// memoryPages keeps parts of files in memory, page by page.
type memoryPages struct {
	mu    sync.Mutex
	files map[string]*memoryPage
}

const testPage = 4 << 10

var errNotResident = errors.New("not resident")

type memoryPage struct {
	mu       sync.Mutex
	size     int64
	read     func(ctx context.Context, p []byte, offset int64) error
	data     []byte
	resident map[int64]bool
}

func (m *memoryPages) File(key string, size int64, read func(ctx context.Context, p []byte, offset int64) error) (file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files == nil {
		m.files = map[string]*memoryPage{}
	}
	f := m.files[key]
	if f == nil {
		f = &memoryPage{size: size, data: make([]byte, size), resident: map[int64]bool{}}
		m.files[key] = f
	}
	f.read = read
	return f, nil
}

// Load fetches all that is missing at the same time.
func (f *memoryPage) Load(ctx context.Context, ranges ...Range) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	missing := map[int64]bool{}
	for _, r := range ranges {
		for page := r.Start / testPage; page*testPage < min(r.End, f.size); page++ {
			if !f.resident[page] {
				missing[page] = true
			}
		}
	}
	var (
		fetched atomic.Int64
		wg      sync.WaitGroup
		fault   atomic.Pointer[error]
	)
	for page := range missing {
		wg.Go(func() {
			p := f.data[page*testPage : min((page+1)*testPage, f.size)]
			if err := f.read(ctx, p, page*testPage); err != nil {
				fault.Store(&err)
			}
			fetched.Add(int64(len(p)))
		})
	}
	wg.Wait()
	if err := fault.Load(); err != nil {
		return fetched.Load(), *err
	}
	for page := range missing {
		f.resident[page] = true
	}
	return fetched.Load(), nil
}

func (f *memoryPage) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off+int64(len(p)) > f.size {
		return 0, io.EOF
	}
	for page := off / testPage; page*testPage < off+int64(len(p)); page++ {
		if !f.resident[page] {
			return 0, errNotResident
		}
	}
	return copy(p, f.data[off:]), nil
}

func (f *memoryPage) Size() int64 { return f.size }

func (*memoryPage) Release() {}

// rounds counts the round trips that a bucket has seen one after the other: requests that
// overlap in time are one.
type rounds struct {
	objstore.Bucket
	mu      sync.Mutex
	running int
	count   int
	names   []string
}

func (b *rounds) begin(name string) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running == 0 {
		b.count++
	}
	b.running++
	b.names = append(b.names, name)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.running--
	}
}

func (b *rounds) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count, b.names = 0, nil
}

// wait makes requests that begin at about the same time overlap.
func (b *rounds) wait() { <-time.After(20 * time.Millisecond) }

func (b *rounds) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	defer b.begin("get " + name)()
	b.wait()
	return b.Bucket.Get(ctx, name)
}

func (b *rounds) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	defer b.begin("range " + name)()
	b.wait()
	return b.Bucket.GetRange(ctx, name, off, length)
}

func (b *rounds) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	defer b.begin("attributes " + name)()
	b.wait()
	return b.Bucket.Attributes(ctx, name)
}

func (b *rounds) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	defer b.begin("iter " + dir)()
	b.wait()
	return b.Bucket.Iter(ctx, dir, f, options...)
}

// remoteBucket hides that a bucket is on this machine.
type remoteBucket struct{ objstore.Bucket }

// upload puts the block in dir into a bucket, and returns it as it is listed.
func upload(t testing.TB, bucket objstore.Bucket, dir string, sidecar bool) (*blockstore.Store, blockstore.Block) {
	t.Helper()
	store := blockstore.New(bucket, nil)
	ctx := context.Background()
	require.NoError(t, store.Upload(ctx, tenantA, dir))
	if sidecar {
		require.NoError(t, WriteSidecar(ctx, store, tenantA, dir))
	}
	blocks, _, err := store.Blocks(ctx, tenantA)
	require.NoError(t, err)
	require.Len(t, blocks, 1)
	for _, b := range blocks {
		return store, b
	}
	return nil, blockstore.Block{}
}

func openPool(t testing.TB, store *blockstore.Store) *Pool {
	t.Helper()
	memory := &memoryPages{}
	p, err := newPool(Config{Dir: t.TempDir()}, store, func() (pages, error) { return memory, nil }, nil, nil)
	require.NoError(t, err)
	return p
}

func openBlock(t testing.TB, p *Pool, b blockstore.Block) *Reader {
	t.Helper()
	r, err := p.Open(context.Background(), tenantA, b, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}
