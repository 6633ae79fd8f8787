// Package drain is `hundredfold drain`: it asks an ingester to empty itself into the
// bucket and to leave the cluster, and shows how far that is. The ingester does the
// work; to break off the command breaks off nothing.
package drain

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const usage = `hundredfold drain empties an ingester: it takes no more writes, cuts all that it
holds into blocks, uploads them, waits until all queriers read them, and leaves the
cluster. Afterwards its process may be stopped and its disk deleted.

  hundredfold drain --url=http://10.0.0.7:9009

A drain goes on when this command is broken off, and when the ingester restarts.

Flags:
`

// urlVariable is the environment variable with the default of --url. A URL with a
// password is better there than on a command line, which others can see.
const urlVariable = "HUNDREDFOLD_URL"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// Times of a client outside of tests.
const (
	askEvery   = time.Second
	askTimeout = 10 * time.Second
)

var (
	errAddress = errors.New("--url: it is not an address such as http://10.0.0.7:9009")
	errFailed  = errors.New("the drain failed; nothing is lost, and it can be asked for again")
	// errRefused ends the command: asking again would be refused again.
	errRefused = errors.New("the drain is refused")
)

// status is what GET /ingester/drain answers.
type status struct {
	Instance string         `json:"instance"`
	State    string         `json:"state"`
	Progress map[string]any `json:"progress"`
	Error    string         `json:"error"`
}

// client asks one ingester. One goroutine.
type client struct {
	http     *http.Client
	endpoint string
	interval time.Duration // between two questions
	out      io.Writer

	// reached says that the ingester has answered at least once.
	reached bool
	// asked says that the ingester has taken the request, and asked for how it goes on
	// without a pause since. It may have restarted in a pause and know of no drain.
	asked bool
}

// Main runs `hundredfold drain` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set := flag.NewFlagSet("hundredfold drain", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	base := set.String("url", address(), "`URL` of the ingester, with user and password if it asks for them; $"+urlVariable+" may hold it")
	timeout := set.Duration("timeout", 30*time.Minute, "how long to wait for the end")
	err := set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, usage)
		set.SetOutput(stdout)
		set.PrintDefaults()
		return exitOK
	case err == nil && set.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q: all options are flags", set.Arg(0))
	case err == nil:
		err = checkAddress(*base)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold drain: %s\nSee hundredfold drain --help.\n", err)
		return exitUsage
	}
	c := &client{
		http:     &http.Client{Timeout: askTimeout},
		endpoint: strings.TrimSuffix(*base, "/") + "/ingester/drain",
		interval: askEvery,
		out:      stdout,
	}
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	if err := c.run(ctx); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold drain: %s\n", err)
		return exitFailed
	}
	return exitOK
}

// address is the default of --url.
func address() string {
	if v := os.Getenv(urlVariable); v != "" {
		return v
	}
	return "http://127.0.0.1:9009"
}

func checkAddress(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// It may hold a password where none is expected, so it is not repeated.
		return errAddress
	}
	return nil
}

// run starts the drain and follows it to its end. An ingester that does not answer any
// more may be restarting, so that is no failure until ctx ends.
func (c *client) run(ctx context.Context) error {
	ticker := time.NewTicker(c.interval)
	defer ticker.Stop()
	last := ""
	for {
		line, done, err := c.step(ctx)
		if err != nil || done {
			return err
		}
		if line != last {
			_, _ = fmt.Fprintln(c.out, line)
			last = line
		}
		select {
		case <-ctx.Done():
			return c.brokenOff(ctx)
		case <-ticker.C:
		}
	}
}

func (c *client) brokenOff(ctx context.Context) error {
	if !c.asked {
		return fmt.Errorf("the ingester did not answer; ask it again: %w", context.Cause(ctx))
	}
	return fmt.Errorf("the drain goes on without this command: %w", context.Cause(ctx))
}

// step asks for the drain, unless that is done, and for how far it is. It returns what
// to show, and whether the ingester has left.
func (c *client) step(ctx context.Context) (line string, done bool, err error) {
	s, err := c.ask(ctx)
	switch {
	case errors.Is(err, errRefused):
		return "", false, err
	case ctx.Err() != nil:
		return "", false, c.brokenOff(ctx)
	case err != nil && c.reached:
		c.asked = false
		return "waiting for an answer: " + err.Error(), false, nil
	case err != nil:
		return "", false, err
	case s.Error != "":
		return "", false, fmt.Errorf("%w: %s", errFailed, s.Error)
	case s.State == "LEFT":
		_, _ = fmt.Fprintf(c.out, "%s has left the cluster; stop its process and delete its disk\n", s.Instance)
		return "", true, nil
	default:
		return s.line(), false, nil
	}
}

// line shows the progress in the order in which JSON sorts its keys.
func (s status) line() string {
	text, err := json.Marshal(s.Progress)
	if err != nil || s.Progress == nil {
		return s.Instance + " " + s.State
	}
	return fmt.Sprintf("%s %s %s", s.Instance, s.State, text)
}

// ask returns how far the drain is, which it asks for first if need be.
func (c *client) ask(ctx context.Context) (status, error) {
	if !c.asked {
		if _, err := c.do(ctx, http.MethodPost, http.StatusAccepted); err != nil {
			return status{}, err
		}
		c.asked = true
	}
	body, err := c.do(ctx, http.MethodGet, http.StatusOK)
	if err != nil {
		return status{}, err
	}
	var s status
	if err := json.Unmarshal(body, &s); err != nil || s.State == "" {
		return status{}, fmt.Errorf("%w: what answers there is no ingester of this release", errRefused)
	}
	return s, nil
}

// do returns what the ingester answers. An answer with a status other than want is an
// error, errRefused unless the ingester is starting or stopping.
func (c *client) do(ctx context.Context, method string, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.endpoint, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	c.reached = true
	if resp.StatusCode == want {
		return body, nil
	}
	text := strings.TrimSpace(string(body[:min(len(body), 4<<10)]))
	if resp.StatusCode == http.StatusNotFound {
		text = "no ingester of a cluster is there"
	}
	err = fmt.Errorf("%s answers %s: %s", req.URL.Redacted(), resp.Status, text)
	if resp.StatusCode >= http.StatusInternalServerError {
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", errRefused, err)
}
