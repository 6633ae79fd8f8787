package importer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const usage = `hundredfold import brings blocks into the bucket: from the data directory of a stopped
Prometheus, with its head; from blocks that promtool made; from buckets of Thanos, Cortex
and Mimir. The source is not changed. Hundredfold may run meanwhile, and reads what is there.
The same command again goes on where it broke off, and does nothing when all is there.

What a Prometheus has, with the label that its remote write would have added:

  hundredfold import --from=/var/lib/prometheus --external-label=cluster=eu1 --config.file=hundredfold.yml

A bucket of Thanos in S3, of two Prometheus servers that scrape the same, of which one is
chosen for each series and ten minutes; thanos.yml is like the section bucket of the
configuration:

  hundredfold import --from=thanos.yml --replica-label=replica --config.file=hundredfold.yml --plan

Tenant 42 of Mimir, as team-a:

  hundredfold import --from=mimir.yml --from-tenant=42 --tenant=team-a --config.file=hundredfold.yml

Flags:
`

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // stderr says why, and stdout what is not there
	exitUsage  = 2
)

// OpenTarget opens the bucket that a configuration file, "" for none, and a data directory,
// "" for that of the file, stand for. dataDir is the directory that holds.
type OpenTarget func(configFile, dataDir string) (target *blockstore.Store, directory string, err error)

type options struct {
	Config
	from, configFile, dataDir, tenant, verify string
	external, replicas                        list
}

// Main runs `hundredfold import` with args and returns the exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, open OpenTarget) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "hundredfold import: %s\nSee hundredfold import --help.\n", err)
		return exitUsage
	}
	if err := execute(ctx, o, stdout, stderr, open); err != nil {
		_, _ = fmt.Fprintf(stderr, "hundredfold import: %s\n", err)
		return exitFailed
	}
	return exitOK
}

func execute(ctx context.Context, o options, stdout, stderr io.Writer, open OpenTarget) (err error) {
	target, dataDir, err := open(o.configFile, o.dataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	if o.Scratch == "" {
		o.Scratch = filepath.Join(dataDir, "import")
	}
	result, err := Run(ctx, o.Config, target, stdout, slog.New(slog.NewTextHandler(stderr, nil)))
	_, _ = fmt.Fprintf(stdout, "%d imported (%d bytes), %d there already, %d skipped, %d damaged, %d refused\n",
		result.Imported, result.Bytes, result.Present, result.Skipped, result.Damaged, result.Refused)
	return err
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("hundredfold import", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.from, "from", "", "the source: a `DIRECTORY`, or a YAML file like the section bucket of the configuration")
	flags.StringVar(&o.FromTenant, "from-tenant", "", "of a source with tenants, the `TENANT` to import; without it all are")
	flags.StringVar(&o.tenant, "tenant", "", "the `TENANT` that gets the blocks; without it tenants of the source keep their names, and default gets what has no tenant")
	flags.StringVar(&o.configFile, "config.file", "", "configuration `FILE` of the store that gets the blocks")
	flags.StringVar(&o.dataDir, "data.dir", "", "its data `DIRECTORY`, if the file does not say it")
	flags.Var(&o.external, "external-label", "`NAME=VALUE` of a label that all series get when they are read, unless they have it; may be repeated")
	flags.Var(&o.replicas, "replica-label", "`NAME` of an external label that tells replicas of the same series apart; it is dropped; may be repeated")
	flags.StringVar(&o.verify, "verify", "quick", "`quick|full`: check the index and the ends of the chunks, or decode every chunk")
	flags.StringVar(&o.Scratch, "scratch", "", "`DIRECTORY` for what is written or fetched first (default: import in the data directory)")
	flags.BoolVar(&o.PlanOnly, "plan", false, "say what would be done, and do nothing")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(stderr, usage)
			flags.SetOutput(stderr)
			flags.PrintDefaults()
		}
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: all options are flags", flags.Arg(0))
	}
	return o, o.complete()
}

// complete makes the Config of what the flags say.
func (o *options) complete() error {
	var errs []error
	switch o.verify {
	case "quick":
		o.Depth = blockcheck.Quick
	case "full":
		o.Depth = blockcheck.Full
	default:
		errs = append(errs, fmt.Errorf("--verify: %q is neither quick nor full", o.verify))
	}
	if o.tenant != "" {
		id, err := tenant.Parse(o.tenant)
		if err != nil {
			errs = append(errs, fmt.Errorf("--tenant: %w", err))
		}
		o.Tenant = id
	}
	o.ExternalLabels = make(map[string]string)
	for _, pair := range o.external {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || !model.LegacyValidation.IsValidLabelName(name) || strings.HasPrefix(name, "__") || value == "" {
			errs = append(errs, fmt.Errorf("--external-label: %q is not NAME=VALUE", pair))
		}
		o.ExternalLabels[name] = value
	}
	o.ReplicaLabels = o.replicas
	var err error
	if o.From, err = parseFrom(o.from); err != nil {
		errs = append(errs, fmt.Errorf("--from: %w", err))
	}
	return errors.Join(errs...)
}

func parseFrom(from string) (blockstore.Config, error) {
	cfg := blockstore.Config{Type: blockstore.TypeFilesystem}
	if from == "" {
		return cfg, errors.New("name the directory, or the file that says where the bucket is")
	}
	info, err := os.Stat(from)
	if err != nil {
		return cfg, err
	}
	if info.IsDir() {
		cfg.Filesystem.Directory = from
		return cfg, nil
	}
	f, err := os.Open(from)
	if err != nil {
		return cfg, err
	}
	defer func() { _ = f.Close() }()
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	if err := decoder.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("%s is not like the section bucket of a configuration, such as {type: s3, s3: {endpoint: HOST, bucket: NAME}}: %w", from, err)
	}
	return cfg, cfg.Validate()
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
