// Package resultcache keeps results of queries in memory and on disk, within a budget of
// bytes: what was used longest ago goes first. An Entry has all that is known of one query,
// whatever its range. What is on disk survives a restart, and is not trusted: a file that is
// damaged, or of another version of the format, is as good as none.
//
// The package does not know whether a result still holds. Each extent carries a version of the data that
// it was computed from, and its user compares.
package resultcache

import (
	"container/list"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/zeebo/xxh3"
)

// block is what a file takes on disk at least.
const block = 4096

// Cache keeps entries. It is safe for concurrent use.
type Cache struct {
	dir     string
	max     int64 // on disk
	metrics *metrics

	mu struct {
		sync.Mutex
		files  lru
		memory lru
		// locked are keys that somebody works on; the channel is closed when he is done.
		locked map[string]chan struct{}
	}
}

type metrics struct {
	requests  *prometheus.CounterVec
	evictions prometheus.Counter
	failures  prometheus.Counter
}

// New returns a Cache in a directory that belongs to it alone, of maxBytes on disk, and a tenth
// of it in memory. It does no I/O.
func New(dir string, maxBytes int64, reg prometheus.Registerer) *Cache {
	f := promauto.With(reg)
	c := &Cache{dir: dir, max: maxBytes, metrics: &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_querier_results_cache_steps_total",
			Help: "Steps of range queries that could be kept, by whether they were found (hit) or had to be evaluated (miss).",
		}, []string{"outcome"}),
		evictions: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_results_cache_evictions_total",
			Help: "Queries whose results were let go to make room.",
		}),
		failures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_querier_results_cache_failures_total",
			Help: "Files of results that could not be read or written; the queries were evaluated.",
		}),
	}}
	for _, outcome := range []string{"hit", "miss"} {
		c.metrics.requests.WithLabelValues(outcome)
	}
	c.mu.files, c.mu.memory = newLRU(maxBytes), newLRU(maxBytes/10)
	c.mu.locked = map[string]chan struct{}{}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_querier_results_cache_bytes",
		Help: "Bytes of results on disk.",
	}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(c.mu.files.size)
	})
	return c
}

// Count counts steps that were found, and steps that were not.
func (c *Cache) Count(hits, misses int) {
	c.metrics.requests.WithLabelValues("hit").Add(float64(hits))
	c.metrics.requests.WithLabelValues("miss").Add(float64(misses))
}

// Load finds what was kept before a restart. Until then it may be found one by one.
func (c *Cache) Load() error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	type file struct {
		name string
		size int64
		used time.Time
	}
	var files []file
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // it has just gone, or it is not ours
		}
		if filepath.Ext(e.Name()) != "" { // of a write that was cut off
			_ = os.Remove(filepath.Join(c.dir, e.Name()))
			continue
		}
		files = append(files, file{e.Name(), info.Size(), info.ModTime()})
	}
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range files {
		if _, ok := c.mu.files.items[f.name]; !ok {
			c.removeLocked(c.mu.files.put(f.name, nil, max(f.size, block)))
		}
	}
	return nil
}

// name returns the name of a key's file. Keys that have the same name are told apart by the entry.
func name(key string) string {
	sum := xxh3.HashString128(key).Bytes()
	return hex.EncodeToString(sum[:])
}

// Get returns what is known of a key; an empty Entry is nothing. The caller may change it, but not its points.
func (c *Cache) Get(key string) Entry {
	n := name(key)
	c.mu.Lock()
	data, ok := c.mu.memory.get(n)
	_, onDisk := c.mu.files.get(n)
	c.mu.Unlock()
	if !ok {
		var err error
		path := filepath.Join(c.dir, n)
		if data, err = os.ReadFile(path); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				c.metrics.failures.Inc()
			}
			return Entry{Key: key}
		}
		now := time.Now()
		_ = os.Chtimes(path, now, now) // only the order after a restart depends on it
	}
	entry, err := Decode(data)
	if err != nil {
		c.metrics.failures.Inc()
		c.forget(n)
		return Entry{Key: key}
	}
	if entry.Key != key {
		return Entry{Key: key}
	}
	if !ok {
		c.mu.Lock()
		c.mu.memory.put(n, data, int64(len(data)))
		if !onDisk {
			c.removeLocked(c.mu.files.put(n, nil, max(int64(len(data)), block)))
		}
		c.mu.Unlock()
	}
	return entry
}

// Put keeps an entry in place of what was known of its key. One that would take more than an eighth of the
// budget is not kept.
func (c *Cache) Put(entry Entry) error {
	n := name(entry.Key)
	if entry.size() > c.max/8 {
		c.forget(n)
		return nil
	}
	data := Encode(entry)
	path := filepath.Join(c.dir, n)
	err := os.WriteFile(path+".new", data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(c.dir, 0o755); err == nil {
			err = os.WriteFile(path+".new", data, 0o600)
		}
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		c.metrics.failures.Inc()
		c.forget(n)
		return fmt.Errorf("keep a result: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.memory.put(n, data, int64(len(data)))
	c.removeLocked(c.mu.files.put(n, nil, max(int64(len(data)), block)))
	return nil
}

func (c *Cache) forget(n string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.memory.remove(n)
	c.mu.files.remove(n)
	_ = os.Remove(filepath.Join(c.dir, n))
}

// removeLocked removes files that there is no room for. No lock is held long: it is an unlink each.
func (c *Cache) removeLocked(names []string) {
	for _, n := range names {
		c.metrics.evictions.Inc()
		c.mu.memory.remove(n)
		_ = os.Remove(filepath.Join(c.dir, n))
	}
}

// Lock waits until nobody else works on a key, so that what many ask at the same time
// is evaluated once.
func (c *Cache) Lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		c.mu.Lock()
		busy, ok := c.mu.locked[key]
		if !ok {
			done := make(chan struct{})
			c.mu.locked[key] = done
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.mu.locked, key)
				c.mu.Unlock()
				close(done)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lru is what was used, newest first. Not safe for concurrent use.
type lru struct {
	max, size int64
	order     *list.List
	items     map[string]*list.Element
}

type item struct {
	name string
	data []byte
	size int64
}

func newLRU(maxBytes int64) lru {
	return lru{max: maxBytes, order: list.New(), items: map[string]*list.Element{}}
}

func (l *lru) get(name string) ([]byte, bool) {
	e, ok := l.items[name]
	if !ok {
		return nil, false
	}
	l.order.MoveToFront(e)
	return e.Value.(*item).data, true
}

// put returns the names that had to go for it.
func (l *lru) put(name string, data []byte, size int64) (gone []string) {
	l.remove(name)
	l.items[name] = l.order.PushFront(&item{name, data, size})
	l.size += size
	for l.size > l.max && l.order.Len() > 0 {
		last := l.order.Back().Value.(*item).name
		l.remove(last)
		gone = append(gone, last)
	}
	return gone
}

func (l *lru) remove(name string) {
	if e, ok := l.items[name]; ok {
		l.size -= e.Value.(*item).size
		l.order.Remove(e)
		delete(l.items, name)
	}
}
