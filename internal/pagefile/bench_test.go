package pagefile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// distantStore answers after a delay, and sends all its answers over one line.
type distantStore struct {
	delay          time.Duration
	bytesPerSecond float64

	mu   sync.Mutex
	free time.Time // when the line is free
}

func (s *distantStore) before(ctx context.Context, asked Range) error {
	s.mu.Lock()
	now := time.Now()
	if s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(float64(asked.End-asked.Start) / s.bytesPerSecond * float64(time.Second)))
	wait := s.free.Sub(now) + s.delay
	s.mu.Unlock()
	return slow(wait)(ctx, asked)
}

// BenchmarkLoadFromADistantStore measures loads of an absent file of 256 MiB from a store
// of 20 ms per request and 200 MB/s in all, for different gaps that are fetched too.
func BenchmarkLoadFromADistantStore(b *testing.B) {
	r := newRemote(256<<20, 1)
	random := rand.New(rand.NewPCG(1, 1))
	scattered := func(n int, length int64) []Range {
		ranges := make([]Range, n)
		for i := range ranges {
			start := random.Int64N(r.size() - length)
			ranges[i] = Range{start, start + length}
		}
		return ranges
	}
	for _, want := range []struct {
		name   string
		ranges []Range
	}{
		{"all", []Range{{0, r.size()}}},
		{"64MiB", []Range{{0, 64 << 20}}},
		{"1x1KiB", scattered(1, 1<<10)},
		{"100x2KiB", scattered(100, 2<<10)},
		{"1000x2KiB", scattered(1000, 2<<10)},
		{"1000x60KiB", scattered(1000, 60<<10)},
	} {
		for _, gap := range []int64{0, 64 << 10, 128 << 10, 512 << 10} {
			b.Run(fmt.Sprintf("%s/gap=%dKiB", want.name, gap>>10), func(b *testing.B) {
				b.ReportAllocs()
				var fetched, requests int64
				for range b.N {
					c := newCache(b, b.TempDir(), func(_ *Config, tn *tuning) { tn.maxGap = gap })
					store := &distantStore{delay: 20 * time.Millisecond, bytesPerSecond: 200e6}
					away := &remote{content: r.content, before: store.before}
					f := c.file("k", away)
					n, err := f.Load(b.Context(), want.ranges...)
					if err != nil {
						b.Fatal(err)
					}
					fetched, requests = fetched+n, requests+away.requests.Load()
					f.Release()
				}
				b.ReportMetric(float64(fetched)/float64(b.N)/1e6, "MB/op")
				b.ReportMetric(float64(requests)/float64(b.N), "requests/op")
			})
		}
	}
}

// BenchmarkLoadOfResidentRanges measures what a warm query pays to learn that all is there.
func BenchmarkLoadOfResidentRanges(b *testing.B) {
	c := newCache(b, b.TempDir(), nil)
	r := newRemote(64<<20, 1)
	f := c.file("k", r)
	defer f.Release()
	load(b, f, 0, r.size())
	ranges := make([]Range, 1000)
	for i := range ranges {
		ranges[i] = Range{int64(i) << 16, int64(i)<<16 + 2000}
	}
	for b.Loop() {
		load(b, f, 0, 1)
		if _, err := f.Load(b.Context(), ranges...); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadAt measures a read of 2 KiB.
func BenchmarkReadAt(b *testing.B) {
	c := newCache(b, b.TempDir(), nil)
	r := newRemote(64<<20, 1)
	f := c.file("k", r)
	defer f.Release()
	load(b, f, 0, r.size())
	p := make([]byte, 2<<10)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := f.ReadAt(p, int64(i%30000)<<11); err != nil {
			b.Fatal(err)
		}
	}
}
