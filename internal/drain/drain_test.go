package drain

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ingester answers like one: each GET takes the next of its answers, the last one
// again and again. An answer without a text is a connection that breaks.
type ingester struct {
	*httptest.Server
	mu      sync.Mutex
	refuses int // status for POST, if not 0
	answers []answer
	posts   int
}

type answer struct {
	code int
	text string
}

func says(text string) answer { return answer{http.StatusOK, text} }

func newIngester(t *testing.T, answers ...answer) *ingester {
	t.Helper()
	i := &ingester{answers: answers}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /ingester/drain", i.post)
	mux.HandleFunc("GET /ingester/drain", i.get)
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *ingester) post(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.posts++
	if i.refuses != 0 {
		http.Error(w, "2 would be left, and the replication factor is 3", i.refuses)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (i *ingester) get(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	next := i.answers[0]
	if len(i.answers) > 1 {
		i.answers = i.answers[1:]
	}
	i.mu.Unlock()
	if next.text == "" {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(next.code)
	_, _ = io.WriteString(w, next.text)
}

func (i *ingester) asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.posts
}

// drain follows a drain of i to its end and returns what was shown.
func drain(ctx context.Context, i *ingester) (string, error) {
	var out bytes.Buffer
	c := &client{http: i.Client(), endpoint: i.URL + "/ingester/drain", interval: time.Millisecond, out: &out}
	err := c.run(ctx)
	return out.String(), err
}

func TestProgressIsShownUntilTheIngesterHasLeft(t *testing.T) {
	i := newIngester(t,
		says(`{"instance":"a","state":"ACTIVE"}`),
		says(`{"instance":"a","state":"DRAINING","progress":{"uploaded":1,"blocks":2}}`),
		says(`{"instance":"a","state":"DRAINING","progress":{"uploaded":1,"blocks":2}}`),
		says(`{"instance":"a","state":"DRAINING","progress":{"uploaded":2,"blocks":2}}`),
		says(`{"instance":"a","state":"LEFT"}`))
	out, err := drain(t.Context(), i)
	require.NoError(t, err)
	require.Equal(t, `a ACTIVE
a DRAINING {"blocks":2,"uploaded":1}
a DRAINING {"blocks":2,"uploaded":2}
a has left the cluster; stop its process and delete its disk
`, out)
	require.Equal(t, 1, i.asked())
}

func TestRefusalIsTold(t *testing.T) {
	for _, code := range []int{http.StatusConflict, http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed} {
		i := newIngester(t)
		i.refuses = code
		_, err := drain(t.Context(), i)
		require.ErrorIs(t, err, errRefused)
		require.ErrorContains(t, err, "2 would be left")
		require.Equal(t, 1, i.asked())
	}
}

func TestDrainIsAskedForAgainAfterAnOutage(t *testing.T) {
	// It was killed before it wrote down that it drains, so it comes back ACTIVE.
	i := newIngester(t,
		says(`{"instance":"a","state":"ACTIVE"}`),
		answer{},
		answer{http.StatusServiceUnavailable, "the ingester is still starting"},
		says(`{"instance":"a","state":"DRAINING"}`),
		says(`{"instance":"a","state":"LEFT"}`))
	out, err := drain(t.Context(), i)
	require.NoError(t, err)
	require.Contains(t, out, "waiting for an answer: ")
	require.Contains(t, out, "still starting")
	require.GreaterOrEqual(t, i.asked(), 2) // net/http repeats a GET whose connection broke by itself
}

func TestDrainWaitsForAnIngesterThatStarts(t *testing.T) {
	i := newIngester(t, says(`{"instance":"a","state":"LEFT"}`))
	i.refuses = http.StatusServiceUnavailable
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := &client{http: i.Client(), endpoint: i.URL + "/ingester/drain", interval: time.Millisecond, out: io.Discard}
	_, done, err := c.step(ctx)
	require.NoError(t, err)
	require.False(t, done)
	i.mu.Lock()
	i.refuses = 0
	i.mu.Unlock()
	require.NoError(t, c.run(ctx))
}

func TestFailureIsTold(t *testing.T) {
	i := newIngester(t, says(`{"instance":"a","state":"DRAINING","error":"the bucket is away"}`))
	_, err := drain(t.Context(), i)
	require.ErrorIs(t, err, errFailed)
	require.ErrorContains(t, err, "the bucket is away")
}

func TestCommandThatEndsSaysThatTheDrainGoesOn(t *testing.T) {
	i := newIngester(t, says(`{"instance":"a","state":"DRAINING"}`))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := drain(ctx, i)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "goes on without this command")
}

func TestCommandThatEndsBeforeItWasHeardSaysSo(t *testing.T) {
	i := newIngester(t)
	i.refuses = http.StatusServiceUnavailable
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := drain(ctx, i)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "ask it again")
}

func TestWhatIsNoIngesterIsRefused(t *testing.T) {
	other := newIngester(t, says("<html>welcome</html>"))
	_, err := drain(t.Context(), other)
	require.ErrorIs(t, err, errRefused)

	querier := &ingester{Server: httptest.NewServer(http.NotFoundHandler())}
	t.Cleanup(querier.Close)
	_, err = drain(t.Context(), querier)
	require.ErrorContains(t, err, "no ingester of a cluster is there")

	gone := newIngester(t)
	gone.Close()
	_, err = drain(t.Context(), gone)
	require.ErrorContains(t, err, "refused")
}

func TestCommandLine(t *testing.T) {
	i := newIngester(t, says(`{"instance":"a","state":"LEFT"}`))
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"a drain", []string{"--url=" + i.URL + "/"}, exitOK, "a has left the cluster"},
		{"help", []string{"--help"}, exitOK, "hundredfold drain --url="},
		{"unknown flag", []string{"--force"}, exitUsage, "-force"},
		{"no flag", []string{"a-2"}, exitUsage, `unexpected argument "a-2"`},
		{"no scheme", []string{"--url=10.0.0.7:9009"}, exitUsage, errAddress.Error()},
		{"another scheme", []string{"--url=localhost:9009"}, exitUsage, errAddress.Error()},
		{"no host", []string{"--url=http://"}, exitUsage, errAddress.Error()},
		{"no time", []string{"--url=" + i.URL, "--timeout=1ns"}, exitFailed, "deadline exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			require.Equal(t, c.code, Main(t.Context(), c.args, &out, &out), out.String())
			require.Contains(t, out.String(), c.says)
		})
	}
}

func TestAddressMayStandInTheEnvironment(t *testing.T) {
	i := newIngester(t, says(`{"instance":"a","state":"LEFT"}`))
	t.Setenv(urlVariable, i.URL)
	require.Equal(t, exitOK, Main(t.Context(), nil, io.Discard, io.Discard))
}
