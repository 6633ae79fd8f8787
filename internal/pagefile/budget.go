package pagefile

import (
	"os"
	"path/filepath"
)

// reclaimAtLeast is how much is evicted when the disk is full before the budget is, so
// that not every page that is fetched meets a full disk.
const reclaimAtLeast = 64 << 20

// holdLocked says that one more holds f, so that it is not evicted.
func (c *Cache) holdLocked(f *file) {
	if f.idle != nil {
		c.mu.idle.Remove(f.idle)
		f.idle = nil
	}
	f.refs++
}

// release says that one holds f no more. The last one closes the local file and makes it
// the most recently used of those that may be evicted.
func (c *Cache) release(f *file) {
	c.mu.Lock()
	f.refs--
	var disk *os.File
	if f.refs == 0 {
		disk = f.disk.Swap(nil)
		f.idle = c.mu.idle.PushBack(f)
		if f.used == 0 { // nothing was fetched
			c.dropLocked(f)
		}
	}
	stale := c.evictLocked(c.cfg.MaxBytes)
	c.mu.Unlock()
	if disk != nil {
		// All that was written is with the kernel, and checked if it is ever read again.
		_ = disk.Close()
	}
	c.remove(stale)
}

// begin says that a goroutine is about to fetch for f, which somebody holds.
func (c *Cache) begin(f *file) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return ErrClosed
	}
	c.holdLocked(f)
	c.work.Add(1)
	return nil
}

func (c *Cache) end(f *file) {
	c.release(f)
	c.work.Done()
}

// grow says that f is about to take n more bytes of the disk, and makes room for them.
func (c *Cache) grow(f *file, n int64) {
	c.mu.Lock()
	f.used += n
	c.mu.used += n
	stale := c.evictLocked(c.cfg.MaxBytes)
	over := c.mu.used > c.cfg.MaxBytes
	c.metrics.used.Set(float64(c.mu.used))
	c.mu.Unlock()
	if over {
		c.metrics.overBudget.Inc()
	}
	c.remove(stale)
}

// shrink says that n bytes of f hold nothing any more.
func (c *Cache) shrink(f *file, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, f.used)
	f.used -= n
	c.mu.used -= n
	c.metrics.used.Set(float64(c.mu.used))
}

// empty says that f takes nothing of the disk.
func (c *Cache) empty(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.used -= f.used
	f.used = 0
	c.metrics.used.Set(float64(c.mu.used))
}

// reclaim evicts n bytes or more, whatever the budget, and reports whether there was
// anything to evict.
func (c *Cache) reclaim(n int64) bool {
	c.mu.Lock()
	stale := c.evictLocked(c.mu.used - max(n, reclaimAtLeast))
	c.mu.Unlock()
	c.remove(stale)
	return len(stale) > 0
}

// evictLocked forgets files that nobody holds, the least recently used first, until the
// rest takes at most limit. The caller removes them after it has unlocked c.mu: from then
// on they have nothing to do with files of the same keys, which have other names.
func (c *Cache) evictLocked(limit int64) (stale []*file) {
	for c.mu.used > limit {
		oldest := c.mu.idle.Front()
		if oldest == nil {
			break
		}
		f, _ := oldest.Value.(*file)
		c.dropLocked(f)
		c.metrics.evictions.Inc()
		stale = append(stale, f)
	}
	return stale
}

// dropLocked forgets f, which nobody holds.
func (c *Cache) dropLocked(f *file) {
	c.mu.idle.Remove(f.idle)
	f.idle = nil
	delete(c.mu.files, f.key)
	c.mu.used -= f.used
	c.metrics.used.Set(float64(c.mu.used))
}

// remove unlinks the files that were forgotten, and folders that are empty then.
func (c *Cache) remove(stale []*file) {
	for _, f := range stale {
		if err := os.Remove(filepath.Join(c.cfg.Dir, f.name)); err != nil && !os.IsNotExist(err) {
			c.logger.Warn("a file of the page cache cannot be removed and takes more of the disk than the cache may", "file", f.name, "err", err)
			continue
		}
		for dir := filepath.Dir(f.name); dir != "."; dir = filepath.Dir(dir) {
			if os.Remove(filepath.Join(c.cfg.Dir, dir)) != nil {
				break // not empty
			}
		}
	}
}
