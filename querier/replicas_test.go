package querier

import (
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/frame"
)

// chunkOf returns a chunk of floats at these times; the values are their times.
func chunkOf(t testing.TB, times ...int64) chunks.Meta {
	t.Helper()
	chunk := chunkenc.NewXORChunk()
	app, err := chunk.Appender()
	require.NoError(t, err)
	for _, at := range times {
		app.Append(0, at, float64(at))
	}
	return chunks.Meta{Chunk: chunk, MinTime: times[0], MaxTime: times[len(times)-1]}
}

// sent returns what a replica sends: its series, each in a frame of its own.
func sent(t testing.TB, series map[string][]chunks.Meta, names ...string) [][]byte {
	t.Helper()
	var frames [][]byte
	for _, name := range names {
		var w frame.SelectWriter
		require.NoError(t, w.Add(labels.FromStrings("__name__", name), series[name]))
		frames = append(frames, w.Bytes())
	}
	return frames
}

// timesIn returns the times of the samples of an only series.
func timesIn(t testing.TB, it chunkenc.Iterator) (times []int64) {
	t.Helper()
	for it.Next() != chunkenc.ValNone {
		at, v := it.At()
		require.InDelta(t, float64(at), v, 0)
		times = append(times, at)
	}
	require.NoError(t, it.Err())
	return times
}

func TestChunksOfReplicasAreMerged(t *testing.T) {
	c := func(times ...int64) chunks.Meta { return chunkOf(t, times...) }
	for _, tc := range []struct {
		name     string
		replicas [][]chunks.Meta
		want     []int64
		chunks   int // what remote read sends
		dropped  int
	}{
		{"they agree", [][]chunks.Meta{{c(1, 2), c(3, 4)}, {c(1, 2), c(3, 4)}, {c(1, 2), c(3, 4)}}, []int64{1, 2, 3, 4}, 2, 4},
		{"one has no more", [][]chunks.Meta{{c(1, 2), c(3, 4)}, {c(1, 2)}}, []int64{1, 2, 3, 4}, 2, 1},
		{"one misses a sample", [][]chunks.Meta{{c(1, 2, 3), c(7)}, {c(1, 3), c(7)}}, []int64{1, 2, 3, 7}, 2, 1},
		{"each misses one", [][]chunks.Meta{{c(1, 3, 4), c(6)}, {c(1, 2, 3)}}, []int64{1, 2, 3, 4, 6}, 2, 0},
		{"they cut elsewhere", [][]chunks.Meta{{c(1, 2), c(3, 4), c(5, 6)}, {c(1), c(2, 3), c(4, 5, 6)}}, []int64{1, 2, 3, 4, 5, 6}, 1, 0},
		{"they have nothing in common", [][]chunks.Meta{{c(5, 6)}, {c(1, 2)}, {c(3, 4)}}, []int64{1, 2, 3, 4, 5, 6}, 3, 0},
		{"equal times and other bytes between equal ones", [][]chunks.Meta{{c(1, 2, 9)}, {c(1, 3, 9)}, {c(1, 2, 9)}}, []int64{1, 2, 3, 9}, 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dropped := 0
			a := &answer{within: timeRange{0, 100}, dropped: func(n int) { dropped += n }}
			for _, metas := range tc.replicas {
				a.streams = append(a.streams, sent(t, map[string][]chunks.Meta{"x": metas}, "x"))
			}
			set := answeredSamples{answeredLabels{a}}.Select(t.Context(), true, nil)
			require.True(t, set.Next())
			require.Equal(t, tc.want, timesIn(t, set.At().Iterator(nil)))
			require.False(t, set.Next())
			require.NoError(t, set.Err())
			require.Equal(t, tc.dropped, dropped)

			for from := range int64(10) { // whatever is sought is found
				it := (answeredSamples{answeredLabels{a}}).first(t).Iterator(nil)
				var want []int64
				for _, at := range tc.want {
					if at >= from {
						want = append(want, at)
					}
				}
				var got []int64
				if it.Seek(from) != chunkenc.ValNone {
					require.Equal(t, it.AtT(), want[0])
					require.NotEqual(t, chunkenc.ValNone, it.Seek(from), "it is there already")
					got = append([]int64{it.AtT()}, timesIn(t, it)...)
				}
				require.Equal(t, want, got, "from %d", from)
			}

			asChunks := answeredChunks{answeredLabels{a}}.Select(t.Context(), true, nil)
			require.True(t, asChunks.Next())
			n, last := 0, int64(-1)
			for it := asChunks.At().Iterator(nil); it.Next(); n++ {
				require.Greater(t, it.At().MinTime, last, "chunks do not overlap")
				last = it.At().MaxTime
			}
			require.Equal(t, tc.chunks, n)
		})
	}
}

func (a answeredSamples) first(t testing.TB) storage.Series {
	t.Helper()
	set := a.Select(t.Context(), true, nil)
	require.True(t, set.Next())
	return set.At()
}

