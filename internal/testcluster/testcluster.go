// Package testcluster runs real programs for tests: Hundredfold itself, built
// from this source tree, and Prometheus. It starts them on free loopback ports,
// waits until they are ready, kills and restarts them, asks them by PromQL, and
// shows their logs if the test fails.
//
// Nothing in here looks inside a process: what a test learns, it learns as a user
// would, from HTTP, exit codes, files and logs.
package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// Timeouts are generous: they only matter when something is broken, and the
// machine may be busy with other tests.
const (
	readyTimeout = time.Minute
	pollInterval = 20 * time.Millisecond
)

// built is the program under test, built once per test run.
var built struct { //nolint:gochecknoglobals // tests of one run share the program
	sync.Once
	dir, path string
	err       error
}

// Binary returns the path of the hundredfold program.
func Binary(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		built.dir, built.err = os.MkdirTemp("", "hundredfold-test-") //nolint:usetesting // it outlives the test that builds first
		if built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "hundredfold")
		build := exec.Command("go", "build", "-o", built.path, "./cmd/hundredfold")
		build.Dir = root()
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build ./cmd/hundredfold: %w\n%s", err, out)
		}
	})
	require.NoError(t, built.err)
	return built.path
}

// Main runs the tests of a package and removes what Binary has built. Use it in
// TestMain: os.Exit(testcluster.Main(m)).
func Main(m *testing.M) int {
	code := m.Run()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, "remove the built program:", err)
		}
	}
	return code
}

// Tool returns the path of a program that `make tools` builds. If it is not there
// the test fails in CI and is skipped elsewhere.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(root(), ".bin", name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: run make tools", path)
		}
		t.Skipf("%s is missing: run make tools", path)
	}
	return path
}

// root returns the folder of go.mod.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// FreeAddress returns a loopback address on which nobody listens at the moment. Its
// port stays free while the process that is given it is restarted.
func FreeAddress(t testing.TB) string {
	t.Helper()
	address, err := fleet.FreeAddress("127.0.0.1")
	require.NoError(t, err)
	return address
}

// Eventually calls f until it returns nil, and fails the test with its last
// error when that takes longer than the timeout.
func Eventually(t testing.TB, timeout time.Duration, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	last := errors.New("it was not tried")
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			last = err // of all errors, the one that the timeout makes says least
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			require.NoErrorf(t, last, "this did not come true within %s", timeout)
		}
	}
}

// Run runs hundredfold until it ends by itself, and returns its exit code and
// what it wrote.
func Run(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, Binary(t), args...)
}

// RunTool runs one of the programs that `make tools` builds, and returns what it
// wrote to stdout. It must succeed.
func RunTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	code, stdout, stderr := run(t, Tool(t, name), args...)
	require.Zerof(t, code, "%s %v:\n%s%s", name, args, stdout, stderr)
	return stdout
}

func run(t testing.TB, path string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	var out, errs log
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		require.NoErrorf(t, err, "run %s", path)
	}
	require.NoErrorf(t, ctx.Err(), "%s %v did not end:\n%s%s", path, args, out.String(), errs.String())
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// CopyDir copies a folder into a temporary one and returns that.
func CopyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(from))
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// log keeps the last part of what is written to it. Safe for concurrent use.
type log struct {
	mu   sync.Mutex
	text []byte
}

const logSize = 128 << 10

var _ io.Writer = (*log)(nil)

// Write implements io.Writer.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if extra := len(l.text) - logSize; extra > logSize {
		l.text = append(l.text[:0], l.text[extra:]...)
	}
	return len(p), nil
}

// String implements fmt.Stringer.
func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
