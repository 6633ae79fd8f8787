package rollout

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const usage = `hundredfold rollout restarts the ingesters of a cluster zone by zone, and waits after
each zone until all replica sets are whole. It refuses to begin if they are not.
Distributors, queriers and compactors keep nothing and need no such care.

  hundredfold rollout --url=http://10.0.0.7:9009 --dry-run

systemd:

  hundredfold rollout --url=http://10.0.0.7:9009 \
    --exec='ssh {host} sudo systemctl restart hundredfold@ingester'

Kubernetes, with the query service forwarded to this machine:

  hundredfold rollout --exec='kubectl -n metrics delete pod {id}'

Without --exec it says which ingesters to restart and waits until they were. Broken off,
the same command goes on where it was: it keeps a journal until it is done.

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

// options are what the command line says.
type options struct {
	cfg             Config
	urls            []string
	exec, journal   string
	dryRun          bool
	announce, ready bool
}

// Main runs `hundredfold rollout` with args and returns the exit code. Progress goes to
// stdout, errors and what the restarts write to stderr.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "hundredfold rollout: %s\nSee hundredfold rollout --help.\n", err)
		return exitUsage
	}
	if err := opts.run(ctx, stdout, stderr); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold rollout: %s\n", err)
		return exitFailed
	}
	return exitOK
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	set := flag.NewFlagSet("hundredfold rollout", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Func("url", "`URL` of any process of the cluster, with user and password if it asks for them; may be repeated, then the first that answers is asked (default $"+urlVariable+", or http://127.0.0.1:9009)", func(v string) error {
		o.urls = append(o.urls, v)
		return nil
	})
	set.StringVar(&o.exec, "exec", "", "shell `command` that restarts one ingester; {id}, {zone} and {host} are its own")
	set.IntVar(&o.cfg.Parallel, "parallel", 0, "how many ingesters of a zone restart at once; 0: all. One by one, if there are fewer zones than replicas")
	set.DurationVar(&o.cfg.Timeout, "timeout", 30*time.Minute, "how long the cluster may take to become whole after each step")
	set.DurationVar(&o.cfg.Interval, "interval", 2*time.Second, "time between two looks at the cluster")
	set.StringVar(&o.journal, "journal", "hundredfold-rollout.json", "`file` that says what was restarted, until all is done")
	set.BoolVar(&o.cfg.AllowOutage, "allow-outage", false, "begin even if series become unavailable meanwhile, with a replication factor of 1")
	set.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	set.BoolVar(&o.announce, "announce", false, "only tell the ingester at --url that it will be restarted: it keeps its slots and gets no more writes")
	set.BoolVar(&o.ready, "ready", false, "only ask the process at --url whether it is ready")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(stderr, usage)
			set.SetOutput(stderr)
			set.PrintDefaults()
		}
		return o, err
	}
	if len(o.urls) == 0 {
		o.urls = []string{"http://127.0.0.1:9009"}
		if v := os.Getenv(urlVariable); v != "" {
			o.urls = []string{v}
		}
	}
	switch {
	case set.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q: all options are flags", set.Arg(0))
	case o.cfg.Parallel < 0:
		return o, errors.New("--parallel: it is negative")
	case o.cfg.Timeout <= 0 || o.cfg.Interval <= 0:
		return o, errors.New("--timeout and --interval: they must be positive")
	case o.announce && o.ready:
		return o, errors.New("--announce and --ready: choose one")
	}
	return o, nil
}

func (o options) run(ctx context.Context, stdout, stderr io.Writer) error {
	c, err := newClient(o.urls)
	if err != nil {
		return err
	}
	switch {
	case o.announce:
		return c.announce(ctx)
	case o.ready:
		return c.ready(ctx)
	}
	journal, err := o.earlier(ctx, c)
	if err != nil {
		return err
	}
	r := New(o.cfg, Deps{
		Status:  c.status,
		Restart: o.restarter(stdout, stderr),
		Save:    func(j Journal) error { return j.write(o.journal) },
		Out:     stdout,
	})
	plan, journal, err := r.Plan(ctx, journal)
	if err != nil {
		return err
	}
	if o.dryRun {
		_, err := io.WriteString(stdout, plan.String())
		return err
	}
	if err := r.Run(ctx, journal); err != nil {
		return fmt.Errorf("%w\nThe same command goes on from here", err)
	}
	return os.Remove(o.journal)
}

// earlier returns the journal of a rollout that was broken off.
func (o options) earlier(ctx context.Context, c *client) (Journal, error) {
	journal, err := readJournal(o.journal)
	if err != nil || journal.Empty() {
		return journal, err
	}
	status, err := c.status(ctx)
	if err != nil {
		return journal, err
	}
	return journal, journal.fits(status.Cluster, time.Now())
}

// restarter returns how an ingester is restarted: by the command, or by a person.
func (o options) restarter(stdout, stderr io.Writer) func(context.Context, Member) error {
	if o.exec == "" {
		out := &lockedWriter{w: stdout}
		return func(_ context.Context, m Member) error {
			_, err := fmt.Fprintf(out, "restart %s on %s now\n", m.ID, m.Host)
			return err
		}
	}
	errs := &lockedWriter{w: stderr}
	return func(ctx context.Context, m Member) error {
		// The plan has made sure that these are plain words.
		command := strings.NewReplacer("{id}", m.ID, "{zone}", m.Zone, "{host}", m.Host).Replace(o.exec)
		cmd := exec.CommandContext(ctx, "sh", "-c", command)
		cmd.Stdout, cmd.Stderr = errs, errs
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		return nil
	}
}

// lockedWriter lets several commands write at once.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
