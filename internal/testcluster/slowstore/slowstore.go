// Package slowstore puts the latency and the bandwidth of a distant object store
// before a near one: a proxy that delays each request and lets all answers together
// pass at a bounded rate, and that counts both. Clients sign the host that they speak
// to, and the proxy passes it on, so signed requests stay valid.
package slowstore

import (
	"context"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Config is how slow the store is.
type Config struct {
	// Latency passes before a request is answered, whatever else is on its way.
	Latency time.Duration
	// BytesPerSecond bounds the bodies of all answers and requests together; 0 does not.
	BytesPerSecond int64
}

// Distant is the store that the goals of this project speak of: 20 ms and 200 MB/s.
func Distant() Config { return Config{Latency: 20 * time.Millisecond, BytesPerSecond: 200e6} }

// Counts is what has passed. The difference of two is what passed in between.
type Counts struct {
	Requests int64 // all of them
	Reads    int64 // GET of an object or of a part of one
	Lists    int64
	Writes   int64 // whatever changes the store
	Bytes    int64 // of the bodies of answers
}

// Minus returns what passed since earlier.
func (c Counts) Minus(earlier Counts) Counts {
	return Counts{
		Requests: c.Requests - earlier.Requests, Reads: c.Reads - earlier.Reads,
		Lists: c.Lists - earlier.Lists, Writes: c.Writes - earlier.Writes, Bytes: c.Bytes - earlier.Bytes,
	}
}

// Proxy is the store, slow. It is safe for concurrent use.
type Proxy struct {
	cfg     Config
	reverse *httputil.ReverseProxy

	requests, reads, lists, writes, bytes atomic.Int64

	mu   sync.Mutex
	free time.Time // when all that was let pass has passed
}

// New returns a Proxy before the store at target, http://host:port.
func New(cfg Config, target *url.URL) *Proxy {
	p := &Proxy{cfg: cfg}
	p.reverse = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // the signature is over it
		},
		ModifyResponse: func(r *http.Response) error {
			r.Body = &paced{ReadCloser: r.Body, ctx: r.Request.Context(), proxy: p, count: &p.bytes}
			return nil
		},
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 512, DisableCompression: true,
			ReadBufferSize: bufferSize, WriteBufferSize: bufferSize,
		},
		BufferPool: &buffers{},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil { // else the client is gone, as one that hedges its requests may be
				http.Error(w, err.Error(), http.StatusBadGateway)
			}
		},
	}
	return p
}

// Counts returns what has passed so far.
func (p *Proxy) Counts() Counts {
	return Counts{
		Requests: p.requests.Load(), Reads: p.reads.Load(), Lists: p.lists.Load(),
		Writes: p.writes.Load(), Bytes: p.bytes.Load(),
	}
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.requests.Add(1)
	switch q := r.URL.Query(); {
	case r.Method == http.MethodHead:
	case r.Method != http.MethodGet:
		p.writes.Add(1)
	case q.Has("list-type") || q.Has("prefix") || q.Has("location"):
		p.lists.Add(1)
	default:
		p.reads.Add(1)
	}
	if wait(r.Context(), p.cfg.Latency) != nil {
		return // the client is gone
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &paced{ReadCloser: r.Body, ctx: r.Context(), proxy: p}
	}
	p.reverse.ServeHTTP(w, r)
}

// pass waits until n more bytes may pass.
func (p *Proxy) pass(ctx context.Context, n int) error {
	if p.cfg.BytesPerSecond == 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.cfg.BytesPerSecond) * float64(time.Second)))
	ahead := p.free.Sub(now)
	p.mu.Unlock()
	if ahead < time.Millisecond { // shorter than what timers are good for
		return nil
	}
	return wait(ctx, ahead)
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// paced is a body that is read no faster than the proxy allows.
type paced struct {
	io.ReadCloser
	ctx   context.Context //nolint:containedctx // a body lives as long as its request
	proxy *Proxy
	count *atomic.Int64 // nil: not counted
}

// Read implements io.Reader.
func (b *paced) Read(buf []byte) (int, error) {
	n, err := b.ReadCloser.Read(buf)
	if b.count != nil {
		b.count.Add(int64(n))
	}
	if passErr := b.proxy.pass(b.ctx, n); passErr != nil {
		return n, passErr
	}
	return n, err
}

const bufferSize = 64 << 10

// buffers implements httputil.BufferPool.
type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }
