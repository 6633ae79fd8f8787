package mask

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/stretchr/testify/require"
)

// stone is an entry of a file of tombstones.
type stone struct {
	ref        storage.SeriesRef
	mint, maxt int64
}

func stonesFile(all ...stone) []byte {
	entries := []byte(nil)
	for _, s := range all {
		entries = binary.AppendUvarint(entries, uint64(s.ref))
		entries = binary.AppendVarint(entries, s.mint)
		entries = binary.AppendVarint(entries, s.maxt)
	}
	file := binary.BigEndian.AppendUint32(nil, tombstones.MagicTombstone)
	file = append(append(file, stonesVersion), entries...)
	return binary.BigEndian.AppendUint32(file, crc32.Checksum(entries, crc32.MakeTable(crc32.Castagnoli)))
}

func TestTombstonesWithoutAnEndAfterOthersAreRead(t *testing.T) {
	file := stonesFile(stone{7, 0, 1}, stone{7, 5, 10}, stone{7, 7, math.MaxInt64}, stone{8, 3, 2})
	require.Panics(t, func() { _, _ = tombstones.Decode(file[stonesMagic : len(file)-stonesSum]) }, "if it does no more, use it")
	got, err := DecodeTombstones(file)
	require.NoError(t, err)
	intervals, err := got.Get(7)
	require.NoError(t, err)
	require.Equal(t, tombstones.Intervals{{Mint: 0, Maxt: 1}, {Mint: 5, Maxt: math.MaxInt64}}, intervals)
	require.EqualValues(t, 2, got.Total())
}

func TestTombstonesAreReadAsPrometheusReadsThem(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var all []stone
		for range r.IntN(20) {
			mint := r.Int64N(100)
			all = append(all, stone{storage.SeriesRef(r.IntN(3)), mint, mint + r.Int64N(10)})
		}
		file := stonesFile(all...)
		want, err := tombstones.Decode(file[stonesMagic : len(file)-stonesSum])
		require.NoError(t, err)
		got, err := DecodeTombstones(file)
		require.NoError(t, err)
		require.Equal(t, want.Total(), got.Total())
		for ref := range storage.SeriesRef(3) {
			w, err := want.Get(ref)
			require.NoError(t, err)
			g, err := got.Get(ref)
			require.NoError(t, err)
			require.Equal(t, w, g)
		}
	}
}

func FuzzDecodeTombstones(f *testing.F) {
	f.Add(stonesFile(stone{7, 0, 1}, stone{7, 5, 10}, stone{7, 7, math.MaxInt64}))
	f.Add([]byte{0x0b, 0xa3, 0x0b, 0xa3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, file []byte) {
		if n := len(file); n >= stonesHead+stonesSum { // what is checked after the checksum is to be reached
			binary.BigEndian.PutUint32(file[n-stonesSum:], crc32.Checksum(file[stonesHead:n-stonesSum], crc32.MakeTable(crc32.Castagnoli)))
		}
		all, err := DecodeTombstones(file)
		if err != nil {
			return
		}
		require.NoError(t, all.Iter(func(_ storage.SeriesRef, intervals tombstones.Intervals) error {
			for i, interval := range intervals {
				require.LessOrEqual(t, interval.Mint, interval.Maxt)
				require.True(t, i == 0 || intervals[i-1].Maxt < interval.Mint)
			}
			return nil
		}))
	})
}
