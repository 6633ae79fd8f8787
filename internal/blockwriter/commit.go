package blockwriter

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// Commit writes meta.json, as Meta and Extension are by now, and gives the block its
// name. The block is durable when Commit returns without an error. dir is its directory.
func (p *Pending) Commit() (dir string, err error) {
	text, err := blockstore.EncodeMeta(p.Meta, p.Extension)
	if err == nil {
		err = p.commit(text)
	}
	if err != nil {
		return "", fmt.Errorf("complete block %s: %w", p.Meta.ULID, errors.Join(err, p.Discard()))
	}
	return p.final, nil
}

func (p *Pending) commit(meta []byte) error {
	if _, err := tombstones.WriteFile(slog.New(slog.DiscardHandler), p.temporary, tombstones.NewMemTombstones()); err != nil {
		return err
	}
	if err := writeDurably(filepath.Join(p.temporary, "meta.json"), meta); err != nil {
		return err
	}
	if err := syncDir(p.temporary); err != nil {
		return err
	}
	if err := os.RemoveAll(p.final); err != nil {
		return err
	}
	if err := os.Rename(p.temporary, p.final); err != nil {
		return err
	}
	return syncDir(filepath.Dir(p.final))
}

// Discard removes a block that was not committed.
func (p *Pending) Discard() error { return os.RemoveAll(p.temporary) }

func writeDurably(path string, content []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, fs.ErrInvalid) { // a filesystem without it
		err = nil
	}
	return errors.Join(err, f.Close())
}
