package compactor

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestRetentionIsOfEachTenant(t *testing.T) {
	f := newFixture(t)
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	for _, id := range []tenant.ID{"short", "long"} {
		require.NoError(t, f.store.Upload(t.Context(), id, dir))
	}
	f.limits = func(id tenant.ID) tenant.Limits {
		if id == "short" {
			return tenant.Limits{Retention: model.Duration(48 * time.Hour)}
		}
		return tenant.Limits{Retention: model.Duration(30 * 24 * time.Hour)}
	}
	require.NoError(t, f.RunOnce(t.Context()))
	blocks, _, err := f.store.Blocks(t.Context(), "short")
	require.NoError(t, err)
	require.Len(t, blocks, 1, "marked, and not yet deleted")
	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	tenants, err := f.store.Tenants(t.Context())
	require.NoError(t, err)
	require.Equal(t, []tenant.ID{"long"}, tenants)
}

func TestALongerRetentionSavesWhatIsNotYetDeleted(t *testing.T) {
	f := newFixture(t)
	f.retention = 48 * time.Hour
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, f.visible(t), "it is hidden at once")
	f.retention = 30 * 24 * time.Hour
	f.clock = f.clock.Add(time.Duration(f.cfg.DeletionDelay))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, []ulid.ULID{id}, f.visible(t))
}

func TestATenantThatFailsDoesNotStopTheOthers(t *testing.T) {
	f := newFixture(t)
	for _, id := range []tenant.ID{"a-broken", "b-whole"} {
		for start := int64(0); start < 4*hour; start += 2 * hour {
			dir := blocktest.Write(t, t.TempDir(), start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
			require.NoError(t, f.store.Upload(t.Context(), id, dir))
		}
	}
	// A mark that is a link to itself cannot be read, so the list of the tenant fails.
	for _, name := range folders(t, filepath.Join(f.root, "a-broken")) {
		meta := filepath.Join(f.root, "a-broken", name, "deletion-mark.json")
		require.NoError(t, os.Symlink(meta, meta))
	}
	require.ErrorContains(t, f.RunOnce(t.Context()), "tenant a-broken")
	blocks, _, err := f.store.Blocks(t.Context(), "b-whole")
	require.NoError(t, err)
	require.Len(t, blocks, 3, "two sources and their result")
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.passFailures), 0)
}

func TestRemainsOfUploadsAreDeletedAfterADay(t *testing.T) {
	f := newFixture(t)
	id := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, os.Remove(filepath.Join(f.root, string(acme), id.String(), "meta.json")))
	f.clock = time.Now().Add(partialAge - time.Hour)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Len(t, folders(t, f.root), 1, "the upload may still be completed")
	f.clock = time.Now().Add(partialAge + time.Hour)
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, folders(t, f.root))
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.partialDeleted), 0)
}

func TestRunRemovesWhatACrashLeftInTheWorkDirectoryAndNothingElse(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{jobPrefix + "123/out", "precious"} {
		require.NoError(t, os.MkdirAll(filepath.Join(f.cfg.Dir, name), 0o755))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, f.Run(ctx))
	require.Equal(t, []string{"precious"}, folders(t, f.cfg.Dir))
}

func TestRunWorksUntilItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
		f.upload(t, 2*hour, 4*hour, blocktest.Floats("a", 2*hour, 4*hour, step))
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		f.limits = func(tenant.ID) tenant.Limits {
			if time.Since(start) > 0 { // after the first pass
				cancel()
			}
			return tenant.Limits{}
		}
		require.NoError(t, f.Run(ctx))
		require.Equal(t, time.Duration(f.cfg.Interval), time.Since(start))
		require.Len(t, f.visible(t), 1)
		require.NotContains(t, f.log.String(), "level=ERROR")
	})
}

func TestConfigurationReportsAllFaults(t *testing.T) {
	require.NoError(t, Default().Validate())
	err := Config{Interval: model.Duration(time.Millisecond), DeletionDelay: -1}.Validate()
	for _, want := range []string{"compactor.dir", "compactor.interval: 1ms is below 1s", "compactor.deletion_delay"} {
		require.ErrorContains(t, err, want)
	}
}
