package rechunk

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
)

type sample struct {
	st, t int64
	v     uint64 // bits of the value
}

// chunksOf encodes samples as Prometheus does, in chunks of size samples.
func chunksOf(t testing.TB, encoding chunkenc.Encoding, size int, samples []sample) []chunks.Meta {
	t.Helper()
	var metas []chunks.Meta
	for len(samples) > 0 {
		n := min(size, len(samples))
		chunk, err := chunkenc.NewEmptyChunk(encoding)
		require.NoError(t, err)
		appender, err := chunk.Appender()
		require.NoError(t, err)
		for _, s := range samples[:n] {
			appender.Append(s.st, s.t, math.Float64frombits(s.v))
		}
		metas = append(metas, chunks.Meta{MinTime: samples[0].t, MaxTime: samples[n-1].t, Chunk: chunk})
		samples = samples[n:]
	}
	return metas
}

// samplesOf decodes chunks with Prometheus's decoder.
func samplesOf(t testing.TB, metas []chunks.Meta) []sample {
	t.Helper()
	var samples []sample
	for _, meta := range metas {
		it := meta.Chunk.Iterator(nil)
		first := len(samples)
		for it.Next() != chunkenc.ValNone {
			at, v := it.At()
			samples = append(samples, sample{it.AtST(), at, math.Float64bits(v)})
		}
		require.NoError(t, it.Err())
		require.Equal(t, meta.Chunk.NumSamples(), len(samples)-first)
		require.Equal(t, meta.MinTime, samples[first].t)
		require.Equal(t, meta.MaxTime, samples[len(samples)-1].t)
	}
	return samples
}

func bytesOf(metas []chunks.Meta) (n int) {
	for _, meta := range metas {
		n += len(meta.Chunk.Bytes())
	}
	return n
}

// wild returns samples whose times, values and start timestamps change in all ways.
func wild(r *rand.Rand, n int) []sample {
	samples := make([]sample, n)
	at, st, v := r.Int64N(1<<41)-1<<40, int64(0), r.Uint64()
	for i := range samples {
		switch r.IntN(8) {
		case 0:
			at += 1 + r.Int64N(1<<r.IntN(44))
		case 1:
			at += 15000 + r.Int64N(20)
		default:
			at += 15000
		}
		switch r.IntN(12) {
		case 0:
			v = r.Uint64()
		case 1:
			v = value.StaleNaN
		case 2:
			v = value.NormalNaN
		case 3:
			v = math.Float64bits(math.Inf(1))
		case 4:
			v ^= 1 << r.IntN(64)
		case 5, 6:
			v = math.Float64bits(float64(r.IntN(1000)))
		}
		switch r.IntN(200) {
		case 0:
			st = at - r.Int64N(1<<r.IntN(42))
		case 1:
			st = 0
		}
		if n%3 == 0 && i > 0 {
			st = samples[i-1].t // as of deltas
		}
		samples[i] = sample{st, at, v}
	}
	return samples
}

func TestJoiningKeepsEverySampleToTheBit(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var j Joiner
	for range 400 {
		samples := wild(r, 1+r.IntN(3000))
		in := chunksOf(t, chunkenc.EncXOR2, 1+r.IntN(200), samples)
		out, err := j.Join(in)
		require.NoError(t, err)
		require.Equal(t, samples, samplesOf(t, out))
		again, err := new(Joiner).Join(out)
		require.NoError(t, err)
		require.Equal(t, samples, samplesOf(t, again))
		for _, meta := range out {
			require.LessOrEqual(t, meta.Chunk.NumSamples(), MaxSamples)
		}
	}
}

func TestJoiningWhatWasJoinedChangesNothing(t *testing.T) {
	for _, n := range []int{1, 239, 240, 479, 480, 481, 720, 961, 2880} {
		samples := regular(n, 0)
		var first, second Joiner
		once, err := first.Join(chunksOf(t, chunkenc.EncXOR2, 120, samples))
		require.NoError(t, err)
		require.Len(t, once, (n+MaxSamples-1)/MaxSamples, "%d samples", n)
		twice, err := second.Join(once)
		require.NoError(t, err)
		require.Len(t, twice, len(once))
		for i := range once {
			require.Same(t, once[i].Chunk, twice[i].Chunk, "it was decoded")
		}
	}
}

func regular(n int, st int64) []sample {
	samples := make([]sample, n)
	for i := range samples {
		samples[i] = sample{st, 1_700_000_000_000 + int64(i)*15_000, math.Float64bits(float64(i / 3))}
	}
	return samples
}

