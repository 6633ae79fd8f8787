package ingester

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	metadataFile    = "metadata.json"
	metadataVersion = 1

	// maxMetadataMetrics bounds the metric families that a tenant's metadata is
	// kept for, and maxMetadataPerMetric how many kinds of it (targets may differ).
	maxMetadataMetrics   = 100_000
	maxMetadataPerMetric = 10
)

// metadataStore keeps what senders say about metric families. It is written to
// disk when the tenant is closed and now and then in between; what a crash
// loses is sent again within a minute or so. It is safe for concurrent use.
type metadataStore struct {
	path string

	mu    sync.Mutex
	byKey map[string][]metadata.Metadata
	dirty bool
}

// metadataDisk is the format of metadataFile.
type metadataDisk struct {
	Version int                            `json:"version"`
	Metrics map[string][]metadata.Metadata `json:"metrics"`
}

func openMetadata(dir string) (*metadataStore, error) {
	m := &metadataStore{path: filepath.Join(dir, metadataFile), byKey: map[string][]metadata.Metadata{}}
	data, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read metric metadata: %w", err)
	}
	var d metadataDisk
	if err := json.Unmarshal(data, &d); err != nil || d.Version != metadataVersion {
		// It is a cache of what senders repeat: starting without it is right.
		return m, nil //nolint:nilerr // see above
	}
	if d.Metrics != nil {
		m.byKey = d.Metrics
	}
	return m, nil
}

// add stores all of ms. Strings are copied.
func (m *metadataStore) add(ms []write.Metadata) {
	if len(ms) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, md := range ms {
		m.addLocked(md)
	}
}

func (m *metadataStore) addLocked(md write.Metadata) {
	md, ok := md.Kept()
	if !ok {
		return
	}
	known, ok := m.byKey[md.Metric]
	if !ok && len(m.byKey) >= maxMetadataMetrics {
		return
	}
	for i, k := range known {
		if k.Type == md.Type && k.Unit == md.Unit && k.Help == md.Help {
			if i == len(known)-1 {
				return
			}
			known = slices.Delete(slices.Clone(known), i, i+1) // the newest is the last
			break
		}
	}
	if len(known) >= maxMetadataPerMetric {
		known = known[1:]
	}
	next := append(slices.Clone(known), metadata.Metadata{
		Type: model.MetricType(strings.Clone(string(md.Type))), Unit: strings.Clone(md.Unit), Help: strings.Clone(md.Help),
	})
	m.byKey[strings.Clone(md.Metric)] = next
	m.dirty = true
}

// get returns the metadata of metric, newest first, or of all metrics if it is "".
func (m *metadataStore) get(metric string) map[string][]metadata.Metadata {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]metadata.Metadata{}
	collect := func(name string, list []metadata.Metadata) {
		list = slices.Clone(list)
		slices.Reverse(list)
		out[name] = list
	}
	if metric != "" {
		if list, ok := m.byKey[metric]; ok {
			collect(metric, list)
		}
		return out
	}
	for name, list := range m.byKey {
		collect(name, list)
	}
	return out
}

// save writes the store to disk if it changed.
func (m *metadataStore) save() error {
	m.mu.Lock()
	if !m.dirty {
		m.mu.Unlock()
		return nil
	}
	data, err := json.Marshal(metadataDisk{Version: metadataVersion, Metrics: m.byKey})
	m.dirty = false
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encode metric metadata: %w", err)
	}
	if err := writeFile(m.path, data); err != nil {
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
		return fmt.Errorf("save metric metadata: %w", err)
	}
	return nil
}

// writeFile replaces the file at path in one step: it holds the old or the new
// data whenever the process or the machine stops.
func writeFile(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+temporarySuffix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

const temporarySuffix = ".tmp-"

// removeTemporaries removes what writeFile left in dir when the process died.
func removeTemporaries(dir string) error {
	left, err := namesIn(dir, func(name string) bool { return strings.Contains(name, temporarySuffix) })
	if err != nil {
		return fmt.Errorf("find unfinished files: %w", err)
	}
	for _, name := range left {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove an unfinished file: %w", err)
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
