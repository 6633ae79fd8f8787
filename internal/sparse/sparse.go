package rpc

import (
	"sync"
	"time"
)

// sparseInterval is how often the same thing is worth a line: a misconfigured node
// tries several times a second.
const sparseInterval = 10 * time.Second

// sparse thins out log lines. Safe for concurrent use.
type sparse struct {
	mu     sync.Mutex
	last   time.Time
	unsaid int
}

// allow reports whether a line may be written, and how many were not since the last.
func (s *sparse) allow() (unsaid int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.last.IsZero() && now.Sub(s.last) < sparseInterval {
		s.unsaid++
		return 0, false
	}
	unsaid, s.unsaid, s.last = s.unsaid, 0, now
	return unsaid, true
}
