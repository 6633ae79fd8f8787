package querier

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
)

// sampleAt is a sample of any kind.
type sampleAt struct {
	t int64
	f float64
	h *histogram.Histogram
}

func (s sampleAt) T() int64                      { return s.t }
func (s sampleAt) ST() int64                     { return 0 }
func (s sampleAt) F() float64                    { return s.f }
func (s sampleAt) H() *histogram.Histogram       { return s.h }
func (s sampleAt) FH() *histogram.FloatHistogram { return nil }
func (s sampleAt) Type() chunkenc.ValueType {
	if s.h != nil {
		return chunkenc.ValHistogram
	}
	return chunkenc.ValFloat
}
func (s sampleAt) Copy() chunks.Sample { return s }

// randomPieces returns a series that is spread over blocks, some of which overlap, and over
// recent samples.
func randomPieces(r *rand.Rand) (pieces []fragment[storage.Series], plain []storage.Series) {
	lset := labels.FromStrings("__name__", "x")
	histograms := r.IntN(2) == 0
	sample := func(t int64) chunks.Sample {
		if histograms {
			return sampleAt{t: t, h: tsdbutil.GenerateTestHistogram(t)}
		}
		return sampleAt{t: t, f: float64(t)}
	}
	mint := int64(0)
	for range r.IntN(6) {
		maxt := mint + 1 + int64(r.IntN(20))
		var samples []chunks.Sample
		for t := mint; t < maxt; t++ {
			if r.IntN(3) > 0 {
				samples = append(samples, sample(t))
			}
		}
		s := storage.NewListSeries(lset, samples)
		pieces = append(pieces, fragment[storage.Series]{span: span{mint, maxt}, series: s})
		plain = append(plain, s)
		mint = maxt + int64(r.IntN(4))
		if r.IntN(4) == 0 {
			mint = max(0, maxt-int64(r.IntN(10)))
		}
	}
	slices.SortStableFunc(pieces, func(a, b fragment[storage.Series]) int { return int(a.mint - b.mint) })
	if r.IntN(2) == 0 || len(pieces) == 0 {
		var samples []chunks.Sample
		for t := max(0, mint-int64(r.IntN(15))); t < mint+10; t++ {
			if r.IntN(4) > 0 {
				samples = append(samples, sample(t))
			}
		}
		s := storage.NewListSeries(lset, samples)
		pieces = append(pieces, fragment[storage.Series]{recent: true, series: s})
		plain = append(plain, s)
	}
	return pieces, plain
}

func TestSamplesReadOneBlockAfterTheOtherAreThoseOfAMerge(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var reused chunkenc.Iterator
	for i := range 20_000 {
		pieces, plain := randomPieces(r)
		want := storage.ChainedSeriesMerge(plain...).Iterator(nil)
		if len(plain) == 1 {
			want = plain[0].Iterator(nil)
		}
		got := concatSamples(pieces).Iterator(reused)
		reused = got
		at := int64(-1)
		for range 60 {
			var w, g chunkenc.ValueType
			step := "next"
			if r.IntN(3) == 0 {
				at += int64(r.IntN(12))
				step = fmt.Sprint("seek ", at)
				w, g = want.Seek(at), got.Seek(at)
			} else {
				w, g = want.Next(), got.Next()
			}
			require.Equal(t, w, g, "case %d, %s", i, step)
			if w == chunkenc.ValNone {
				break
			}
			require.Equal(t, want.AtT(), got.AtT(), "case %d, %s", i, step)
			at = max(at, want.AtT())
			if w == chunkenc.ValHistogram {
				_, wh := want.AtHistogram(nil)
				_, gh := got.AtHistogram(nil)
				if step == "next" { // after Seek Prometheus's merge depends on where it was
					require.Equal(t, wh, gh, "case %d", i)
				}
				continue
			}
			_, wv := want.At()
			_, gv := got.At()
			require.Equal(t, math.Float64bits(wv), math.Float64bits(gv))
		}
		require.NoError(t, got.Err())
	}
}

// openedSeries counts its iterators.
type openedSeries struct {
	storage.Series
	opened *int
}

func (s openedSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	*s.opened++
	return s.Series.Iterator(it)
}

func TestABlockIsOpenedWhenTheOneBeforeIsUsedUp(t *testing.T) {
	opened := 0
	var pieces []fragment[storage.Series]
	for i := range int64(3) {
		s := storage.NewListSeries(labels.FromStrings("a", "b"), []chunks.Sample{sampleAt{t: 10 * i}, sampleAt{t: 10*i + 1}})
		pieces = append(pieces, fragment[storage.Series]{span: span{10 * i, 10*i + 10}, series: openedSeries{s, &opened}})
	}
	it := concatSamples(pieces).Iterator(nil)
	require.Zero(t, opened)
	it.Next()
	it.Next()
	require.Equal(t, 1, opened)
	it.Next()
	require.Equal(t, 2, opened)
	it = concatSamples(pieces).Iterator(nil)
	opened = 0
	require.Equal(t, chunkenc.ValFloat, it.Seek(20))
	require.Equal(t, 1, opened, "what ends before is not opened")
}

func TestAnErrorOfOneBlockEndsTheSeries(t *testing.T) {
	broken := errors.New("broken")
	pieces := []fragment[storage.Series]{
		{span: span{0, 10}, series: storage.NewListSeries(labels.FromStrings("a", "b"), []chunks.Sample{sampleAt{t: 1}})},
		{span: span{10, 20}, series: failingAlways{broken}, fail: func(err error) error { return fmt.Errorf("block: %w", err) }},
		{span: span{20, 30}, series: storage.NewListSeries(labels.FromStrings("a", "b"), []chunks.Sample{sampleAt{t: 21}})},
	}
	it := concatSamples(pieces).Iterator(nil)
	require.Equal(t, chunkenc.ValFloat, it.Next())
	require.Equal(t, chunkenc.ValNone, it.Next())
	require.ErrorIs(t, it.Err(), broken)
	require.ErrorContains(t, it.Err(), "block: ")
	require.Equal(t, chunkenc.ValNone, it.Next())
}

type failingAlways struct{ err error }

func (failingAlways) Labels() labels.Labels { return labels.FromStrings("a", "b") }

func (f failingAlways) Iterator(chunkenc.Iterator) chunkenc.Iterator {
	return brokenIterator{chunkenc.NewNopIterator(), f.err}
}

type brokenIterator struct {
	chunkenc.Iterator
	err error
}

func (b brokenIterator) Err() error { return b.err }
