package pagefile

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCoalesce(t *testing.T) {
	for _, c := range []struct {
		name         string
		spans, taken []span
		want         []span
	}{
		{"nothing", nil, nil, nil},
		{"a small gap", []span{{0, 1}, {3, 4}}, nil, []span{{0, 4}}},
		{"a gap too large", []span{{0, 1}, {4, 5}}, nil, []span{{0, 1}, {4, 5}}},
		{"somebody fetches the gap", []span{{0, 1}, {3, 4}}, []span{{2, 3}}, []span{{0, 1}, {3, 4}}},
		{"somebody fetches elsewhere", []span{{0, 1}, {3, 4}}, []span{{4, 9}}, []span{{0, 4}}},
		{"too long together", []span{{0, 6}, {7, 12}}, nil, []span{{0, 6}, {7, 12}}},
		{"too long alone", []span{{0, 25}}, nil, []span{{0, 8}, {8, 16}, {16, 25}}},
		{"the rest takes a neighbour", []span{{0, 11}, {12, 14}}, nil, []span{{0, 5}, {5, 14}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, coalesce(c.spans, c.taken, 2, 10))
		})
	}
}

// TestSpansAgreeWithSetsOfPages compares the arithmetic of spans and the bitmap with maps.
func TestSpansAgreeWithSetsOfPages(t *testing.T) {
	const pages = 300
	random := newRandom(7)
	spans := func() []span {
		var s []span
		for range random.IntN(12) {
			first := random.Int64N(pages)
			s = append(s, span{first, first + random.Int64N(min(90, pages-first)) + 1})
		}
		return s
	}
	set := func(spans []span) map[int64]bool {
		m := map[int64]bool{}
		for _, s := range spans {
			for page := s.first; page < s.end; page++ {
				m[page] = true
			}
		}
		return m
	}
	for range 2000 {
		a, b := spans(), spans()
		inA, inB := set(a), set(b)
		resident := newBitmap(pages)
		for _, s := range b {
			resident.add(s)
		}
		want := map[int64]bool{}
		for page := range inA {
			require.Equal(t, inB[page], resident.has(span{page, page + 1}))
			if !inB[page] {
				want[page] = true
			}
		}
		a, b = union(a), union(b)
		require.Equal(t, inA, set(a))
		require.Equal(t, want, set(subtract(a, b)))
		var absent []span
		for _, s := range a {
			absent = resident.absent(absent, s)
			require.Equal(t, len(subtract([]span{s}, b)) == 0, resident.has(s))
		}
		require.Equal(t, want, set(absent))

		requests := coalesce(absent, nil, 3, 20)
		got := set(requests)
		last := int64(0)
		for _, s := range requests {
			require.GreaterOrEqual(t, s.first, last)
			require.LessOrEqual(t, s.pages(), int64(20))
			last = s.end
		}
		for page := range want {
			require.True(t, got[page])
		}
		for _, s := range b {
			resident.remove(s)
		}
		require.Equal(t, newBitmap(pages), resident)
	}
}
