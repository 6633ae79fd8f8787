package frame

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

type series struct {
	labels labels.Labels
	chunks []chunks.Meta
}

// chunk returns a chunk of n samples from t on.
func (r random) chunk(t int64, n int) chunks.Meta {
	c := chunkenc.NewXOR2Chunk()
	app, err := c.Appender()
	if err != nil {
		panic(err)
	}
	for i := range n {
		app.Append(0, t+int64(i)*15_000, r.float())
	}
	return chunks.Meta{Chunk: c, MinTime: t, MaxTime: t + int64(n-1)*15_000}
}

func (r random) series() series {
	s := series{labels: r.labels(12)}
	for range r.IntN(4) {
		c := r.chunk(1_790_000_000_000, 1+r.IntN(100))
		if r.IntN(10) == 0 {
			c.MinTime, c.MaxTime = r.time(), math.MaxInt64
		}
		s.chunks = append(s.chunks, c)
	}
	return s
}

func TestWhatIsSelectedArrivesBitByBit(t *testing.T) {
	var w SelectWriter
	reader := NewSelectReader(nil)
	require.False(t, reader.Next())
	require.NoError(t, reader.Err())
	for seed := range uint64(200) {
		r := newRandom(seed)
		var want []series
		w.Reset()
		for range r.IntN(20) {
			s := r.series()
			require.NoError(t, w.Add(s.labels, s.chunks))
			want = append(want, s)
		}
		require.Equal(t, len(want), w.Series())
		require.Equal(t, len(w.Bytes()), w.Len())

		reader.Reset(w.Bytes())
		for _, s := range want {
			require.True(t, reader.Next(), "%v", reader.Err())
			require.Equal(t, s.labels, reader.Labels())
			require.Len(t, reader.Chunks(), len(s.chunks))
			for i, c := range reader.Chunks() {
				meta, err := c.Meta()
				require.NoError(t, err)
				require.Equal(t, s.chunks[i].Chunk.Bytes(), meta.Chunk.Bytes())
				require.Equal(t, s.chunks[i].Chunk.Encoding(), meta.Chunk.Encoding())
				require.Equal(t, [2]int64{s.chunks[i].MinTime, s.chunks[i].MaxTime}, [2]int64{meta.MinTime, meta.MaxTime})
			}
		}
		require.False(t, reader.Next())
		require.NoError(t, reader.Err())
	}
}

func TestASelectFrameIsAsDocumented(t *testing.T) {
	c, err := chunkenc.FromData(chunkenc.EncXOR, []byte{0, 1, 0xaa, 0xbb})
	require.NoError(t, err)
	var w SelectWriter
	require.NoError(t, w.Add(labels.FromStrings("a", "b"), []chunks.Meta{{Chunk: c, MinTime: 1000, MaxTime: 2000}, {Chunk: c, MinTime: 3000, MaxTime: 3000}}))
	require.NoError(t, w.Add(labels.EmptyLabels(), nil))
	require.Equal(t, unhex(t, "01"+
		"08 0a06 0a0161 120162 02"+
		"01 d00fd00f 04 0001aabb"+
		"01 d00f00 04 0001aabb"+
		"00 00"), w.Bytes())
}

func TestLabelsOfASelectFrameOutliveIt(t *testing.T) {
	var w SelectWriter
	want := labels.FromStrings("__name__", "up", "job", "a")
	require.NoError(t, w.Add(want, nil))
	r := NewSelectReader(w.Bytes())
	require.True(t, r.Next())
	ls := r.Labels()
	require.Equal(t, write.NewHasher().Labels(want), write.NewHasher().Canonical(r.LabelBytes()))
	clear(w.Bytes())
	require.Equal(t, want, ls)
}

func TestChunksThatAreNotLoadedAreRefused(t *testing.T) {
	var w SelectWriter
	r := newRandom(1)
	require.Error(t, w.Add(labels.EmptyLabels(), []chunks.Meta{r.chunk(0, 1), {}}))
	require.Nil(t, w.Bytes(), "the frame is as it was")
	require.Zero(t, w.Series())
}

func TestMalformedSelectFramesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		frame string
		want  error
	}{
		"unknown version":           {"02", ErrMalformed},
		"labels cut":                {"01 05 0a", errCut},
		"labels wrong":              {"01 01 0b 00", errLabelForm},
		"labels not sorted":         {"01 10 0a06 0a0162 120162 0a06 0a0161 120162 00", errLabelOrder},
		"no number of chunks":       {"01 00", errCut},
		"more chunks than bytes":    {"01 00 ffffff7f 00", errCut},
		"times cut":                 {"01 00 01 01 ffffffffffff", errCut},
		"data cut":                  {"01 00 01 01 00 00 05 0001 00", errCut},
		"chunk without a header":    {"01 00 01 01 00 00 01 00 00", errChunk},
		"histogram without its own": {"01 00 01 02 00 00 02 0001", errChunk},
		"XOR2 without its own":      {"01 00 01 04 00 00 02 0001", errChunk},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewSelectReader(unhex(t, c.frame))
			require.False(t, r.Next())
			require.ErrorIs(t, r.Err(), c.want)
			require.ErrorIs(t, r.Err(), ErrMalformed)
			require.Empty(t, r.Chunks())
			require.True(t, r.Labels().IsEmpty())
			require.False(t, r.Next(), "a fault is the end")
		})
	}
}

func TestAnEncodingOfALaterReleaseIsAnErrorOfItsChunk(t *testing.T) {
	r := NewSelectReader(unhex(t, "01 00 01 63 00 00 02 0001"))
	require.True(t, r.Next())
	_, err := r.Chunks()[0].Meta()
	require.ErrorContains(t, err, "invalid chunk encoding")
}

func FuzzSelectReader(f *testing.F) {
	for seed := range uint64(4) {
		r := newRandom(seed)
		var w SelectWriter
		for range 2 {
			require.NoError(f, w.Add(r.labels(2), []chunks.Meta{r.chunk(1_790_000_000_000, 1+r.IntN(3))}))
		}
		f.Add(w.Bytes())
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var w SelectWriter
		r := NewSelectReader(frame)
		total, known := 0, true
		for r.Next() {
			var metas []chunks.Meta
			for _, c := range r.Chunks() {
				total += 48 + len(c.Data)
				meta, err := c.Meta()
				known = known && err == nil
				if err == nil {
					require.NotPanics(t, func() { meta.Chunk.NumSamples(); meta.Chunk.Iterator(nil) })
					metas = append(metas, meta)
				}
			}
			total += len(r.Labels().Bytes(nil))
			require.NoError(t, w.Add(r.Labels(), metas))
		}
		require.LessOrEqual(t, total, 16*len(frame)+1024)
		if r.Err() != nil {
			require.ErrorIs(t, r.Err(), ErrMalformed)
			return
		}
		if known && len(frame) > 1 {
			// The same again: only numbers that were written longer than needed differ.
			second, again := NewSelectReader(w.Bytes()), SelectWriter{}
			for second.Next() {
				var metas []chunks.Meta
				for _, c := range second.Chunks() {
					meta, err := c.Meta()
					require.NoError(t, err)
					metas = append(metas, meta)
				}
				require.NoError(t, again.Add(second.Labels(), metas))
			}
			require.NoError(t, second.Err())
			require.Equal(t, w.Bytes(), again.Bytes())
		}
	})
}

func BenchmarkSelect(b *testing.B) {
	const n = 500
	r := newRandom(1)
	c := []chunks.Meta{r.chunk(1_790_000_000_000, 120), r.chunk(1_790_001_800_000, 120)}
	var all []labels.Labels
	for i := range n {
		all = append(all, labels.FromStrings("__name__", "http_requests_total", "cluster", "eu-1", "code", "200",
			"instance", fmt.Sprintf("10.0.0.%d:9100", i), "job", "api", "method", "GET", "namespace", "shop", "pod", strings.Repeat("p", 30)))
	}
	var w SelectWriter
	write := func() {
		w.Reset()
		for _, ls := range all {
			if err := w.Add(ls, c); err != nil {
				b.Fatal(err)
			}
		}
	}
	perSeries := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/series")
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			write()
		}
		perSeries(b)
	})
	write()
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		reader := NewSelectReader(nil)
		for b.Loop() {
			reader.Reset(w.Bytes())
			for reader.Next() {
				_ = reader.Labels()
			}
		}
		perSeries(b)
	})
}
