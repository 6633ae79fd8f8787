package main

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/subcommand"
)

// openBucket is a subcommand.OpenBucket, beside a process that may run.
func openBucket(configFile, dataDir string) (subcommand.Bucket, error) {
	var args []string
	if configFile != "" {
		args = append(args, "--config.file="+configFile)
	}
	if dataDir != "" {
		args = append(args, "--data.dir="+dataDir)
	}
	opts, err := parseFlags(args)
	if err != nil {
		return subcommand.Bucket{}, err
	}
	cfg, err := opts.load()
	if err != nil {
		return subcommand.Bucket{}, err
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return subcommand.Bucket{}, err
	}
	store, err := blockstore.Open(cfg.Bucket, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return subcommand.Bucket{}, fmt.Errorf("open the bucket: %w", err)
	}
	return subcommand.Bucket{Store: store, DataDir: dir, Limits: cfg.limitsOf}, nil
}
