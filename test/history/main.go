// Command history measures what reads a long history: `make bench-history`. It writes a
// year of blocks, puts a real S3-compatible server before them that is as slow as a
// distant one, starts Hundredfold on it and asks what dashboards ask. `history
// generate` and `history serve` are the parts of it, for work by hand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hundredfold/hundredfold/internal/testcluster/history"
	"github.com/hundredfold/hundredfold/internal/testcluster/slowstore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "history:", err)
		os.Exit(1)
	}
}

// options are the same for all subcommands.
type options struct {
	bin     string // directory of the programs
	dir     string
	history history.Config
	store   slowstore.Config
	listen  string
	work    string // directory of one measurement
	rounds  int
	// queriers is how many of them share the blocks; 1: one process has all roles.
	queriers int
	peer     bool // whether Prometheus is measured, too
	foreign  bool // whether the blocks are as others upload them: without sidecars
}

func command(ctx context.Context, args []string) error {
	commands := map[string]func(context.Context, options) error{
		"bench":    bench,
		"compact":  compact,
		"generate": generate,
		"import":   imports,
		"serve":    serve,
		"start":    start,
	}
	names := make([]string, 0, len(commands))
	for name := range commands {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(args) == 0 || commands[args[0]] == nil {
		return fmt.Errorf("the first argument is one of %s", strings.Join(names, ", "))
	}
	o, err := parse(args[0], args[1:])
	if err != nil {
		return err
	}
	return commands[args[0]](ctx, o)
}

func parse(name string, args []string) (options, error) {
	o := options{history: history.Year(), store: slowstore.Distant()}
	var from, to, encoding string
	h := &o.history
	set := flag.NewFlagSet("history "+name, flag.ExitOnError)
	set.StringVar(&o.bin, "bin", ".bin", "`DIRECTORY` of the programs")
	set.StringVar(&o.dir, "dir", ".bin/history", "`DIRECTORY` of the history")
	set.StringVar(&o.work, "work", "", "`DIRECTORY` of the measurement itself, beside --dir by default; removed in the end")
	set.IntVar(&o.rounds, "rounds", 3, "how often each query is asked: the median counts")
	set.IntVar(&o.queriers, "queriers", 1, "of bench: how many queriers share the blocks; more than one are a cluster on this machine, of which the first is asked")
	set.BoolVar(&o.peer, "prometheus", false, "measure a Prometheus on the same blocks, from local disk, too")
	set.BoolVar(&o.foreign, "foreign", false, "leave out the sidecars, as in a bucket that others have filled")
	set.StringVar(&o.listen, "listen", "127.0.0.1:9011", "`HOST:PORT` of the slow store")
	set.DurationVar(&o.store.Latency, "latency", o.store.Latency, "`TIME` that each request to the store takes")
	set.Int64Var(&o.store.BytesPerSecond, "bandwidth", o.store.BytesPerSecond, "`BYTES` per second of the store; 0: no bound")
	set.Uint64Var(&h.Seed, "seed", h.Seed, "another seed makes other series")
	set.IntVar(&h.Series, "series", h.Series, "number of series")
	set.DurationVar(&h.Interval, "interval", h.Interval, "`TIME` from one sample of a series to the next")
	set.StringVar(&from, "from", h.Start.Format(time.RFC3339), "start of the history, RFC 3339")
	set.StringVar(&to, "to", h.End.Format(time.RFC3339), "end of the history, RFC 3339")
	set.DurationVar(&h.Block, "block", h.Block, "length of a block")
	set.StringVar(&encoding, "encoding", "xor2", "encoding of the chunks: xor or xor2")
	set.IntVar(&h.ChunkSamples, "chunk-samples", h.ChunkSamples, "samples of a chunk: 120 as an ingester cuts them")
	set.BoolVar(&h.Joined, "joined", false, "join the chunks as the compactor does")
	set.BoolVar(&h.Plain, "plain", false, "take the series that loadgen sends, instead of the mix of the measured queries")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if o.work == "" {
		o.work = o.dir + "-work"
	}
	var errs [3]error
	h.Start, errs[0] = time.Parse(time.RFC3339, from)
	h.End, errs[1] = time.Parse(time.RFC3339, to)
	switch encoding {
	case "xor":
		h.Encoding = chunkenc.EncXOR
	case "xor2":
		h.Encoding = chunkenc.EncXOR2
	default:
		errs[2] = fmt.Errorf("--encoding: %q is neither xor nor xor2", encoding)
	}
	return o, errors.Join(errs[:]...)
}

// generate writes the history into --dir itself, which then is like the folder of a
// tenant in a bucket, or the data directory of a Prometheus.
func generate(ctx context.Context, o options) error {
	started := time.Now()
	if err := os.MkdirAll(o.dir, 0o750); err != nil {
		return err
	}
	samples, err := history.Write(ctx, o.history, o.dir)
	if err != nil {
		return err
	}
	s, err := sizesOf(o.dir)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d series, %d samples, %s, in %s\n", o.dir, o.history.Series, samples, s.perSample(samples), time.Since(started).Round(time.Millisecond))
	return nil
}

// sizes is what blocks take.
type sizes struct{ chunks, index, all int64 }

func sizesOf(dir string) (sizes, error) {
	var s sizes
	var errs [3]error
	s.chunks, errs[0] = history.Size(dir, func(path string) bool { return strings.Contains(path, "/chunks/") })
	s.index, errs[1] = history.Size(dir, func(path string) bool { return strings.HasSuffix(path, "/index") })
	s.all, errs[2] = history.Size(dir, func(string) bool { return true })
	return s, errors.Join(errs[:]...)
}

func (s sizes) perSample(samples uint64) string {
	n := float64(samples)
	return fmt.Sprintf("%.3f bytes per sample (chunks %.3f, index %.3f)", float64(s.all)/n, float64(s.chunks)/n, float64(s.index)/n)
}
