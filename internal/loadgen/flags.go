package loadgen

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
)

// streamFlags are those that say what is sent. All subcommands have them.
type streamFlags struct {
	histograms, end string
	protocol        int
}

// newStreamFlags adds them to flags. What is in cfg is the default; complete fills in
// the rest.
func newStreamFlags(flags *flag.FlagSet, cfg *Config) *streamFlags {
	s := &streamFlags{protocol: int(cfg.Protocol)}
	flags.IntVar(&cfg.Series, "series", cfg.Series, "active series, in all tenants together")
	flags.TextVar((*duration)(&cfg.Interval), "interval", (*duration)(&cfg.Interval), "time from one sample of a series to the next")
	flags.StringVar(&s.end, "end", "", "end of --span, as RFC 3339 or Unix seconds (default: now)")
	flags.Float64Var(&cfg.Rate, "rate", 0, "samples per second of --span; 0: as fast as accepted")
	flags.Float64Var(&cfg.Churn, "churn", 0, "`share` of the series that is replaced per hour")
	flags.BoolVar(&cfg.Unmarked, "unmarked", false, "series that --churn replaces just stop, without a stale marker")
	flags.IntVar(&s.protocol, "protocol", s.protocol, "remote write `1|2`")
	flags.StringVar(&s.histograms, "histograms", "0", "native histograms among the series: a share below 1, or a count")
	flags.IntVar(&cfg.Tenants, "tenants", 0, "tenants, sent as X-Scope-OrgID: loadgen-0 and so on; 0: no header")
	flags.IntVar(&cfg.Senders, "senders", cfg.Senders, "requests on their way at once")
	flags.IntVar(&cfg.SamplesPerRequest, "samples-per-request", cfg.SamplesPerRequest, "samples in one request, at most")
	flags.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "another seed makes other series")
	return s
}

// complete puts into cfg what is not a plain number.
func (s *streamFlags) complete(cfg *Config) error {
	var errs [2]error
	cfg.Protocol = Protocol(s.protocol)
	cfg.Histograms, errs[0] = parseHistograms(s.histograms, cfg.Series)
	cfg.End, errs[1] = parseEnd(s.end)
	return errors.Join(errs[:]...)
}

// parseFlags parses args. When they ask for help it writes usage and the flags to stderr.
func parseFlags(flags *flag.FlagSet, args []string, usage string, stderr io.Writer) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(stderr, usage)
			flags.SetOutput(stderr)
			flags.PrintDefaults()
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: all options are flags", flags.Arg(0))
	}
	return nil
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
