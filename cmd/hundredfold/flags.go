package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/rpc"
	"github.com/hundredfold/hundredfold/internal/server"
)

const roleAll = "all"

// allRoles are the roles that a process may have, in the order of the data's way.
func allRoles() []cluster.Role {
	return []cluster.Role{cluster.RoleDistributor, cluster.RoleIngester, cluster.RoleQuerier, cluster.RoleCompactor}
}

// options is what the command line says.
type options struct {
	configFile string
	roles      []cluster.Role
	instanceID string // "": that of the data directory
	check      bool
	version    bool
	logLevel   slog.Level

	// values are all flags, for status/flags.
	values map[string]string
	// overrides are the flags that stand above the file.
	overrides []func(*config)
}

// overridingFlags are the flags that set a key of the file.
func overridingFlags() map[string]func(c *config, value string) {
	return map[string]func(*config, string){
		"data.dir":              func(c *config, v string) { c.DataDir = v },
		"http.listen-address":   func(c *config, v string) { c.HTTP.ListenAddress = v },
		"grpc.listen-address":   func(c *config, v string) { c.GRPC.ListenAddress = v },
		"gossip.listen-address": func(c *config, v string) { c.Cluster.Gossip.ListenAddress = v },
		"gossip.join":           func(c *config, v string) { c.Cluster.Gossip.Join = strings.Split(v, ",") },
		"zone":                  func(c *config, v string) { c.Cluster.Zone = v },
	}
}

func parseFlags(args []string) (options, error) {
	var opts options
	set := newFlagSet(&opts)
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return options{}, err
		}
		// The flag package writes one dash where everybody types two.
		return options{}, errors.New(strings.NewReplacer(": -", ": --", "flag -", "flag --").Replace(err.Error()))
	}
	if set.NArg() > 0 {
		return options{}, fmt.Errorf("%q is neither a flag nor a subcommand", set.Arg(0))
	}
	opts.values = map[string]string{}
	set.VisitAll(func(f *flag.Flag) { opts.values[f.Name] = f.Value.String() })
	overriding := overridingFlags()
	set.Visit(func(f *flag.Flag) {
		if override, ok := overriding[f.Name]; ok {
			opts.overrides = append(opts.overrides, func(c *config) { override(c, f.Value.String()) })
		}
	})
	return opts, nil
}

func newFlagSet(opts *options) *flag.FlagSet {
	set := flag.NewFlagSet("hundredfold", flag.ContinueOnError)
	set.SetOutput(io.Discard) // command writes errors and usage itself
	opts.roles = allRoles()
	set.Var((*rolesValue)(&opts.roles), "role", "`ROLES` of this process: all, or some of distributor, ingester, querier and compactor, separated by commas; less than all makes it a member of a cluster")
	set.StringVar(&opts.configFile, "config.file", "", "configuration `FILE` in YAML, see docs/configuration.md; without it the defaults hold")
	set.String("data.dir", defaultConfig().DataDir, "`DIRECTORY` of everything this process keeps; overrides data_dir")
	set.String("http.listen-address", server.DefaultConfig().ListenAddress, "`HOST:PORT` to serve HTTP on; overrides http.listen_address")
	set.String("grpc.listen-address", rpc.DefaultConfig().ListenAddress, "`HOST:PORT` for the other processes of a cluster; overrides grpc.listen_address")
	set.String("gossip.listen-address", cluster.DefaultConfig().Gossip.ListenAddress, "`HOST:PORT` for gossip, by TCP and UDP; overrides cluster.gossip.listen_address")
	set.Var(new(listValue), "gossip.join", "`HOST:PORT` of a member to join, may be repeated; it makes the process a member of a cluster; overrides cluster.gossip.join")
	set.String("zone", "", "`ZONE` in which this process fails together with others; overrides cluster.zone")
	set.Var((*idValue)(&opts.instanceID), "instance-id", "`ID` of this process in the cluster, for good; without it the data directory gets one")
	set.TextVar(&opts.logLevel, "log.level", slog.LevelInfo, "`LEVEL` from which on messages are logged: debug, info, warn or error")
	set.BoolVar(&opts.check, "config.check", false, "check the configuration and exit")
	set.BoolVar(&opts.version, "version", false, "print the version and exit")
	return set
}

// rolesValue is the value of --role.
type rolesValue []cluster.Role

func (r *rolesValue) String() string { return roleNames(*r) }

// roleNames names roles as --role does.
func roleNames(roles []cluster.Role) string {
	if len(roles) == len(allRoles()) {
		return roleAll
	}
	names := make([]string, len(roles))
	for i, role := range roles {
		names[i] = string(role)
	}
	return strings.Join(names, ",")
}

func (r *rolesValue) Set(value string) error {
	if value == roleAll {
		*r = allRoles()
		return nil
	}
	var roles []cluster.Role
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimSpace(name)
		role := cluster.Role(name)
		switch {
		case name == roleAll:
			return errors.New("all stands alone: it is all roles already")
		case !slices.Contains(allRoles(), role):
			return fmt.Errorf("%q is no role; there are %s", name, strings.Join([]string{roleAll, "distributor", "ingester", "querier", "compactor"}, ", "))
		case slices.Contains(roles, role):
			return fmt.Errorf("%s stands there twice", name)
		}
		roles = append(roles, role)
	}
	*r = roles
	return nil
}

// idValue is the value of --instance-id.
type idValue string

func (v *idValue) String() string { return string(*v) }

// idPattern takes the names of hosts and pods. An id stands in the data directory for
// good, and names this process in gossip, in the bucket and in logs.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

func (v *idValue) Set(value string) error {
	if !idPattern.MatchString(value) {
		return errors.New("an id is 1 to 100 letters, digits, dots, dashes or underscores")
	}
	*v = idValue(value)
	return nil
}

// listValue is the value of a flag that may be repeated.
type listValue []string

func (l *listValue) String() string { return strings.Join(*l, ",") }

func (l *listValue) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// subcommands are those beside running the store, with what they do.
func subcommands() map[string]string {
	return map[string]string{
		"compare": "send the same remote write to several receivers and measure what it costs each",
		"drain":   "empty an ingester and take it out of the cluster",
		"export":  "write plain blocks that Prometheus opens",
		"import":  "bring blocks of Prometheus, promtool, Thanos, Cortex or Mimir into the bucket",
		"loadgen": "send remote write like a fleet of Prometheus servers, and verify what was stored",
		"verify":  "check all blocks in the bucket, and the block index",
		"rollout": "restart a cluster's ingesters zone by zone",
	}
}

// usage is what --help prints.
func usage() string {
	var w strings.Builder
	var opts options
	set := newFlagSet(&opts)
	w.WriteString(`Hundredfold, a long-term store for Prometheus metrics.

usage: hundredfold [flags]                 run the store
       hundredfold SUBCOMMAND [flags]      each has --help

subcommands:
`)
	commands := subcommands()
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		fmt.Fprintf(&w, "  %-12s %s\n", name, commands[name])
	}
	w.WriteString("\nflags:\n")
	set.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		left := "--" + f.Name
		if name != "" {
			left += "=" + name
		}
		fmt.Fprintf(&w, "  %-36s %s", left, text)
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(&w, " (default %s)", f.DefValue)
		}
		w.WriteString("\n")
	})
	w.WriteString(`
examples:
  hundredfold                                          keep everything in ./data, serve http://127.0.0.1:9009
  hundredfold --config.file=hundredfold.yml --config.check
  hundredfold loadgen --series=100000 --span=1h
  hundredfold --role=ingester --zone=a --gossip.join=10.0.0.1:7946 --config.file=cluster.yml
`)
	return w.String()
}
