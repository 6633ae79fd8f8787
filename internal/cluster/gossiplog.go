package cluster

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
)

// maxSources bounds the sources that a gossipLog remembers.
const maxSources = 1000

// gossipLog takes memberlist's log, one line per Write, and says what concerns an
// operator: the rest is for those who debug gossip. Safe for concurrent use.
type gossipLog struct {
	logger  *slog.Logger
	foreign func() // is called for each message of another cluster

	mu struct {
		sync.Mutex
		sources map[string]bool // the hosts whose messages were refused
	}
}

func newGossipLog(logger *slog.Logger, foreign func()) *gossipLog {
	l := &gossipLog{logger: logger, foreign: foreign}
	l.mu.sources = map[string]bool{}
	return l
}

var (
	// refusedPattern is how memberlist speaks of messages under another label or key,
	// or encrypted while ours are not.
	refusedPattern = regexp.MustCompile(`unacceptable label|[Dd]ecrypt|encrypted|double (packet|stream) label|msg ?[tT]ype \(10\)`)
	sourcePattern  = regexp.MustCompile(`from=(\S+)`)
	linePattern    = regexp.MustCompile(`^\S+ \S+ \[([A-Z]+)\] (?:memberlist: )?(.*)$`)
)

// Write implements io.Writer for memberlist's logger.
func (l *gossipLog) Write(line []byte) (int, error) {
	level, text := slog.LevelDebug, string(bytes.TrimSpace(line))
	if m := linePattern.FindStringSubmatch(text); m != nil {
		text = m[2]
		if m[1] == "ERR" || m[1] == "ERROR" || m[1] == "WARN" {
			level = slog.LevelInfo
		}
	}
	if refusedPattern.MatchString(text) {
		l.refused(text)
		return len(line), nil
	}
	if routine(text) {
		level = slog.LevelDebug
	}
	l.logger.Log(context.Background(), level, "Gossip reports something.", "report", text)
	return len(line), nil
}

// routine reports whether memberlist warns of what happens whenever a node stops or
// starts again: peers notice it in many ways.
func routine(text string) bool {
	for _, part := range []string{"unexpected node", "Refuting", "Failed to send", "Failed fallback", "Push/Pull with", "timeout", "EOF", "connection re"} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

func (l *gossipLog) refused(text string) {
	l.foreign()
	source := "unknown"
	if m := sourcePattern.FindStringSubmatch(text); m != nil {
		source = m[1]
		// Each stream has a port of its own.
		if host, _, err := net.SplitHostPort(source); err == nil {
			source = host
		}
	}
	l.mu.Lock()
	known := l.mu.sources[source]
	if len(l.mu.sources) >= maxSources {
		clear(l.mu.sources)
	}
	l.mu.sources[source] = true
	l.mu.Unlock()
	if known {
		return
	}
	l.logger.Warn("Messages of a node with another cluster name or secret are refused. If it belongs to this cluster, compare cluster.name and cluster.secret_file; if not, correct its gossip.join. This is said once per source.",
		"source", source, "report", text)
}
