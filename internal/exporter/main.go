package exporter

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql/parser"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const usage = `hundredfold export writes what the bucket has as plain blocks that Prometheus opens. The
last hours, which only ingesters have, are not in the bucket yet.

All that a Prometheus of any release is to have for a week:

  hundredfold export --from=2026-11-01T00:00:00Z --to=2026-11-08T00:00:00Z --encoding=xor --output=/tmp/week

Some series of one tenant:

  hundredfold export --tenant=team-a --match='{namespace="checkout"}' --output=/tmp/checkout

The same command again goes on where it broke off.

Flags:
`

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // stderr says why
	exitUsage  = 2
)

// OpenBucket opens the bucket that a configuration file, "" for none, and a data
// directory, "" for that of the file, stand for.
type OpenBucket func(configFile, dataDir string) (store *blockstore.Store, directory string, err error)

// Main runs `hundredfold export` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, open OpenBucket) int {
	cfg, configFile, dataDir, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "hundredfold export: %s\nSee hundredfold export --help.\n", err)
		return exitUsage
	}
	if err := execute(ctx, cfg, configFile, dataDir, stdout, open); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold export: %s\n", err)
		return exitFailed
	}
	return exitOK
}

func execute(ctx context.Context, cfg Config, configFile, dataDir string, stdout io.Writer, open OpenBucket) (err error) {
	store, _, err := open(configFile, dataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	result, err := Run(ctx, cfg, store, stdout)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%d blocks with %d samples written, %d were there; the bucket has samples until %s\n",
		result.Blocks, result.Samples, result.Present, time.UnixMilli(result.Newest).UTC().Format(time.RFC3339))
	return err
}

func parse(args []string, stderr io.Writer) (cfg Config, configFile, dataDir string, err error) {
	var from, to, encoding, id string
	var match list
	flags := flag.NewFlagSet("hundredfold export", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&id, "tenant", string(tenant.Default), "the `TENANT`")
	flags.StringVar(&from, "from", "", "first `TIME`, as RFC 3339 or Unix seconds (default: all there is)")
	flags.StringVar(&to, "to", "", "`TIME` before which samples are, as RFC 3339 or Unix seconds (default: all there is)")
	flags.Var(&match, "match", "`SELECTOR` of series, such as up{job=\"x\"}; may be repeated (default: all series)")
	flags.StringVar(&cfg.Output, "output", "", "`DIRECTORY` that gets the blocks")
	flags.StringVar(&encoding, "encoding", "any", "`any|xor`: as in the bucket, which Prometheus 3.14 and later read, or what older ones read")
	flags.DurationVar(&cfg.BlockLength, "block-length", 24*time.Hour, "range of a block, 2h to 24h")
	flags.StringVar(&configFile, "config.file", "", "configuration `FILE` of the store")
	flags.StringVar(&dataDir, "data.dir", "", "its data `DIRECTORY`, if the file does not say it")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(stderr, usage)
			flags.SetOutput(stderr)
			flags.PrintDefaults()
		}
		return cfg, "", "", err
	}
	var errs []error
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q: all options are flags", flags.Arg(0)))
	}
	if cfg.Output == "" {
		errs = append(errs, errors.New("--output: name the directory that gets the blocks"))
	}
	if encoding != "any" && encoding != "xor" {
		errs = append(errs, fmt.Errorf("--encoding: %q is neither any nor xor", encoding))
	}
	cfg.Plain = encoding == "xor"
	if cfg.BlockLength < 2*time.Hour || cfg.BlockLength > 24*time.Hour {
		errs = append(errs, fmt.Errorf("--block-length: %s is not within 2h and 24h", cfg.BlockLength))
	}
	var faults [3]error
	cfg.Tenant, faults[0] = tenant.Parse(id)
	cfg.Mint, faults[1] = parseTime("--from", from, math.MinInt64)
	cfg.Maxt, faults[2] = parseTime("--to", to, math.MaxInt64)
	errs = append(errs, faults[:]...)
	for _, selector := range match {
		matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(selector)
		if err != nil {
			errs = append(errs, fmt.Errorf("--match: %w", err))
		}
		cfg.Selectors = append(cfg.Selectors, matchers)
	}
	if cfg.Mint >= cfg.Maxt {
		errs = append(errs, errors.New("--from is not before --to"))
	}
	return cfg, configFile, dataDir, errors.Join(errs...)
}

// parseTime returns a time in ms.
func parseTime(name, s string, otherwise int64) (int64, error) {
	if s == "" {
		return otherwise, nil
	}
	if seconds, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(seconds) < 1e11 {
		return int64(seconds * 1000), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is neither RFC 3339 nor Unix seconds", name, s)
	}
	return t.UnixMilli(), nil
}

// list is the value of a flag that may be repeated.
type list []string

// String implements flag.Value.
func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}