func TestLargeChunksPayNothingForStartTimestampsThatDoNotChange(t *testing.T) {
	for _, st := range []int64{0, 1_600_000_000_000} {
		samples := regular(MaxSamples, st)
		theirs := bytesOf(chunksOf(t, chunkenc.EncXOR2, MaxSamples, samples))
		out, err := new(Joiner).Join(chunksOf(t, chunkenc.EncXOR2, 120, samples))
		require.NoError(t, err)
		require.Len(t, out, 1)
		require.Equal(t, samples, samplesOf(t, out))
		require.Less(t, bytesOf(out), theirs/2, "start timestamp %d", st)
		require.Less(t, bytesOf(out), bytesOf(chunksOf(t, chunkenc.EncXOR2, 120, samples)))
	}
}

func TestAChangeOfTheStartTimestampBeginsAChunk(t *testing.T) {
	samples := append(regular(200, 1000), regular(500, 2000)[200:]...)
	out, err := new(Joiner).Join(chunksOf(t, chunkenc.EncXOR2, 120, samples))
	require.NoError(t, err)
	require.Equal(t, samples, samplesOf(t, out))
	require.Len(t, out, 2)
	require.Equal(t, 200, out[0].Chunk.NumSamples())
}

func TestAWindowIsGivenUpAfterAWideChange(t *testing.T) {
	samples := regular(MaxSamples, 0)
	samples[20].v = math.Float64bits(0.1) // all bits of the mantissa
	theirs := bytesOf(chunksOf(t, chunkenc.EncXOR2, 120, samples))
	out, err := new(Joiner).Join(chunksOf(t, chunkenc.EncXOR2, 120, samples))
	require.NoError(t, err)
	require.Equal(t, samples, samplesOf(t, out))
	require.Less(t, bytesOf(out), theirs*3/4)
}

// bestSize returns the bits that the changes take with the best choice of windows.
func bestSize(changes []window) int {
	best := make([]int, len(changes)+1)
	for end := 1; end <= len(changes); end++ {
		best[end] = math.MaxInt
		w := changes[end-1]
		for start := end - 1; start >= 0; start-- {
			w = w.and(changes[start])
			best[end] = min(best[end], best[start]+newWindow+(end-start)*(1+w.size()))
		}
	}
	return best[len(changes)]
}

func TestTheWindowsAreNearTheBestChoice(t *testing.T) {
	for name, c := range map[string]struct {
		next func(r *rand.Rand, v float64) float64
		most float64 // of the best size
	}{
		"counter":        {func(r *rand.Rand, v float64) float64 { return v + float64(r.IntN(1000)) }, 1.02},
		"small gauge":    {func(r *rand.Rand, _ float64) float64 { return float64(r.IntN(100)) }, 1.03},
		"bytes":          {func(r *rand.Rand, _ float64) float64 { return float64(4096 * r.IntN(100_000)) }, 1.02},
		"seconds":        {func(r *rand.Rand, v float64) float64 { return math.Floor(v*100+float64(r.IntN(300))) / 100 }, 1.02},
		"random":         {func(r *rand.Rand, _ float64) float64 { return r.Float64() }, 1.01},
		"seldom":         {func(r *rand.Rand, v float64) float64 { return v + float64(r.IntN(40)/39) }, 1.15},
		"wide, at times": {func(r *rand.Rand, _ float64) float64 { return float64(r.IntN(4)) + float64(r.IntN(20)/19)/3 }, 1.05},
	} {
		r := rand.New(rand.NewPCG(3, 4))
		v := make([]float64, MaxSamples)
		for i := 1; i < len(v); i++ {
			v[i] = c.next(r, v[i-1])
		}
		chosen, tight := chooseWindows(nil, nil, v)
		size := 0
		for i, w := range chosen {
			require.True(t, w.holds(tight[i]))
			size += 1 + w.size()
			if i == 0 || w != chosen[i-1] {
				size += newWindow
			}
		}
		require.LessOrEqual(t, float64(size), c.most*float64(bestSize(tight)), "%s: %d and %d bits", name, size, bestSize(tight))
	}
}

func TestChunksThatPrometheusBloatedAreEncodedAgain(t *testing.T) {
	samples := regular(MaxSamples, 0)
	in := chunksOf(t, chunkenc.EncXOR2, MaxSamples, samples)
	out, err := new(Joiner).Join(in)
	require.NoError(t, err)
	require.Len(t, out, 1)
	require.Equal(t, samples, samplesOf(t, out))
	require.Less(t, bytesOf(out), bytesOf(in)/2)
}

