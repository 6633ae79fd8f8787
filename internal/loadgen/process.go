package loadgen

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ownCPU returns the CPU time that this process has used.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0 // it cannot fail with these arguments
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// processes returns what the processes use together, from /proc.
func processes(pids []int) (Usage, error) {
	var total Usage
	if len(pids) > 0 && runtime.GOOS != "linux" {
		return total, fmt.Errorf("processes are measured by /proc, as on Linux: on %s it cannot be done", runtime.GOOS)
	}
	for _, pid := range pids {
		usage, err := process(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return Usage{}, fmt.Errorf("there is no process %d on this machine", pid)
		case err != nil:
			return Usage{}, fmt.Errorf("measure process %d: %w", pid, err)
		}
		total.CPU += usage.CPU
		total.Anonymous += usage.Anonymous
	}
	return total, nil
}

// process returns what the process has used.
func process(pid int) (Usage, error) {
	cpu, err := processCPU(pid)
	if err != nil {
		return Usage{}, err
	}
	memory, err := processAnonymous(pid)
	return Usage{CPU: cpu, Anonymous: memory}, err
}

// processCPU reads user and system time: fields 14 and 15 of /proc/PID/stat,
// in hundredths of a second. Field 2 may hold spaces and ends with ')'.
func processCPU(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

// processAnonymous reads RssAnon of /proc/PID/status, in bytes.
func processAnonymous(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/status: %w", pid, err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no RssAnon", pid)
}
