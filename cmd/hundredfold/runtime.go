package main

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

const (
	// memoryRatio is the share of the cgroup's or the machine's memory that the Go heap may fill;
	// the rest is for mapped files and stacks.
	memoryRatio = 0.9

	// How much the heap may grow over what is alive before the collector runs, in percent;
	// ADR 022 has the measurements.
	//
	// A head is long-lived memory that appending adds little garbage to, so its collector
	// costs little and what it lets pile up is most of what can be saved. A small heap is
	// mostly what queries pass through, and the collector would run all the time.
	gcPercentOfHeads = 20
	gcPercent        = 75
	// gcHeadroom is how many bytes the heap of a process with heads may grow at least, as far as
	// gcPercent allows.
	gcHeadroom = 24 << 20
)

// tuneRuntime sets what Go cannot know. The environment (GOMEMLIMIT, GOGC) wins.
func tuneRuntime(roles []cluster.Role, logger *slog.Logger) {
	if _, ok := os.LookupEnv("GOGC"); !ok {
		debug.SetGCPercent(gcPercent)
		if slices.Contains(roles, cluster.RoleIngester) {
			afterEachCollection(followHeap())
		}
	}
	limit, err := memlimit.Set(
		memlimit.WithRatio(memoryRatio),
		// A machine without a limit of its own on the process: its memory is the limit.
		memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)),
	)
	if err != nil {
		logger.Info("The memory of the machine is not known; the heap has no limit, unless GOMEMLIMIT sets one.", "err", err)
		return
	}
	logger.Debug("The memory limit of the heap is set.", "bytes", limit)
}

// followHeap returns what sets the percentage by what is alive. One goroutine at a time.
func followHeap() func() {
	now, live := gcPercent, []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	return func() {
		metrics.Read(live)
		// Each change stops the world for some microseconds.
		if next := gcPercentFor(live[0].Value.Uint64()); next != now {
			debug.SetGCPercent(next)
			now = next
		}
	}
}

// gcPercentFor returns the percentage for a heap of which so many bytes are alive.
func gcPercentFor(live uint64) int {
	return int(min(max(gcHeadroom*100/max(live, 1), gcPercentOfHeads), gcPercent)) //nolint:gosec // between the two
}

// afterEachCollection calls f after each collection, for as long as the process lives.
func afterEachCollection(f func()) {
	type sentinel struct{ _ *int } // of a size that is not allocated together with others
	var again func(*sentinel)
	again = func(s *sentinel) {
		f()
		runtime.SetFinalizer(s, again)
	}
	runtime.SetFinalizer(new(sentinel), again)
}

// version is that of the module when it was installed by version, else the
// commit that was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision == "" {
		return "development"
	}
	return "development-" + revision + modified
}

func versionText() string {
	return fmt.Sprintf("hundredfold %s (%s %s/%s)", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
