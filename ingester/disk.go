package ingester

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errDisk says that the data directory takes no writes.
var errDisk = errors.New("the data directory takes no writes")

const (
	// diskReserve is the free space below which writes are refused: enough for the
	// chunks that were completed but not yet written out, and for the records of
	// a request that is under way. It must never be used up, because the TSDB
	// gives up on the process when it can't write a chunk.
	diskReserve = 64 << 20
	// diskReservePerSeries is added for every series in memory: its last complete chunk.
	diskReservePerSeries = 256
	diskCheckInterval    = 100 * time.Millisecond
)

// disk watches the free space of the data directory. It is safe for concurrent use.
type disk struct {
	dir   string
	now   func() time.Time
	statf func(dir string) (free uint64, readOnly bool, err error)

	mu      sync.Mutex
	checked time.Time
	free    uint64
	err     error
}

func newDisk(dir string) *disk {
	return &disk{dir: dir, now: time.Now, statf: statfs}
}

func statfs(dir string) (free uint64, readOnly bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false, err
	}
	return st.Bavail * uint64(st.Bsize), st.Flags&unix.ST_RDONLY != 0, nil
}

// check returns an error that wraps errDisk if there is no room for need bytes
// and for what so many series may still have to write.
func (d *disk) check(need uint64, series int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.now(); d.checked.IsZero() || now.Sub(d.checked) >= diskCheckInterval {
		d.checked = now
		free, readOnly, err := d.statf(d.dir)
		d.free, d.err = free, nil
		switch {
		case err != nil:
			d.err = fmt.Errorf("%w: stat of %s: %w", errDisk, d.dir, err)
		case readOnly:
			d.err = fmt.Errorf("%w: the file system of %s is mounted read-only", errDisk, d.dir)
		}
	}
	if d.err != nil {
		return d.err
	}
	reserve := diskReserve + uint64(max(0, series))*diskReservePerSeries
	if d.free < reserve+need {
		return fmt.Errorf("%w: %s has %d MiB free and needs %d MiB; free some space, writes go on by themselves",
			errDisk, d.dir, d.free>>20, (reserve+need)>>20)
	}
	return nil
}
