package importer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// day is the length of the blocks that replicas are merged into: the compactor leaves
// longer ones alone.
const day = int64(24 * time.Hour / time.Millisecond)

// replica returns the values of the replica labels of a block.
func (i *Importer) replica(b sourceBlock) string {
	values := make(map[string]string)
	for _, name := range i.cfg.ReplicaLabels {
		if value := b.labels[name]; value != "" {
			values[name] = value
		}
	}
	return labels.FromMap(values).String()
}

// separate tells the blocks that are imported as they are from those that overlap one of
// another replica of the same series. What overlaps, over however many others, belongs
// together.
func (i *Importer) separate(blocks []sourceBlock) (plain []sourceBlock, replicated [][]sourceBlock) {
	streams := make(map[string][]sourceBlock)
	for _, b := range blocks {
		key := labels.FromMap(i.external(b.labels)).String() + b.shard
		streams[key] = append(streams[key], b)
	}
	for _, stream := range streams {
		slices.SortFunc(stream, func(a, b sourceBlock) int {
			return cmp.Or(cmp.Compare(a.meta.MinTime, b.meta.MinTime), a.meta.ULID.Compare(b.meta.ULID))
		})
		for from := 0; from < len(stream); {
			to, end := from+1, stream[from].meta.MaxTime
			several := false
			for to < len(stream) && stream[to].meta.MinTime < end {
				several = several || i.replica(stream[to]) != i.replica(stream[from])
				end = max(end, stream[to].meta.MaxTime)
				to++
			}
			if several {
				replicated = append(replicated, stream[from:to])
			} else {
				plain = append(plain, stream[from:to]...)
			}
			from = to
		}
	}
	slices.SortFunc(plain, func(a, b sourceBlock) int { // the newest first, which are read most
		return cmp.Or(cmp.Compare(b.meta.MaxTime, a.meta.MaxTime), a.meta.ULID.Compare(b.meta.ULID))
	})
	return plain, replicated
}

// days cuts blocks that belong together into jobs of a day each. The ULID of a job follows
// from its blocks.
func (i *Importer) days(replicated [][]sourceBlock) []job {
	var jobs []job
	for _, blocks := range replicated {
		mint, maxt := int64(math.MaxInt64), int64(math.MinInt64)
		for _, b := range blocks {
			mint, maxt = min(mint, b.meta.MinTime), max(maxt, b.meta.MaxTime)
		}
		for start := floor(mint, day); start < maxt; start += day {
			j := job{verb: "choose", mint: max(start, mint), maxt: min(start+day, maxt)}
			hash := sha256.New()
			for _, b := range blocks {
				if b.meta.MinTime < j.maxt && b.meta.MaxTime > j.mint {
					j.blocks = append(j.blocks, b)
					_, _ = fmt.Fprintf(hash, "%s %s\n", b.meta.ULID, i.replica(b))
				}
			}
			if len(j.blocks) == 0 {
				continue
			}
			_, _ = fmt.Fprintf(hash, "%d %d", j.mint, j.maxt)
			j.ulid = derived(j.maxt, hash.Sum(nil))
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Compare(b.maxt, a.maxt) })
	return jobs
}

// choose writes the block of a job and brings it to the target.
func (i *Importer) choose(ctx context.Context, id tenant.ID, j job, p *progress) (err error) {
	var (
		inputs   []tsdb.BlockReader
		replicas []string
	)
	for _, b := range j.blocks {
		dir, release, err := i.bring(ctx, b, p.bytes)
		if err != nil {
			return err
		}
		defer release()
		if _, err := blockcheck.Dir(ctx, dir, i.cfg.Depth); err != nil {
			return fmt.Errorf("block %s: %w", b.dir, err)
		}
		block, err := openLocal(dir)
		if err != nil {
			return err
		}
		defer block.Close()
		inputs = append(inputs, disjoint.Block(block))
		replicas = append(replicas, i.replica(b))
	}
	parent := filepath.Join(i.cfg.Scratch, "replicas")
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(parent)) }()
	spec := blockwriter.Spec{Meta: tsdb.BlockMeta{ULID: j.ulid, MinTime: j.mint, MaxTime: j.maxt}}
	spec.Meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{j.ulid}}
	spec.Extension.ExternalLabels = i.external(j.blocks[0].labels)
	cfg := blockwriter.Config{Parent: parent, Merge: func(sets []storage.ChunkSeriesSet) storage.ChunkSeriesSet {
		return mergeReplicas(sets, replicas)
	}}
	written, err := blockwriter.Write(ctx, cfg, inputs, []blockwriter.Spec{spec})
	if err != nil {
		return err
	}
	for _, pending := range written {
		dir, err := pending.Commit()
		if err != nil {
			return err
		}
		if _, err := blockcheck.Dir(ctx, dir, blockcheck.Quick); err != nil {
			return err
		}
		if err := i.upload(ctx, id, dir, spec.Extension.ExternalLabels); err != nil {
			return err
		}
	}
	return nil
}
