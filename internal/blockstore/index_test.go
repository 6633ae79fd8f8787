package blockstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const indexed = tenant.ID("acme")

// manyBlocks returns blocks as a compactor leaves them: of a day, from twelve sources each,
// with parents, statistics and files.
func manyBlocks(n int) map[ulid.ULID]Block {
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // it need not be a secret
	name := func(ms int64) (id ulid.ULID) {
		for i := range id {
			id[i] = byte(rng.Uint32())
		}
		_ = id.SetTime(uint64(ms)) //nolint:gosec // it is not negative
		return id
	}
	const day = int64(24 * time.Hour / time.Millisecond)
	blocks := make(map[ulid.ULID]Block, n)
	for i := range int64(n) {
		start := 1_700_000_000_000/day*day + i*day
		meta := tsdb.BlockMeta{
			Version: metaVersion, ULID: name(start + day), MinTime: start, MaxTime: start + day,
			Stats: tsdb.BlockStats{NumSamples: 1_440_000 + rng.Uint64N(1000), NumSeries: 1000, NumChunks: 12000, NumFloatSamples: 1_440_000},
		}
		meta.Compaction.Level = 3
		for range 12 {
			source := name(start)
			meta.Compaction.Sources = append(meta.Compaction.Sources, source)
			meta.Compaction.Parents = append(meta.Compaction.Parents, tsdb.BlockDesc{ULID: source, MinTime: start, MaxTime: start + day})
		}
		blocks[meta.ULID] = Block{
			Meta: meta, Extension: Extension{Version: extensionVersion},
			Files: []File{{Name: "chunks/000001", Size: rng.Int64N(1 << 29)}, {Name: "index", Size: rng.Int64N(1 << 24)}},
		}
	}
	return blocks
}

func TestAnIndexComesBackAsItWasWritten(t *testing.T) {
	blocks := manyBlocks(5)
	var names []ulid.ULID
	for id := range blocks {
		names = append(names, id)
	}
	marked := blocks[names[0]]
	marked.Deletion = &DeletionMark{Version: 1, Time: time.Unix(9, 0).UTC(), Reason: DeletionCompacted}
	blocks[names[0]] = marked
	left := blocks[names[1]]
	left.NoCompact = &NoCompactMark{Version: 1, Time: time.Unix(9, 0).UTC(), Reason: NoCompactDamaged, Details: "a chunk"}
	left.Files = nil
	blocks[names[1]] = left
	extended := blocks[names[2]]
	extended.Extension = Extension{
		Version: extensionVersion, Shard: &Shard{Index: 1, Count: 4},
		ExternalLabels: map[string]string{"region": "eu"}, Deletions: []ulid.ULID{names[4]},
		Sources: extended.Meta.Compaction.Sources,
	}
	blocks[names[2]] = extended
	previous := blocks[names[3]]
	previous.Previous = true
	blocks[names[3]] = previous

	store := New(objstore.NewInMemBucket(), nil)
	_, found, err := store.ReadIndex(t.Context(), indexed)
	require.NoError(t, err)
	require.False(t, found)

	want := Index{Generation: 7, Writer: "i1", Listed: time.Unix(100, 0).UTC(), Blocks: blocks}
	require.NoError(t, store.WriteIndex(t.Context(), indexed, want))
	got, found, err := store.ReadIndex(t.Context(), indexed)
	require.NoError(t, err)
	require.True(t, found)
	delete(blocks, names[3]) // the bucket does not have it yet
	for id, block := range blocks {
		block.Meta.Compaction.Parents = nil
		blocks[id] = block
	}
	require.Equal(t, want, got)
	covered := got.Covered()
	require.Contains(t, covered, names[2])
	require.Contains(t, covered, blocks[names[2]].Meta.Compaction.Sources[11])
	require.NotContains(t, covered, names[3])

	indexes, err := store.Indexes(t.Context())
	require.NoError(t, err)
	require.Len(t, indexes, 1)
	require.WithinDuration(t, time.Now(), indexes[indexed], time.Minute)
	require.NoError(t, store.DeleteIndex(t.Context(), indexed))
	require.NoError(t, store.DeleteIndex(t.Context(), indexed))
	indexes, err = store.Indexes(t.Context())
	require.NoError(t, err)
	require.Empty(t, indexes)
}

