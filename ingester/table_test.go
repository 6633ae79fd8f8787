package ingester

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

func TestTableAgreesWithAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	var tab table
	twin := map[write.Identity]int64{}
	for range 20_000 {
		id := write.Identity{Hi: rng.Uint64N(2)<<63 | 1 + rng.Uint64N(1500), Lo: rng.Uint64N(3) << 62}
		if e := tab.find(id); e != nil {
			require.Equal(t, twin[id], e.lastT)
			e.lastT++
			twin[id]++
			continue
		}
		require.NotContains(t, twin, id)
		tab.insert(entry{id: id, lastT: int64(len(twin))})
		twin[id] = int64(len(twin))
		if rng.IntN(1000) == 0 {
			tab.forgetOld(500, 500, 1)
			for id, last := range twin {
				if last < 500 {
					delete(twin, id)
				}
			}
		}
	}
	require.Equal(t, len(twin), tab.size())
	for id, last := range twin {
		require.Equal(t, last, tab.find(id).lastT)
	}
}

// randomTable returns a table of n series and batches of 2,000 of them, all in another order.
func randomTable(n int) (*table, [][]write.Series) {
	rng := rand.New(rand.NewPCG(1, 0))
	tab := &table{}
	series := make([]write.Series, n)
	for i := range series {
		series[i].ID = write.Identity{Hi: rng.Uint64(), Lo: rng.Uint64()}
		tab.insert(newEntry(series[i].ID, storage.SeriesRef(i), 0))
	}
	rng.Shuffle(n, func(i, j int) { series[i], series[j] = series[j], series[i] })
	var batches [][]write.Series
	for len(series) > 0 {
		k := min(2000, len(series))
		batches, series = append(batches, series[:k]), series[k:]
	}
	return tab, batches
}

// BenchmarkTableFind looks up the series of batches, as a push does.
func BenchmarkTableFind(b *testing.B) {
	for _, n := range []int{100_000, 120_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tab, batches := randomTable(n)
			found, sum := 0, uint64(0)
			for i := 0; b.Loop(); i++ {
				batch := batches[i%len(batches)]
				sum += tab.warm(batch)
				for k := range batch {
					if tab.find(batch[k].ID) != nil {
						found++
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(found), "ns/series")
			b.ReportMetric(float64(tab.bytes())/float64(n), "B/series")
			require.NotZero(b, sum)
		})
	}
}

func (t *table) bytes() (n int) {
	for i := range t.segments {
		n += len(t.segments[i].entries) * int(unsafe.Sizeof(entry{}))
	}
	return n
}
