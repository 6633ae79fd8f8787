package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/hundredfold/hundredfold/internal/server"
)

const roleAll = "all"

// options is what the command line says.
type options struct {
	configFile string
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
		"data.dir":            func(c *config, v string) { c.DataDir = v },
		"http.listen-address": func(c *config, v string) { c.HTTP.ListenAddress = v },
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
	role := roleValue(roleAll)
	set.Var(&role, "role", "`ROLE` of this process; all is the only one in this release: it runs the four roles in one process")
	set.StringVar(&opts.configFile, "config.file", "", "configuration `FILE` in YAML, see docs/configuration.md; without it the defaults hold")
	set.String("data.dir", defaultConfig().DataDir, "`DIRECTORY` of everything this process keeps; overrides data_dir")
	set.String("http.listen-address", server.DefaultConfig().ListenAddress, "`HOST:PORT` to serve HTTP on; overrides http.listen_address")
	set.TextVar(&opts.logLevel, "log.level", slog.LevelInfo, "`LEVEL` from which on messages are logged: debug, info, warn or error")
	set.BoolVar(&opts.check, "config.check", false, "check the configuration and exit")
	set.BoolVar(&opts.version, "version", false, "print the version and exit")
	return set
}

// roleValue refuses the roles that cannot run alone yet.
type roleValue string

func (r *roleValue) String() string { return string(*r) }

func (r *roleValue) Set(value string) error {
	if value != roleAll {
		return errors.New("this release runs all roles in one process; the only value is all")
	}
	return nil
}

// subcommands are those beside running the store, with what they do.
func subcommands() map[string]string {
	return map[string]string{
		"loadgen": "send remote write like a fleet of Prometheus servers, and verify what was stored",
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
`)
	return w.String()
}
