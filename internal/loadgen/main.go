package loadgen

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
)

const usage = `hundredfold loadgen sends remote write like Prometheus servers that scrape Kubernetes.

One hour of 100,000 series at 15 s, as fast as it is accepted, and then a check
that every acknowledged sample can be read back:

  hundredfold loadgen --url=http://127.0.0.1:9009/api/v1/write --series=100000 --span=1h --verify

10,000 live series until interrupted, of which a tenth is replaced every hour:

  hundredfold loadgen --series=10000 --churn=0.1

All that is sent follows from the flags, and the timestamps lie on a fixed grid:
the same command sends the same series again.

Flags:
`

// Exit codes.
const (
	exitOK     = 0
	exitFaulty = 1 // samples were refused, none was accepted, or verification found a fault
	exitUsage  = 2
)

// options is what Main does besides running a Generator.
type options struct {
	verify, verifyOnly bool
}

// Main runs `hundredfold loadgen` with args and returns the exit code. Results
// go to stdout, progress and errors to stderr.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, opts, err := parse(args, stderr)
	if err == nil {
		err = execute(ctx, cfg, opts, stdout, stderr)
	} else {
		err = usageError{err}
	}
	return exitCode("loadgen", err, stderr)
}

// usageError is a fault of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitCode tells stderr what went wrong in a subcommand, and returns its exit code.
func exitCode(name string, err error, stderr io.Writer) int {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, new(usageError)):
		_, _ = fmt.Fprintf(stderr, "hundredfold %s: %s\nSee hundredfold %[1]s --help.\n", name, strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitUsage
	}
	_, _ = fmt.Fprintf(stderr, "hundredfold %s: %s\n", name, err)
	return exitFaulty
}

var (
	errRefused = errors.New("the receiver refused samples")
	errNothing = errors.New("nothing was acknowledged, so there is nothing to measure or to verify")
	errFaulty  = errors.New("what was read back is not what was acknowledged")
)

func execute(ctx context.Context, cfg Config, opts options, stdout, stderr io.Writer) error {
	g, err := prepare(cfg, opts, slog.New(slog.NewTextHandler(stderr, nil)))
	if err != nil {
		return err
	}
	refused := false
	if !opts.verifyOnly {
		report, err := g.Run(ctx)
		if report.Elapsed > 0 {
			err = errors.Join(err, report.Print(stdout))
		}
		if err != nil {
			return err
		}
		refused = !report.Clean()
		if report.Acknowledged == 0 && !refused {
			return errNothing
		}
	}
	if opts.verify || opts.verifyOnly {
		if ctx.Err() != nil && !opts.verifyOnly {
			ctx = context.WithoutCancel(ctx) // an interrupt ends the sending; a second one ends the process
		}
		report, err := g.Verify(ctx)
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		if err := report.Print(stdout); err != nil {
			return err
		}
		if !report.Clean() {
			return errFaulty
		}
	}
	if refused {
		return errRefused
	}
	return nil
}

func prepare(cfg Config, opts options, logger *slog.Logger) (*Generator, error) {
	if opts.verifyOnly && cfg.Journal != "" {
		acked, err := ReadAcknowledged(cfg.Journal)
		if err != nil {
			return nil, err
		}
		return Resume(cfg, acked)
	}
	g, err := New(cfg, logger)
	if err == nil && opts.verifyOnly {
		g.AssumeAll()
	}
	return g, err
}

func parse(args []string, stderr io.Writer) (Config, options, error) {
	cfg, opts := Default(), options{}
	var pids string
	flags := flag.NewFlagSet("hundredfold loadgen", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	stream := newStreamFlags(flags, &cfg)
	flags.StringVar(&cfg.URL, "url", cfg.URL, "`URL` that receives remote write")
	flags.StringVar(&cfg.QueryURL, "query-url", "", "`URL` of the query API for --verify, without /api/v1 (default: from --url)")
	flags.TextVar((*duration)(&cfg.Span), "span", (*duration)(&cfg.Span), "simulated time to send, ending at --end; 0s: send live, stamped with the current time")
	flags.TextVar((*duration)(&cfg.Duration), "duration", (*duration)(&cfg.Duration), "stop after this much time; 0s: at the end of --span, or when interrupted")
	flags.StringVar(&pids, "pid", "", "`processes` of the receiver, with commas between, whose CPU time and memory are reported")
	flags.BoolVar(&opts.verify, "verify", false, "afterwards read everything back by PromQL and compare")
	flags.BoolVar(&opts.verifyOnly, "verify-only", false, "send nothing; verify an earlier run, that of --journal or one with the same flags and --end")
	flags.StringVar(&cfg.Journal, "journal", "", "`file` that tells what was acknowledged, for a later --verify-only")

	if err := parseFlags(flags, args, usage, stderr); err != nil {
		return cfg, opts, err
	}
	var errs [3]error
	errs[0] = stream.complete(&cfg)
	cfg.Processes, errs[1] = parsePIDs(pids)
	if opts.verifyOnly && cfg.Journal == "" && (cfg.Span == 0 || stream.end == "") {
		errs[2] = errors.New("--verify-only: needs --journal, or --span and --end of the earlier run")
	}
	return cfg, opts, errors.Join(errors.Join(errs[:]...), cfg.Validate())
}

func parsePIDs(s string) ([]int, error) {
	var pids []int
	for field := range strings.SplitSeq(s, ",") {
		if field == "" {
			continue
		}
		pid, err := parsePID(field)
		if err != nil {
			return nil, fmt.Errorf("--pid: %w", err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func parsePID(s string) (int, error) {
	pid, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || pid < 1 {
		return 0, fmt.Errorf("%q is not a process id", s)
	}
	return pid, nil
}
