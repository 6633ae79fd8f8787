package main

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// openBucket opens the bucket that a configuration file, "" for none, and a data
// directory, "" for that of the file, stand for: for subcommands, beside a process that
// may run. It also returns the data directory.
func openBucket(configFile, dataDir string) (*blockstore.Store, string, error) {
	var args []string
	if configFile != "" {
		args = append(args, "--config.file="+configFile)
	}
	if dataDir != "" {
		args = append(args, "--data.dir="+dataDir)
	}
	opts, err := parseFlags(args)
	if err != nil {
		return nil, "", err
	}
	cfg, err := opts.load()
	if err != nil {
		return nil, "", err
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, "", err
	}
	store, err := blockstore.Open(cfg.Bucket, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, "", fmt.Errorf("open the bucket: %w", err)
	}
	return store, dir, nil
}
