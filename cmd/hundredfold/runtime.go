package main

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

const (
	// memoryRatio is the share of the cgroup's or the machine's memory that the Go heap may fill;
	// the rest is for mapped files and stacks.
	memoryRatio = 0.9

	// How much the heap may grow over what is alive before the collector runs, in percent,
	// by what the process does; ADR 022 has the measurements.
	//
	// A head is long-lived memory that appending adds little garbage to, so its collector
	// costs little and what it lets pile up is most of what can be saved.
	gcPercentOfIngester = 20
	gcPercentOfOthers   = 75
)

// tuneRuntime sets what Go cannot know. The environment (GOMEMLIMIT, GOGC) wins.
func tuneRuntime(roles []cluster.Role, logger *slog.Logger) {
	if _, ok := os.LookupEnv("GOGC"); !ok {
		debug.SetGCPercent(gcPercent(roles))
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

func gcPercent(roles []cluster.Role) int {
	if slices.Contains(roles, cluster.RoleIngester) {
		return gcPercentOfIngester
	}
	return gcPercentOfOthers
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
