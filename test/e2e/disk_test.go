package e2e

import (
	"context"
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
	process, disk := startOnSmallDisk(t)
	g := newLoad(t, process.URL, endless)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running errgroup.Group
	running.Go(func() error {
		_, err := g.Run(ctx)
		return err
	})
	for _, leave := range []int64{40 << 20, 0} { // little room; none at all
		live(t, g, 500*time.Millisecond)
		filler := fill(t, disk, leave)
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
	cancel()
	require.NoError(t, running.Wait())
	require.Zero(t, g.Progress().Refused)
	verify(t, g)
}

func TestAProcessStopsOnAFullDisk(t *testing.T) {
	t.Parallel()
	process, disk := startOnSmallDisk(t)
	send(t, newLoad(t, process.URL, func(c *loadgen.Config) { c.Span = time.Hour }))
	fill(t, disk, 0)
	_ = process.End() // it may say that it could not tidy up
	require.NotContains(t, process.Log(), "panic:")
}

// endless is a load that takes more time than there is.
func endless(c *loadgen.Config) { c.Span, c.Rate = 7*24*time.Hour, 10_000 }

// startOnSmallDisk starts a process whose data is on a disk of its own. Only the
// process sees the disk, and it goes with it; the test sees it in the folder
// that is returned.
func startOnSmallDisk(t testing.TB) (process *testcluster.Process, disk string) {
	t.Helper()
	mount := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(mount, 0o755))
	script := fmt.Sprintf(`mount -t tmpfs -o size=256m tmpfs %q && exec "$@"`, mount)
	wrapper := []string{"unshare", "-m", "sh", "-c", script, "sh"}
	if out, err := exec.Command(wrapper[0], append(wrapper[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("this needs the right to mount: %v: %s", err, out)
	}
	process = testcluster.Start(t, testcluster.Options{Config: quiet, DataDir: filepath.Join(mount, "data"), Wrapper: wrapper})
	return process, filepath.Join(fmt.Sprintf("/proc/%d/root", process.PID()), mount)
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
			require.ErrorIs(t, err, syscall.ENOSPC)
			break
		}
	}
	return name
}
