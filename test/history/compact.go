package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/history"
)

const (
	compactTimeout = 30 * time.Minute
	compactMemory  = 2 << 30
)

// compact measures the compaction of the history, which should be of short blocks: how
// long it takes until all of them are superseded, and at which memory.
func compact(ctx context.Context, o options) (err error) {
	store, finish, err := prepare(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = finish(err) }()
	tenant := filepath.Join(bucketDir(o.work), "default")
	sources, err := os.ReadDir(o.dir)
	if err != nil {
		return err
	}
	started := time.Now()
	s, err := startHundredfold(ctx, o, store, o.work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()

	ctx, cancel := context.WithTimeout(ctx, compactTimeout)
	defer cancel()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		left, err := unmarked(tenant, sources)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%d blocks are not compacted after %s: %w", left, time.Since(started), ctx.Err())
		}
		if err := s.program.Alive(); err != nil {
			return err
		}
	}
	u, err := s.usage()
	if err != nil {
		return err
	}
	mark := ""
	if u.peak > compactMemory {
		mark = " !"
	}
	fmt.Printf("compacted in %s, %.1f CPU s, peak %d/%d MB%s, %+v\n",
		time.Since(started).Round(time.Second), u.cpu.Seconds(), u.peak>>20, compactMemory>>20, mark, store.proxy.Counts())
	return printMerged(tenant, sources)
}

// unmarked returns how many of the blocks are not marked for deletion.
func unmarked(tenant string, sources []os.DirEntry) (n int, err error) {
	for _, source := range sources {
		dir := filepath.Join(tenant, source.Name())
		if _, err := os.Stat(filepath.Join(dir, "meta.json")); errors.Is(err, fs.ErrNotExist) {
			continue // deleted already
		}
		_, err := os.Stat(filepath.Join(dir, "deletion-mark.json"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			n++
		case err != nil:
			return 0, err
		}
	}
	return n, nil
}

// printMerged prints what the blocks beside the sources take.
func printMerged(tenant string, sources []os.DirEntry) error {
	isSource := map[string]bool{}
	for _, source := range sources {
		isSource[source.Name()] = true
	}
	blocks, err := os.ReadDir(tenant)
	if err != nil {
		return err
	}
	for _, block := range blocks {
		dir := filepath.Join(tenant, block.Name())
		samples, err := history.Samples(dir)
		if isSource[block.Name()] || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		s, err := sizesOf(dir)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d samples, %d MB, %s\n", block.Name(), samples, s.all>>20, s.perSample(samples))
	}
	return nil
}
