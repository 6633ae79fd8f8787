package importer

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestAnImportThatIsStoppedAtAnyStepIsCompletedByTheNext(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T, *bed) (want map[string][]string){
		"a Prometheus with its head": prometheusToInterrupt,
		"replicas of Thanos":         replicasToInterrupt,
	} {
		b := newBed(t)
		want := prepare(t, b)
		// Nothing stops this one.
		_, all := interrupted(t, b, want, nil, func(*blocktest.Faulty) {})
		for how, fault := range map[string]struct {
			fail   func(*blocktest.Faulty, int64)
			stride int64
		}{
			"a crash":       {(*blocktest.Faulty).FailFrom, 1},
			"a short fault": {(*blocktest.Faulty).FailOnly, 4}, // it leaves less behind than a crash
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				stride := fault.stride
				if testing.Short() {
					stride *= 7
				}
				n := int64(1)
				for {
					calls, _ := interrupted(t, b, want, all, func(bucket *blocktest.Faulty) { fault.fail(bucket, n) })
					if calls < n {
						break
					}
					n += stride
				}
				require.Greater(t, n, int64(30), "there are at least that many calls to fail")
			})
		}
	}
}

// interrupted lets an import fail, looks at what it left, and imports again. It returns how
// many calls of the bucket the first one made, and the blocks that are there at last.
func interrupted(t *testing.T, b *bed, want map[string][]string, all []ulid.ULID, fail func(*blocktest.Faulty)) (calls int64, left []ulid.ULID) {
	t.Helper()
	// In memory, because there are many calls to fail.
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	store := blockstore.New(bucket, nil)
	cfg := b.cfg
	cfg.Scratch = filepath.Join(t.TempDir(), "scratch")
	run := func() error {
		_, err := Run(t.Context(), cfg, store, io.Discard, slog.New(slog.DiscardHandler))
		return err
	}
	fail(bucket)
	err := run()
	calls = bucket.Calls()
	bucket.Heal()
	if err != nil {
		require.ErrorIs(t, err, blocktest.ErrBucketDown)
	}
	for series, samples := range samplesOf(t, store) {
		require.Subset(t, want[series], samples, "after the fault")
	}

	require.NoError(t, run())
	require.Equal(t, want, samplesOf(t, store))
	require.NoDirExists(t, cfg.Scratch)
	blocks, partial, err := store.Blocks(t.Context(), tenant.Default)
	require.NoError(t, err)
	require.Empty(t, partial)
	total, expected := uint64(0), 0
	for _, block := range blocks {
		total += block.Meta.Stats.NumSamples
	}
	for _, samples := range want {
		expected += len(samples)
	}
	require.EqualValues(t, expected, total, "each sample is there once")
	left = slices.SortedFunc(maps.Keys(blocks), ulid.ULID.Compare)
	if all != nil {
		require.Equal(t, all, left)
	}
	return calls, left
}

// samplesOf returns the samples of the default tenant in store.
func samplesOf(t *testing.T, store *blockstore.Store) map[string][]string {
	t.Helper()
	blocks, _, err := store.Blocks(t.Context(), tenant.Default)
	require.NoError(t, err)
	var dirs []string
	for name := range blocks {
		dir := filepath.Join(t.TempDir(), name.String())
		require.NoError(t, store.Download(t.Context(), tenant.Default, name, dir))
		dirs = append(dirs, dir)
	}
	return blocktest.Samples(t, dirs...)
}

// prometheusToInterrupt makes the source a Prometheus with a block, and a head with samples
// in order and late ones.
func prometheusToInterrupt(t *testing.T, b *bed) map[string][]string {
	t.Helper()
	start := 1000 * 2 * hour
	b.prometheus(t, func(add func(string, int64, int64)) {
		add("a", start+2*hour, start+5*hour)
		add("late", start+4*hour, start+5*hour)
		add("late", start+3*hour, start+4*hour) // out of order
	})
	dir := write(t, b.source, start, start+2*hour, "", blocktest.Floats("a", start, start+2*hour, step))
	want := blocktest.Samples(t, dir)
	head := func(name string, from, to int64) {
		for at := from; at < to; at += 60_000 {
			v := float64(at)
			want[name] = append(want[name], fmt.Sprintf("%d %s %x", at, strconv.FormatFloat(v, 'g', -1, 64), math.Float64bits(v)))
		}
	}
	head(`{__name__="a"}`, start+2*hour, start+5*hour)
	head(`{__name__="late"}`, start+3*hour, start+5*hour)
	return want
}

// replicasToInterrupt makes the source a bucket with replicas that overlap, and a block that
// is alone. Their samples have the same times, so that those of one replica are all there is.
func replicasToInterrupt(t *testing.T, b *bed) map[string][]string {
	t.Helper()
	b.cfg.ReplicaLabels = []string{"replica"}
	b.cfg.ExternalLabels = map[string]string{"site": "x"}
	day := 24 * hour
	replica := func(name string, from, to int64) string {
		keys := fmt.Sprintf(`{"thanos": {"labels": {"cluster": "eu", "replica": %q}}}`, name)
		return write(t, b.source, from, to, keys, blocktest.Floats("a", from, to, step), blocktest.Floats("only"+name, from, to, step))
	}
	return blocktest.Samples(t,
		replica("0", day-2*hour, day+2*hour), // cut in two, since blocks lie within days
		replica("1", day-2*hour, day+2*hour),
		replica("1", day+2*hour, day+4*hour),
	)
}
