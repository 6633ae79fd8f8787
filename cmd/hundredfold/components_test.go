package main

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestComponentsOutliveTheSignalAndStopOneByOne(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := newStarter(ctx)
	var order []string
	run := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, name) // stops do not overlap, so this is no race
			return nil
		}
	}
	c := components{
		ingester:       s.start("ingester", run("ingester")),
		http:           s.start("http", run("http")),
		querier:        s.start("querier", run("querier")),
		selfMonitoring: s.start("self-monitoring", run("self-monitoring")),
	}
	cancel()
	require.NoError(t, s.wait(ctx))
	require.Empty(t, order)
	require.NoError(t, c.stop())
	require.Equal(t, []string{"http", "self-monitoring", "ingester", "querier"}, order)
}

func TestAComponentThatFailsEndsTheWaitAndItsErrorIsReportedOnce(t *testing.T) {
	s := newStarter(t.Context())
	boom := errors.New("boom")
	bad := s.start("querier", func(context.Context) error { return boom })
	good := s.start("ingester", untilDone)
	require.NoError(t, s.wait(t.Context()))
	err := errors.Join(bad.stop(), good.stop())
	require.ErrorIs(t, err, boom)
	require.EqualError(t, err, "querier: boom")
}

func TestAComponentThatEndsWithoutReasonIsAFault(t *testing.T) {
	s := newStarter(t.Context())
	c := s.start("compactor", func(context.Context) error { return nil })
	require.EqualError(t, s.wait(t.Context()), "compactor ended by itself")
	require.NoError(t, c.stop())
}
