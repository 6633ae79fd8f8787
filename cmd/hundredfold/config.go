package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hundredfold/hundredfold/compactor"
	"github.com/hundredfold/hundredfold/distributor"
	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/rpc"
	"github.com/hundredfold/hundredfold/internal/server"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// config is the whole configuration. Its keys are documented in reference.go;
// a test compares the two.
type config struct {
	DataDir        string               `yaml:"data_dir"`
	HTTP           server.Config        `yaml:"http"`
	Auth           server.Auth          `yaml:"auth"`
	GRPC           rpc.Config           `yaml:"grpc"`
	Cluster        cluster.Config       `yaml:"cluster"`
	Multitenancy   multitenancyConfig   `yaml:"multitenancy"`
	AdminAPI       adminAPIConfig       `yaml:"admin_api"`
	SelfMonitoring selfMonitoringConfig `yaml:"self_monitoring"`
	Bucket         blockstore.Config    `yaml:"bucket"`
	Distributor    distributor.Config   `yaml:"distributor"`
	Ingester       ingester.Config      `yaml:"ingester"`
	Querier        querier.Config       `yaml:"querier"`
	Compactor      compactor.Config     `yaml:"compactor"`

	// Limits and Tenants are all that reloads.
	Limits  tenant.Limits               `yaml:"limits"`
	Tenants map[tenant.ID]tenant.Limits `yaml:"tenants"`
}

type multitenancyConfig struct {
	Enabled bool `yaml:"enabled"`
}

// adminAPIConfig is about the routes by which tenants delete and upload blocks.
type adminAPIConfig struct {
	Enabled bool `yaml:"enabled"`
}

type selfMonitoringConfig struct {
	Enabled bool `yaml:"enabled"`
}

// defaultConfig returns what holds where the file says nothing. Paths below the
// data directory follow in place.
func defaultConfig() config {
	c := config{
		DataDir:        "./data",
		HTTP:           server.DefaultConfig(),
		Auth:           server.DefaultAuth(),
		GRPC:           rpc.DefaultConfig(),
		Cluster:        cluster.DefaultConfig(),
		SelfMonitoring: selfMonitoringConfig{Enabled: true},
		Bucket:         blockstore.Default(),
		Distributor:    distributor.Default(),
		Ingester:       ingester.DefaultConfig(),
		Querier:        querier.Default(),
		Compactor:      compactor.Default(),
		Limits:         tenant.DefaultLimits(),
	}
	// These are below the data directory, see place.
	c.Bucket.Filesystem.Directory, c.Compactor.Dir = "", ""
	return c
}

// load reads the file that opts name and lets the flags override it.
func (o options) load() (config, error) {
	c := defaultConfig()
	if o.configFile != "" {
		text, err := os.ReadFile(o.configFile)
		if err != nil {
			return config{}, fmt.Errorf("read the configuration: %w", err)
		}
		if c, err = parseConfig(o.configFile, text); err != nil {
			return config{}, err
		}
	}
	for _, override := range o.overrides {
		override(&c)
	}
	// Whoever leaves roles to others, or says where others are, does not want to be alone.
	if len(o.roles) < len(allRoles()) || len(c.Cluster.Gossip.Join) > 0 || len(c.Cluster.Peers) > 0 {
		c.Cluster.Enabled = true
	}
	shared := c.checkShared()
	c.place()
	if err := errors.Join(c.validate(), shared); err != nil {
		return config{}, fmt.Errorf("the configuration is invalid:\n%w", err)
	}
	return c, nil
}

// parseConfig reads text over the defaults. It reports all faults, each with its
// line and key.
func parseConfig(name string, text []byte) (config, error) {
	c := defaultConfig()
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return c, nil // nothing but comments
	case err != nil:
		return config{}, fmt.Errorf("parse %s: %w", name, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return config{}, fmt.Errorf("parse %s: it has more than one YAML document", name)
	}
	root := document.Content[0]
	if err := checkSchema(name, root, reflect.TypeFor[config]()); err != nil {
		return config{}, err
	}
	if err := root.Decode(&c); err != nil {
		return config{}, fmt.Errorf("parse %s: %w", name, err)
	}
	// What a tenant's section does not say holds as in limits, not as zero.
	for id, node := range tenantNodes(root) {
		limits := c.Limits
		if err := node.Decode(&limits); err != nil {
			return config{}, fmt.Errorf("parse %s: tenants.%s: %w", name, id, err)
		}
		c.Tenants[id] = limits
	}
	return c, nil
}

