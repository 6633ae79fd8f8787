// Package verifier checks what the bucket holds of tenants end to end: every block, with
// its meta.json, and the block index that queriers read. It changes nothing.
package verifier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// maxFaults bounds the faults that are told of one block.
const maxFaults = 20

// Config says what is checked.
type Config struct {
	// Tenants are those to check; none: all of the bucket.
	Tenants []tenant.ID
	Depth   blockcheck.Depth
	// Scratch is a directory for copies of blocks, one at a time, of a bucket that is not on
	// this machine.
	Scratch string
}

// Result counts what was checked and found.
type Result struct {
	Tenants, Blocks int
	Samples         uint64
	Faults          int
}

// run is one run of the verifier.
type run struct {
	cfg    Config
	store  *blockstore.Store
	out    io.Writer
	result Result
}

// Run checks. Each fault is a line of out, that begins with "fault"; lines with "note" say
// what is no fault and may be of interest. An error means that something could not be checked.
func Run(ctx context.Context, cfg Config, store *blockstore.Store, out io.Writer) (Result, error) {
	r := &run{cfg: cfg, store: store, out: out}
	ids := cfg.Tenants
	if len(ids) == 0 {
		var err error
		if ids, err = store.Tenants(ctx); err != nil {
			return r.result, err
		}
	}
	for _, id := range ids {
		if err := r.tenant(ctx, id); err != nil {
			return r.result, fmt.Errorf("tenant %s: %w", id, err)
		}
		r.result.Tenants++
	}
	return r.result, nil
}

func (r *run) fault(id tenant.ID, of any, err error) {
	r.result.Faults++
	_, _ = fmt.Fprintf(r.out, "fault %s %s: %v\n", id, of, err)
}

func (r *run) note(id tenant.ID, of any, text string) {
	_, _ = fmt.Fprintf(r.out, "note %s %s: %s\n", id, of, text)
}

