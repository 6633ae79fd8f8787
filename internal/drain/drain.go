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

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

var errFailed = errors.New("the drain failed; nothing is lost, and it can be asked for again")

// status is what GET /ingester/drain answers.
type status struct {
	Instance string         `json:"instance"`
	State    string         `json:"state"`
	Progress map[string]any `json:"progress"`
	Error    string         `json:"error"`
}

// client asks one ingester.
type client struct {
	http     *http.Client
	endpoint string
	interval time.Duration // between two questions
	out      io.Writer
}

// Main runs `hundredfold drain` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set := flag.NewFlagSet("drain", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		set.PrintDefaults()
	}
	base := set.String("url", "http://127.0.0.1:9009", "`URL` of the ingester, with user and password if it asks for them")
	timeout := set.Duration("timeout", 30*time.Minute, "how long to wait for the end")
	switch err := set.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case set.NArg() > 0:
		_, _ = fmt.Fprintf(stderr, "hundredfold drain: %q is not a flag\n", set.Arg(0))
		return exitUsage
	}
	if _, err := url.ParseRequestURI(*base); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold drain: --url: %s\n", err)
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	c := &client{
		http:     &http.Client{Timeout: 10 * time.Second},
		endpoint: strings.TrimSuffix(*base, "/") + "/ingester/drain",
		interval: time.Second,
		out:      stdout,
	}
	if err := c.run(ctx); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold drain: %s\n", err)
		return exitFailed
	}
	return exitOK
}

// run starts the drain and follows it to its end. An ingester that does not answer for
// a while may be restarting, so that is no failure until ctx ends.
func (c *client) run(ctx context.Context) error {
	if err := c.start(ctx); err != nil {
		return err
	}
	ticker := time.NewTicker(c.interval)
	defer ticker.Stop()
	last := ""
	for {
		s, err := c.ask(ctx)
		line := ""
		switch {
		case err != nil:
			line = "waiting for an answer: " + err.Error()
		case s.Error != "":
			return fmt.Errorf("%w: %s", errFailed, s.Error)
		case s.State == "LEFT":
			_, _ = fmt.Fprintf(c.out, "%s has left the cluster; stop its process and delete its disk\n", s.Instance)
			return nil
		default:
			line = s.line()
		}
		if line != last {
			_, _ = fmt.Fprintln(c.out, line)
			last = line
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the drain goes on without this command: %w", context.Cause(ctx))
		case <-ticker.C:
		}
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

func (c *client) start(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodPost)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return refusal(resp)
	}
	return nil
}

func (c *client) ask(ctx context.Context) (status, error) {
	resp, err := c.do(ctx, http.MethodGet)
	if err != nil {
		return status{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return status{}, refusal(resp)
	}
	var s status
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s); err != nil {
		return status{}, fmt.Errorf("decode the answer of %s: %w", c.endpoint, err)
	}
	return s, nil
}

func (c *client) do(ctx context.Context, method string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.endpoint, http.NoBody)
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

// refusal is what an ingester says that does not do what it was asked for.
func refusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return errors.Join(fmt.Errorf("%s answers %s: %s", resp.Request.URL.Redacted(), resp.Status, strings.TrimSpace(string(text))), err)
}