// limitsOf returns the limits of a tenant.
func (c *config) limitsOf(id tenant.ID) tenant.Limits {
	if own, ok := c.Tenants[id]; ok {
		return own
	}
	return c.Limits
}

func tenantNodes(root *yaml.Node) map[tenant.ID]*yaml.Node {
	var sections map[string]yaml.Node
	var only struct {
		Tenants *map[string]yaml.Node `yaml:"tenants"`
	}
	only.Tenants = &sections
	if err := root.Decode(&only); err != nil {
		panic("BUG: the schema was checked and yet does not decode: " + err.Error())
	}
	nodes := map[tenant.ID]*yaml.Node{}
	for id, node := range sections {
		nodes[tenant.ID(id)] = &node
	}
	return nodes
}

// checkShared refuses a cluster whose processes would each have a bucket of their own,
// and with it a seed of their own: they would refuse each other's samples. It comes
// before place.
func (c *config) checkShared() error {
	if !c.Cluster.Enabled || c.Bucket.Type != blockstore.TypeFilesystem || c.Bucket.Filesystem.Directory != "" {
		return nil
	}
	return errors.New(`bucket: the processes of a cluster share one bucket, and the default is a folder of this process alone. Do one of these:
  - share one in S3:         bucket: {type: s3, s3: {endpoint: HOST, bucket: NAME}}
  - share a folder:          bucket: {filesystem: {directory: DIRECTORY}}   which all processes reach, on one machine or by NFS
  - stay alone:              neither --role nor --gossip.join, and no cluster: {enabled, peers, gossip: {join}}`)
}

// place puts what the roles keep below the data directory.
func (c *config) place() {
	if c.Bucket.Filesystem.Directory == "" {
		c.Bucket.Filesystem.Directory = filepath.Join(c.DataDir, "bucket")
	}
	if c.Compactor.Dir == "" {
		c.Compactor.Dir = filepath.Join(c.DataDir, "compactor")
	}
	c.Ingester.Dir = filepath.Join(c.DataDir, "ingester")
	c.Querier.Dir = filepath.Join(c.DataDir, "querier")
}

// validate reports all faults, each with its key.
func (c *config) validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data_dir: it is empty"))
	}
	errs = append(errs,
		under("http", c.HTTP.Validate()),
		under("auth", c.Auth.Validate()),
		under("grpc", c.GRPC.Validate()),
		under("cluster", c.Cluster.Validate()),
		under("bucket", c.Bucket.Validate()),
		under("distributor", c.Distributor.Validate()),
		under("ingester", c.Ingester.Validate()),
		under("querier", c.Querier.Validate()),
		under("compactor", c.Compactor.Validate()),
		under("limits", c.Limits.Validate()),
	)
	for _, id := range slices.Sorted(maps.Keys(c.Tenants)) {
		if _, err := tenant.Parse(string(id)); err != nil {
			errs = append(errs, under("tenants", err))
		}
		errs = append(errs, under("tenants."+string(id), c.Tenants[id].Validate()))
	}
	return errors.Join(errs...)
}

// under puts the section's name before each of the faults in err that does not
// have it yet.
func under(section string, err error) error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if strings.HasPrefix(err.Error(), section+".") {
			return err
		}
		return fmt.Errorf("%s.%w", section, err)
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, under(section, e))
	}
	return errors.Join(errs...)
}

// text is the configuration in force, without secrets.
func (c *config) text() string {
	out, err := yaml.Marshal(c)
	if err != nil {
		panic("BUG: the configuration cannot be written as YAML: " + err.Error())
	}
	return string(out)
}

// checkConfig is --config.check.
func checkConfig(opts options, stdout, stderr io.Writer) int {
	c, err := opts.load()
	if err == nil {
		err = errors.Join(server.Check(c.HTTP, c.Auth), checkCluster(c))
	}
	if err != nil {
		say(stderr, fmt.Sprintf("hundredfold: %v\n", err))
		return exitFailed
	}
	say(stdout, "the configuration is valid\n")
	return exitOK
}
