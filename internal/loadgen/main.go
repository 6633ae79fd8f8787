package loadgen

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
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
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "hundredfold loadgen: %s\nSee hundredfold loadgen --help.\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitUsage
	}
	if err := execute(ctx, cfg, opts, stdout, stderr); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold loadgen: %s\n", err)
		return exitFaulty
	}
	return exitOK
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
	var histograms, end, pids string
	protocol := int(cfg.Protocol)

	flags := flag.NewFlagSet("hundredfold loadgen", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&cfg.URL, "url", cfg.URL, "`URL` that receives remote write")
	flags.StringVar(&cfg.QueryURL, "query-url", "", "`URL` of the query API for --verify, without /api/v1 (default: from --url)")
	flags.IntVar(&cfg.Series, "series", cfg.Series, "active series, in all tenants together")
	flags.TextVar((*duration)(&cfg.Interval), "interval", (*duration)(&cfg.Interval), "time from one sample of a series to the next")
	flags.TextVar((*duration)(&cfg.Span), "span", (*duration)(&cfg.Span), "simulated time to send, ending at --end; 0s: send live, stamped with the current time")
	flags.StringVar(&end, "end", "", "end of --span, as RFC 3339 or Unix seconds (default: now)")
	flags.TextVar((*duration)(&cfg.Duration), "duration", (*duration)(&cfg.Duration), "stop after this much time; 0s: at the end of --span, or when interrupted")
	flags.Float64Var(&cfg.Rate, "rate", 0, "samples per second of --span; 0: as fast as accepted")
	flags.Float64Var(&cfg.Churn, "churn", 0, "`share` of the series that is replaced per hour")
	flags.IntVar(&protocol, "protocol", protocol, "remote write `1|2`")
	flags.StringVar(&histograms, "histograms", "0", "native histograms among the series: a share below 1, or a count")
	flags.IntVar(&cfg.Tenants, "tenants", 0, "tenants, sent as X-Scope-OrgID: loadgen-0 and so on; 0: no header")
	flags.IntVar(&cfg.Senders, "senders", cfg.Senders, "requests on their way at once")
	flags.IntVar(&cfg.SamplesPerRequest, "samples-per-request", cfg.SamplesPerRequest, "samples in one request, at most")
	flags.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "another seed makes other series")
	flags.StringVar(&pids, "pid", "", "`processes` of the receiver, with commas between, whose CPU time and memory are reported")
	flags.BoolVar(&opts.verify, "verify", false, "afterwards read everything back by PromQL and compare")
	flags.BoolVar(&opts.verifyOnly, "verify-only", false, "send nothing; verify an earlier run, that of --journal or one with the same flags and --end")
	flags.StringVar(&cfg.Journal, "journal", "", "`file` that tells what was acknowledged, for a later --verify-only")

	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(stderr, usage)
			flags.SetOutput(stderr)
			flags.PrintDefaults()
		}
		return cfg, opts, err
	}
	if flags.NArg() > 0 {
		return cfg, opts, fmt.Errorf("unexpected argument %q: all options are flags", flags.Arg(0))
	}
	cfg.Protocol = Protocol(protocol)
	var errs [4]error
	cfg.Histograms, errs[0] = parseHistograms(histograms, cfg.Series)
	cfg.End, errs[1] = parseEnd(end)
	cfg.Processes, errs[2] = parsePIDs(pids)
	if opts.verifyOnly && cfg.Journal == "" && (cfg.Span == 0 || end == "") {
		errs[3] = errors.New("--verify-only: needs --journal, or --span and --end of the earlier run")
	}
	return cfg, opts, errors.Join(errors.Join(errs[:]...), cfg.Validate())
}

func parseHistograms(s string, series int) (int, error) {
	v, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || v < 0 || math.IsNaN(v) || v > math.MaxInt32:
		return 0, fmt.Errorf("--histograms: %q is neither a share such as 0.1 nor a count", s)
	case v < 1:
		return int(math.Round(v * float64(series))), nil
	case v != math.Trunc(v):
		return 0, fmt.Errorf("--histograms: %q is neither a share below 1 nor a whole number", s)
	}
	return int(v), nil
}

func parseEnd(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if seconds, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(seconds) < 1e11 {
		return time.UnixMilli(int64(seconds * 1000)), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("--end: %q is neither RFC 3339 nor Unix seconds", s)
	}
	return t, nil
}

func parsePIDs(s string) ([]int, error) {
	var pids []int
	for field := range strings.SplitSeq(s, ",") {
		if field == "" {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || pid < 1 {
			return nil, fmt.Errorf("--pid: %q is not a process id", field)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// duration is a flag that takes Prometheus's durations (1d) and Go's (1.5h).
type duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	if parsed, err := model.ParseDuration(string(text)); err == nil {
		*d = duration(parsed)
		return nil
	}
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 15s, 1h30m or 1d", text)
	}
	*d = duration(parsed)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d *duration) MarshalText() ([]byte, error) {
	return []byte(model.Duration(*d).String()), nil
}
