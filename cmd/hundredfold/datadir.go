package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/fileutil"
)

// errInUse says that another process holds the data directory.
var errInUse = errors.New("in use by another process")

// dataDir is the data directory, held by this process alone until Close.
type dataDir struct {
	lock       fileutil.Releaser
	instanceID string
}

// openDataDir creates dir if need be, locks it, and reads or makes the identity
// of the instance that lives there.
func openDataDir(dir string) (*dataDir, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("create the data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	lock, _, err := fileutil.Flock(path)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("data directory %s is %w%s; stop it or choose another with --data.dir", dir, errInUse, holder(path))
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	d := &dataDir{lock: lock}
	// The lock is on the open file; what the file says is for people. It is
	// written in place, because a new file would not be locked.
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o640); err != nil {
		return nil, errors.Join(fmt.Errorf("note the process in the data directory: %w", err), d.Close())
	}
	if d.instanceID, err = instanceID(filepath.Join(dir, "instance.json")); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close releases the lock. The file stays: removing it would race with a process
// that has just opened it.
func (d *dataDir) Close() error {
	if err := d.lock.Release(); err != nil {
		return fmt.Errorf("release the data directory: %w", err)
	}
	return nil
}

func holder(path string) string {
	text, err := os.ReadFile(path)
	pid := strings.TrimSpace(string(text))
	if err != nil || pid == "" {
		return ""
	}
	return " (pid " + pid + ")"
}

// instance is the content of instance.json.
type instance struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
}

func instanceID(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newInstance(path)
	}
	if err != nil {
		return "", fmt.Errorf("read the identity of the instance: %w", err)
	}
	var i instance
	if err := json.Unmarshal(text, &i); err != nil {
		return "", fmt.Errorf("read the identity of the instance from %s: %w", path, err)
	}
	if i.Version != 1 || i.ID == "" {
		return "", fmt.Errorf("read the identity of the instance from %s: version %d is not known to this release, or the id is missing", path, i.Version)
	}
	return i.ID, nil
}

func newInstance(path string) (string, error) {
	i := instance{Version: 1, ID: ulid.MustNew(ulid.Now(), rand.Reader).String()}
	text, err := json.Marshal(i)
	if err != nil {
		return "", fmt.Errorf("write the identity of the instance: %w", err)
	}
	// Whole or absent, also after a crash.
	temporary := path + ".tmp"
	if err := writeSynced(temporary, append(text, '\n')); err != nil {
		return "", fmt.Errorf("write the identity of the instance: %w", err)
	}
	if err := fileutil.Rename(temporary, path); err != nil {
		return "", fmt.Errorf("write the identity of the instance: %w", err)
	}
	return i.ID, nil
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}
