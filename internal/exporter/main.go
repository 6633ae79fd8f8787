package exporter

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/promql/parser"

	"github.com/hundredfold/hundredfold/internal/retention"
	"github.com/hundredfold/hundredfold/internal/subcommand"
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

// options are what the flags say.
type options struct {
	Config
	tenant, from, to, encoding string
	match                      subcommand.List
}

// Main runs `hundredfold export` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, open subcommand.OpenBucket) int {
	var o options
	command := subcommand.Command{Name: "export", Usage: usage, Flags: o.flags, Complete: o.complete, Run: o.run}
	return command.Main(ctx, args, stdout, stderr, open)
}

func (o *options) run(ctx context.Context, bucket subcommand.Bucket, stdout, _ io.Writer) error {
	var err error
	if o.Policy, err = retention.New(bucket.Limits(o.Tenant)); err != nil {
		return err
	}
	result, err := Run(ctx, o.Config, bucket.Store, stdout)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%d blocks with %d samples written, %d were there; the bucket has samples until %s\n",
		result.Blocks, result.Samples, result.Present, time.UnixMilli(result.Newest).UTC().Format(time.RFC3339))
	return err
}

func (o *options) flags(set *flag.FlagSet) {
	set.StringVar(&o.tenant, "tenant", string(tenant.Default), "the `TENANT`")
	set.StringVar(&o.from, "from", "", "first `TIME`, as RFC 3339 or Unix seconds (default: all there is)")
	set.StringVar(&o.to, "to", "", "`TIME` before which samples are, as RFC 3339 or Unix seconds (default: all there is)")
	set.Var(&o.match, "match", "`SELECTOR` of series, such as up{job=\"x\"}; may be repeated (default: all series)")
	set.StringVar(&o.Output, "output", "", "`DIRECTORY` that gets the blocks")
	set.StringVar(&o.encoding, "encoding", "any", "`any|xor`: as in the bucket, which Prometheus 3.14 and later read, or what older ones read")
	set.DurationVar(&o.BlockLength, "block-length", 24*time.Hour, "range of a block, 2h to 24h")
}

// complete makes the Config of what the flags say.
func (o *options) complete() error {
	var errs []error
	if o.Output == "" {
		errs = append(errs, errors.New("--output: name the directory that gets the blocks"))
	}
	if o.encoding != "any" && o.encoding != "xor" {
		errs = append(errs, fmt.Errorf("--encoding: %q is neither any nor xor", o.encoding))
	}
	o.Plain = o.encoding == "xor"
	if o.BlockLength < 2*time.Hour || o.BlockLength > 24*time.Hour {
		errs = append(errs, fmt.Errorf("--block-length: %s is not within 2h and 24h", o.BlockLength))
	}
	var faults [3]error
	o.Tenant, faults[0] = tenant.Parse(o.tenant)
	o.Mint, faults[1] = parseTime("--from", o.from, math.MinInt64)
	o.Maxt, faults[2] = parseTime("--to", o.to, math.MaxInt64)
	errs = append(errs, faults[:]...)
	for _, selector := range o.match {
		matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(selector)
		if err != nil {
			errs = append(errs, fmt.Errorf("--match: %w", err))
		}
		o.Selectors = append(o.Selectors, matchers)
	}
	if o.Mint >= o.Maxt {
		errs = append(errs, errors.New("--from is not before --to"))
	}
	return errors.Join(errs...)
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
