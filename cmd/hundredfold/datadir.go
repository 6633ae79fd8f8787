package main

import (
	"crypto/rand"
	"encoding/binary"
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
	lock fileutil.Releaser
	path string // of the file that instance is kept in
	instance
}

// openDataDir creates dir if need be, locks it, and reads or makes the identity
// of the instance that lives there. id is the one it must have, "" for any.
func openDataDir(dir, id string) (*dataDir, error) {
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
	d := &dataDir{lock: lock, path: filepath.Join(dir, "instance.json")}
	// The lock is on the open file; what the file says is for people. It is
	// written in place, because a new file would not be locked.
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o640); err != nil {
		return nil, errors.Join(fmt.Errorf("note the process in the data directory: %w", err), d.Close())
	}
	if err := d.identify(id); err != nil {
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

// instance is the content of instance.json. Releases before the cluster write and
// need no more than the first two fields.
type instance struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	// Generation tells the data in this directory from data that was lost.
	Generation uint64 `json:"generation"`
	// Seed is the seed of the cluster's identities, once the bucket has told it.
	Seed *uint64 `json:"seed,omitempty"`
}

// identify reads the instance, or makes one.
func (d *dataDir) identify(id string) error {
	text, err := os.ReadFile(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.instance = instance{Version: 1, ID: id}
		if id == "" {
			d.ID = ulid.MustNew(ulid.Now(), rand.Reader).String()
		}
	case err != nil:
		return fmt.Errorf("read the identity of the instance: %w", err)
	default:
		if err := json.Unmarshal(text, &d.instance); err != nil {
			return fmt.Errorf("read the identity of the instance from %s: %w", d.path, err)
		}
	}
	switch {
	case d.Version != 1 || d.ID == "":
		return fmt.Errorf("read the identity of the instance from %s: version %d is not known to this release, or the id is missing", d.path, d.Version)
	case id != "" && id != d.ID:
		return fmt.Errorf("the data directory belongs to instance %q, not to %q: leave --instance-id out, or choose another --data.dir", d.ID, id)
	case d.Generation != 0:
		return nil
	}
	for d.Generation == 0 {
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails (crypto/rand)
		d.Generation = binary.BigEndian.Uint64(random[:])
	}
	return d.save()
}

// remember keeps the seed of the cluster's identities, so that the next start can do
// without the bucket.
func (d *dataDir) remember(seed uint64) error {
	d.Seed = &seed
	return d.save()
}

func (d *dataDir) save() error {
	text, err := json.Marshal(d.instance)
	if err != nil {
		return fmt.Errorf("write the identity of the instance: %w", err)
	}
	// Whole or absent, also after a crash.
	temporary := d.path + ".tmp"
	if err := writeSynced(temporary, append(text, '\n')); err != nil {
		return fmt.Errorf("write the identity of the instance: %w", err)
	}
	if err := fileutil.Rename(temporary, d.path); err != nil {
		return fmt.Errorf("write the identity of the instance: %w", err)
	}
	return nil
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}