func (r *run) tenant(ctx context.Context, id tenant.ID) error {
	// The index comes first: what it lists was in the bucket before.
	index, found, err := r.store.ReadIndex(ctx, id)
	switch {
	case errors.Is(err, blockstore.ErrCorruptIndex):
		r.fault(id, "index", err)
	case err != nil:
		return err
	case !found:
		r.note(id, "index", "there is none yet, queriers list the bucket")
	}
	blocks, partial, err := r.store.Blocks(ctx, id)
	if err != nil {
		return err
	}
	if found {
		r.compare(id, index, blocks)
	}
	for _, block := range partial {
		p, err := r.store.Partial(ctx, id, block)
		switch {
		case err != nil:
			return err
		case p.DamagedMeta:
			r.fault(id, block, errors.New("its meta.json cannot be understood"))
		case !p.Whole:
			r.note(id, block, "it is not whole: an upload or a deletion that is not complete")
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(blocks), ulid.ULID.Compare) {
		if err := r.block(ctx, id, blocks[name]); err != nil {
			return err
		}
	}
	r.overlaps(id, blocks)
	return nil
}

// block checks one block.
func (r *run) block(ctx context.Context, id tenant.ID, b blockstore.Block) error {
	name := b.Meta.ULID
	dir, ok := r.store.LocalDir(id, name)
	if !ok {
		dir = filepath.Join(r.cfg.Scratch, name.String())
		defer func() { _ = os.RemoveAll(dir) }()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		err := os.MkdirAll(r.cfg.Scratch, 0o777)
		if err == nil {
			err = r.store.Download(ctx, id, name, dir)
		}
		if errors.Is(err, blockstore.ErrBlockNotFound) {
			return nil // It was deleted meanwhile.
		}
		if err != nil {
			return err
		}
	}
	faults := 0
	report := func(err error) {
		if faults++; faults <= maxFaults {
			r.fault(id, name, err)
		}
	}
	found, err := blockcheck.Faults(ctx, dir, r.cfg.Depth, report)
	if err != nil {
		return fmt.Errorf("block %s: %w", name, err)
	}
	if faults == 0 {
		if err := blockcheck.CheckStats(b.Meta.Stats, found, r.cfg.Depth); err != nil {
			report(err)
		}
	}
	if faults > maxFaults {
		r.note(id, name, fmt.Sprintf("it has %d faults more", faults-maxFaults))
	}
	if found.Overlapping > 0 {
		r.note(id, name, fmt.Sprintf("%d series have chunks that overlap, which Prometheus does not write; queries merge them, and so does the compactor", found.Overlapping))
	}
	if b.NoCompact != nil {
		r.note(id, name, fmt.Sprintf("it is marked against compaction (%s): %s", b.NoCompact.Reason, b.NoCompact.Details))
	}
	if ahead := time.Until(time.UnixMilli(b.Meta.MaxTime)); ahead > 24*time.Hour {
		r.note(id, name, fmt.Sprintf("it ends %s from now: a clock was wrong, or the samples are", ahead.Round(time.Hour)))
	}
	r.result.Blocks++
	r.result.Samples += b.Meta.Stats.NumSamples
	return nil
}

// compare compares the index with the bucket, which was listed later.
func (r *run) compare(id tenant.ID, index blockstore.Index, blocks map[ulid.ULID]blockstore.Block) {
	covered := make(map[ulid.ULID]struct{})
	for name, b := range blocks {
		covered[name] = struct{}{}
		for _, source := range blockstore.Sources(b.Meta) {
			covered[source] = struct{}{}
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(index.Blocks), ulid.ULID.Compare) {
		listed := index.Blocks[name]
		b, ok := blocks[name]
		switch _, isCovered := covered[name]; {
		case !ok && isCovered:
			r.note(id, name, "the index still lists it, and it was compacted into another one since")
		case !ok && listed.Deletion == nil:
			r.fault(id, name, errors.New("the index lists it, and the bucket has neither it nor one that was made of it"))
		case ok && !same(listed, b):
			r.fault(id, name, errors.New("the index says something else of it than its meta.json; the compactor replaces the index in its next pass"))
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(blocks), ulid.ULID.Compare) {
		if _, ok := index.Blocks[name]; !ok && !blocks[name].Previous {
			r.note(id, name, "the index does not list it yet")
		}
	}
}

// same tells whether two say the same of a block.
func same(a, b blockstore.Block) bool {
	return a.Meta.MinTime == b.Meta.MinTime && a.Meta.MaxTime == b.Meta.MaxTime && a.Meta.Stats == b.Meta.Stats &&
		a.Shard() == b.Shard() && maps.Equal(a.Extension.ExternalLabels, b.Extension.ExternalLabels)
}

// overlaps notes the blocks whose ranges overlap though they hold samples of the same
// series, maybe: samples that came late make some, and the compactor merges them.
func (r *run) overlaps(id tenant.ID, blocks map[ulid.ULID]blockstore.Block) {
	superseded := blockstore.Superseded(blocks)
	var read []blockstore.Block
	for name, b := range blocks {
		if _, ok := superseded[name]; !ok && !b.Hidden() {
			read = append(read, b)
		}
	}
	slices.SortFunc(read, func(a, b blockstore.Block) int {
		return cmp.Or(cmp.Compare(a.Meta.MinTime, b.Meta.MinTime), a.Meta.ULID.Compare(b.Meta.ULID))
	})
	for i, a := range read {
		for _, b := range read[i+1:] {
			if b.Meta.MinTime >= a.Meta.MaxTime {
				break
			}
			if a.Shard().Overlaps(b.Shard()) && maps.Equal(a.Extension.ExternalLabels, b.Extension.ExternalLabels) {
				r.note(id, b.Meta.ULID, fmt.Sprintf("it overlaps block %s; queries merge them, and so does the compactor", a.Meta.ULID))
				break
			}
		}
	}
}
