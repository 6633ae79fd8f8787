package resultcache

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"
)

// entry returns an entry with random gaps.
func entry(rng *rand.Rand, key string, extents, series, steps int) Entry {
	e := Entry{Key: key, Step: 1 + rng.Int64N(100_000)}
	for i := range extents {
		x := Extent{Start: int64(i-2) * 1_000_000_000, Version: rng.Uint64(), Series: []Series{}}
		x.End = x.Start + int64(steps-1)*e.Step
		for n := range series {
			s := Series{Labels: labels.FromStrings("__name__", "x", "n", fmt.Sprint(n))}
			for at := x.Start; at <= x.End; at += e.Step {
				if rng.IntN(3) > 0 {
					s.Points = append(s.Points, promql.FPoint{T: at, F: rng.NormFloat64()})
				}
			}
			if len(s.Points) > 0 {
				x.Series = append(x.Series, s)
			}
		}
		e.Extents = append(e.Extents, x)
	}
	return e
}

func TestAnEntryIsDecodedAsItWas(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		want := entry(rng, "key", 1+rng.IntN(4), rng.IntN(5), 1+rng.IntN(40))
		got, err := Decode(Encode(want))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	special := Entry{Key: "k", Step: 1, Extents: []Extent{{Series: []Series{{Points: []promql.FPoint{{F: math.Float64frombits(0x7ff0000000000002)}}}}}}}
	got, err := Decode(Encode(special))
	require.NoError(t, err)
	require.Equal(t, uint64(0x7ff0000000000002), math.Float64bits(got.Extents[0].Series[0].Points[0].F))
	require.True(t, got.Extents[0].Series[0].Labels.IsEmpty())
}

func TestADamagedFileIsNoResult(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	good := Encode(entry(rng, "key", 2, 2, 10))
	for i := range good {
		bad := append([]byte{}, good...)
		bad[i] ^= 1 << rng.IntN(8)
		_, err := Decode(bad)
		require.ErrorIs(t, err, errDamaged)
		_, err = Decode(good[:i])
		require.ErrorIs(t, err, errDamaged)
	}
}

func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		f.Add(Encode(entry(rng, "key", 2, 3, 10))[len(magic)+4:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		data := append([]byte(magic), 0, 0, 0, 0)
		data = append(data, body...)
		sum := checksum(body)
		data[len(magic)], data[len(magic)+1], data[len(magic)+2], data[len(magic)+3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		e, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Decode(Encode(e))
		require.NoError(t, err)
		require.Equal(t, Encode(e), Encode(again))
	})
}

func TestResultsSurviveARestartAndTheOldestGoFirst(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	rng := rand.New(rand.NewPCG(1, 2))
	c := New(dir, 10*block, nil)
	require.NoError(t, c.Load())
	want := map[string]Entry{}
	for i := range 12 {
		key := fmt.Sprint(i)
		want[key] = entry(rng, key, 1, 2, 10)
		require.NoError(t, c.Put(want[key]))
		c.Get("2") // it is used all the time
	}
	check := func(c *Cache) {
		for key, e := range want {
			if key == "0" || key == "1" {
				e = Entry{Key: key}
			}
			require.Equal(t, e, c.Get(key), key)
		}
	}
	check(c)
	require.InDelta(t, 2, testutil.ToFloat64(c.metrics.evictions), 0)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 10)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "half.new"), nil, 0o600))
	c = New(dir, 10*block, nil)
	require.NoError(t, c.Load())
	check(c)
	require.NoFileExists(t, filepath.Join(dir, "half.new"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name("3")), []byte("damage"), 0o600))
	c = New(dir, 10*block, nil)
	require.Equal(t, Entry{Key: "3"}, c.Get("3"))
	require.NoFileExists(t, filepath.Join(dir, name("3")))
	require.NoError(t, c.Put(entry(rng, "large", 1, 10, 1000)))
	require.Equal(t, Entry{Key: "large"}, c.Get("large"), "an eighth of the budget is the most")
}

func TestAKeyIsWorkedOnByOneAtATime(t *testing.T) {
	c := New(t.TempDir(), 1<<20, nil)
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	other, err := c.Lock(t.Context(), "b")
	require.NoError(t, err)
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Lock(ctx, "a")
	require.ErrorIs(t, err, context.Canceled)
	got := make(chan func())
	go func() {
		unlock, err := c.Lock(context.Background(), "a")
		if err == nil {
			got <- unlock
		}
	}()
	unlock()
	(<-got)()
	require.Empty(t, c.mu.locked)
}

func BenchmarkDecodeAYearOf14Series(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	e := Entry{Key: "k", Step: 6 * 3_600_000}
	for i := range int64(92) {
		part := entry(rng, "k", 1, 14, 16)
		part.Extents[0].Start = i * 16 * e.Step
		part.Extents[0].End = part.Extents[0].Start + 15*e.Step
		for n := range part.Extents[0].Series {
			for p := range part.Extents[0].Series[n].Points {
				part.Extents[0].Series[n].Points[p].T = part.Extents[0].Start + int64(p)*e.Step
			}
		}
		e.Extents = append(e.Extents, part.Extents[0])
	}
	data := Encode(e)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}