func TestHistogramsStayAsTheyAreAndAreNotJoinedAcross(t *testing.T) {
	histogram := chunkenc.NewHistogramChunk()
	appender, err := histogram.Appender()
	require.NoError(t, err)
	_, _, _, err = appender.AppendHistogram(nil, 0, 5, tsdbutil.GenerateTestHistogram(1), true)
	require.NoError(t, err)
	in := chunksOf(t, chunkenc.EncXOR, 10, []sample{{0, 1, 1}, {0, 2, 2}})
	in = append(in, chunksOf(t, chunkenc.EncXOR2, 10, []sample{{0, 3, 1}, {0, 4, 2}})...)
	in = append(in, chunks.Meta{MinTime: 5, MaxTime: 5, Chunk: histogram})
	in = append(in, chunksOf(t, chunkenc.EncXOR, 10, []sample{{0, 6, 1}})...)
	out, err := new(Joiner).Join(in)
	require.NoError(t, err)
	require.Len(t, out, 3)
	require.Equal(t, []sample{{0, 1, 1}, {0, 2, 2}, {0, 3, 1}, {0, 4, 2}}, samplesOf(t, out[:1]))
	require.Same(t, histogram, out[1].Chunk)
	require.Equal(t, []sample{{0, 6, 1}}, samplesOf(t, out[2:]))
}

func TestAChunkThatDoesNotHoldWhatItSaysIsAnError(t *testing.T) {
	in := chunksOf(t, chunkenc.EncXOR2, 100, regular(100, 0))
	short := in[0].Chunk.Bytes()
	binary.BigEndian.PutUint16(short, 200)
	in[0].Chunk.Reset(short)
	_, err := new(Joiner).Join(append(in, chunksOf(t, chunkenc.EncXOR2, 100, regular(300, 0)[100:])...))
	require.ErrorContains(t, err, "chunk from 1700000000000")

	_, err = new(Joiner).Join(append(chunksOf(t, chunkenc.EncXOR, 100, regular(100, 0)), chunksOf(t, chunkenc.EncXOR, 100, regular(100, 0))...))
	require.ErrorContains(t, err, "comes after one at")
}

func FuzzWhatIsEncodedIsDecoded(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, kind uint8) {
		var samples []sample
		var at, st int64
		var v uint64
		for ; len(data) >= 3; data = data[3:] {
			at += 1 + int64(data[0])<<(data[1]%48)
			if data[2]&1 != 0 {
				st = at - int64(data[0])<<(kind%48)
			}
			v ^= uint64(data[1]) << (data[2] % 60)
			if data[2] == 0xff {
				v = value.StaleNaN
			}
			samples = append(samples, sample{st, at, v})
		}
		if len(samples) == 0 || at < 0 {
			return
		}
		out, err := new(Joiner).Join(chunksOf(t, chunkenc.EncXOR2, 7, samples))
		require.NoError(t, err)
		require.Equal(t, samples, samplesOf(t, out))
	})
}

func BenchmarkJoin(b *testing.B) {
	for _, c := range []struct {
		name string
		at   func(i int) float64
	}{
		{"constant", func(int) float64 { return 1 }},
		{"counter", func(i int) float64 { return float64(i * 37) }},
		{"gauge", func(i int) float64 { return math.Sin(float64(i)) }},
	} {
		samples := make([]sample, 2880)
		for i := range samples {
			samples[i] = sample{0, 1_700_000_000_000 + int64(i)*15_000, math.Float64bits(c.at(i))}
		}
		in := chunksOf(b, chunkenc.EncXOR2, 120, samples)
		out, err := new(Joiner).Join(in)
		require.NoError(b, err)
		b.Run(c.name, func(b *testing.B) {
			var j Joiner
			for b.Loop() {
				if _, err := j.Join(in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(samples)), "ns/sample")
			b.ReportMetric(float64(bytesOf(in))/float64(len(samples)), "B/sample-120")
			b.ReportMetric(float64(bytesOf(out))/float64(len(samples)), "B/sample-480")
		})
		for _, size := range []struct {
			name  string
			metas []chunks.Meta
		}{{"120", in}, {"480", out}} {
			b.Run(fmt.Sprintf("%s/decode-%s", c.name, size.name), func(b *testing.B) {
				var it chunkenc.Iterator
				for b.Loop() {
					for _, meta := range size.metas {
						it = meta.Chunk.Iterator(it)
						it.Seek(meta.MaxTime)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(samples)), "ns/sample")
			})
		}
	}
}
