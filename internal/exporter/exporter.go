// Package exporter writes what the bucket has of a tenant, for a time range and selectors,
// as plain blocks that a stock Prometheus opens: without external labels, shards and
// deletions beside them, because those are in the blocks; on request without encodings
// that older ones do not know. What queries hide, since it was deleted or is older than the
// retention of its series, is left out.
//
// Memory does not depend on how much is exported, but for the symbols of what is selected.
package exporter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstream"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/internal/deletion"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/externallabels"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/retention"
	"github.com/hundredfold/hundredfold/internal/samples"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// readBytes is the memory for the windows of chunks of the blocks that are read at once.
const readBytes = 64 << 20

// Config says what is exported.
type Config struct {
	Tenant tenant.ID
	// Mint and Maxt bound the samples, in ms; Maxt is exclusive.
	Mint, Maxt int64
	// Selectors select series that match all matchers of one of them; none: all series.
	Selectors [][]*labels.Matcher
	// Output is the directory that gets a folder per block. It may be the data directory of
	// a stopped Prometheus.
	Output string
	// BlockLength is the range of a block, from 2 h to 24 h.
	BlockLength time.Duration
	// Policy hides samples that are older than the retention of their series.
	Policy retention.Policy
	// Plain says that only encodings are used that every Prometheus reads.
	Plain bool
}

// Result says what was written.
type Result struct {
	Blocks, Present int
	Samples         uint64
	// Newest is the end of the newest block of the tenant in the bucket, in ms.
	Newest int64
}

// Run exports. Each block is told to out when it is there in full. What was written
// before by the same command, of the same blocks in the bucket, is not written again.
func Run(ctx context.Context, cfg Config, store *blockstore.Store, out io.Writer) (Result, error) {
	var result Result
	blocks, err := visible(ctx, store, cfg.Tenant)
	if err != nil {
		return result, err
	}
	hidden := hiding{policy: cfg.Policy, now: time.Now()}
	if hidden.deletions, err = deletions(ctx, store, cfg.Tenant); err != nil {
		return result, err
	}
	if err := os.MkdirAll(cfg.Output, 0o777); err != nil {
		return result, err
	}
	first, last := int64(1<<62), int64(-1<<62)
	for _, b := range blocks {
		first, last = min(first, b.Meta.MinTime), max(last, b.Meta.MaxTime)
	}
	result.Newest = last
	length := cfg.BlockLength.Milliseconds()
	for start := floor(max(cfg.Mint, first), length); start < min(cfg.Maxt, last); start += length {
		w := span{max(start, cfg.Mint), min(start+length, cfg.Maxt)}
		inside := slices.DeleteFunc(slices.Clone(blocks), func(b blockstore.Block) bool {
			return b.Meta.MinTime >= w.maxt || b.Meta.MaxTime <= w.mint
		})
		if len(inside) == 0 {
			continue
		}
		id := nameOf(cfg, hidden, w, inside)
		if _, err := os.Stat(filepath.Join(cfg.Output, id.String(), "meta.json")); err == nil {
			result.Present++
			continue
		}
		meta, err := export(ctx, cfg, store, hidden, w, inside, id)
		if err != nil {
			return result, fmt.Errorf("export %s: %w", w, err)
		}
		if meta != nil {
			result.Blocks++
			result.Samples += meta.Stats.NumSamples
			_, _ = fmt.Fprintf(out, "%s  %s  %d series, %d samples\n", id, w, meta.Stats.NumSeries, meta.Stats.NumSamples)
		}
	}
	return result, nil
}

// span is a time range in ms; maxt is exclusive.
type span struct{ mint, maxt int64 }

// String implements fmt.Stringer.
func (s span) String() string {
	return time.UnixMilli(s.mint).UTC().Format(time.RFC3339) + " to " + time.UnixMilli(s.maxt).UTC().Format(time.RFC3339)
}

func floor(t, width int64) int64 { return t - ((t%width)+width)%width }

