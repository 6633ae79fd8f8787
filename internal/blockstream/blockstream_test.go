package blockstream_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockstream"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	acme = tenant.ID("acme")
	hour = int64(time.Hour / time.Millisecond)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// large writes a block of about 3 MB of chunks.
func large(t testing.TB) string {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	var series []blocktest.Series
	for i := range 200 {
		s := blocktest.Series{Labels: labels.FromStrings(model.MetricNameLabel, "m", "i", fmt.Sprintf("%03d", i))}
		for at := int64(0); at < 2*hour; at += 5000 {
			s.Samples = append(s.Samples, blocktest.Sample{T: at, V: r.Float64()})
		}
		series = append(series, s)
	}
	return blocktest.Write(t, t.TempDir(), 0, 2*hour, series...)
}

// stored puts a block into a bucket and opens it there.
func stored(t testing.TB, bucket objstore.Bucket, dir string) (*blockstream.Block, error) {
	t.Helper()
	store := blockstore.New(bucket, nil)
	require.NoError(t, store.Upload(t.Context(), acme, dir))
	blocks, _, err := store.Blocks(t.Context(), acme)
	require.NoError(t, err)
	return blockstream.Open(t.Context(), blockstream.Config{Dir: filepath.Join(t.TempDir(), "work")}, store, acme, blocks[ulid.MustParse(filepath.Base(dir))])
}

// metas returns all chunks of a block, in order.
func metas(t testing.TB, block tsdb.BlockReader) []chunks.Meta {
	t.Helper()
	reader, err := block.Index()
	require.NoError(t, err)
	defer func() { require.NoError(t, reader.Close()) }()
	name, value := index.AllPostingsKey()
	postings, err := reader.Postings(t.Context(), name, value)
	require.NoError(t, err)
	var (
		all     []chunks.Meta
		some    []chunks.Meta
		builder labels.ScratchBuilder
	)
	for postings.Next() {
		require.NoError(t, reader.Series(postings.At(), &builder, &some))
		all = append(all, some...)
	}
	require.NoError(t, postings.Err())
	return all
}

func TestChunksAreThoseOfTheBlockInWhateverOrderTheyAreAskedFor(t *testing.T) {
	dir := large(t)
	whole, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, whole.Close()) }()
	want, err := whole.Chunks()
	require.NoError(t, err)
	defer func() { require.NoError(t, want.Close()) }()
	local, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(2, 2))
	for name, bucket := range map[string]objstore.Bucket{"elsewhere": objstore.NewInMemBucket(), "here": local} {
		t.Run(name, func(t *testing.T) {
			block, err := stored(t, bucket, dir)
			require.NoError(t, err)
			defer func() { require.NoError(t, block.Close()) }()
			found, err := blockcheck.Reader(t.Context(), block, blockcheck.Full)
			require.NoError(t, err)
			require.Equal(t, whole.Meta().Stats.NumSamples, found.Samples)

			all := metas(t, block)
			require.Greater(t, len(all), 2000)
			for _, order := range []string{"in order", "with gaps", "at random"} {
				reader, err := block.Chunks()
				require.NoError(t, err)
				for i := 0; i < len(all); i++ {
					switch order {
					case "with gaps":
						if i += random.IntN(100); i >= len(all) {
							continue
						}
					case "at random":
						i = min(i+9, len(all)-1)
						all[i], all[0] = all[random.IntN(len(all))], all[i]
					}
					got, _, err := reader.ChunkOrIterable(all[i])
					require.NoError(t, err)
					expected, _, err := want.ChunkOrIterable(all[i])
					require.NoError(t, err)
					require.Equal(t, expected.Encoding(), got.Encoding())
					require.Equal(t, expected.Bytes(), got.Bytes(), "%s: chunk %d", order, i)
				}
			}
		})
	}
}

func TestReadingABlockInOrderTakesFewRequests(t *testing.T) {
	dir := large(t)
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	block, err := stored(t, bucket, dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, block.Close()) }()
	all := metas(t, block)
	reader, err := block.Chunks()
	require.NoError(t, err)
	before := bucket.Calls()
	for _, meta := range all {
		_, _, err := reader.ChunkOrIterable(meta)
		require.NoError(t, err)
	}
	info, err := os.Stat(filepath.Join(dir, "chunks", "000001"))
	require.NoError(t, err)
	require.LessOrEqual(t, bucket.Calls()-before, info.Size()/(256<<10)+1)
}

