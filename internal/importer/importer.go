// Package importer brings blocks from elsewhere into the bucket: from the data directory
// of a Prometheus, its head included, from blocks that promtool made, and from buckets of
// Thanos, Cortex and Mimir. Nothing at the source is changed.
//
// A block keeps its ULID and its bytes, so that an import runs at the speed of the disk,
// is taken up again where it broke off, and does nothing the second time. The labels that
// Thanos, Cortex and Mimir keep beside a block become external labels. Only two things are
// written anew: the head, as blocks, and blocks of replicas that overlap (see replicas.go);
// their ULIDs follow from what they are made of.
package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Config says what is imported, and how.
type Config struct {
	// From is where the blocks lie.
	From blockstore.Config
	// FromTenant is the one of the source's tenants to import; "": all.
	FromTenant string
	// Tenant is the tenant that gets the blocks; "": those of a bucket with tenants keep
	// theirs, others get the default one.
	Tenant tenant.ID
	// ExternalLabels are added to those that the blocks have.
	ExternalLabels map[string]string
	// ReplicaLabels are names of external labels that tell replicas of the same series
	// apart. They are dropped.
	ReplicaLabels []string
	// Depth says how the blocks are checked.
	Depth blockcheck.Depth
	// Scratch is a directory for what has to be copied or written first.
	Scratch string
	// PlanOnly says what would be done and does nothing.
	PlanOnly bool
}

// Importer carries out one import.
type Importer struct {
	cfg    Config
	source *blockstore.Foreign
	target *blockstore.Store
	logger *slog.Logger
	out    io.Writer
}

// Result says what an import did.
type Result struct {
	Imported, Present, Skipped, Damaged int
	// Refused are blocks whose names are those of blocks that are being deleted.
	Refused int
	Bytes   int64
}

// errIncomplete says that some blocks were not imported.
var errIncomplete = errors.New("not everything was imported; what is missing is named above, and the same command tries it again")

// Run imports. What it does to each block is written to out; progress goes to the log.
func Run(ctx context.Context, cfg Config, target *blockstore.Store, out io.Writer, logger *slog.Logger) (result Result, err error) {
	source, err := blockstore.OpenForeign(cfg.From, logger)
	if err != nil {
		return Result{}, fmt.Errorf("the source: %w", err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	i := &Importer{cfg: cfg, source: source, target: target, logger: logger, out: out}

	unlock, err := i.excludePrometheus()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	found, err := i.discover(ctx)
	if err != nil {
		return Result{}, err
	}
	if len(found) == 0 {
		return Result{}, errors.New("the source has no blocks: give the directory or bucket that has folders named by ULIDs, or folders of tenants with such folders in them")
	}
	p := newProgress(logger)
	defer p.stop()
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if err := i.tenant(ctx, name, found[name], p, &result); err != nil {
			return result, err
		}
	}
	if i.cfg.Scratch != "" && !i.cfg.PlanOnly {
		// They stay if something is left in them.
		_, _ = os.Remove(filepath.Join(i.cfg.Scratch, headBlocks)), os.Remove(i.cfg.Scratch)
	}
	if result.Damaged+result.Refused > 0 {
		return result, errIncomplete
	}
	return result, nil
}

// tenant imports the blocks of one tenant of the source.
func (i *Importer) tenant(ctx context.Context, name string, blocks []sourceBlock, p *progress, result *Result) error {
	id := i.cfg.Tenant
	if id == "" {
		id = tenant.Default
		if name != "" {
			var err error
			if id, err = tenant.Parse(name); err != nil {
				return fmt.Errorf("the tenant of the source cannot be one here: %w; name one with --tenant, and this one with --from-tenant", err)
			}
		}
	}
	present, err := i.target.Holdings(ctx, id)
	if err != nil {
		return err
	}
	jobs := i.plan(blocks, present, result)
	heads, err := i.head(ctx, name, present, blocks, result)
	if err != nil {
		return err
	}
	jobs = append(jobs, heads...)
	p.expect(jobs)
	for _, j := range jobs {
		i.say("%s %s %s", j.verb, id, j.describe())
		if i.cfg.PlanOnly {
			continue
		}
		err := i.carryOut(ctx, id, j, p)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, blockcheck.ErrDamaged), errors.Is(err, blockstore.ErrInvalidBlock):
			result.Damaged++
			i.say("damaged %s: %v", j.describe(), err)
			continue
		case err != nil:
			return fmt.Errorf("import %s: %w", j.describe(), err)
		}
		result.Imported++
		result.Bytes += j.bytes()
		p.block()
	}
	return nil
}