func TestSamplesOutsideOfTheRangeAreLeftOut(t *testing.T) {
	for _, tc := range []struct {
		mint, maxt int64
		want       []int64
	}{
		{1, 6, []int64{1, 2, 3, 4, 5, 6}},
		{2, 5, []int64{2, 3, 4, 5}},
		{3, 3, []int64{3}},
		{5, 9, []int64{5, 6}},
		{7, 9, nil},
		{0, 0, nil},
	} {
		a := &answer{within: timeRange{tc.mint, tc.maxt}, dropped: func(int) {}}
		a.streams = [][][]byte{sent(t, map[string][]chunks.Meta{"x": {chunkOf(t, 1, 2), chunkOf(t, 3, 4), chunkOf(t, 5, 6)}}, "x")}
		require.Equal(t, tc.want, timesIn(t, answeredSamples{answeredLabels{a}}.first(t).Iterator(nil)))
		var got []int64
		asChunks := answeredChunks{answeredLabels{a}}.Select(t.Context(), true, nil)
		require.True(t, asChunks.Next())
		for it := asChunks.At().Iterator(nil); it.Next(); {
			got = append(got, timesIn(t, it.At().Chunk.Iterator(nil))...)
		}
		require.Equal(t, tc.want, got)
	}
}

func TestSeriesOfReplicasComeSortedAndOnce(t *testing.T) {
	one := []chunks.Meta{chunkOf(t, 1)}
	series := map[string][]chunks.Meta{"a": one, "aa": one, "b": one, "z": nil}
	a := &answer{within: timeRange{0, 9}, dropped: func(int) {}, streams: [][][]byte{
		sent(t, series, "a", "b"), nil, sent(t, series, "aa", "b", "z"), sent(t, series, "z"), {nil, {}},
	}}
	var names []string
	set := answeredSamples{answeredLabels{a}}.Select(t.Context(), true, nil)
	for set.Next() {
		names = append(names, set.At().Labels().Get("__name__"))
	}
	require.NoError(t, set.Err())
	require.Equal(t, []string{"a", "aa", "b", "z"}, names)
}

func TestWhatIsMalformedIsAnError(t *testing.T) {
	good := sent(t, map[string][]chunks.Meta{"a": {chunkOf(t, 1)}}, "a")
	a := &answer{within: timeRange{0, 9}, dropped: func(int) {}, streams: [][][]byte{good, {{77, 1, 2, 3}}}}
	set := answeredSamples{answeredLabels{a}}.Select(t.Context(), true, nil)
	require.False(t, set.Next())
	require.ErrorIs(t, set.Err(), frame.ErrMalformed)
	require.False(t, set.Next())
}

// The chunk before may be of another replica, which has seen another sample last.
func TestResetsAreNotConcludedAcrossChunks(t *testing.T) {
	for _, header := range []chunkenc.CounterResetHeader{chunkenc.UnknownCounterReset, chunkenc.NotCounterReset, chunkenc.CounterReset} {
		var metas []chunks.Meta
		for at := int64(1); at < 4; at++ {
			chunk := chunkenc.NewHistogramChunk()
			app, err := chunk.Appender()
			require.NoError(t, err)
			_, _, _, err = app.AppendHistogram(nil, 0, at, tsdbutil.GenerateTestHistogram(at), true)
			require.NoError(t, err)
			chunk.Bytes()[2] = chunk.Bytes()[2]&0x3f | byte(header)
			require.Equal(t, header, chunk.GetCounterResetHeader())
			metas = append(metas, chunks.Meta{Chunk: chunk, MinTime: at, MaxTime: at})
		}
		a := &answer{within: timeRange{0, 9}, dropped: func(int) {}, streams: [][][]byte{
			sent(t, map[string][]chunks.Meta{"x": metas[:1]}, "x"), sent(t, map[string][]chunks.Meta{"x": metas[1:]}, "x"),
		}}
		it := answeredSamples{answeredLabels{a}}.first(t).Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			_, h := it.AtHistogram(nil)
			require.Equal(t, histogram.UnknownCounterReset, h.CounterResetHint)
		}
	}
}

func BenchmarkMergeReplicas(b *testing.B) {
	const series = 10_000
	var w frame.SelectWriter
	var frames [][]byte
	times := make([]int64, 120)
	for i := range times {
		times[i] = int64(i) * 15_000
	}
	metas := []chunks.Meta{chunkOf(b, times...)}
	for i := range series {
		require.NoError(b, w.Add(labels.FromStrings("__name__", "http_requests_total", "cluster", "eu-west-1", "instance", "10.0.0.1:9090",
			"job", "api", "method", "GET", "pod", fmt.Sprintf("api-%08d", i), "status", "200"), metas))
		if w.Len() > 1<<20 {
			frames = append(frames, append([]byte(nil), w.Bytes()...))
			w.Reset()
		}
	}
	frames = append(frames, append([]byte(nil), w.Bytes()...))
	for _, replicas := range []int{1, 2, 3} {
		for _, decode := range []bool{false, true} {
			b.Run(fmt.Sprintf("replicas=%d/decode=%v", replicas, decode), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					a := &answer{within: timeRange{0, 1 << 40}, dropped: func(int) {}}
					for range replicas {
						a.streams = append(a.streams, frames)
					}
					set := answeredSamples{answeredLabels{a}}.Select(b.Context(), true, nil)
					n := 0
					var it chunkenc.Iterator
					for set.Next() {
						n++
						if decode {
							it = set.At().Iterator(it)
							for it.Next() != chunkenc.ValNone { //nolint:revive // it only decodes
							}
						}
					}
					require.Equal(b, series, n)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/series")
			})
		}
	}
}
