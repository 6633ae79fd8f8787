package pagefile

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errPassing   = errors.New("a passing fault")
	errPermanent = errors.New("a permanent fault")
)

// remote is a remote file and what was asked of it.
type remote struct {
	content []byte
	// before runs at the start of each request, if it is set; its error is the answer.
	before func(ctx context.Context, r Range) error

	requests, bytes atomic.Int64
	mu              struct {
		sync.Mutex
		asked []Range
	}
}

// newRemote returns a file whose bytes differ from page to page and file to file.
func newRemote(size int64, seed uint64) *remote {
	r := &remote{content: make([]byte, size)}
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range r.content {
		r.content[i] = byte(random.Uint32())
	}
	return r
}

func (r *remote) size() int64 { return int64(len(r.content)) }

func (r *remote) read(ctx context.Context, p []byte, offset int64) error {
	asked := Range{Start: offset, End: offset + int64(len(p))}
	r.requests.Add(1)
	r.bytes.Add(int64(len(p)))
	r.mu.Lock()
	r.mu.asked = append(r.mu.asked, asked)
	r.mu.Unlock()
	if r.before != nil {
		if err := r.before(ctx, asked); err != nil {
			return err
		}
	}
	copy(p, r.content[asked.Start:asked.End])
	return ctx.Err()
}

// slow returns a store's answer after delay.
func slow(delay time.Duration) func(context.Context, Range) error {
	return func(ctx context.Context, _ Range) error {
		select {
		case <-time.After(delay):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type testCache struct {
	*Cache
	t   testing.TB
	dir string
}

func newCache(t testing.TB, dir string, change func(*Config, *tuning)) testCache {
	t.Helper()
	cfg := Config{Dir: dir, MaxBytes: 1 << 30, Permanent: func(err error) bool { return errors.Is(err, errPermanent) }}
	tuning := defaultTuning()
	tuning.backoff = time.Millisecond
	if change != nil {
		change(&cfg, &tuning)
	}
	c, err := open(cfg, tuning, nil, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return testCache{Cache: c, t: t, dir: dir}
}

func (c testCache) file(key string, r *remote) *File {
	c.t.Helper()
	f, err := c.File(key, r.size(), r.read)
	require.NoError(c.t, err)
	return f
}

func (c testCache) usedBytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.used
}

func (c testCache) has(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.files[key] != nil
}

// release releases f and waits until nobody holds it: who has fetched for it lets go a
// moment after its pages are there.
func (c testCache) release(f *File) {
	f.Release()
	c.work.Wait()
}

func count(c prometheus.Collector) int { return int(testutil.ToFloat64(c)) }

// load asks f for a range.
func load(t testing.TB, f *File, start, end int64) int64 {
	t.Helper()
	fetched, err := f.Load(t.Context(), Range{start, end})
	require.NoError(t, err)
	return fetched
}

// requireBytes checks that f has the bytes of r in a range.
func requireBytes(t testing.TB, f *File, r *remote, start, end int64) {
	t.Helper()
	got := make([]byte, end-start)
	n, err := f.ReadAt(got, start)
	require.NoError(t, err)
	require.Equal(t, len(got), n)
	if string(got) != string(r.content[start:end]) {
		t.Fatalf("bytes [%d, %d) are not those of the remote file", start, end)
	}
}

func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 99)) }

// unreliable fails now and then, in passing or for good.
func unreliable(seed uint64) func(context.Context, Range) error {
	var mu sync.Mutex
	random := newRandom(seed)
	return func(context.Context, Range) error {
		mu.Lock()
		defer mu.Unlock()
		switch random.IntN(30) {
		case 0, 1, 2:
			return errPassing
		case 3:
			return errPermanent
		}
		return nil
	}
}

func isExpected(err error) bool { return errors.Is(err, errPassing) || errors.Is(err, errPermanent) }

// fetchedBytes is the counter's value.
func (m *metrics) fetchedBytes() int64 { return int64(testutil.ToFloat64(m.fetched)) }

// diskBytes returns what the cache's account of the files in dir should be.
func diskBytes(t testing.TB, dir string) int64 {
	t.Helper()
	c, err := open(Config{Dir: dir, MaxBytes: 1 << 40}, defaultTuning(), nil, nil)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	return testCache{Cache: c}.usedBytes()
}
