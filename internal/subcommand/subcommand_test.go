package subcommand

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

func TestTheExitCodeSaysWhetherACommandRanAndSucceeded(t *testing.T) {
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string // parts of them
	}{
		{[]string{"--n=3", "--data.dir=d", "--config.file=c"}, exitOK, "3 of c d", ""},
		{[]string{"--help"}, exitOK, "", "Counts.\n  -config.file"},
		{[]string{"--n=x"}, exitUsage, "", "See hundredfold count --help."},
		{[]string{"--n=-1"}, exitUsage, "", "hundredfold count: --n: it is below 0\nSee"},
		{[]string{"n"}, exitUsage, "", `unexpected argument "n"`},
		{[]string{"--n=13"}, exitFailed, "", "hundredfold count: unlucky\n"},
		{[]string{"--config.file=missing"}, exitFailed, "", "no such configuration"},
	} {
		var n int
		var from string
		command := Command{
			Name: "count", Usage: "Counts.\n",
			Flags: func(set *flag.FlagSet) { set.IntVar(&n, "n", 0, "number") },
			Complete: func() error {
				if n < 0 {
					return errors.New("--n: it is below 0")
				}
				return nil
			},
			Run: func(_ context.Context, _ Bucket, stdout, _ io.Writer) error {
				if n == 13 {
					return errors.New("unlucky")
				}
				_, err := fmt.Fprintf(stdout, "%d of %s", n, from)
				return err
			},
		}
		open := func(configFile, dataDir string) (Bucket, error) {
			if configFile == "missing" {
				return Bucket{}, errors.New("no such configuration")
			}
			from = configFile + " " + dataDir
			store, err := blockstore.Open(blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: t.TempDir()}}, nil, nil)
			return Bucket{Store: store}, err
		}
		var stdout, stderr bytes.Buffer
		require.Equal(t, c.code, command.Main(t.Context(), c.args, &stdout, &stderr, open), "%v: %s", c.args, stderr.String())
		require.Contains(t, stdout.String(), c.stdout)
		require.Contains(t, stderr.String(), c.stderr)
	}
}
