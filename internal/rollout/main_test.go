package rollout

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

// node serves a cluster of three ingesters over HTTP. A restart, which a file in dir
// stands for, is over at once.
type node struct {
	*httptest.Server
	dir string

	mu       sync.Mutex
	requests []string
	fail     int // the status to answer with, if not 0
}

func newNode(t testing.TB) *node {
	n := &node{dir: t.TempDir()}
	n.Server = httptest.NewServer(n)
	t.Cleanup(n.Close)
	return n
}

// ServeHTTP implements http.Handler.
func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	n.mu.Lock()
	n.requests = append(n.requests, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+user+" "+password))
	fail := n.fail
	n.mu.Unlock()
	if fail != 0 {
		http.Error(w, "starting", fail)
		return
	}
	status := cluster.Status{Cluster: "test", ReplicationFactor: 3, Agree: true}
	for _, zone := range []string{"a", "b", "c"} {
		m := member(zone+"-0", zone, 0, "ACTIVE", 2)
		if restarts, err := os.ReadFile(filepath.Join(n.dir, m.ID)); err == nil {
			m.Epoch += 2 * uint64(bytes.Count(restarts, []byte("\n")))
		}
		status.Members = append(status.Members, m)
	}
	_ = json.NewEncoder(w).Encode(status)
}

func (n *node) asked() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.requests
}

// run runs the command with a journal in a directory of the test's own.
func (n *node) run(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"--url=" + n.URL, "--interval=1ms", "--journal=" + n.journal()}, args...)
	code = Main(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func (n *node) journal() string { return filepath.Join(n.dir, "journal.json") }

// restartCommand counts the restarts of each ingester.
func (n *node) restartCommand() string {
	return "--exec=echo {id} {zone} {host} >> " + n.dir + "/{id}"
}

func TestCommandRestartsEveryIngester(t *testing.T) {
	n := newNode(t)
	code, stdout, stderr := n.run(t, n.restartCommand())
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "step 1 of 3: restart a-0 (zone a)")
	require.Contains(t, stdout, "step 3 of 3: done")
	for _, zone := range []string{"a", "b", "c"} {
		restarted, err := os.ReadFile(filepath.Join(n.dir, zone+"-0"))
		require.NoError(t, err)
		require.Equal(t, zone+"-0 "+zone+" 10.0.0.0\n", string(restarted))
	}
	require.NoFileExists(t, n.journal(), "the next rollout is another one")
}

func TestCommandGoesOnAfterAFailure(t *testing.T) {
	n := newNode(t)
	broken := n.restartCommand() + "; test {id} != b-0"
	code, _, stderr := n.run(t, strings.Replace(broken, "=echo", "=test {id} != b-0 && echo", 1))
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "a restart failed, and the rollout stops here: b-0")
	require.Contains(t, stderr, "The same command goes on from here")
	require.FileExists(t, n.journal())

	code, stdout, stderr := n.run(t, n.restartCommand())
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "restarted already: a-0")
	restarts, err := os.ReadFile(filepath.Join(n.dir, "a-0"))
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(restarts, []byte("\n")))
}

func TestDryRunTouchesNothing(t *testing.T) {
	n := newNode(t)
	code, stdout, _ := n.run(t, n.restartCommand(), "--dry-run")
	require.Equal(t, exitOK, code)
	require.Equal(t, "step 1 of 3: restart a-0 (zone a)\nstep 2 of 3: restart b-0 (zone b)\nstep 3 of 3: restart c-0 (zone c)\n", stdout)
	require.NoFileExists(t, n.journal())
	require.NoFileExists(t, filepath.Join(n.dir, "a-0"))
	for _, request := range n.asked() {
		require.Equal(t, "GET /cluster?format=json", request)
	}
}