func (i *Importer) say(format string, args ...any) { _, _ = fmt.Fprintf(i.out, format+"\n", args...) }

// plan decides what is done with each block of a tenant.
func (i *Importer) plan(blocks []sourceBlock, present *blockstore.Holdings, result *Result) []job {
	var chosen []sourceBlock
	for _, b := range superseded(blocks) {
		if b.skip != "" {
			result.Skipped++
			i.say("skip %s: %s", b.dir, b.skip)
			continue
		}
		chosen = append(chosen, b)
	}
	var jobs []job
	plain, replicated := i.separate(chosen)
	for _, b := range plain {
		if i.wanted(present, b.dir, b.atTarget(), result) {
			jobs = append(jobs, job{verb: "copy", blocks: []sourceBlock{b}})
		}
	}
	for _, j := range i.days(replicated) {
		if i.wanted(present, j.ulid.String(), j.atTarget(), result) {
			jobs = append(jobs, j)
		}
	}
	if result.Present > 0 {
		i.say("%d blocks are there already", result.Present)
	}
	return jobs
}

// wanted tells whether a block is to be brought to the target; otherwise that was noted.
func (i *Importer) wanted(present *blockstore.Holdings, name string, b blockstore.Block, result *Result) bool {
	there, refusal := present.Of(b)
	switch {
	case refusal != "":
		result.Refused++
		i.say("refuse %s: %s", name, refusal)
	case there:
		result.Present++
	}
	return !there && refusal == ""
}

// superseded notes which blocks have all their samples in another one of the source. Those
// with other labels, shards among them, are others' business.
func superseded(blocks []sourceBlock) []sourceBlock {
	groups := make(map[string]map[ulid.ULID]blockstore.Block)
	for _, b := range blocks {
		if b.skip != "" {
			continue
		}
		if groups[b.group] == nil {
			groups[b.group] = make(map[ulid.ULID]blockstore.Block)
		}
		groups[b.group][b.meta.ULID] = blockstore.Block{Meta: b.meta, Extension: b.extension, NoCompact: b.noCompact}
	}
	for _, group := range groups {
		covered := blockstore.Superseded(group)
		for k := range blocks {
			if _, ok := group[blocks[k].meta.ULID]; ok {
				if _, ok := covered[blocks[k].meta.ULID]; ok {
					blocks[k].skip = "its samples are all in another block"
				}
			}
		}
	}
	return blocks
}

// job is a block that the target is to get.
type job struct {
	verb   string
	blocks []sourceBlock
	// Of blocks that are made of others:
	ulid       ulid.ULID
	mint, maxt int64 // ms, maxt exclusive
	// dir is that of a block that was written already, from the head.
	dir string
}

// atTarget returns what the target will know of a block that is made of others.
func (j job) atTarget() blockstore.Block {
	return blockstore.Block{Meta: tsdb.BlockMeta{ULID: j.ulid, MinTime: j.mint, MaxTime: j.maxt}}
}

func (j job) bytes() int64 {
	total := int64(0)
	for _, b := range j.blocks {
		total += b.size()
	}
	return total
}

func (j job) describe() string {
	if j.dir != "" {
		return fmt.Sprintf("%s of the head (%s)", filepath.Base(j.dir), span(j.mint, j.maxt))
	}
	if len(j.blocks) == 1 && j.ulid == (ulid.ULID{}) {
		b := j.blocks[0]
		text := fmt.Sprintf("%s (%s, %d bytes)", b.dir, span(b.meta.MinTime, b.meta.MaxTime), b.size())
		if b.noCompact != nil {
			text += fmt.Sprintf(", with its mark against compaction (%s)", b.noCompact.Reason)
		}
		return text
	}
	names := make([]string, len(j.blocks))
	for k, b := range j.blocks {
		names[k] = b.dir
	}
	return fmt.Sprintf("%s of replicas %s (%s)", j.ulid, strings.Join(names, " "), span(j.mint, j.maxt))
}

