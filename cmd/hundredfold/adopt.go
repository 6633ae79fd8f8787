package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/fileutil"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	adoptedFile    = "adopted.json"
	adoptedVersion = 1
)

// adoption is the content of adopted.json, which says that the data directory is that of
// a Prometheus, and goes on to be one.
type adoption struct {
	Version int       `json:"version"`
	Tenant  tenant.ID `json:"tenant"`
	Since   time.Time `json:"since"`
	// Keep says whether Blocks stay here although the bucket holds them. The operator
	// sets it to false to have the room, when no Prometheus is to come back.
	Keep bool `json:"keep_blocks"`
	// Blocks are those that Prometheus left.
	Blocks []ulid.ULID `json:"blocks"`
}

// adopt returns the Prometheus directory that the data directory is; nil if it is none.
// The data directory is locked, by the very file that Prometheus locks.
func (p *process) adopt() (*ingester.Adopted, error) {
	dir := p.cfg.DataDir
	a, err := readAdoption(filepath.Join(dir, adoptedFile))
	if err != nil {
		return nil, err
	}
	blocks, found, err := prometheusIn(dir)
	if err != nil {
		return nil, fmt.Errorf("look for the data of a Prometheus in the data directory: %w", err)
	}
	switch {
	case a == nil && !found:
		return nil, nil
	case a == nil:
		if a, err = p.beginAdoption(blocks); err != nil {
			return nil, err
		}
	case found && a.Keep:
		// A Prometheus may have run here since, and merged its blocks.
		if err := a.join(blocks, filepath.Join(dir, adoptedFile)); err != nil {
			return nil, err
		}
	}
	adopted := &ingester.Adopted{Tenant: a.Tenant, Dir: dir}
	if a.Keep {
		adopted.Keep = a.Blocks
	}
	p.logger.Info("The data directory is that of a Prometheus: its history is served in place and copied to the bucket. No Prometheus may run on it meanwhile; one may be started on it again after this process has stopped.",
		"tenant", a.Tenant, "since", a.Since, "blocks", len(a.Blocks), "keep_blocks", a.Keep)
	return adopted, nil
}

// beginAdoption notes that the data directory was that of a Prometheus.
func (p *process) beginAdoption(blocks []ulid.ULID) (*adoption, error) {
	dir := p.cfg.DataDir
	if p.member != nil {
		return nil, fmt.Errorf("the data directory %s is that of a Prometheus, and a member of a cluster adopts none: import it with hundredfold import --from=%s, and give this process a directory of its own with --data.dir", dir, dir)
	}
	own := filepath.Join(p.cfg.Ingester.Dir, string(tenant.Default))
	if _, err := os.Stat(own); err == nil {
		return nil, fmt.Errorf("the data directory %s has the data of a Prometheus beside that of tenant %s in %s: move one of them away, and import what you moved with hundredfold import", dir, tenant.Default, own)
	}
	a := &adoption{Version: adoptedVersion, Tenant: tenant.Default, Since: time.Now().UTC().Truncate(time.Second), Keep: true, Blocks: blocks}
	return a, a.save(filepath.Join(dir, adoptedFile))
}

// join adds the blocks that a Prometheus made that ran here since; blocks of ours stay as
// they are.
func (a *adoption) join(blocks []ulid.ULID, path string) error {
	known := make(map[ulid.ULID]bool, len(a.Blocks))
	for _, block := range a.Blocks {
		known[block] = true
	}
	present := make([]ulid.ULID, 0, len(blocks))
	changed := false
	for _, block := range blocks {
		if known[block] || madeByPrometheus(filepath.Join(filepath.Dir(path), block.String())) {
			present = append(present, block)
			changed = changed || !known[block]
		}
	}
	if !changed {
		return nil
	}
	a.Blocks = present
	return a.save(path)
}

// madeByPrometheus tells a block that was merged from others from one that was cut from a
// head: the TSDB here never merges.
func madeByPrometheus(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	var meta struct {
		Compaction struct {
			Level int `json:"level"`
		} `json:"compaction"`
	}
	return err == nil && json.Unmarshal(text, &meta) == nil && meta.Compaction.Level > 1
}

// prometheusIn looks for what a Prometheus keeps at the top of its data directory: blocks,
// and the chunks of its head. The log alone would be that of an agent, which has no history.
func prometheusIn(dir string) (blocks []ulid.ULID, found bool, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false, err
	}
	for _, entry := range entries {
		if entry.Name() == "chunks_head" {
			found = true
		}
		block, err := ulid.ParseStrict(entry.Name())
		if err != nil || !entry.IsDir() {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, entry.Name(), "meta.json")); err == nil {
			found = true
			blocks = append(blocks, block)
		}
	}
	return blocks, found, nil
}

func readAdoption(path string) (*adoption, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was adopted: %w", err)
	}
	a, err := parseAdoption(text)
	if err != nil {
		return nil, fmt.Errorf("read what was adopted from %s: %w", path, err)
	}
	return a, nil
}

func parseAdoption(text []byte) (*adoption, error) {
	var a adoption
	if err := json.Unmarshal(text, &a); err != nil {
		return nil, err
	}
	if a.Version != adoptedVersion {
		return nil, fmt.Errorf("version %d is not known to this release, which reads %d", a.Version, adoptedVersion)
	}
	if _, err := tenant.Parse(string(a.Tenant)); err != nil {
		return nil, err
	}
	return &a, nil
}

func (a *adoption) save(path string) error {
	text, err := json.MarshalIndent(a, "", "\t")
	if err != nil {
		return fmt.Errorf("note what was adopted: %w", err)
	}
	temporary := path + ".tmp"
	if err := writeSynced(temporary, append(text, '\n')); err != nil {
		return fmt.Errorf("note what was adopted: %w", err)
	}
	if err := fileutil.Rename(temporary, path); err != nil {
		return fmt.Errorf("note what was adopted: %w", err)
	}
	return nil
}
