package ingester

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
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
	require.ErrorContains(t, result.Err(), "tenant late-comer has nothing here yet and is refused for now: the process has 87 open files and its limit is 100")
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

func TestTenantsCountBeforeTheirFilesDo(t *testing.T) {
	used := int64(80)
	c := testCeiling(&used)
	c.keep = time.Hour
	admitted := 0
	for c.admit("t") == nil {
		admitted++
	}
	require.Equal(t, 2, admitted)
}

func TestAnUnknownLimitRefusesNobody(t *testing.T) {
	used := int64(0)
	require.Nil(t, testCeiling(&used).admit("t"))
	c := testCeiling(&used)
	used, c.limit = 1000, func() int64 { return 0 }
	require.Nil(t, c.admit("t"))
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
	for tenants, want := range map[int]string{20: "", 21: `limit_of="open files" limit=100 need=94 tenants=21 fix="let it have 141"`} {
		f := newFixture(t)
		var log bytes.Buffer
		f.logger = slog.New(slog.NewTextHandler(&log, nil))
		used := int64(10)
		f.ceilings = []*ceiling{testCeiling(&used)}
		f.warnOfCeilings(make([]tenant.ID, tenants))
		require.Contains(t, log.String(), want)
		require.Equal(t, want == "", log.Len() == 0)
	}
}
