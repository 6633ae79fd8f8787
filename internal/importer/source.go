package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// metaReads bounds how many blocks of the source are looked at together.
const metaReads = 16

// shardLabel is the label by which Mimir tells the shards of a tenant's blocks.
const shardLabel = "__compactor_shard_id__"

// sourceBlock is a block at the source.
type sourceBlock struct {
	dir       string // its folder there
	meta      tsdb.BlockMeta
	extension blockstore.Extension // of a bucket of Hundredfold's
	text      []byte               // of meta.json
	files     []blockstore.File
	labels    map[string]string // external ones, as they are there
	// shard tells the shards apart that Mimir or Cortex made of the same sources; "": none.
	shard string
	// group is the same for blocks that may be made of each other.
	group string
	// noCompact is its mark against compaction; nil: there is none.
	noCompact *blockstore.NoCompactMark
	// skip says why the block is not imported; "": it is.
	skip string
}

// foreignMeta is what Thanos, Cortex and Mimir add to a meta.json.
type foreignMeta struct {
	Thanos struct {
		Labels     map[string]string `json:"labels"`
		Downsample struct {
			Resolution int64 `json:"resolution"`
		} `json:"downsample"`
		Extensions struct {
			// Partition is how Cortex tells the blocks that it split one by series into.
			Partition struct {
				ID    uint64 `json:"partition_id"`
				Count uint64 `json:"partition_count"`
			} `json:"partition_info"`
		} `json:"extensions"`
	} `json:"thanos"`
}

// shard returns what tells the block from others of the same sources with other series.
func (f *foreignMeta) shard() string {
	if p := f.Thanos.Extensions.Partition; p.Count > 1 {
		return fmt.Sprintf("partition %d of %d", p.ID, p.Count)
	}
	return f.Thanos.Labels[shardLabel]
}

func (b sourceBlock) size() int64 {
	total := int64(0)
	for _, f := range b.files {
		total += f.Size
	}
	return total
}

func span(mint, maxt int64) string {
	const layout = "2006-01-02T15:04Z"
	return time.UnixMilli(mint).UTC().Format(layout) + " to " + time.UnixMilli(maxt).UTC().Format(layout)
}

// discover lists the blocks of the source by tenant; "" is the one of a source without
// tenants.
func (i *Importer) discover(ctx context.Context) (map[string][]sourceBlock, error) {
	top, err := i.source.Folders(ctx, "")
	if err != nil {
		return nil, err
	}
	found := make(map[string][]sourceBlock)
	var blocks, tenants []string
	for _, name := range top {
		if _, err := ulid.ParseStrict(name); err == nil {
			blocks = append(blocks, name)
		} else if i.cfg.FromTenant == "" || name == i.cfg.FromTenant {
			tenants = append(tenants, name)
		}
	}
	if len(blocks) > 0 || i.isPrometheus() {
		if i.cfg.FromTenant != "" {
			return nil, errors.New("the source has no tenants: leave --from-tenant out")
		}
		found[""], err = i.look(ctx, "", blocks)
		return found, err
	}
	for _, name := range tenants {
		inside, err := i.source.Folders(ctx, name)
		if err != nil {
			return nil, err
		}
		var blocks []string
		for _, folder := range inside {
			if _, err := ulid.ParseStrict(folder); err == nil {
				blocks = append(blocks, folder)
			}
		}
		if len(blocks) == 0 {
			continue
		}
		if found[name], err = i.look(ctx, name+"/", blocks); err != nil {
			return nil, err
		}
	}
	if len(found) > 1 && i.cfg.Tenant != "" {
		return nil, fmt.Errorf("the source has %d tenants, and all would become %s: choose one with --from-tenant, or leave --tenant out", len(found), i.cfg.Tenant)
	}
	return found, nil
}

// look reads the metas of blocks.
func (i *Importer) look(ctx context.Context, prefix string, names []string) ([]sourceBlock, error) {
	blocks := make([]sourceBlock, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(metaReads)
	for k, name := range names {
		group.Go(func() (err error) {
			blocks[k], err = i.lookAt(ctx, prefix+name, ulid.MustParseStrict(name))
			return err
		})
	}
	return blocks, group.Wait()
}

func (i *Importer) lookAt(ctx context.Context, dir string, id ulid.ULID) (sourceBlock, error) {
	b := sourceBlock{dir: dir, meta: tsdb.BlockMeta{ULID: id}}
	text, found, err := i.source.Read(ctx, dir+"/meta.json")
	if err != nil {
		return b, err
	}
	if !found {
		b.skip = "it has no meta.json, so it is not whole"
		return b, nil
	}
	meta, extension, err := blockstore.DecodeMeta(id, text)
	if err != nil {
		b.skip = err.Error()
		return b, nil //nolint:nilerr // the block is at fault, and is named
	}
	b.meta, b.extension, b.text = *meta, extension, text
	var foreign foreignMeta
	if err := json.Unmarshal(text, &foreign); err != nil {
		b.skip = "its meta.json has a section of Thanos that cannot be read: " + err.Error()
		return b, nil
	}
	b.labels, b.shard = foreign.Thanos.Labels, foreign.shard()
	if len(extension.ExternalLabels) > 0 {
		b.labels = extension.ExternalLabels // what became of those of Thanos, if there were any
	}
	b.group = labels.FromMap(b.labels).String() + b.shard
	_, marked, err := i.source.Read(ctx, dir+"/deletion-mark.json")
	switch {
	case err != nil:
		return b, err
	case foreign.Thanos.Downsample.Resolution > 0:
		b.skip = fmt.Sprintf("it is downsampled to %s, and its samples are no samples of Prometheus's; the raw block is imported if it is there",
			time.Duration(foreign.Thanos.Downsample.Resolution)*time.Millisecond)
	case marked:
		b.skip = "it is marked for deletion"
	}
	if b.skip != "" {
		return b, nil
	}
	if b.noCompact, err = i.source.NoCompact(ctx, dir); err != nil {
		return b, err
	}
	b.files, err = i.source.Block(ctx, dir)
	return b, err
}

// isPrometheus tells the data directory of a Prometheus on this machine.
func (i *Importer) isPrometheus() bool {
	dir, ok := i.source.Local("chunks_head")
	if !ok {
		return false
	}
	_, err := os.Stat(dir)
	return err == nil
}

// excludePrometheus takes the lock of the Prometheus whose data directory the source is, as
// it would itself, for as long as the import takes.
func (i *Importer) excludePrometheus() (unlock func() error, err error) {
	none := func() error { return nil }
	path, ok := i.source.Local("lock")
	if !ok {
		return none, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("a Prometheus, or another program, runs on %s: stop it, or have it make a snapshot (POST /api/v1/admin/tsdb/snapshot) and import that", filepath.Dir(path)), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}
