package ingester

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestATenantWhoseNameIsAPatternLeavesTheFoldersOfOthersAlone(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		f := newFixture(t, withConfig(func(c *Config) {
			if adopted {
				c.Adopted = &Adopted{Tenant: "*", Dir: filepath.Join(c.Dir, "*")}
			}
		}))
		for _, id := range []tenant.ID{"ab", "*"} {
			f.push(id, sample{"a", 0, 1})
		}
		folder := filepath.Join(f.dir, "ingester", "ab")
		left := []string{
			snapshotPrefix + "000001.0000000002",
			filepath.Join(tsdbFolder, snapshotPrefix+"000001.0000000002"),
			ulid.Make().String() + ".tmp-for-creation",
			metadataFile + temporarySuffix + "1",
		}
		for _, name := range left {
			require.NoError(t, os.Mkdir(filepath.Join(folder, name), 0o750))
		}

		f.lookup("*").broken.Store(true)
		f.round("*") // opens it anew
		f.push("*", sample{"a", time.Minute, 1})
		for _, name := range left {
			require.DirExists(t, filepath.Join(folder, name), "adopted: %t", adopted)
		}
		f.restart()
		require.Equal(t, map[string][]string{"a": {"0s 1"}}, f.stored("ab"))
		require.Equal(t, map[string][]string{"a": {"0s 1", "1m0s 1"}}, f.stored("*"))
	}
}

func TestATenantWhoseNameIsAPatternFindsItsOwnSnapshot(t *testing.T) {
	f := newFixture(t)
	f.push("a*(!)'", sample{"a", 0, 1})
	require.NoError(t, f.close())
	folder := filepath.Join(f.dir, "ingester", "a*(!)'")
	left, err := namesIn(filepath.Join(folder, tsdbFolder), isSnapshot)
	require.NoError(t, err)
	require.Len(t, left, 1)
	// Earlier releases left it there.
	require.NoError(t, os.Rename(filepath.Join(folder, tsdbFolder, left[0]), filepath.Join(folder, left[0])))
	f.open()
	require.DirExists(t, filepath.Join(folder, tsdbFolder, left[0]))
	require.Equal(t, map[string][]string{"a": {"0s 1"}}, f.stored("a*(!)'"))
}
