// Package promql runs Prometheus's acceptance tests of PromQL over the real
// ingester, bucket and querier, wired as in one process.
package promql

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
	"github.com/hundredfold/hundredfold/querier/queriertest"
)

func TestPromQLOverTheHeadIsPrometheus(t *testing.T) {
	s := start(t, time.Hour)
	s.run(t, func(tenant.ID) error { return nil })
}

func TestPromQLOverBlocksOfTheBucketIsPrometheus(t *testing.T) {
	s := start(t, time.Millisecond)
	s.run(t, s.untilInBucket)
}

// stack is one process's ingester and querier over a bucket of files.
type stack struct {
	ingester *ingester.Ingester
	querier  *querier.Querier
}

// start wires the stack as cmd/hundredfold does. Tenants are cut, uploaded and
// closed when they were idle for so long.
func start(t *testing.T, idle time.Duration) *stack {
	t.Helper()
	dir := t.TempDir()
	files, err := blockstore.OpenFilesystem(filepath.Join(dir, "bucket"))
	require.NoError(t, err)
	store := blockstore.New(files, nil)

	limits := tenant.DefaultLimits()
	limits.MaxExemplars = 0
	// A suite loads the same stretch of time again and again.
	limits.OutOfOrderWindow = model.Duration(100 * 365 * 24 * time.Hour)
	limitsOf := func(tenant.ID) tenant.Limits { return limits }

	var q atomic.Pointer[querier.Querier]
	cfg := ingester.DefaultConfig()
	cfg.Dir = filepath.Join(dir, "ingester")
	cfg.IdleTimeout = idle
	cfg.MaintenanceInterval = 10 * time.Millisecond
	ing, err := ingester.Open(t.Context(), cfg, ingester.Deps{
		Store:    store,
		Limits:   limitsOf,
		Visible:  func(id tenant.ID, block ulid.ULID) bool { return q.Load().Visible(id, block) },
		Uploaded: func(id tenant.ID, block ulid.ULID) { q.Load().BlockUploaded(id, block) },
	})
	require.NoError(t, err)
	qcfg := querier.Default()
	qcfg.Dir = filepath.Join(dir, "querier")
	made, err := querier.New(qcfg, querier.Direct(ing), store, limitsOf, nil, nil)
	require.NoError(t, err)
	q.Store(made)

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- ing.Run(ctx) }()
	go func() { ended <- made.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
	})
	return &stack{ingester: ing, querier: made}
}

// run runs the suite; pushed is called after each load.
func (s *stack) run(t *testing.T, pushed func(tenant.ID) error) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a minute")
	}
	require.NoError(t, poll(func() bool { return s.querier.Ready() == nil }))
	storages := 0
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	promqltest.RunBuiltinTestsWithStorage(t, engine, func(testing.TB) storage.Storage {
		storages++
		id := tenant.ID(fmt.Sprintf("test-%d", storages))
		return &queriertest.Storage{
			Tenant:    id,
			Queryable: s.querier.Queryable(),
			Push:      s.ingester.Push,
			Pushed:    func() error { return pushed(id) },
		}
	})
	require.Positive(t, storages)
}

// untilInBucket waits until the bucket is the only place that has the samples.
func (s *stack) untilInBucket(id tenant.ID) error {
	return poll(func() bool {
		for _, sum := range s.ingester.Summaries() {
			if sum.Tenant == id {
				return false
			}
		}
		return true
	})
}

func poll(done func() bool) error {
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			return fmt.Errorf("it did not happen within 30s")
		case <-tick.C:
		}
	}
	return nil
}
