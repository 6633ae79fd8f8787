package blocktest

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"
)

// WriteOverlapping writes a block like Write whose series have two chunks each: one of
// the samples in first, and one of those in second. They may overlap, which no writer of
// Prometheus's allows; its index is changed afterwards. Samples are floats. Series are in
// order of their labels, and alike in both.
func WriteOverlapping(t testing.TB, parent string, mint, maxt int64, first, second []Series) string {
	t.Helper()
	id := ulid.MustNew(ulid.Now(), rand.Reader)
	dir := filepath.Join(parent, id.String())
	meta := tsdb.BlockMeta{ULID: id, Version: 1, MinTime: mint, MaxTime: maxt}
	meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{id}}
	cw, err := chunks.NewWriter(filepath.Join(dir, "chunks"))
	require.NoError(t, err)
	iw, err := index.NewWriter(t.Context(), filepath.Join(dir, "index"))
	require.NoError(t, err)
	var symbols []string
	for _, s := range first {
		s.Labels.Range(func(l labels.Label) { symbols = append(symbols, l.Name, l.Value) })
	}
	slices.Sort(symbols)
	for _, s := range slices.Compact(symbols) {
		require.NoError(t, iw.AddSymbol(s))
	}
	pairs := make([][]chunks.Meta, len(first))
	for i := range first {
		require.Equal(t, first[i].Labels, second[i].Labels)
		pairs[i] = []chunks.Meta{floatChunk(t, first[i]), floatChunk(t, second[i])}
		require.NoError(t, cw.WriteChunks(pairs[i]...))
		require.NoError(t, iw.AddSeries(storage.SeriesRef(i), first[i].Labels, fakePair(pairs[i])...))
		meta.Stats.NumSeries++
		meta.Stats.NumChunks += 2
		meta.Stats.NumSamples += uint64(len(first[i].Samples) + len(second[i].Samples))
	}
	require.NoError(t, cw.Close())
	require.NoError(t, iw.Close())
	text, err := os.ReadFile(filepath.Join(dir, "index"))
	require.NoError(t, err)
	for _, pair := range pairs {
		replaceTimes(t, text, fakePair(pair), pair)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index"), text, 0o600))
	text, err = json.Marshal(meta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o600))
	return dir
}

func floatChunk(t testing.TB, s Series) chunks.Meta {
	t.Helper()
	chunk := chunkenc.NewXORChunk()
	app, err := chunk.Appender()
	require.NoError(t, err)
	for _, sample := range s.Samples {
		app.Append(0, sample.T, sample.V)
	}
	return chunks.Meta{Chunk: chunk, MinTime: s.Samples[0].T, MaxTime: s.Samples[len(s.Samples)-1].T}
}

// fakePair returns two chunks with times that an index may have, and so far apart that
// their encoding has room for any others.
func fakePair(pair []chunks.Meta) []chunks.Meta {
	fake := slices.Clone(pair)
	fake[0].MinTime = -1 << 62
	fake[1].MinTime = 1<<62 + 1<<61
	for i := range fake {
		fake[i].MaxTime = fake[i].MinTime + pair[i].MaxTime - pair[i].MinTime
	}
	return fake
}

// replaceTimes replaces, in an index, the entry's part of two chunks by that of others.
func replaceTimes(t testing.TB, text []byte, old, other []chunks.Meta) {
	t.Helper()
	encode := func(pair []chunks.Meta) []byte {
		b := padded(binary.AppendVarint(nil, pair[0].MinTime), 9)
		b = binary.AppendUvarint(b, uint64(pair[0].MaxTime-pair[0].MinTime))
		b = binary.AppendUvarint(b, uint64(pair[0].Ref))
		b = append(b, padded(binary.AppendUvarint(nil, uint64(pair[1].MinTime-pair[0].MaxTime)), 10)...)
		b = binary.AppendUvarint(b, uint64(pair[1].MaxTime-pair[1].MinTime))
		return binary.AppendVarint(b, int64(pair[1].Ref)-int64(pair[0].Ref))
	}
	from, to := encode(old), encode(other)
	require.Len(t, to, len(from))
	at := bytes.Index(text, from)
	require.Positive(t, at, "the index has the entry")
	copy(text[at:], to)
	end := at + len(to)
	for start := at &^ 15; start > 0; start -= 16 { // entries begin at multiples of 16
		length, n := binary.Uvarint(text[start:])
		if n > 0 && start+n+int(min(length, math.MaxInt32)) == end {
			binary.BigEndian.PutUint32(text[end:], crc32.Checksum(text[start+n:end], crc32.MakeTable(crc32.Castagnoli)))
			return
		}
	}
	require.Fail(t, "the entry has no beginning")
}

// padded makes a varint longer without changing what it says.
func padded(b []byte, width int) []byte {
	for len(b) < width {
		b[len(b)-1] |= 0x80
		b = append(b, 0)
	}
	return b
}
