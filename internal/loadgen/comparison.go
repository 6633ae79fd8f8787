package loadgen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"
)

// Target is a receiver that is compared with others.
type Target struct {
	Name      string
	URL       string // receives remote write
	Processes []int  // of the receiver, all that its work is done by
}

// Comparison sends the same stream to several receivers, one after the other, and
// measures what it costs each of them.
type Comparison struct {
	// Stream is what is sent. Its URL and Processes are those of the targets. Its End is
	// that of the last round.
	Stream  Config
	Targets []Target
	// Rounds is how often each target gets Stream.Span of samples. The rounds are
	// consecutive in simulated time, so that nothing is sent twice, and all of them are
	// of the same series: the first one creates these, the others find them there.
	Rounds int
	// Settle is how long a target is left alone after the last answer of a round, for
	// what it has put off until then: what it does in this time belongs to the round.
	Settle time.Duration
}

// Measurement is what one round cost one target.
type Measurement struct {
	Target string
	Round  int // from 1
	// Report is of the time until the last answer.
	Report Report
	// Settled is what the target used from the first request to the end of Settle.
	Settled Usage
}

// Validate reports all faults of c, each with the flag that sets it.
func (c Comparison) Validate() error {
	errs := []error{c.Stream.Validate()}
	if len(c.Targets) == 0 {
		errs = append(errs, errors.New("--target: name at least one receiver"))
	}
	names := map[string]bool{}
	for _, t := range c.Targets {
		if names[t.Name] {
			errs = append(errs, fmt.Errorf("--target: two receivers are called %s", t.Name))
		}
		names[t.Name] = true
		if !isURL(t.URL) {
			errs = append(errs, fmt.Errorf("--target=%s: %q is not a URL such as %s", t.Name, t.URL, Default().URL))
		}
		if len(t.Processes) == 0 {
			errs = append(errs, fmt.Errorf("--target=%s: the ids of its processes are missing", t.Name))
		}
	}
	if c.Stream.Span == 0 {
		errs = append(errs, errors.New("--span: a comparison is not sent live; set the time that a round sends"))
	}
	if c.Rounds < 1 || c.Rounds > 100 {
		errs = append(errs, fmt.Errorf("--rounds: %d is outside 1 to 100", c.Rounds))
	}
	if c.Settle < 0 {
		errs = append(errs, fmt.Errorf("--settle: %s is negative", c.Settle))
	}
	return errors.Join(errs...)
}

// errInterrupted is that a comparison was given up before its end.
var errInterrupted = errors.New("interrupted before the last round had ended")

// Run returns the measurements in the order in which they were made, also those from
// before an error.
func (c Comparison) Run(ctx context.Context, logger *slog.Logger) ([]Measurement, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Stream.End.IsZero() {
		c.Stream.End = time.Now()
	}
	for _, t := range c.Targets {
		if err := t.probe(ctx, c.Stream.Timeout); err != nil {
			return nil, fmt.Errorf("--target=%s: %w", t.Name, err)
		}
	}
	var done []Measurement
	for round := 1; round <= c.Rounds; round++ {
		for _, t := range c.Targets {
			if err := c.awaitIdle(ctx, logger); err != nil {
				return done, err
			}
			logger.Info("sending", "target", t.Name, "round", round)
			m, err := c.measure(ctx, t, round, logger)
			if err != nil {
				return done, fmt.Errorf("--target=%s, round %d: %w", t.Name, round, err)
			}
			done = append(done, m)
		}
	}
	return done, nil
}

// probe finds out what would fail only after a while, or never end.
func (t Target) probe(ctx context.Context, timeout time.Duration) error {
	if _, err := processes(t.Processes); err != nil {
		return err
	}
	u, err := url.Parse(t.URL)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme // net knows the ports of http and https
	}
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return fmt.Errorf("nothing answers at its URL: %w", err)
	}
	return conn.Close()
}

// accountable is how many samples nobody takes without using CPU time that is seen.
const accountable = 100_000

// measure sends one round to t.
func (c Comparison) measure(ctx context.Context, t Target, round int, logger *slog.Logger) (Measurement, error) {
	cfg := c.Stream
	cfg.URL, cfg.Processes = t.URL, t.Processes
	cfg.End = cfg.End.Add(-time.Duration(c.Rounds-round) * cfg.Span)
	g, err := New(cfg, logger.With("target", t.Name))
	if err != nil {
		return Measurement{}, err
	}
	defer g.client.CloseIdleConnections()
	before, err := processes(t.Processes)
	if err != nil {
		return Measurement{}, err
	}
	report, err := g.Run(ctx)
	switch {
	case err != nil:
		return Measurement{}, err
	case ctx.Err() != nil:
		return Measurement{}, errInterrupted
	case !report.Clean():
		return Measurement{}, fmt.Errorf("%w: %s", errRefused, report.FirstRefusal)
	}
	if err := sleep(ctx, c.Settle); err != nil {
		return Measurement{}, err
	}
	settled, err := processes(t.Processes)
	if err != nil {
		return Measurement{}, err
	}
	settled.CPU -= before.CPU
	if settled.CPU == 0 && report.Acknowledged >= accountable {
		return Measurement{}, fmt.Errorf("its processes %v used no CPU time for %d samples: they are not those that receive", t.Processes, report.Acknowledged)
	}
	return Measurement{Target: t.Name, Round: round, Report: report, Settled: settled}, nil
}

// Before a round the targets have to be idle: what one of them still does would slow
// down another, and what a target does on its own account is not the next round's.
const (
	restShare   = 0.05            // of one CPU, that each target may use
	restProbe   = time.Second / 2 // the time over which its use is taken
	restTimeout = 2 * time.Minute // after which the round begins all the same
)

func (c Comparison) awaitIdle(ctx context.Context, logger *slog.Logger) error {
	for began := time.Now(); ; {
		busy, err := c.busiest(ctx)
		switch {
		case err != nil:
			return err
		case busy == "":
			return nil
		case time.Since(began) > restTimeout:
			logger.Warn("the receiver does not come to rest; the round may cost more than it should", "target", busy)
			return nil
		}
	}
}

// busiest returns the name of a target that is not idle, or none.
func (c Comparison) busiest(ctx context.Context) (string, error) {
	before := make([]time.Duration, len(c.Targets))
	for i, t := range c.Targets {
		usage, err := processes(t.Processes)
		if err != nil {
			return "", fmt.Errorf("--target=%s: %w", t.Name, err)
		}
		before[i] = usage.CPU
	}
	if err := sleep(ctx, restProbe); err != nil {
		return "", err
	}
	for i, t := range c.Targets {
		usage, err := processes(t.Processes)
		if err != nil {
			return "", fmt.Errorf("--target=%s: %w", t.Name, err)
		}
		if (usage.CPU - before[i]).Seconds() > restShare*restProbe.Seconds() {
			return t.Name, nil
		}
	}
	return "", nil
}

// sleep returns after d, or with an error when ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // also when the timer fired as well
		return errInterrupted
	}
	return nil
}
