package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/testcluster"
)

func TestAFullDiskRefusesWritesUntilThereIsRoomAgain(t *testing.T) {
	t.Parallel()
	mount := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(mount, 0o755))
	// The process has a disk of its own that only it sees, and it goes with it.
	script := fmt.Sprintf(`mount -t tmpfs -o size=256m tmpfs %q && exec "$@"`, mount)
	if out, err := exec.Command("unshare", "-m", "sh", "-c", script, "sh", "true").CombinedOutput(); err != nil {
		t.Skipf("this needs the right to mount: %v: %s", err, out)
	}
	process := testcluster.Start(t, testcluster.Options{
		Config: quiet, DataDir: filepath.Join(mount, "data"), Wrapper: []string{"unshare", "-m", "sh", "-c", script, "sh"},
	})
	seen := filepath.Join(fmt.Sprintf("/proc/%d/root", process.PID()), mount)

	g := newLoad(t, process.URL, func(c *loadgen.Config) { c.Span, c.Rate = 3*time.Hour, 20_000 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running errgroup.Group
	running.Go(func() error {
		_, err := g.Run(ctx)
		return err
	})
	for _, leave := range []int64{40 << 20, 0} { // little room; none at all
		live(t, g, 500*time.Millisecond)
		filler := fill(t, seen, leave)
		retries := g.Progress().Retries
		testcluster.Eventually(t, time.Minute, func(context.Context) error {
			if g.Progress().Retries < retries+3 {
				return errNotYet
			}
			return nil
		})
		require.Contains(t, g.Progress().LastRetry, "503 Service Unavailable")
		require.Contains(t, g.Progress().LastRetry, "free some space")
		testcluster.Instant(t, process.API(""), "count(up)", time.Now())

		require.NoError(t, os.Remove(filler))
		acknowledged := g.Progress().Acknowledged
		testcluster.Eventually(t, time.Minute, func(context.Context) error {
			if g.Progress().Acknowledged == acknowledged {
				return errNotYet
			}
			return nil
		})
	}
	require.NoError(t, running.Wait())
	require.Zero(t, g.Progress().Refused)
	verify(t, g)
}

// fill makes a file that leaves as many bytes of the disk, and returns its name.
func fill(t testing.TB, dir string, leave int64) string {
	t.Helper()
	name := filepath.Join(dir, "filler")
	file, err := os.Create(name)
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	var stat syscall.Statfs_t
	require.NoError(t, syscall.Statfs(dir, &stat))
	block := make([]byte, 1<<20)
	for left := int64(stat.Bavail)*stat.Bsize - leave; leave == 0 || left > 0; left -= int64(len(block)) {
		if _, err := file.Write(block); err != nil {
			require.True(t, errors.Is(err, syscall.ENOSPC), err)
			break
		}
	}
	return name
}
