package verifier

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/subcommand"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const usage = `hundredfold verify checks what the bucket holds: every block, its meta.json, and the
block index. Each fault is a line. Hundredfold may run meanwhile.

  hundredfold verify --config.file=hundredfold.yml
  hundredfold verify --config.file=hundredfold.yml --tenant=team-a --quick

Flags:
`

// errFaults says that something is wrong in the bucket.
var errFaults = errors.New("there are faults: the lines that begin with fault name them")

// options are what the flags say.
type options struct {
	Config
	tenant string
	quick  bool
}

// Main runs `hundredfold verify` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, open subcommand.OpenBucket) int {
	var o options
	command := subcommand.Command{Name: "verify", Usage: usage, Flags: o.flags, Complete: o.complete, Run: o.run}
	return command.Main(ctx, args, stdout, stderr, open)
}

func (o *options) run(ctx context.Context, bucket subcommand.Bucket, stdout, _ io.Writer) error {
	if o.Scratch == "" {
		o.Scratch = filepath.Join(bucket.DataDir, "verify")
	}
	result, err := Run(ctx, o.Config, bucket.Store, stdout)
	_, _ = fmt.Fprintf(stdout, "%d tenants, %d blocks, %d samples, %d faults\n", result.Tenants, result.Blocks, result.Samples, result.Faults)
	if err == nil && result.Faults > 0 {
		return errFaults
	}
	return err
}

func (o *options) flags(set *flag.FlagSet) {
	set.StringVar(&o.tenant, "tenant", "", "`TENANT` to check (default: all)")
	set.BoolVar(&o.quick, "quick", false, "read the indexes and the ends of the chunks, and decode none but these")
	set.StringVar(&o.Scratch, "scratch", "", "`DIRECTORY` for copies of blocks of a remote bucket (default: verify in the data directory)")
}

// complete makes the Config of what the flags say.
func (o *options) complete() error {
	o.Depth = blockcheck.Full
	if o.quick {
		o.Depth = blockcheck.Quick
	}
	if o.tenant == "" {
		return nil
	}
	one, err := tenant.Parse(o.tenant)
	if err != nil {
		return fmt.Errorf("--tenant: %w", err)
	}
	o.Tenants = []tenant.ID{one}
	return nil
}
