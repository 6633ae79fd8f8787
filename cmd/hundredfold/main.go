// Command hundredfold is a long-term store for Prometheus metrics: remote write
// in, Prometheus blocks in a bucket, PromQL out.
//
// This package turns flags and a file into values, wires the roles together, and
// starts and stops them. It holds no logic of theirs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/hundredfold/hundredfold/internal/drain"
	"github.com/hundredfold/hundredfold/internal/exporter"
	"github.com/hundredfold/hundredfold/internal/importer"
	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/rollout"
	"github.com/hundredfold/hundredfold/internal/verifier"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the log or stderr says why
	exitUsage  = 2 // the command line is wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command runs what args ask for and returns the exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "compare":
			return loadgen.MainCompare(ctx, args[1:], stdout, stderr)
		case "drain":
			return drain.Main(ctx, args[1:], stdout, stderr)
		case "export":
			return exporter.Main(ctx, args[1:], stdout, stderr, openBucket)
		case "import":
			return importer.Main(ctx, args[1:], stdout, stderr, openBucket)
		case "loadgen":
			return loadgen.Main(ctx, args[1:], stdout, stderr)
		case "rollout":
			return rollout.Main(ctx, args[1:], stdout, stderr)
		case "verify":
			return verifier.Main(ctx, args[1:], stdout, stderr, openBucket)
		case "help":
			say(stdout, usage())
			return exitOK
		}
	}
	opts, err := parseFlags(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		say(stdout, usage())
		return exitOK
	case err != nil:
		say(stderr, fmt.Sprintf("hundredfold: %v\nSee hundredfold --help.\n", err))
		return exitUsage
	case opts.version:
		say(stdout, versionText()+"\n")
		return exitOK
	}
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: opts.logLevel}))
	if opts.check {
		return checkConfig(opts, stdout, stderr)
	}
	tuneRuntime(opts.roles, logger)
	p, err := open(opts, logger)
	if err == nil {
		err = p.run(ctx)
	}
	if err != nil {
		say(stderr, fmt.Sprintf("hundredfold: %v\n", err))
		return exitFailed
	}
	return exitOK
}

// say writes to a terminal or a pipe that may be gone; there is no other place to
// complain to.
func say(w io.Writer, text string) { _, _ = io.WriteString(w, text) }
