package verifier

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const usage = `hundredfold verify checks what the bucket holds: every block, its meta.json, and the
block index. Each fault is a line. Hundredfold may run meanwhile.

  hundredfold verify --config.file=hundredfold.yml
  hundredfold verify --config.file=hundredfold.yml --tenant=team-a --quick

Flags:
`

// Exit codes.
const (
	exitOK     = 0
	exitFaulty = 1 // there are faults, or something could not be checked
	exitUsage  = 2
)

// OpenBucket opens the bucket that a configuration file, "" for none, and a data
// directory, "" for that of the file, stand for.
type OpenBucket func(configFile, dataDir string) (store *blockstore.Store, directory string, err error)

// Main runs `hundredfold verify` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, open OpenBucket) int {
	cfg, configFile, dataDir, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "hundredfold verify: %s\nSee hundredfold verify --help.\n", err)
		return exitUsage
	}
	result, err := execute(ctx, cfg, configFile, dataDir, stdout, open)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold verify: %s\n", err)
		return exitFaulty
	}
	if result.Faults > 0 {
		return exitFaulty
	}
	return exitOK
}

func execute(ctx context.Context, cfg Config, configFile, dataDir string, stdout io.Writer, open OpenBucket) (result Result, err error) {
	store, dir, err := open(configFile, dataDir)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if cfg.Scratch == "" {
		cfg.Scratch = filepath.Join(dir, "verify")
	}
	result, err = Run(ctx, cfg, store, stdout)
	_, _ = fmt.Fprintf(stdout, "%d tenants, %d blocks, %d samples, %d faults\n", result.Tenants, result.Blocks, result.Samples, result.Faults)
	return result, err
}

func parse(args []string, stderr io.Writer) (cfg Config, configFile, dataDir string, err error) {
	var id string
	var quick bool
	flags := flag.NewFlagSet("hundredfold verify", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&id, "tenant", "", "`TENANT` to check (default: all)")
	flags.BoolVar(&quick, "quick", false, "read the indexes and the ends of the chunks, and decode none but these")
	flags.StringVar(&cfg.Scratch, "scratch", "", "`DIRECTORY` for copies of blocks of a remote bucket (default: verify in the data directory)")
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
	if flags.NArg() > 0 {
		return cfg, "", "", fmt.Errorf("unexpected argument %q: all options are flags", flags.Arg(0))
	}
	cfg.Depth = blockcheck.Full
	if quick {
		cfg.Depth = blockcheck.Quick
	}
	if id != "" {
		one, err := tenant.Parse(id)
		if err != nil {
			return cfg, "", "", fmt.Errorf("--tenant: %w", err)
		}
		cfg.Tenants = []tenant.ID{one}
	}
	return cfg, configFile, dataDir, nil
}