// visible returns the blocks that queries read, by time.
func visible(ctx context.Context, store *blockstore.Store, id tenant.ID) ([]blockstore.Block, error) {
	listed, _, err := store.Blocks(ctx, id)
	if err != nil {
		return nil, err
	}
	superseded := blockstore.Superseded(listed)
	var blocks []blockstore.Block
	for name, b := range listed {
		if _, ok := superseded[name]; !ok && !b.Hidden() {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("the bucket has no blocks of tenant %s", id)
	}
	slices.SortFunc(blocks, func(a, b blockstore.Block) int {
		return cmp.Or(cmp.Compare(a.Meta.MinTime, b.Meta.MinTime), a.Meta.ULID.Compare(b.Meta.ULID))
	})
	return blocks, nil
}

// deletions returns what hides samples of the tenant.
func deletions(ctx context.Context, store *blockstore.Store, id tenant.ID) (deletion.Set, error) {
	all, err := store.Deletions(ctx)
	if err != nil {
		return deletion.Set{}, err
	}
	of := all[id]
	if of.Fault != nil {
		return deletion.Set{}, of.Fault
	}
	return deletion.NewSet(of.Active)
}

// hiding is what queries hide in the blocks of the tenant.
type hiding struct {
	deletions deletion.Set
	policy    retention.Policy
	now       time.Time
}

// filters returns what hides samples of a block.
func (h hiding) filters(b *blockstore.Block) []mask.Filter {
	filters, _ := h.deletions.Of(b)
	if old := h.policy.Filter(b.Meta.MinTime, h.now); old != nil {
		filters = append(filters, deletion.ForBlock(old, b))
	}
	return filters
}

// version writes what is hidden. As time passes, more is too old, and the version stays, so
// that an export goes on where it broke off: a block that is there keeps what was young enough
// when it was written.
func (h hiding) version(hash io.Writer, w span, blocks []blockstore.Block) {
	h.deletions.Fingerprint(func(p []byte) { _, _ = hash.Write(p) }, w.mint, w.maxt-1, blocks)
	if slices.ContainsFunc(blocks, func(b blockstore.Block) bool { return h.policy.Filter(b.Meta.MinTime, h.now) != nil }) {
		_, _ = io.WriteString(hash, h.policy.Key())
	}
}

// nameOf returns the ULID of an exported block, which follows from what it is made of.
func nameOf(cfg Config, hidden hiding, w span, blocks []blockstore.Block) ulid.ULID {
	hash := sha256.New()
	_, _ = fmt.Fprintf(hash, "%s %d %d %v %v\n", cfg.Tenant, w.mint, w.maxt, cfg.Plain, cfg.Selectors)
	for _, b := range blocks {
		_, _ = hash.Write(b.Meta.ULID[:])
	}
	hidden.version(hash, w, blocks)
	var id ulid.ULID
	_ = id.SetTime(uint64(max(0, w.maxt)))
	_ = id.SetEntropy(hash.Sum(nil)[:10])
	return id
}

// export writes one block. The meta is nil if there are no samples.
func export(ctx context.Context, cfg Config, store *blockstore.Store, hidden hiding, w span, blocks []blockstore.Block, id ulid.ULID) (_ *tsdb.BlockMeta, err error) {
	// A Prometheus clears away what is called so.
	work := filepath.Join(cfg.Output, id.String()+".tmp-for-creation")
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	var inputs []tsdb.BlockReader
	var opened []io.Closer
	defer func() {
		for _, c := range opened {
			err = errors.Join(err, c.Close())
		}
		err = errors.Join(err, os.RemoveAll(work))
	}()
	window := blockstream.Window(readBytes, len(blocks))
	for i := range blocks {
		b := &blocks[i]
		source, err := blockstream.Open(ctx, blockstream.Config{Dir: filepath.Join(work, "in", b.Meta.ULID.String()), Window: window}, store, cfg.Tenant, *b)
		if err != nil {
			return nil, fmt.Errorf("open block %s: %w", b.Meta.ULID, err)
		}
		opened = append(opened, source)
		reader := mask.Block(externallabels.Add(disjoint.Block(source), b.Extension.ExternalLabels), hidden.filters(b)...)
		inputs = append(inputs, selected(reader, cfg.Selectors))
	}
	spec := blockwriter.Spec{Meta: tsdb.BlockMeta{ULID: id, MinTime: w.mint, MaxTime: w.maxt}}
	spec.Meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{id}}
	config := blockwriter.Config{Parent: filepath.Join(work, "out")}
	if cfg.Plain {
		config.Merge = plainly
	}
	written, err := blockwriter.Write(ctx, config, inputs, []blockwriter.Spec{spec})
	if err != nil || len(written) == 0 {
		return nil, err
	}
	dir, err := written[0].Commit()
	if err != nil {
		return nil, err
	}
	if _, err := blockcheck.Dir(ctx, dir, blockcheck.Quick); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, filepath.Join(cfg.Output, id.String())); err != nil {
		return nil, err
	}
	return &written[0].Meta, nil
}

// plainly merges like blockwriter does, and brings the chunks to plain encodings.
func plainly(sets []storage.ChunkSeriesSet) storage.ChunkSeriesSet {
	return plainSet{blockwriter.Merge(sets)}
}

type plainSet struct{ storage.ChunkSeriesSet }

// At implements storage.ChunkSeriesSet.
func (s plainSet) At() storage.ChunkSeries {
	series := s.ChunkSeriesSet.At()
	return &storage.ChunkSeriesEntry{Lset: series.Labels(), ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
		var metas []chunks.Meta
		it := series.Iterator(nil)
		for it.Next() {
			metas = append(metas, it.At())
		}
		err := it.Err()
		if err == nil {
			metas, err = samples.Plain(metas)
		}
		return &plainIterator{Iterator: storage.NewListChunkSeriesIterator(metas...), err: err}
	}}
}

type plainIterator struct {
	chunks.Iterator
	err error
}

// Next implements chunks.Iterator.
func (p *plainIterator) Next() bool { return p.err == nil && p.Iterator.Next() }

// Err implements chunks.Iterator.
func (p *plainIterator) Err() error { return errors.Join(p.err, p.Iterator.Err()) }
