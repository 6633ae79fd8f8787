package remoteblock

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

func FuzzSidecar(f *testing.F) {
	dir := blocktest.Write(f, f.TempDir(), 0, 2*hour, world(5)...)
	block := ulid.MustParse(filepath.Base(dir))
	whole, err := sidecarOfDir(context.Background(), block, dir)
	require.NoError(f, err)
	c, err := newCodec()
	require.NoError(f, err)
	s, err := c.decode(block, whole)
	require.NoError(f, err)
	h, err := scan(context.Background(), memoryFile(s.whole), s.layout)
	require.NoError(f, err)
	text := c.encode(block, sidecar{layout: h.layout, header: h})
	content, err := c.decoder.DecodeAll(text[sidecarHead:len(text)-4], make([]byte, 0, 1<<20))
	require.NoError(f, err)
	f.Add(whole, false)
	f.Add(content, true)
	f.Fuzz(func(t *testing.T, p []byte, bare bool) {
		if !bare {
			_, _ = c.decode(block, p)
			return
		}
		s, err := parseSidecar(block, p)
		if err != nil || s.header == nil {
			return
		}
		again, err := c.decode(block, c.encode(block, s))
		require.NoError(t, err)
		require.Equal(t, s.header, again.header)
	})
}

// FuzzIndex changes bytes of an index, and mends the checksums around them or not.
func FuzzIndex(f *testing.F) {
	dir := blocktest.Write(f, f.TempDir(), 0, 2*hour, world(5)...)
	p, err := os.ReadFile(filepath.Join(dir, indexName))
	require.NoError(f, err)
	files, err := dirFiles(dir, int64(len(p)))
	require.NoError(f, err)
	f.Add(uint32(10), uint64(3), uint32(0))
	f.Add(uint32(700), uint64(math.MaxUint64), uint32(100))
	f.Fuzz(func(t *testing.T, offset uint32, bits uint64, cut uint32) {
		damaged := memoryFile(append([]byte(nil), p...))
		damaged = damaged[:len(damaged)-int(cut)%len(damaged)]
		for i := range 8 {
			if o := int(offset) + i; o < len(damaged) {
				damaged[o] ^= byte(bits >> (8 * i))
			}
		}
		files := append([]blockstore.File(nil), files...)
		files[0].Size = int64(len(damaged))
		l, err := newLayout(files)
		require.NoError(t, err)
		mendSections(damaged)
		h, err := scan(context.Background(), damaged, l)
		if err != nil {
			return
		}
		r := &Reader{ctx: t.Context(), header: h, index: damaged, local: true, indexResident: true, pool: &Pool{metrics: newMetrics(nil)}}
		r.meta.MaxTime = 2 * hour
		ix, err := r.Select(t.Context(), 0, hour, true).Index()
		require.NoError(t, err)
		_, _ = ix.LabelNames(t.Context(), labels.MustNewMatcher(labels.MatchNotEqual, "pod", "pod-1"))
		_, _ = ix.LabelValues(t.Context(), "pod", nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", "up|r.*"))
		postings := ix.SortedPostings(ix.PostingsForAllLabelValues(t.Context(), "__name__"))
		var b labels.ScratchBuilder
		var metas []chunks.Meta
		for postings.Next() {
			_ = ix.Series(postings.At(), &b, &metas)
		}
		for symbols := ix.Symbols(); symbols.Next(); {
			_ = symbols.At()
		}
		require.NoError(t, ix.Close())
	})
}

// mendSections writes the right checksums behind the sections that can be found, so that
// what is in them gets read.
func mendSections(p []byte) {
	if len(p) < tocLength {
		return
	}
	toc := p[len(p)-tocLength:]
	binary.BigEndian.PutUint32(toc[48:], castagnoli(toc[:48]))
	for _, i := range []int{0, 5} {
		o := binary.BigEndian.Uint64(toc[8*i:])
		if o > uint64(len(p)-8) {
			continue
		}
		size := uint64(binary.BigEndian.Uint32(p[o:]))
		if o+4+size+4 > uint64(len(p)) {
			continue
		}
		binary.BigEndian.PutUint32(p[o+4+size:], castagnoli(p[o+4:o+4+size]))
	}
}

func FuzzSeriesEntry(f *testing.F) {
	f.Add([]byte{1, 0, 1, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, p []byte) {
		var b labels.ScratchBuilder
		var metas []chunks.Meta
		_, _, _ = parseEntry(p)
		rest, err := decodeLabels(p, func(uint32) (string, error) { return "x", nil }, &b)
		if err == nil {
			_ = appendChunks(rest, &metas)
		}
	})
}

func FuzzChunk(f *testing.F) {
	f.Add(byte(1), []byte{0, 1, 2})
	f.Add(byte(4), []byte{0, 1, 2, 3})
	f.Add(byte(2), []byte("\x00\x01\x00\x00\x47\xf8\x00\x00\x03\xff\xff\xff\xfc"+strings.Repeat("\x00", 17)))
	f.Fuzz(func(_ *testing.T, encoding byte, data []byte) {
		_, _ = chunkSize(data)
		chunk, err := newChunk(chunkenc.Encoding(encoding), data)
		if err == nil {
			_ = chunk.NumSamples()
			_ = chunk.Iterator(nil).Next()
		}
	})
}

func TestAHistogramThatAsksForMoreMemoryThanThereIsIsDamage(t *testing.T) {
	greedy := []byte("\x00\x01\x00\x00\x47\xf8\x00\x00\x03\xff\xff\xff\xfc" + strings.Repeat("\x00", 17))
	_, err := newChunk(chunkenc.EncHistogram, greedy)
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, "4294967295 buckets")
}
