package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/history"
)

const (
	manyBlocks = 10_000
	startGoal  = 5 * time.Second
)

// many is a history of very many blocks with next to nothing in them.
func many(c history.Config) history.Config {
	c.Block = 24 * time.Hour
	c.Start = c.End.Add(-manyBlocks * c.Block)
	c.Series, c.Interval, c.Plain = 10, time.Hour, true
	return c
}

// start measures how long a process with an empty data directory takes to be ready on a
// bucket of 10,000 blocks, and to answer for one of them.
func start(ctx context.Context, o options) (err error) {
	o.history = many(o.history)
	store, finish, err := prepare(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = finish(err) }()
	if err := settle(ctx, o, store); err != nil {
		return err
	}
	for range o.rounds {
		if err := startOnce(ctx, o, store); err != nil {
			return err
		}
	}
	return nil
}

func startOnce(ctx context.Context, o options, store *objectStore) (err error) {
	before := store.proxy.Counts()
	s, err := startHundredfold(ctx, o, store, o.work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	ready := store.proxy.Counts().Minus(before)
	day := o.history.Start.Add(manyBlocks / 2 * o.history.Block)
	a, err := s.ask(ctx, query{
		name: "a day of ten series", expr: `count(count_over_time({__name__=~".+"}[1h]))`, start: day.Add(time.Hour), end: day.Add(o.history.Block), step: time.Hour,
	}, true)
	if err != nil {
		return err
	}
	u, err := s.usage()
	fmt.Printf("ready after %s, with %+v; first answer after %s more, with %+v in all; peak %d MB, %.2f CPU s\n",
		within(s.ready, startGoal), ready, rounded(a.took), store.proxy.Counts().Minus(before), u.peak>>20, u.cpu.Seconds())
	return err
}

// prepare writes the history, unless it is there, and serves a copy of it in --work. finish
// ends that, and removes the copy if there was no error.
func prepare(ctx context.Context, o options) (_ *objectStore, finish func(error) error, err error) {
	if err := os.RemoveAll(o.work); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(o.work, 0o750); err != nil {
		return nil, nil, err
	}
	if err := generate(ctx, o); err != nil {
		return nil, nil, err
	}
	// What runs on the bucket writes into it, so it gets a copy.
	if err := linkTree(o.dir, filepath.Join(bucketDir(o.work), "default")); err != nil {
		return nil, nil, err
	}
	store, err := startStore(ctx, o, o.work, "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	return store, func(err error) error {
		err = errors.Join(err, store.stop())
		if err == nil {
			err = os.RemoveAll(o.work) // that of a failed run is kept, for its logs
		}
		return err
	}, nil
}
