package main

import (
	"context"
	"fmt"
)

// component is a part of the process that runs until it is stopped.
type component struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{} // closed when err is final
	err    error
}

// stop ends c and waits for its end. A component that was never started is
// stopped already.
func (c *component) stop() error {
	if c == nil {
		return nil
	}
	c.cancel()
	<-c.done
	if c.err != nil {
		return fmt.Errorf("%s: %w", c.name, c.err)
	}
	return nil
}

// starter starts components. It notices the first that ends though nobody
// stopped it.
type starter struct {
	// base outlives the signal to stop, because components are stopped one by one.
	base  context.Context //nolint:containedctx // the parent of all components' contexts, not of a request
	ended chan *component
}

func newStarter(ctx context.Context) *starter {
	return &starter{base: context.WithoutCancel(ctx), ended: make(chan *component, 1)}
}

func (s *starter) start(name string, run func(context.Context) error) *component {
	ctx, cancel := context.WithCancel(s.base)
	c := &component{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		c.err = run(ctx)
		early := ctx.Err() == nil
		cancel()
		close(c.done)
		if early {
			select {
			case s.ended <- c:
			default: // the first one is enough
			}
		}
	}()
	return c
}

// wait blocks until ctx ends or a component does. The latter's error is reported
// by its stop.
func (s *starter) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case c := <-s.ended:
		if c.err == nil {
			return fmt.Errorf("%s ended by itself", c.name)
		}
		return nil
	}
}