func TestABucketThatFailsIsNotADamagedBlock(t *testing.T) {
	dir := large(t)
	bucket := blocktest.NewFaulty(objstore.NewInMemBucket())
	failures := 0
	for n := int64(1); ; n++ {
		bucket.Heal()
		block, err := stored(t, bucket, dir)
		require.NoError(t, err)
		bucket.FailFrom(n)
		_, err = blockcheck.Reader(t.Context(), block, blockcheck.Quick)
		calls := bucket.Calls()
		require.NoError(t, block.Close())
		if calls < n {
			break
		}
		if errors.Is(err, blocktest.ErrBucketDown) {
			require.ErrorIs(t, err, blockstream.ErrUnreachable)
			failures++
		}
	}
	require.Positive(t, failures)
}

func TestNoFlippedBitChangesASampleOrEndsTheProcess(t *testing.T) {
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Floats("a", 0, 2*hour, 15_000))
	meta := tsdb.BlockMeta{ULID: ulid.MustParse(filepath.Base(dir)), MinTime: 0, MaxTime: 2 * hour}
	want := blocktest.Samples(t, dir)
	for _, file := range []string{"index", "chunks/000001", "tombstones"} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		require.NoError(t, err)
		for at := 0; at < len(text); at += max(1, len(text)/200) {
			bad := filepath.Join(t.TempDir(), filepath.Base(dir))
			require.NoError(t, os.CopyFS(bad, os.DirFS(dir)))
			changed := append([]byte(nil), text...)
			changed[at] ^= 0x10
			require.NoError(t, os.WriteFile(filepath.Join(bad, file), changed, 0o600))
			block, err := blockstream.OpenDir(bad, meta, 0)
			if err != nil {
				continue
			}
			_, err = blockcheck.Reader(t.Context(), block, blockcheck.Full)
			require.NoError(t, block.Close())
			if err == nil {
				require.Equal(t, want, blocktest.Samples(t, bad), "bit in byte %d of %s", at, file)
			}
		}
	}
}

// A chunk whose checksum is right is not one that is safe to decode.
func TestAHistogramThatAsksForMoreMemoryThanThereIsIsDamage(t *testing.T) {
	dir := blocktest.Write(t, t.TempDir(), 0, 2*hour, blocktest.Series{
		Labels: labels.FromStrings("__name__", "h"), Samples: []blocktest.Sample{{T: 1, H: tsdbutil.GenerateTestHistogram(1)}},
	})
	path := filepath.Join(dir, "chunks", "000001")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	// The header of the segment, one byte of length, and the encoding are before the data.
	encoded := text[chunks.SegmentHeaderSize+1 : len(text)-crc32.Size]
	greedy := "\x00\x01\x00\x00\x47\xf8\x00\x00\x03\xff\xff\xff\xfc"
	require.Greater(t, len(encoded), 1+len(greedy))
	clear(encoded[1+copy(encoded[1:], greedy):])
	binary.BigEndian.PutUint32(text[len(text)-crc32.Size:], crc32.Checksum(encoded, crc32.MakeTable(crc32.Castagnoli)))
	require.NoError(t, os.WriteFile(path, text, 0o600))

	block, err := blockstream.OpenDir(dir, tsdb.BlockMeta{MaxTime: 2 * hour}, 0)
	require.NoError(t, err)
	defer block.Close()
	reader, err := block.Chunks()
	require.NoError(t, err)
	_, _, err = reader.ChunkOrIterable(metas(t, block)[0])
	require.ErrorContains(t, err, "4294967295 buckets")
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"a segment":        {func(dir string) error { return os.Rename(dir+"/chunks/000001", dir+"/chunks/000002") }, "segment 000001 of the chunks is missing"},
		"the index":        {func(dir string) error { return os.Truncate(dir+"/index", 0) }, "the index has 0 bytes"},
		"half a segment":   {func(dir string) error { return os.Truncate(dir+"/chunks/000001", 2000) }, "doesn't include enough bytes"},
		"the magic number": {func(dir string) error { return os.WriteFile(dir+"/chunks/000001", make([]byte, 99), 0o600) }, "invalid magic number"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := large(t)
			require.NoError(t, c.damage(dir))
			meta := tsdb.BlockMeta{ULID: ulid.MustParse(filepath.Base(dir)), MinTime: 0, MaxTime: 2 * hour}
			block, err := blockstream.OpenDir(dir, meta, 0)
			if err == nil {
				_, err = blockcheck.Reader(t.Context(), block, blockcheck.Quick)
				require.NoError(t, block.Close())
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}
