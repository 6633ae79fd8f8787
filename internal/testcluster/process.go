package testcluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// Process is a running program with an HTTP API: Hundredfold or Prometheus. It is
// stopped when the test ends. One goroutine, but for the queries.
type Process struct {
	// URL is where it serves HTTP, without a slash at the end.
	URL string
	// DataDir is where it keeps its data.
	DataDir string

	t       testing.TB
	name    string
	command []string
	client  *http.Client
	log     log
	program *fleet.Program // nil before the first start
}

// Options say how Hundredfold is started.
type Options struct {
	// Config is the configuration file's content; "" starts without a file.
	Config string
	// DataDir is the data directory; "" makes a temporary one.
	DataDir string
	// Wrapper is a command that the program's own command line is appended to.
	Wrapper []string
	// Args are more flags.
	Args []string
}

// Start starts Hundredfold and waits until it is ready.
func Start(t testing.TB, o Options) *Process {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	address := FreeAddress(t)
	command := append(append([]string{}, o.Wrapper...), Binary(t), "--data.dir="+o.DataDir, "--http.listen-address="+address)
	if o.Config != "" {
		command = append(command, "--config.file="+writeFile(t, "hundredfold.yml", o.Config))
	}
	return start(t, &Process{
		URL: "http://" + address, DataDir: o.DataDir, name: "hundredfold", command: append(command, o.Args...),
	})
}

// StartPrometheus starts a Prometheus with a configuration and the data in
// dataDir, and waits until it is ready. "" is a temporary directory.
func StartPrometheus(t testing.TB, config, dataDir string, args ...string) *Process {
	t.Helper()
	if dataDir == "" {
		dataDir = t.TempDir()
	}
	address := FreeAddress(t)
	command := []string{
		Tool(t, "prometheus"), "--web.listen-address=" + address, "--storage.tsdb.path=" + dataDir,
		"--config.file=" + writeFile(t, "prometheus.yml", config),
	}
	return start(t, &Process{
		URL: "http://" + address, DataDir: dataDir, name: "prometheus", command: append(command, args...),
	})
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// NewProcess prepares Hundredfold with exactly these flags and does not start it.
func NewProcess(t testing.TB, args ...string) *Process {
	t.Helper()
	return prepare(t, &Process{name: "hundredfold", command: append([]string{Binary(t)}, args...)})
}

func start(t testing.TB, p *Process) *Process {
	t.Helper()
	prepare(t, p)
	p.Launch()
	p.AwaitReady()
	return p
}

func prepare(t testing.TB, p *Process) *Process {
	t.Helper()
	p.t = t
	p.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	t.Cleanup(func() {
		p.client.CloseIdleConnections()
		defer func() { // also if Stop fails
			if t.Failed() {
				t.Logf("log of %s at %s:\n%s", p.name, p.URL, p.log.String())
			}
		}()
		if p.Running() {
			p.Stop()
		}
	})
	return p
}

// Launch starts the process, which must not be running, and does not wait.
func (p *Process) Launch() {
	p.t.Helper()
	require.False(p.t, p.Running(), "BUG: the process is running")
	p.program = fleet.NewProgram(&p.log, nil, p.command...)
	require.NoError(p.t, p.program.Start())
}

// AwaitReady waits until the process is ready.
func (p *Process) AwaitReady() {
	p.t.Helper()
	Eventually(p.t, readyTimeout, func(ctx context.Context) error {
		if err := p.program.Alive(); err != nil {
			p.program = nil
			p.t.Fatalf("%s is not ready: %v", p.name, err)
		}
		_, err := p.Get(ctx, "/-/ready")
		return err
	})
}

// Running reports whether the process was started and not ended by the test.
func (p *Process) Running() bool { return p.program != nil && p.program.PID() != 0 }

// Alive returns an error if the process does not run, with how it ended.
func (p *Process) Alive() error { return p.program.Alive() }

// PID returns the process's id.
func (p *Process) PID() int { return p.program.PID() }

// Kill ends the process with SIGKILL.
func (p *Process) Kill() {
	p.t.Helper()
	require.NoError(p.t, p.program.Kill())
}

// Stop ends the process with SIGTERM. It must end well, and soon.
func (p *Process) Stop() {
	p.t.Helper()
	require.NoErrorf(p.t, p.End(), "%s was asked to stop", p.name)
}

// End ends the process with SIGTERM. It must end soon; how it ended is returned.
func (p *Process) End() error {
	p.t.Helper()
	err := p.program.Stop()
	require.NotErrorIsf(p.t, err, fleet.ErrHangs, "%s was asked to stop", p.name)
	return err
}

// Restart starts a process that was ended, and waits until it is ready.
func (p *Process) Restart() {
	p.t.Helper()
	p.Launch()
	p.AwaitReady()
}

// Reconfigure gives the process, which must not be running, another configuration and
// more flags for its next start.
func (p *Process) Reconfigure(config string, args ...string) {
	p.t.Helper()
	p.command = append(slices.DeleteFunc(p.command, func(arg string) bool { return strings.HasPrefix(arg, "--config.file=") }),
		append([]string{"--config.file=" + writeFile(p.t, "hundredfold.yml", config)}, args...)...)
}

// Log returns the last part of what the process has written.
func (p *Process) Log() string { return p.log.String() }

// Get returns the body of a page. Any status but 200 is an error.
func (p *Process) Get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path, nil)
	if err != nil {
		return "", err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s: %s", path, response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}

// Metric returns the sum of the samples of a metric on the process's own
// /metrics page.
func (p *Process) Metric(ctx context.Context, name string) (float64, error) {
	page, err := p.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	return fleet.SumMetric(page, name)
}
