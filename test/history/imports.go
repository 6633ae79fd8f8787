package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

const adoptGoal = 10 * time.Second

// imports measures what it takes to bring the history, as the data directory of a stopped
// Prometheus, into a bucket in a folder: by the import command, beside a plain copy of the same
// bytes, and by starting on the directory itself.
func imports(ctx context.Context, o options) (err error) {
	if err := os.RemoveAll(o.work); err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o750); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(o.work)
		}
	}()
	if err := generate(ctx, o); err != nil {
		return err
	}
	s, err := sizesOf(o.dir)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func(target string) error
	}{
		{"copy", func(target string) error { return run(ctx, "cp", "-r", o.dir, target) }},
		{"flush", func(string) error { return run(ctx, "sync") }},
		{"import", func(target string) error {
			return run(ctx, filepath.Join(o.bin, "hundredfold"), "import", "--from="+o.dir, "--data.dir="+target)
		}},
	} {
		target := filepath.Join(o.work, step.name)
		started := time.Now()
		if err := step.run(target); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		took := time.Since(started)
		fmt.Printf("%s: %s, %.0f MB/s\n", step.name, rounded(took), float64(s.all)/1e6/took.Seconds())
		if err := os.RemoveAll(target); err != nil {
			return err
		}
	}
	return adopt(ctx, o)
}

func run(ctx context.Context, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// adopt starts Hundredfold on the data directory of a Prometheus.
func adopt(ctx context.Context, o options) (err error) {
	data := filepath.Join(o.work, "adopted")
	if err := linkTree(o.dir, data); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(data, "wal"), 0o750); err != nil {
		return err
	}
	config := filepath.Join(o.work, "hundredfold.yml")
	if err := os.WriteFile(config, []byte("self_monitoring: {enabled: false}\nlimits: {retention: 0s}\n"), 0o600); err != nil {
		return err
	}
	address, err := fleet.FreeAddress("127.0.0.1")
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.work, "hundredfold.log"))
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the program writes it, not we
	s := &system{url: "http://" + address}
	s.program = fleet.NewProgram(log, nil, filepath.Join(o.bin, "hundredfold"), "--config.file="+config, "--data.dir="+data, "--http.listen-address="+address)
	started := time.Now()
	if err := s.program.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := await(ctx, startTimeout, s.url+"/-/ready", s.program); err != nil {
		return fmt.Errorf("adopt, whose log is %s: %w", log.Name(), err)
	}
	ready := time.Since(started)
	a, err := s.ask(ctx, query{
		name: "the first day", expr: `count(up)`, start: o.history.Start.Add(time.Hour), end: o.history.Start.Add(o.history.Block), step: time.Hour,
	}, true)
	if err != nil {
		return err
	}
	u, err := s.usage()
	fmt.Printf("adopt: ready after %s, its first day answered after %s more, peak %d MB\n", within(ready, adoptGoal), rounded(a.took), u.peak>>20)
	return err
}
