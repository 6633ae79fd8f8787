package main

import (
	"bytes"
	"flag"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

func TestWrongCommandLinesExitWith2AndPointToTheHelp(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":     {[]string{"--colour=red"}, "flag provided but not defined: --colour"},
		"word":             {[]string{"serve"}, `"serve" is neither a flag nor a subcommand`},
		"unknown role":     {[]string{"--role=ingester,store-gateway"}, `"store-gateway" is no role; there are all, distributor, ingester, querier, compactor`},
		"all and more":     {[]string{"--role=all,querier"}, "all stands alone"},
		"no role":          {[]string{"--role="}, `"" is no role`},
		"id with a slash":  {[]string{"--instance-id=a/b"}, "an id is 1 to 100 letters"},
		"id too long":      {[]string{"--instance-id=" + strings.Repeat("a", 101)}, "an id is 1 to 100 letters"},
		"role twice":       {[]string{"--role=querier,querier"}, "querier stands there twice"},
		"flag with a typo": {[]string{"--log.level=loud"}, "--log.level"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			require.Equal(t, exitUsage, command(t.Context(), c.args, &out, &errs))
			require.Contains(t, errs.String(), c.want)
			require.Contains(t, errs.String(), "See hundredfold --help.")
			require.Empty(t, out.String())
		})
	}
}

func TestRolesAreAListInWhichSpacesDoNotCount(t *testing.T) {
	opts, err := parseFlags([]string{"--role=distributor, querier"})
	require.NoError(t, err)
	require.Equal(t, []cluster.Role{cluster.RoleDistributor, cluster.RoleQuerier}, opts.roles)
	require.Equal(t, "distributor,querier", roleNames(opts.roles))
}

func TestHelpShowsEveryFlagAndSubcommand(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		var out, errs bytes.Buffer
		require.Equal(t, exitOK, command(t.Context(), args, &out, &errs))
		require.Empty(t, errs.String())
		newFlagSet(new(options)).VisitAll(func(f *flag.Flag) { require.Contains(t, out.String(), "--"+f.Name) })
		for name := range subcommands() {
			require.Contains(t, out.String(), name)
		}
	}
}

func TestVersionIsPrinted(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, exitOK, command(t.Context(), []string{"--version"}, &out, &errs))
	require.Regexp(t, `^hundredfold \S+ \(go1\.\S+ \S+/\S+\)\n$`, out.String())
}

func TestLoadgenIsASubcommand(t *testing.T) {
	var out, errs bytes.Buffer
	command(t.Context(), []string{"loadgen", "--help"}, &out, &errs)
	require.Contains(t, out.String()+errs.String(), "loadgen")
}

func TestOnlyFlagsThatAreGivenOverrideTheFile(t *testing.T) {
	path := file(t, "data_dir: /from/file\nhttp: {listen_address: 'localhost:1'}\n")
	opts, err := parseFlags([]string{"--config.file=" + path, "--data.dir=/from/flag"})
	require.NoError(t, err)
	c, err := opts.load()
	require.NoError(t, err)
	require.Equal(t, "/from/flag", c.DataDir)
	require.Equal(t, "localhost:1", c.HTTP.ListenAddress)
	require.Equal(t, "/from/flag", opts.values["data.dir"])
}

func TestEveryOverridingFlagExists(t *testing.T) {
	set := newFlagSet(new(options))
	for name := range overridingFlags() {
		require.NotNil(t, set.Lookup(name), name)
	}
}
