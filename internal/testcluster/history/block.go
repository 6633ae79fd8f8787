package history

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/rechunk"
)

// headBlock is the length of the blocks that an ingester cuts, and that longer ones
// are merged from.
const headBlock = 2 * time.Hour

// maxSampleBytes is more than what a sample takes.
const maxSampleBytes = 40

// blockWriter writes one block. It is for one goroutine.
type blockWriter struct {
	cfg        Config
	mint, maxt int64
	series     []series // by labels
	symbols    []string
	stats      tsdb.BlockStats
	chunkMetas []chunks.Meta
	joiner     rechunk.Joiner
}

// write writes the block into a folder of dir and returns how many samples it holds.
func (b *blockWriter) write(ctx context.Context, dir string) (samples uint64, err error) {
	id := b.id(b.maxt, 0)
	target := filepath.Join(dir, id.String())
	if n, err := Samples(target); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return n, err
	}
	temporary := filepath.Join(dir, id.String()+".tmp-for-creation") // Prometheus removes such folders
	if err := os.RemoveAll(temporary); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return 0, err
	}
	err = b.writeData(ctx, temporary)
	if err == nil {
		err = b.writeMeta(temporary, id)
	}
	if err == nil {
		err = os.Rename(temporary, target)
	}
	if err != nil {
		return 0, fmt.Errorf("block %s: %w", id, errors.Join(err, os.RemoveAll(temporary)))
	}
	return b.stats.NumSamples, nil
}

// Samples returns how many samples the block in dir has, by its meta.json.
func Samples(dir string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return 0, err
	}
	var meta tsdb.BlockMeta
	if err := json.Unmarshal(text, &meta); err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	return meta.Stats.NumSamples, nil
}

// id returns a name that depends on the history and the time alone.
func (b *blockWriter) id(at int64, part uint64) ulid.ULID {
	var id ulid.ULID
	_ = id.SetTime(uint64(at)) // it is far below the year 10889
	var entropy [10]byte
	binary.BigEndian.PutUint64(entropy[:], b.cfg.Seed<<32^uint64(b.cfg.Series)<<8^part)
	binary.BigEndian.PutUint16(entropy[8:], uint16(b.cfg.Block/time.Minute))
	_ = id.SetEntropy(entropy[:]) // it has the right length
	return id
}

func (b *blockWriter) writeData(ctx context.Context, dir string) (err error) {
	// The writer allocates a whole segment at once: half a GiB for a block of a few bytes.
	ticks := int64(b.cfg.Block / b.cfg.Interval)
	segment := min(chunks.DefaultChunkSegmentSize, int64(len(b.series))*ticks*maxSampleBytes+1<<20)
	cw, err := chunks.NewWriter(filepath.Join(dir, "chunks"), chunks.WithSegmentSize(segment))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cw.Close()) }()
	iw, err := index.NewWriter(ctx, filepath.Join(dir, "index"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iw.Close()) }()
	for _, symbol := range b.symbols {
		if err := iw.AddSymbol(symbol); err != nil {
			return err
		}
	}
	ref := storage.SeriesRef(0)
	for _, s := range b.series {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.encode(s); err != nil {
			return err
		}
		metas := b.chunkMetas
		if len(metas) == 0 {
			continue
		}
		if b.cfg.Joined {
			if metas, err = b.joiner.Join(metas); err != nil {
				return err
			}
		}
		if err := cw.WriteChunks(metas...); err != nil {
			return err
		}
		if err := iw.AddSeries(ref, s.labels, metas...); err != nil {
			return err
		}
		ref++
		b.stats.NumSeries++
		b.stats.NumChunks += uint64(len(metas))
	}
	return nil
}

// encode sets chunkMetas to the chunks of the series.
func (b *blockWriter) encode(s series) error {
	b.chunkMetas = b.chunkMetas[:0]
	from, to := s.stream.Ticks(b.mint, b.maxt)
	for from < to {
		end := min(to, from+int64(b.cfg.ChunkSamples))
		var chunk chunkenc.Chunk = chunkenc.NewXOR2Chunk()
		if b.cfg.Encoding == chunkenc.EncXOR {
			chunk = chunkenc.NewXORChunk()
		}
		appender, err := chunk.Appender()
		if err != nil {
			return err
		}
		meta := chunks.Meta{Chunk: chunk}
		meta.MinTime, _ = s.stream.Sample(from)
		for ; from < end; from++ {
			t, v := s.stream.Sample(from)
			appender.Append(0, t, v)
			meta.MaxTime = t
			b.stats.NumSamples++
		}
		b.chunkMetas = append(b.chunkMetas, meta)
	}
	return nil
}

func (b *blockWriter) writeMeta(dir string, id ulid.ULID) error {
	b.stats.NumFloatSamples = b.stats.NumSamples
	meta := tsdb.BlockMeta{
		ULID: id, Version: 1, MinTime: b.mint, MaxTime: b.maxt, Stats: b.stats,
		Compaction: tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{id}},
	}
	if merged := int(b.cfg.Block / headBlock); merged > 1 {
		meta.Compaction.Level = 2
		if b.cfg.Block > 12*time.Hour {
			meta.Compaction.Level = 3
		}
		meta.Compaction.Sources = nil
		for i := range merged {
			at := b.mint + int64(i+1)*headBlock.Milliseconds()
			meta.Compaction.Sources = append(meta.Compaction.Sources, b.id(at, uint64(i+1)))
		}
	}
	text, err := json.MarshalIndent(meta, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o644)
}
