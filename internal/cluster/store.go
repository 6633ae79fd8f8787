package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// registryFile is where the registry is kept: after a total outage the registries
// that restarted ingesters exchange are all that is left of it.
const registryFile = "registry.bin"

// store keeps the registry on disk. Safe for concurrent use.
type store struct {
	path string // empty: it keeps nothing

	mu struct {
		sync.Mutex
		// own is the newest version of the own record. It is in each file from the
		// moment on that it was first saved, also if the registry to save is older.
		own []Record
	}
}

func newStore(dir string) *store {
	if dir == "" {
		return &store{}
	}
	return &store{path: filepath.Join(dir, registryFile)}
}

// load returns the registry that was saved last; an empty one if none was.
func (s *store) load() (Registry, error) {
	if s.path == "" {
		return Registry{}, nil
	}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return Registry{}, nil
	}
	if err != nil {
		return Registry{}, fmt.Errorf("read the registry: %w", err)
	}
	records, err := Decode(data)
	var r Registry
	if err == nil {
		r, _, err = r.Merge(records...)
	}
	if err != nil {
		return Registry{}, fmt.Errorf("read the registry from %s: %w; if other nodes of the cluster are up, delete the file and start again", s.path, err)
	}
	return r, nil
}

// save replaces what is on disk by r and own.
func (s *store) save(r Registry, own ...Record) error {
	if s.path == "" {
		return nil
	}
	// A lock across I/O: versions have to reach the disk in their order.
	s.mu.Lock()
	defer s.mu.Unlock()
	// Invalid ones were reported where they came from.
	r, _, err := r.Merge(append(own, s.mu.own...)...)
	if err != nil {
		return fmt.Errorf("save the registry: %w", err)
	}
	if err := writeFile(s.path, Encode(nil, r.Records()...)); err != nil {
		return fmt.Errorf("save the registry: %w", err)
	}
	if len(own) > 0 {
		s.mu.own = own
	}
	return nil
}

// writeFile replaces the file at path in one step: it holds the old or the new
// data whenever the process or the machine stops.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	// One name, so that what a crash leaves is overwritten by the next one.
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
