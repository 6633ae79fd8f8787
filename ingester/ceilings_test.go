package ingester

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

// testCeiling returns a limit of 100 of which *used are taken.
func testCeiling(used *int64) *ceiling {
	return &ceiling{
		what: "open files", fix: "let it have %d", each: 4, base: 10, now: time.Now,
		limit: func() int64 { return 100 }, count: func() int64 { return *used },
	}
}

func TestNewTenantsAreRefusedNearALimitOfTheOperatingSystem(t *testing.T) {
	f := newFixture(t)
	used := int64(86)
	f.ceilings = []*ceiling{testCeiling(&used)}
	f.push(acme, sample{"a", 0, 1}) // It takes four.

	used = 87
	result := f.offer("late-comer", batch(sample{"a", 0, 1}, sample{"b", 0, 1}))
	require.Zero(t, result.Written)
	require.Len(t, result.Rejected, 1)
	require.Equal(t, 2, result.Rejected[0].Count)
	require.Equal(t, write.ReasonInstanceTenantLimit, result.Rejected[0].Reason)
	require.Equal(t, write.ClassUnavailable, result.Rejected[0].Class())
	require.ErrorContains(t, result.Err(), "tenant late-comer has nothing here yet and is refused for now: the process has 87 open files, its 2 tenants may need 18, and its limit is 100")
	_, err := f.Push(context.Background(), "late-comer", &write.Batch{Metadata: []write.Metadata{{Metric: "m", Metadata: metadata.Metadata{Help: "h"}}}})
	require.ErrorContains(t, err, "instance_tenant_limit")
	require.Nil(t, f.lookup("late-comer"))
	require.NoDirExists(t, filepath.Join(f.dir, "ingester", "late-comer"))

	f.push(acme, sample{"b", time.Minute, 1}, sample{"b", 0, 1})
	f.restart()
	f.ceilings = []*ceiling{testCeiling(&used)}
	f.push(acme, sample{"b", 2 * time.Minute, 1})

	used = 86
	f.push("late-comer", sample{"a", 0, 1})
}

func TestATenantThatWasIdleComesBackNearALimitOfTheOperatingSystem(t *testing.T) {
	f := newFixture(t, withCluster(i0, time.Hour))
	f.place(placedAmong("i1", "i2"), sample{"a", 0, 1})
	f.advance(time.Hour)
	f.round(acme)
	f.index(1)
	f.advance(time.Minute)
	f.round(acme)
	f.advance(time.Hour)
	f.round(acme)
	require.Nil(t, f.lookup(acme).db)
	require.DirExists(t, f.file(""))

	used := int64(87)
	c := testCeiling(&used)
	c.keep = time.Hour
	f.ceilings = []*ceiling{c}
	f.place(placedAmong("i1", "i2"), sample{"a", 2 * time.Hour, 1})
	require.Equal(t, map[string][]string{"a": {"2h0m0s 1"}}, f.stored(acme))
	require.EqualValues(t, 91, c.used(), "it takes its part")
	result, err := f.PushPlaced(t.Context(), "late-comer", batch(sample{"a", 0, 1}), placedAmong("i1", "i2"))
	require.NoError(t, err)
	require.ErrorContains(t, result.Err(), "tenant late-comer has nothing here yet")
}

func TestTenantsCountBeforeTheirFilesDo(t *testing.T) {
	used := int64(80)
	c := testCeiling(&used)
	c.keep = time.Hour
	admitted := 0
	for c.admit("t", false, 0) == nil {
		admitted++
	}
	require.Equal(t, 2, admitted)
}

func TestTenantsAreRefusedThatTheLimitHasNoRoomForAfterACrash(t *testing.T) {
	used := int64(50) // Two files each, and twice that after a crash.
	require.Nil(t, testCeiling(&used).admit("t", false, 19))
	require.ErrorContains(t, testCeiling(&used).admit("t", false, 20), "the process has 50 open files, its 20 tenants may need 90, and its limit is 100")
	require.Nil(t, testCeiling(&used).admit("t", true, 20))
}

func TestAnUnknownLimitRefusesNobody(t *testing.T) {
	used := int64(0)
	require.Nil(t, testCeiling(&used).admit("t", false, 0))
	c := testCeiling(&used)
	used, c.limit = 1000, func() int64 { return 0 }
	require.Nil(t, c.admit("t", false, 0))
}

func TestOpenFilesAndMapsAreCounted(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	before := openFiles()
	require.Positive(t, before)
	require.Positive(t, memoryMaps())
	for _, c := range newCeilings() {
		require.Greater(t, c.limit(), c.used())
	}
	for range 10 {
		file, err := os.Open(t.TempDir())
		require.NoError(t, err)
		defer func() { require.NoError(t, file.Close()) }()
	}
	require.GreaterOrEqual(t, openFiles(), before+10)
}

func TestTenantFoldersAreComparedWithTheLimitsAtTheStart(t *testing.T) {
	// Of 2,000 that there are, 1,800 may be taken: 1,000 by the process, 512 by the blocks that stay
	// open of those on disk, and 4 files and 2 maps by each tenant.
	for _, c := range []struct {
		tenants, blocks int // blocks of each
		want            []string
	}{
		{72, 10, nil},
		{73, 0, []string{`limit_of="open files" limit=2000 need=1804 tenants=73 fix="let the process open 2706: `}},
		{144, 0, []string{`limit_of="open files" limit=2000 need=2088 tenants=144`}},
		{145, 0, []string{`limit_of="open files" limit=2000 need=2092 tenants=145`, `limit_of="memory maps" limit=2000 need=1802 tenants=145 fix="let a process have 2703: `}},
	} {
		f := newFixture(t)
		for k := range c.tenants {
			folder := filepath.Join(f.dir, "ingester", fmt.Sprint("t", k))
			require.NoError(t, os.Mkdir(folder, 0o750))
			for range c.blocks {
				block := filepath.Join(folder, ulid.Make().String())
				require.NoError(t, os.Mkdir(block, 0o750))
				require.NoError(t, os.WriteFile(filepath.Join(block, "index"), nil, 0o600))
			}
		}
		for _, ceiling := range f.ceilings {
			ceiling.limit = func() int64 { return 2000 }
		}
		var log bytes.Buffer
		f.logger = slog.New(slog.NewTextHandler(&log, nil))
		ids, err := tenantsOnDisk(f.Ingester.cfg)
		require.NoError(t, err)
		f.warnOfCeilings(ids)
		require.Equal(t, len(c.want), bytes.Count(log.Bytes(), []byte("\n")), "%d tenants: %s", c.tenants, &log)
		for _, want := range c.want {
			require.Contains(t, log.String(), want)
		}
	}
}