func TestAnotherClustersJournalIsRefused(t *testing.T) {
	n := newNode(t)
	for want, journal := range map[string]Journal{
		`about the cluster "other"`: {Version: 1, Cluster: "other", Began: time.Now(), Epochs: map[string]uint64{"a-0": 1}},
		"49h0m0s old":               {Version: 1, Cluster: "test", Began: time.Now().Add(-49 * time.Hour), Epochs: map[string]uint64{"a-0": 1}},
		"its version is unknown":    {Version: 2, Cluster: "test", Began: time.Now(), Epochs: map[string]uint64{"a-0": 1}},
	} {
		require.NoError(t, journal.write(n.journal()))
		code, _, stderr := n.run(t, n.restartCommand())
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, want)
		require.Contains(t, stderr, "delete the file to begin anew")
	}
}

func TestAnnounceAndReadyAskOneProcess(t *testing.T) {
	n := newNode(t)
	code, _, stderr := n.run(t, "--announce")
	require.Equal(t, exitOK, code, stderr)
	code, _, stderr = n.run(t, "--ready")
	require.Equal(t, exitOK, code, stderr)
	require.Equal(t, []string{"POST /ingester/restart", "GET /ready"}, n.asked())

	n.fail = http.StatusServiceUnavailable
	code, _, stderr = n.run(t, "--ready")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "503 Service Unavailable: starting")
}

// Where there is no shell, credentials come from the environment.
func TestURLComesFromTheEnvironment(t *testing.T) {
	n := newNode(t)
	t.Setenv(urlVariable, strings.Replace(n.URL, "http://", "http://operator:s3cr3t@", 1))
	var out, errs bytes.Buffer
	require.Equal(t, exitOK, Main(t.Context(), []string{"--ready"}, &out, &errs), errs.String())
	require.Equal(t, []string{"GET /ready operator s3cr3t"}, n.asked())

	n.fail = http.StatusUnauthorized
	require.Equal(t, exitFailed, Main(t.Context(), []string{"--ready"}, &out, &errs))
	n.Close()
	require.Equal(t, exitFailed, Main(t.Context(), []string{"--ready"}, &out, &errs))
	require.NotContains(t, errs.String(), "s3cr3t")
}

func TestTheFirstProcessThatAnswersIsAsked(t *testing.T) {
	n := newNode(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	code, _, stderr := n.run(t, "--url="+gone.URL, "--dry-run")
	require.Equal(t, exitOK, code, stderr)

	n.fail = http.StatusInternalServerError
	code, _, stderr = n.run(t, "--url="+gone.URL, "--dry-run")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "500 Internal Server Error")
	require.Contains(t, stderr, "connection refused")
}

func TestMistakesOnTheCommandLineAreExplained(t *testing.T) {
	for want, args := range map[string][]string{
		`unexpected argument "a-0"`:     {"a-0"},
		"--parallel: it is negative":    {"--parallel=-1"},
		"they must be positive":         {"--timeout=0s"},
		"choose one":                    {"--announce", "--ready"},
		"flag provided but not defined": {"--all"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, exitUsage, Main(t.Context(), args, &out, &errs))
		require.Contains(t, errs.String(), want)
	}
	var out, errs bytes.Buffer
	require.Equal(t, exitOK, Main(t.Context(), []string{"--help"}, &out, &errs))
	require.Contains(t, errs.String(), "kubectl")
	require.Equal(t, exitFailed, Main(t.Context(), []string{"--url=10.0.0.7:9009"}, &out, &errs))
	require.Contains(t, errs.String(), errAddress.Error())
	for _, address := range []string{"operator:s3cr3t@10.0.0.7:9009", "ftp://operator:s3cr3t@host"} {
		require.Equal(t, exitFailed, Main(t.Context(), []string{"--url=" + address}, &out, &errs))
	}
	require.NotContains(t, errs.String(), "s3cr3t")
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"cluster":"test","began":"2026-01-02T03:04:05Z","epochs":{"a-0":7}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		j, err := decodeJournal(text)
		if err == nil {
			require.Equal(t, journalVersion, j.Version)
		}
	})
}
