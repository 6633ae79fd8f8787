package loadgen

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/common/model"
)

const compareUsage = `hundredfold compare sends the same remote write to several receivers, one after the
other, and prints side by side what it cost each of them.

This process and a VictoriaMetrics on the same machine, 3 times 30 minutes of 100,000
series each:

  hundredfold compare --target=ours,http://127.0.0.1:9009/api/v1/write,PID \
      --target=vm,http://127.0.0.1:8428/api/v1/write,PID

All processes must run on this machine, which has to be Linux: CPU time and memory are
read from /proc. Start the receivers afresh, with empty directories, and let nothing else
run. The samples stay in the receivers.

Flags:
`

// MainCompare runs "hundredfold compare" with args and returns the exit code. Results
// go to stdout, progress and errors to stderr.
func MainCompare(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, err := parseComparison(args, stderr)
	if err != nil {
		return exitCode("compare", usageError{err}, stderr)
	}
	done, err := c.Run(ctx, slog.New(slog.NewTextHandler(stderr, nil)))
	if len(done) > 0 {
		err = errors.Join(err, c.print(stdout, done))
	}
	return exitCode("compare", err, stderr)
}

func parseComparison(args []string, stderr io.Writer) (Comparison, error) {
	c := Comparison{Stream: Default(), Rounds: 3, Settle: 30 * time.Second}
	c.Stream.Series, c.Stream.Span = 100_000, 30*time.Minute
	var reverse bool
	flags := flag.NewFlagSet("hundredfold compare", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	stream := newStreamFlags(flags, &c.Stream)
	flags.Func("target", "receiver as `NAME,URL,PID`, with the ids of further processes after more commas; once for each receiver", func(s string) error {
		t, err := parseTarget(s)
		c.Targets = append(c.Targets, t)
		return err
	})
	flags.TextVar((*duration)(&c.Stream.Span), "span", (*duration)(&c.Stream.Span), "simulated time that each round sends; the last round ends at --end")
	flags.IntVar(&c.Rounds, "rounds", c.Rounds, "how often each receiver is measured; medians are printed, too")
	flags.TextVar((*duration)(&c.Settle), "settle", (*duration)(&c.Settle), "time after a round in which the receiver's work is still counted")
	flags.BoolVar(&reverse, "reverse", false, "begin with the last --target")
	if err := parseFlags(flags, args, compareUsage, stderr); err != nil {
		return c, err
	}
	if reverse {
		slices.Reverse(c.Targets)
	}
	return c, errors.Join(stream.complete(&c.Stream), c.Validate())
}

func parseTarget(s string) (Target, error) {
	fields := strings.Split(s, ",")
	if len(fields) < 3 || fields[0] == "" {
		return Target{}, errors.New("it is not NAME,URL,PID such as vm,http://127.0.0.1:8428/api/v1/write,4711")
	}
	t := Target{Name: fields[0], URL: fields[1]}
	for _, field := range fields[2:] {
		pid, err := parsePID(field)
		if err != nil {
			return Target{}, err
		}
		t.Processes = append(t.Processes, pid)
	}
	return t, nil
}

// columns are what is printed of a Measurement. Medians are taken of each by itself.
func columns() []column {
	perMillion := func(cpu time.Duration, m Measurement) float64 {
		return cpu.Seconds() / (float64(m.Report.Acknowledged) / 1e6)
	}
	perSeries := func(bytes int64, m Measurement) float64 { return float64(bytes) / float64(m.Report.Series) }
	return []column{
		{"samples/s", 0, func(m Measurement) float64 { return float64(m.Report.Acknowledged) / m.Report.Elapsed.Seconds() }},
		{"CPU s/M", 2, func(m Measurement) float64 { return perMillion(m.Report.Receiver.CPU, m) }},
		{"settled", 2, func(m Measurement) float64 { return perMillion(m.Settled.CPU, m) }},
		{"B/series", 0, func(m Measurement) float64 { return perSeries(m.Report.Receiver.Anonymous, m) }},
		{"settled", 0, func(m Measurement) float64 { return perSeries(m.Settled.Anonymous, m) }},
		{"p50 ms", 1, func(m Measurement) float64 { return m.Report.Latency.P50.Seconds() * 1e3 }},
		{"p99 ms", 1, func(m Measurement) float64 { return m.Report.Latency.P99.Seconds() * 1e3 }},
		{"retries", 0, func(m Measurement) float64 { return float64(m.Report.Retries) }},
		{"sender", 2, func(m Measurement) float64 { return perMillion(m.Report.CPU, m) }},
	}
}

type column struct {
	name   string
	digits int
	of     func(Measurement) float64
}

// print writes a line for each round of each target, and the medians.
func (c Comparison) print(w io.Writer, done []Measurement) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d series, rounds of %s at %s, remote write %d.0, %d samples in a request, %d senders\n\n", c.Stream.Series,
		model.Duration(c.Stream.Span), model.Duration(c.Stream.Interval), c.Stream.Protocol, c.Stream.SamplesPerRequest, c.Stream.Senders)
	var rows strings.Builder
	line := func(round, target string, cell func(column) string) {
		// These two are aligned by hand: a tabwriter has one alignment for all columns.
		fmt.Fprintf(&rows, "%-6s  %-*s\t", round, c.widest(), target)
		for _, col := range columns() {
			rows.WriteString(cell(col) + "\t")
		}
		rows.WriteByte('\n')
	}
	line("round", "receiver", func(col column) string { return col.name })
	for _, m := range done {
		line(strconv.Itoa(m.Round), m.Target, func(col column) string { return col.text(col.of(m)) })
	}
	for _, t := range c.Targets {
		of := slices.DeleteFunc(slices.Clone(done), func(m Measurement) bool { return m.Target != t.Name })
		if len(of) > 0 {
			line("median", t.Name, func(col column) string { return col.text(median(of, col.of)) })
		}
	}
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	if _, err := io.WriteString(table, rows.String()); err != nil {
		return err
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, `
CPU s/M   CPU seconds of the receiver per million samples, until the last answer; settled: and for %[1]s after it
B/series  its anonymous memory in RAM per active series, at the last answer; settled: %[1]s after it
p50, p99  from request to answer. sender: CPU seconds per million samples of this process, on the same CPUs
`, model.Duration(c.Settle))
	_, err := io.WriteString(w, b.String())
	return err
}

func (c Comparison) widest() int {
	width := len("receiver")
	for _, t := range c.Targets {
		width = max(width, len(t.Name))
	}
	return width
}

func (c column) text(v float64) string { return strconv.FormatFloat(v, 'f', c.digits, 64) }

// median returns the median of what of says; of an even number, the mean of the middle two.
func median(all []Measurement, of func(Measurement) float64) float64 {
	values := make([]float64, len(all))
	for i, m := range all {
		values[i] = of(m)
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
