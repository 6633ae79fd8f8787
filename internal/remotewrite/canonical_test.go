package remotewrite

import (
	"math/rand/v2"
	"strings"
	"testing"

	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

// Whatever labels a series shares with the one before it, it is the same series as in a
// request of its own.
func TestSeriesIsTheSameWhateverStandsBeforeIt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	symbols := []string{"", "__name__", "up", "a", "1", strings.Repeat("long", 40), "job"}
	for len(symbols) < 20_000 { // so that references take one, two and three bytes
		symbols = append(symbols, strings.Repeat("x", rng.IntN(12)))
	}
	reference := func() uint32 {
		switch rng.IntN(20) {
		case 0:
			return uint32(rng.IntN(len(symbols) + 10)) // perhaps out of range
		case 1:
			return uint32(rng.IntN(300))
		default:
			return uint32(rng.IntN(7))
		}
	}
	var (
		request writev2.Request
		refs    []uint32
	)
	for range 5000 {
		refs = append([]uint32(nil), refs...)
		switch rng.IntN(6) {
		case 0:
			refs = refs[:0]
			for range 2 * rng.IntN(100) {
				refs = append(refs, reference())
			}
		case 1:
			refs = append(refs, reference()) // perhaps odd
		default:
			if len(refs) > 0 {
				refs[rng.IntN(len(refs))] = reference()
			}
		}
		request.Timeseries = append(request.Timeseries, writev2.TimeSeries{
			LabelsRefs: refs, Samples: []writev2.Sample{{Value: 1, Timestamp: 1}}, Metadata: writev2.Metadata{HelpRef: 4},
		})
	}
	request.Symbols = symbols
	raw, err := request.Marshal()
	require.NoError(t, err)
	b, _ := decode(t, V2, raw)
	require.Len(t, b.Series, len(request.Timeseries))

	good := 0
	for i, s := range b.Series {
		alone := writev2.Request{Symbols: symbols, Timeseries: request.Timeseries[i : i+1]}
		if i%10 == 0 { // Each has all the symbols.
			raw, err := alone.Marshal()
			require.NoError(t, err)
			one, _ := decode(t, V2, raw)
			require.Equal(t, one.Series[0].ID, s.ID)
			require.Equal(t, one.Series[0].Err, s.Err)
		}
		if s.Err == nil {
			good++
			require.Equal(t, identityAsSent(t, b, i), s.ID)
		}
	}
	require.Greater(t, good, 500)
	require.Less(t, good, len(b.Series))
}

func TestNameIsFoundAmongLabelsOfTheSeriesBefore(t *testing.T) {
	series := func(refs ...uint32) writev2.TimeSeries {
		return writev2.TimeSeries{LabelsRefs: refs, Samples: []writev2.Sample{{Timestamp: 1}}}
	}
	request := writev2.Request{
		Symbols:    []string{"", "__name__", "first", "second", "help"},
		Timeseries: []writev2.TimeSeries{series(1, 2, 1, 3), series(1, 2, 4, 4)},
	}
	request.Timeseries[1].Metadata = writev2.Metadata{HelpRef: 4}
	raw, err := request.Marshal()
	require.NoError(t, err)
	b, _ := decode(t, V2, raw)
	require.Len(t, b.Metadata, 1)
	require.Equal(t, "first", b.Metadata[0].Metric)
}

func TestPlainSamplesAreReadLikeAllOthers(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		raw := message{}
		if rng.IntN(4) > 0 {
			raw = raw.double(1, rng.NormFloat64())
		}
		raw = raw.varint(2, rng.Uint64()>>rng.IntN(64))
		for range rng.IntN(3) {
			switch rng.IntN(3) {
			case 0:
				raw = raw[:rng.IntN(len(raw)+1)]
			case 1:
				raw = append(raw, byte(rng.IntN(256)))
			default:
				if len(raw) > 0 {
					raw[rng.IntN(len(raw))] = byte(rng.IntN(256))
				}
			}
		}
		got, ok := plainSample(raw)
		if !ok {
			continue
		}
		var want writev2.Sample
		require.NoError(t, want.Unmarshal(raw))
		require.Equal(t, write.Sample{T: want.Timestamp, V: want.Value}, got)
	}
	_, ok := plainSample(message{}.double(1, 2).varint(2, uint64(now)))
	require.True(t, ok)
}
