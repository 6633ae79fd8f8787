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
	"github.com/hundredfold/hundredfold/internal/subcommand"
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

type options struct {
	Config
	from, tenant, verify string
	external, replicas   subcommand.List
}

// Main runs `hundredfold import` with args and returns the exit code. open opens the bucket
// that gets the blocks.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, open subcommand.OpenBucket) int {
	var o options
	command := subcommand.Command{Name: "import", Usage: usage, Flags: o.flags, Complete: o.complete, Run: o.run}
	return command.Main(ctx, args, stdout, stderr, open)
}

func (o *options) run(ctx context.Context, bucket subcommand.Bucket, stdout, stderr io.Writer) error {
	if o.Scratch == "" {
		o.Scratch = filepath.Join(bucket.DataDir, "import")
	}
	result, err := Run(ctx, o.Config, bucket.Store, stdout, slog.New(slog.NewTextHandler(stderr, nil)))
	_, _ = fmt.Fprintf(stdout, "%d imported (%d bytes), %d there already, %d skipped, %d damaged, %d refused\n",
		result.Imported, result.Bytes, result.Present, result.Skipped, result.Damaged, result.Refused)
	return err
}

func (o *options) flags(set *flag.FlagSet) {
	set.StringVar(&o.from, "from", "", "the source: a `DIRECTORY`, or a YAML file like the section bucket of the configuration")
	set.StringVar(&o.FromTenant, "from-tenant", "", "of a source with tenants, the `TENANT` to import; without it all are")
	set.StringVar(&o.tenant, "tenant", "", "the `TENANT` that gets the blocks; without it tenants of the source keep their names, and default gets what has no tenant")
	set.Var(&o.external, "external-label", "`NAME=VALUE` of a label that all series get when they are read, unless they have it; may be repeated")
	set.Var(&o.replicas, "replica-label", "`NAME` of an external label that tells replicas of the same series apart; it is dropped; may be repeated")
	set.StringVar(&o.verify, "verify", "quick", "`quick|full`: check the index and the ends of the chunks, or decode every chunk")
	set.StringVar(&o.Scratch, "scratch", "", "`DIRECTORY` for what is written or fetched first (default: import in the data directory)")
	set.BoolVar(&o.PlanOnly, "plan", false, "say what would be done, and do nothing")
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