// carryOut brings one block to the target.
func (i *Importer) carryOut(ctx context.Context, id tenant.ID, j job, p *progress) error {
	if j.dir != "" {
		return i.upload(ctx, id, j.dir, i.external(nil))
	}
	if j.ulid != (ulid.ULID{}) {
		return i.choose(ctx, id, j, p)
	}
	b := j.blocks[0]
	dir, release, err := i.bring(ctx, b, p.bytes)
	if err != nil {
		return err
	}
	defer release()
	found, err := blockcheck.Dir(ctx, dir, i.cfg.Depth)
	if err == nil {
		err = blockcheck.CheckStats(b.meta.Stats, found, i.cfg.Depth)
	}
	if err != nil {
		return err
	}
	meta, err := b.metaFor(i.external(b.labels))
	if err == nil && b.noCompact != nil {
		err = i.target.PreMarkNoCompact(ctx, id, b.meta.ULID, *b.noCompact)
	}
	if err != nil {
		return err
	}
	return i.put(ctx, id, dir, meta)
}

// put brings the block in dir to the target, with meta as its meta.json.
func (i *Importer) put(ctx context.Context, id tenant.ID, dir string, meta []byte) error {
	if err := remoteblock.WriteSidecar(ctx, i.target, id, dir); err != nil {
		i.logger.Warn("A block is imported without its sidecar; a compactor adds it", "tenant", id, "block", filepath.Base(dir), "err", err)
	}
	return i.target.UploadAs(ctx, id, dir, meta)
}

// upload brings a block that was written here to the target.
func (i *Importer) upload(ctx context.Context, id tenant.ID, dir string, external map[string]string) error {
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return err
	}
	if len(external) > 0 {
		if text, err = blockstore.AddExtension(text, blockstore.Extension{ExternalLabels: external}); err != nil {
			return err
		}
	}
	if err := i.put(ctx, id, dir, text); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// bring returns a directory with a block: where it lies, or a copy.
func (i *Importer) bring(ctx context.Context, b sourceBlock, progress func(int64)) (dir string, release func(), err error) {
	if dir, ok := i.source.Local(b.dir); ok {
		progress(b.size())
		return dir, func() {}, nil
	}
	dir = filepath.Join(i.cfg.Scratch, b.meta.ULID.String())
	if err := i.source.Fetch(ctx, b.dir, b.files, dir, progress); err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

// external returns the external labels of a block that has labels at the source.
func (i *Importer) external(of map[string]string) map[string]string {
	all := make(map[string]string)
	for name, value := range of {
		if value == "" || strings.HasPrefix(name, "__") || slices.Contains(i.cfg.ReplicaLabels, name) {
			continue // __org_id__, __compactor_shard_id__ and so on are no labels of series
		}
		all[name] = value
	}
	maps.Copy(all, i.cfg.ExternalLabels)
	return all
}

// metaFor returns the meta.json of a block that is imported with external labels. What
// else a block of Hundredfold's says of itself stays: its shard and its sources among it.
func (b sourceBlock) metaFor(external map[string]string) ([]byte, error) {
	if b.shard == "" && maps.Equal(external, b.extension.ExternalLabels) {
		return b.text, nil
	}
	extension := b.extension
	extension.ExternalLabels = external
	if b.shard == "" {
		return blockstore.AddExtension(b.text, extension)
	}
	lone := b.atTarget()
	extension.Sources = lone.Extension.Sources
	return blockstore.EncodeMeta(lone.Meta, extension)
}

// atTarget returns what the target will know of a block that is imported as it is.
func (b sourceBlock) atTarget() blockstore.Block {
	at := blockstore.Block{Meta: b.meta, Extension: b.extension, NoCompact: b.noCompact}
	if b.shard != "" {
		// Shards that Mimir or Cortex made have the same sources, and none of them has the
		// samples of another.
		at.Meta.Compaction.Sources = []ulid.ULID{b.meta.ULID}
		at.Meta.Compaction.Parents = nil
		at.Extension.Sources = nil
	}
	return at
}

// openLocal opens a block in a directory.
func openLocal(dir string) (*tsdb.Block, error) { return tsdb.OpenBlock(nil, dir, nil, nil) }
