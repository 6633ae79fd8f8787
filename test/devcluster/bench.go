package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// bench measures what replication costs: a distributor and three ingesters, into which
// an hour of 100,000 series is sent as fast as they take it. The figures of CPU and
// memory are those of the four processes together. The flags
// of the load are those that follow --.
func bench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "hundredfold-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, yaml, err := startS3(ctx, o, dir)
	if err != nil {
		return err
	}
	f, err := fleet.New(fleet.Config{
		Dir: dir, Binary: filepath.Join(o.bin, "hundredfold"),
		YAML:  yaml + "self_monitoring: {enabled: false}\n", // the processes' own metrics are not the load
		Zones: []string{"a", "b", "c"}, Distributors: 1,
	})
	if err != nil {
		return errors.Join(err, store.Stop())
	}
	err = load(ctx, o, f)
	return errors.Join(err, f.Close(), ended(store.Stop()))
}

func load(ctx context.Context, o options, f *fleet.Fleet) error {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := f.Start(starting); err != nil {
		return err
	}
	distributor := f.Members("distributor")[0]
	var pids []string
	for _, m := range f.Members("") {
		pids = append(pids, strconv.Itoa(m.PID()))
		fmt.Printf("%-16s pid %d  %s/debug/pprof/\n", m.Name, m.PID(), m.URL)
	}
	args := append([]string{"loadgen", "--url=" + distributor.URL + "/api/v1/write", "--pid=" + strings.Join(pids, ",")}, o.load...)
	cmd := exec.CommandContext(ctx, filepath.Join(o.bin, "hundredfold"), args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
