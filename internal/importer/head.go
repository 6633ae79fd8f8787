package importer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/prometheus/prometheus/util/compression"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// window is the length of the blocks that a head is cut into, as Prometheus does.
const window = int64(2 * time.Hour / time.Millisecond)

// headBlocks is the folder for blocks of the head.
const headBlocks = "head-blocks"

// head writes the head of a Prometheus as blocks and returns those that the target lacks.
// A TSDB repairs and truncates what it opens, so it is given a copy.
func (i *Importer) head(ctx context.Context, name string, present *blockstore.Holdings, blocks []sourceBlock, result *Result) ([]job, error) {
	if name != "" || !i.isPrometheus() {
		return nil, nil
	}
	if i.cfg.PlanOnly {
		i.say("write the head (wal, wbl and chunks_head) as blocks")
		return nil, nil
	}
	work := filepath.Join(i.cfg.Scratch, "head")
	defer func() { _ = os.RemoveAll(work) }()
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	for _, dir := range []string{"wal", "wbl", "chunks_head"} {
		from, _ := i.source.Local(dir)
		if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.CopyFS(filepath.Join(work, dir), os.DirFS(from)); err != nil {
			return nil, fmt.Errorf("copy the head: %w", err)
		}
	}
	if _, err := os.Stat(filepath.Join(work, "wal")); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	written := filepath.Join(i.cfg.Scratch, headBlocks)
	if err := os.RemoveAll(written); err != nil {
		return nil, err
	}
	dirs, err := writeHead(ctx, work, written, inBlocksUntil(blocks))
	if err != nil {
		return nil, fmt.Errorf("write the head as blocks: %w", err)
	}
	var jobs []job
	for _, dir := range dirs {
		j, err := named(dir)
		if err != nil {
			return nil, err
		}
		if there, refusal := present.Of(j.atTarget()); there || refusal != "" {
			if refusal != "" {
				result.Refused++
				i.say("refuse the head from %s: %s", span(j.mint, j.maxt), refusal)
			} else {
				i.say("the head from %s is there already", span(j.mint, j.maxt))
			}
			if err := os.RemoveAll(j.dir); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := blockcheck.Dir(ctx, j.dir, i.cfg.Depth); err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// inBlocksUntil returns the time, in ms, before which all samples of the head that came in
// order are in blocks. Like the TSDB itself it leaves out blocks of only some series: those
// of late samples, of series that went stale, and of selected series, such as one shard.
func inBlocksUntil(blocks []sourceBlock) int64 {
	newest := int64(math.MinInt64)
	for _, b := range blocks {
		c := &b.meta.Compaction
		if len(b.text) == 0 || c.FromOutOfOrder() || c.FromStaleSeries() || c.FromSelectedSeries() {
			continue
		}
		newest = max(newest, b.meta.MaxTime)
	}
	return newest
}

// writeHead replays the head in dir and writes blocks of two hours to dest. Samples before
// newest are in blocks already.
func writeHead(ctx context.Context, dir, dest string, newest int64) (dirs []string, err error) {
	quiet := slog.New(slog.DiscardHandler)
	wal, err := wlog.New(quiet, nil, filepath.Join(dir, "wal"), compression.None)
	if err != nil {
		return nil, err
	}
	var late *wlog.WL
	if _, err := os.Stat(filepath.Join(dir, "wbl")); err == nil {
		if late, err = wlog.New(quiet, nil, filepath.Join(dir, "wbl"), compression.None); err != nil {
			return nil, err
		}
	}
	options := tsdb.DefaultHeadOptions()
	options.ChunkDirRoot = dir
	options.ChunkRange = window
	head, err := tsdb.NewHead(nil, quiet, wal, late, options, tsdb.NewHeadStats())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, head.Close()) }()
	if err := head.Init(newest); err != nil {
		return nil, fmt.Errorf("replay the write-ahead log: %w", err)
	}
	if err := os.MkdirAll(dest, 0o777); err != nil {
		return nil, err
	}
	compactor, err := tsdb.NewLeveledCompactor(ctx, nil, quiet, []int64{window}, chunkenc.NewPool(), nil)
	if err != nil {
		return nil, err
	}
	add := func(ids []ulid.ULID, err error) error {
		for _, id := range ids {
			dirs = append(dirs, filepath.Join(dest, id.String()))
		}
		return err
	}
	// A head without samples in order, which may have late ones, has a MinTime above its MaxTime.
	for mint := head.MinTime(); mint <= head.MaxTime(); {
		maxt := floor(mint, window) + window
		if err := add(compactor.Write(dest, tsdb.NewRangeHead(head, mint, maxt-1), mint, maxt, nil)); err != nil {
			return nil, err
		}
		mint = maxt
	}
	if late == nil {
		return dirs, nil
	}
	lateHead, err := tsdb.NewOOOCompactionHead(ctx, head)
	if err != nil {
		return nil, err
	}
	meta := &tsdb.BlockMeta{}
	meta.Compaction.SetOutOfOrder()
	for mint := floor(lateHead.MinTime(), window); mint <= lateHead.MaxTime(); mint += window {
		if err := add(compactor.Write(dest, lateHead.CloneForTimeRange(mint, mint+window-1), mint, mint+window, meta)); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

// floor rounds t down to a multiple of width.
func floor(t, width int64) int64 { return t - ((t%width)+width)%width }

// named gives a block that was just written a ULID that follows from its content, so that
// the same head makes the same blocks.
func named(dir string) (job, error) {
	hash := sha256.New()
	files := []string{filepath.Join(dir, "index")}
	segments, err := os.ReadDir(filepath.Join(dir, "chunks"))
	if err != nil {
		return job{}, err
	}
	for _, segment := range segments {
		files = append(files, filepath.Join(dir, "chunks", segment.Name()))
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return job{}, err
		}
		if _, err := io.Copy(hash, f); err != nil {
			return job{}, errors.Join(err, f.Close())
		}
		if err := f.Close(); err != nil {
			return job{}, err
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return job{}, err
	}
	var meta tsdb.BlockMeta
	if err := json.Unmarshal(text, &meta); err != nil {
		return job{}, err
	}
	meta.ULID = derived(meta.MaxTime, hash.Sum(nil))
	meta.Compaction.Sources = []ulid.ULID{meta.ULID}
	if text, err = json.MarshalIndent(meta, "", "\t"); err != nil {
		return job{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o666); err != nil {
		return job{}, err
	}
	final := filepath.Join(filepath.Dir(dir), meta.ULID.String())
	if err := os.Rename(dir, final); err != nil {
		return job{}, err
	}
	return job{verb: "write", ulid: meta.ULID, mint: meta.MinTime, maxt: meta.MaxTime, dir: final}, nil
}

// derived returns the ULID of a block that is made of something with that hash.
func derived(maxt int64, hash []byte) ulid.ULID {
	var id ulid.ULID
	_ = id.SetTime(uint64(min(max(0, maxt), int64(ulid.MaxTime()))))
	_ = id.SetEntropy(hash[:10])
	return id
}
