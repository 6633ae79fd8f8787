package main

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// memoryRatio is the share of the cgroup's or the machine's memory that the Go heap may fill;
	// the rest is for mapped files and stacks.
	memoryRatio = 0.9
	// gcPercent makes the collector run earlier than Go's 100 does. A head is
	// mostly long-lived memory, so its peak is what an ingester is sized by.
	gcPercent = 75
)

// tuneRuntime sets what Go cannot know. The environment (GOMEMLIMIT, GOGC) wins.
func tuneRuntime(logger *slog.Logger) {
	if _, ok := os.LookupEnv("GOGC"); !ok {
		debug.SetGCPercent(gcPercent)
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
