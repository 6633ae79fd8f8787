package ingester

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

// withLateBlock returns an ingester whose tenant acme has a local block with series a and b,
// which late samples are still compared with, and a head that goes on after it.
func withLateBlock(t *testing.T) (f *fixture, b *localBlock) {
	t.Helper()
	f = newFixture(t)
	f.advance(4 * time.Hour)
	f.push(acme, sample{"a", 30 * time.Minute, 0}, sample{"a", 90 * time.Minute, 1}, sample{"b", 91 * time.Minute, 2})
	f.push(acme, sample{"a", 4 * time.Hour, 3})
	for range 2 { // The first notes that a cut is due.
		f.advance(maxCutJitter)
		f.round(acme)
	}
	f.push(acme, sample{"a", 4*time.Hour - time.Minute, 4}) // So that late samples have their log.
	blocks := f.lookup(acme).blocks.get()
	require.Len(t, blocks, 1)
	return f, blocks[0]
}

// lateAndNew has a stored sample, one that was never stored and lies in the block's time, and
// one of a new series.
func lateAndNew() []sample {
	return []sample{{"a", 90 * time.Minute, 1}, {"b", 92 * time.Minute, 5}, {"c", 4 * time.Hour, 6}}
}

func TestLateSampleWaitsAloneWhileItsBlockCannotBeOpened(t *testing.T) {
	f, b := withLateBlock(t)
	index := filepath.Join(b.dir, "index")
	require.NoError(t, os.Rename(index, index+".away"))
	require.NoError(t, os.Symlink("index", index)) // The operating system refuses to open it.

	result := f.offer(acme, batch(lateAndNew()...))
	require.Equal(t, 1, result.Written.Samples)
	require.Equal(t, map[write.Reason][]string{write.ReasonLocalBlockUnavailable: {"sample 0", "sample 1"}}, rejected(result))
	class, _ := result.Class()
	require.Equal(t, write.ClassUnavailable, class)
	for _, part := range []string{string(acme), b.meta.ULID.String(), b.dir, "HundredfoldLocalBlockUnreadable"} {
		require.ErrorContains(t, result.Err(), part)
	}
	require.InDelta(t, 1, testutil.ToFloat64(b.all.failed), 0, "it is tried once in a push")
	f.entryOf(acme, "a") // The push has not made the ingester forget its series.

	require.NoError(t, os.Rename(index+".away", index))
	f.push(acme, lateAndNew()...)
	require.Equal(t, []string{"30m0s 0", "1h30m0s 1"}, f.stored(acme)["a"][:2])
	require.Equal(t, []string{"1h31m0s 2", "1h32m0s 5"}, f.stored(acme)["b"])
	require.Zero(t, testutil.ToFloat64(f.metrics.uncompared))
}

func TestLateSampleIsTakenThoughItsBlockIsDamaged(t *testing.T) {
	for name, damage := range map[string]func(index string) error{
		"cut short": func(index string) error { return os.Truncate(index, 20) },
		"emptied":   func(index string) error { return os.Truncate(index, 0) },
		"missing":   os.Remove,
		"chunks": func(index string) error {
			path := filepath.Join(filepath.Dir(index), "chunks", "000001")
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for k := 8; k < len(text); k++ {
				text[k] ^= 0x55
			}
			return os.WriteFile(path, text, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := withLateBlock(t)
			require.NoError(t, damage(filepath.Join(b.dir, "index")))
			f.push(acme, lateAndNew()...)
			want := 2
			if name == "chunks" {
				want = 1 // The index says that there is nothing of the other sample's time.
			}
			require.InDelta(t, want, testutil.ToFloat64(f.metrics.uncompared), 0)

			f.push(acme, lateAndNew()...)
			require.InDelta(t, want, testutil.ToFloat64(f.metrics.uncompared), 0, "now the head has them")
			result := f.offer(acme, batch(sample{"b", 92 * time.Minute, 7}))
			require.Len(t, rejected(result)[write.ReasonDuplicateTimestamp], 1)
			q, err := f.lookup(acme).db.Querier(0, noon.Add(2*time.Hour).UnixMilli())
			require.NoError(t, err)
			require.Equal(t, map[string][]string{"a": {"1h30m0s 1"}, "b": {"1h32m0s 5"}}, f.drain(q))
			require.NoError(t, q.Close())
		})
	}
}

func TestOnlyWhatTheOperatingSystemRefusesMayPass(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{syscall.EMFILE, true},
		{syscall.ENFILE, true},
		{syscall.ENOMEM, true},
		{syscall.EIO, true},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, true},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}, false},
		{syscall.EINVAL, false},
		{errors.New("invalid magic number"), false},
	} {
		require.Equal(t, c.want, mayPass(fmt.Errorf("open local block: %w", c.err)), "%v", c.err)
	}
}
