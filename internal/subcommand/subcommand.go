// Package subcommand runs the commands beside the store that work on its bucket, such as
// `hundredfold export`: it parses their flags, says how they are used, opens the bucket and
// makes exit codes of errors. What a command does is its own affair.
package subcommand

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // stderr says why
	exitUsage  = 2
)

// Bucket is the bucket of a store, and what its configuration says that one needs with it.
type Bucket struct {
	Store *blockstore.Store
	// DataDir is the data directory of the process whose configuration it is.
	DataDir string
	Limits  tenant.LimitsFunc
}

// OpenBucket opens the bucket that a configuration file, "" for none, and a data directory,
// "" for that of the file, stand for.
type OpenBucket func(configFile, dataDir string) (Bucket, error)

// Command is a command of hundredfold that works on a bucket.
type Command struct {
	Name string
	// Usage says what it does, with examples. Its last line announces the flags.
	Usage string
	// Flags adds its flags to those that name the configuration.
	Flags func(*flag.FlagSet)
	// Complete checks what the flags said, and returns all faults.
	Complete func() error
	// Run does the work. The bucket is closed after it.
	Run func(ctx context.Context, bucket Bucket, stdout, stderr io.Writer) error
}

// Main runs the command with args and returns the exit code.
func (c Command) Main(ctx context.Context, args []string, stdout, stderr io.Writer, open OpenBucket) int {
	var configFile, dataDir string
	flags := flag.NewFlagSet("hundredfold "+c.Name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&configFile, "config.file", "", "configuration `FILE` of the store")
	flags.StringVar(&dataDir, "data.dir", "", "its data `DIRECTORY`, if the file does not say it")
	c.Flags(flags)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stderr, c.Usage)
		flags.SetOutput(stderr)
		flags.PrintDefaults()
		return exitOK
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q: all options are flags", flags.Arg(0))
	case err == nil:
		err = c.Complete()
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold %s: %s\nSee hundredfold %s --help.\n", c.Name, err, c.Name)
		return exitUsage
	}
	bucket, err := open(configFile, dataDir)
	if err == nil {
		err = errors.Join(c.Run(ctx, bucket, stdout, stderr), bucket.Store.Close())
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold %s: %s\n", c.Name, err)
		return exitFailed
	}
	return exitOK
}

// List is the value of a flag that may be repeated.
type List []string

// String implements flag.Value.
func (l *List) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *List) Set(value string) error {
	*l = append(*l, value)
	return nil
}
