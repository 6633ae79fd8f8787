package pagefile

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"time"
)

// lease is a buffer for a request, and the share of the cache's bounds that it takes.
type lease struct {
	cache  *Cache
	buffer *[]byte
	n      int64
	class  int
	weight int64
}

// bufferClass returns the class of buffers for n bytes: those of class i have pageSize<<i.
func bufferClass(n int64) int {
	return bits.Len64(uint64((n - 1) / pageSize))
}

// lease waits until the bounds leave room for a request of n bytes.
func (c *Cache) lease(ctx context.Context, n int64) (*lease, error) {
	l := c.newLease(n)
	if err := c.slots.Acquire(ctx, l.weight); err != nil {
		return nil, err
	}
	return l.fill(), nil
}

// tryLease is lease for what can be left undone.
func (c *Cache) tryLease(n int64) (*lease, bool) {
	l := c.newLease(n)
	if !c.slots.TryAcquire(l.weight) {
		return nil, false
	}
	return l.fill(), true
}

func (c *Cache) newLease(n int64) *lease {
	class := bufferClass(n)
	weight := min(max(pageSize<<class, c.tuning.requestWeight), c.tuning.maxInFlight)
	return &lease{cache: c, n: n, class: class, weight: weight}
}

func (l *lease) fill() *lease {
	buffer, ok := l.cache.buffers[l.class].Get().(*[]byte)
	if !ok {
		made := make([]byte, pageSize<<l.class)
		buffer = &made
	}
	l.buffer = buffer
	return l
}

func (l *lease) bytes() []byte { return (*l.buffer)[:l.n] }

// release gives the buffer back, once. Nobody may use its bytes any more.
func (l *lease) release() {
	l.cache.buffers[l.class].Put(l.buffer)
	l.buffer = nil
	l.cache.slots.Release(l.weight)
}

// fetch returns n bytes of a remote file from offset on. It tries again when a request
// fails in passing. The caller releases what it gets.
func (c *Cache) fetch(ctx context.Context, read ReadFunc, offset, n int64) (*lease, error) {
	for attempt := 1; ; attempt++ {
		got, err := c.attempt(ctx, read, offset, n)
		if err == nil {
			return got, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if c.cfg.Permanent != nil && c.cfg.Permanent(err) {
			return nil, err
		}
		if attempt == c.tuning.attempts {
			return nil, fmt.Errorf("after %d attempts: %w", attempt, err)
		}
		c.metrics.retries.Inc()
		if err := c.pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// pause waits before the attempt after the one given: longer each time, and not for the
// same time as everybody who failed at the same moment.
func (c *Cache) pause(ctx context.Context, attempt int) error {
	pause := c.tuning.backoff << (2 * (attempt - 1))
	pause -= rand.N(pause/2 + 1)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answer is what a request brought.
type answer struct {
	lease *lease // nil after an error
	err   error
	hedge bool
}

// attempt makes a request, and a second one if the first takes longer than most. The
// answer that comes first counts; the other request is given up.
func (c *Cache) attempt(ctx context.Context, read ReadFunc, offset, n int64) (*lease, error) {
	first, err := c.lease(ctx, n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.tuning.attemptTimeout,
		fmt.Errorf("the object store did not answer a request for %d bytes within %s", n, c.tuning.attemptTimeout))
	defer cancel()
	answers := make(chan answer)
	c.ask(ctx, read, offset, first, answers, false)

	after, hedgeable := c.hedges.begin(n)
	var patience <-chan time.Time
	if hedgeable {
		timer := time.NewTimer(after)
		defer timer.Stop()
		patience = timer.C
	}
	var errs []error
	for asked := 1; ; {
		select {
		case a := <-answers:
			if a.err == nil {
				if a.hedge {
					c.metrics.hedgesWon.Inc()
				}
				return a.lease, nil
			}
			if errs = append(errs, a.err); len(errs) == asked {
				return nil, errs[0]
			}
		case <-patience:
			patience = nil
			if second, ok := c.hedge(n); ok {
				c.ask(ctx, read, offset, second, answers, true)
				asked++
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// hedge returns a lease for a second request, if the bounds and the share of requests
// that may be made twice leave room for one.
func (c *Cache) hedge(n int64) (*lease, bool) {
	second, ok := c.tryLease(n)
	if !ok {
		return nil, false
	}
	if !c.hedges.take() {
		second.release()
		return nil, false
	}
	c.metrics.hedges.Inc()
	return second, true
}

// ask makes a request in the background. The answer goes to answers, or to nobody when
// ctx ends.
func (c *Cache) ask(ctx context.Context, read ReadFunc, offset int64, l *lease, answers chan<- answer, hedge bool) {
	c.work.Add(1) // the caller is counted, so Close does not miss this one
	go func() {
		defer c.work.Done()
		c.metrics.inFlight.Inc()
		start := time.Now()
		err := read(ctx, l.bytes(), offset)
		took := time.Since(start)
		c.metrics.inFlight.Dec()
		c.observe(l.n, took, err)
		a := answer{lease: l, err: err, hedge: hedge}
		if err != nil {
			l.release()
			a.lease = nil
		}
		select {
		case answers <- a:
		case <-ctx.Done():
			if a.lease != nil {
				a.lease.release()
			}
		}
	}()
}

func (c *Cache) observe(n int64, took time.Duration, err error) {
	switch {
	case err == nil:
		c.metrics.requests.WithLabelValues("ok").Inc()
		c.metrics.fetched.Add(float64(n))
		c.metrics.duration.Observe(took.Seconds())
		c.hedges.observe(n, took)
	case errors.Is(err, context.Canceled):
		c.metrics.requests.WithLabelValues("cancelled").Inc()
	default:
		c.metrics.requests.WithLabelValues("error").Inc()
	}
}