func TestADamagedIndexIsRefused(t *testing.T) {
	store := New(objstore.NewInMemBucket(), nil)
	object, err := encodeIndex(indexed, Index{Generation: 1, Blocks: manyBlocks(3)})
	require.NoError(t, err)
	refused := func(object []byte, text string, args ...any) {
		t.Helper()
		require.NoError(t, store.bucket.Upload(t.Context(), indexKey(indexed), bytes.NewReader(object)))
		_, found, err := store.ReadIndex(t.Context(), indexed)
		require.ErrorIs(t, err, ErrCorruptIndex, args...)
		require.ErrorContains(t, err, text, args...)
		require.True(t, found)
	}
	for n := range object {
		refused(object[:n], "", "%d bytes", n)
	}
	for i := 10; i < len(object); i++ { // what comes before is gzip's flags and the time
		damaged := bytes.Clone(object)
		damaged[i] ^= 0x10
		if got, err := decodeIndex(indexed, damaged); err == nil {
			// There are several ways to pack the same text.
			want, err := decodeIndex(indexed, object)
			require.NoError(t, err)
			require.Equal(t, want, got, "byte %d", i)
		}
	}

	edit := func(change func(d *indexDisk)) []byte {
		t.Helper()
		r, err := gzip.NewReader(bytes.NewReader(object))
		require.NoError(t, err)
		var disk indexDisk
		require.NoError(t, json.NewDecoder(r).Decode(&disk))
		change(&disk)
		text, err := json.Marshal(disk)
		require.NoError(t, err)
		return pack(t, text)
	}
	for text, change := range map[string]func(d *indexDisk){
		"version 2 is not 1":             func(d *indexDisk) { d.Version = 2 },
		`tenant "bob"`:                   func(d *indexDisk) { d.Tenant = "bob" },
		"no generation":                  func(d *indexDisk) { d.Generation = 0 },
		"stands twice":                   func(d *indexDisk) { d.Blocks = append(d.Blocks, d.Blocks[0]) },
		"it has no name":                 func(d *indexDisk) { d.Blocks[0].Meta.ULID = ulid.ULID{} },
		"is after maxTime":               func(d *indexDisk) { d.Blocks[0].Meta.MaxTime = 0 },
		"it has version 9":               func(d *indexDisk) { d.Blocks[0].Meta.Version = 9 },
		"shard 4 of 4":                   func(d *indexDisk) { d.Blocks[0].Extension = &Extension{Version: 1, Shard: &Shard{Index: 4, Count: 4}} },
		"has no reason":                  func(d *indexDisk) { d.Blocks[0].Deletion = &DeletionMark{} },
		`"../../x" of 1 bytes is none`:   func(d *indexDisk) { d.Blocks[0].Files = []File{{Name: "../../x", Size: 1}} },
		`"index" of -1 bytes`:            func(d *indexDisk) { d.Blocks[0].Files = []File{{Name: "index", Size: -1}} },
		`"index" of 2 bytes is none, or`: func(d *indexDisk) { d.Blocks[0].Files = []File{{Name: "index"}, {Name: "index", Size: 2}} },
	} {
		refused(edit(change), text)
	}
	refused(pack(t, []byte("null")), "version 0 is not 1")
	refused(pack(t, append(unpack(t, object), "{}"...)), "invalid character")
}

func pack(t testing.TB, text []byte) []byte {
	t.Helper()
	var object bytes.Buffer
	w := gzip.NewWriter(&object)
	_, err := w.Write(text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return object.Bytes()
}

func unpack(t testing.TB, object []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(object))
	require.NoError(t, err)
	var text bytes.Buffer
	_, err = text.ReadFrom(r)
	require.NoError(t, err)
	return text.Bytes()
}

func FuzzIndex(f *testing.F) {
	object, err := encodeIndex(indexed, Index{Generation: 1, Blocks: manyBlocks(2)})
	require.NoError(f, err)
	f.Add(object)
	f.Add(unpack(f, object))
	f.Add([]byte(`{"version":1,"tenant":"acme","generation":1,"blocks":[{}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = decodeIndex(indexed, in)
		index, err := parseIndex(indexed, in)
		if err != nil {
			return
		}
		object, err := encodeIndex(indexed, index)
		if err != nil {
			return // a time that JSON has no form for
		}
		again, err := decodeIndex(indexed, object)
		require.NoError(t, err)
		require.Equal(t, index.Generation, again.Generation)
		require.Len(t, again.Blocks, len(index.Blocks))
	})
}

func BenchmarkIndex(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		index := Index{Generation: 1, Blocks: manyBlocks(n)}
		object, err := encodeIndex(indexed, index)
		require.NoError(b, err)
		b.Run(fmt.Sprintf("encode/%d", n), func(b *testing.B) {
			for b.Loop() {
				_, err := encodeIndex(indexed, index)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(len(object))/float64(n), "B/block")
		})
		b.Run(fmt.Sprintf("decode/%d", n), func(b *testing.B) {
			for b.Loop() {
				_, err := decodeIndex(indexed, object)
				require.NoError(b, err)
			}
		})
	}
}
