package compactor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
)

// withSidecar returns the blocks in the bucket that have a sidecar.
func (f *fixture) withSidecar(t *testing.T) []ulid.ULID {
	t.Helper()
	blocks, _, err := f.store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	var ids []ulid.ULID
	for _, id := range sorted(blocks) {
		if blocks[id].HasSidecar {
			ids = append(ids, id)
		}
	}
	return ids
}

func overS3(t *testing.T) *blockstore.Store {
	t.Helper()
	store, err := blockstore.Open(s3test.Start(t), nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

func TestABlockThatCameWithoutASidecarGetsOneOnce(t *testing.T) {
	for name, store := range map[string]func(*testing.T) *fixture{
		"on this machine": newFixture,
		"elsewhere":       func(t *testing.T) *fixture { return fixtureOver(t, overS3(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := store(t)
			block := f.upload(t, 0, 2*hour, everyKind(0, 2*hour)...)
			require.Empty(t, f.withSidecar(t))
			require.NoError(t, f.RunOnce(t.Context()))
			require.Equal(t, []ulid.ULID{block}, f.withSidecar(t))
			require.NoError(t, f.RunOnce(t.Context()))
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.sidecarsAdded), 0)
			require.Zero(t, testutil.ToFloat64(f.metrics.sidecarFailures))
			require.Empty(t, jobs(t, f))
		})
	}
}

func TestBlocksThatAreToGoGetNoSidecar(t *testing.T) {
	f := newFixture(t)
	for start := int64(0); start < 12*hour; start += 2 * hour {
		f.upload(t, start, start+2*hour, blocktest.Floats("a", start, start+2*hour, step))
	}
	marked := f.upload(t, 24*hour, 26*hour, blocktest.Floats("a", 24*hour, 26*hour, step))
	require.NoError(t, f.store.MarkNoCompact(t.Context(), acme, marked, blockstore.NoCompactMark{Time: f.clock, Reason: blockstore.NoCompactDamaged}))
	for range 2 {
		require.NoError(t, f.RunOnce(t.Context()))
		var merged []ulid.ULID
		for _, id := range f.visible(t) {
			if id != marked {
				merged = append(merged, id)
			}
		}
		require.Len(t, merged, 1)
		require.Equal(t, merged, f.withSidecar(t), "which came with the block")
	}
	require.Zero(t, testutil.ToFloat64(f.metrics.sidecarsAdded))
}

func TestADamagedBlockWithoutASidecarIsReportedOnceAndHoldsUpNobody(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"cut off": func(text []byte) []byte { return text[:len(text)/2] },
		"zeros":   func(text []byte) []byte { return make([]byte, len(text)) },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			damaged := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
			damageFile(t, f, damaged, "index", damage)
			whole := f.upload(t, 24*hour, 26*hour, blocktest.Floats("a", 24*hour, 26*hour, step))
			for range 2 {
				require.NoError(t, f.RunOnce(t.Context()))
			}
			require.Equal(t, []ulid.ULID{whole}, f.withSidecar(t))
			require.InDelta(t, 1, testutil.ToFloat64(f.metrics.sidecarFailures), 0)
			require.Contains(t, f.log.String(), damaged.String())
		})
	}
}

func TestASidecarThatCannotBeMadeNowIsMadeLater(t *testing.T) {
	f := newFixture(t)
	block := f.upload(t, 0, 2*hour, blocktest.Floats("a", 0, 2*hour, step))
	require.NoError(t, os.WriteFile(f.cfg.Dir, nil, 0o600)) // in place of the directory
	require.NoError(t, f.RunOnce(t.Context()))
	require.Empty(t, f.withSidecar(t))
	require.InDelta(t, 1, testutil.ToFloat64(f.metrics.sidecarFailures), 0)
	require.NoError(t, os.Remove(f.cfg.Dir))
	require.NoError(t, f.RunOnce(t.Context()))
	require.Equal(t, []ulid.ULID{block}, f.withSidecar(t))
}

func TestAPassGivesSidecarsToABoundedNumberOfBlocks(t *testing.T) {
	f := newFixture(t)
	const foreign = maxSidecars + 3
	f.clock = time.UnixMilli((foreign + 7) * 24 * hour)
	for day := range int64(foreign) {
		f.upload(t, day*24*hour, (day+1)*24*hour, blocktest.Floats(fmt.Sprint("a", day), day*24*hour, (day+1)*24*hour, hour))
	}
	for _, want := range []int{maxSidecars, foreign} {
		require.NoError(t, f.RunOnce(t.Context()))
		found, err := filepath.Glob(filepath.Join(f.root, string(acme), "*", blockstore.SidecarFile))
		require.NoError(t, err)
		require.Len(t, found, want)
	}
}
