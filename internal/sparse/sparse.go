// Package sparse thins out lines of the log that others cause: a misconfigured node tries
// several times a second, and who guesses passwords a thousand times. What is not logged is
// counted. It does not log.
package sparse

import (
	"sync"
	"time"
)

// Interval is how often the same thing is worth a line.
const Interval = 10 * time.Second

// Lines are lines of one kind. The zero value is ready. It is safe for concurrent use.
type Lines struct {
	mu     sync.Mutex
	last   time.Time
	unsaid int
}

// Allow reports whether a line may be written, and how many were not since the last.
func (l *Lines) Allow() (unsaid int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !l.last.IsZero() && now.Sub(l.last) < Interval {
		l.unsaid++
		return 0, false
	}
	unsaid, l.unsaid, l.last = l.unsaid, 0, now
	return unsaid, true
}
