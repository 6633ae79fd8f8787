package distributor

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func keyOf(i int) write.Identity {
	rng := rand.New(rand.NewPCG(uint64(i), 7))
	return write.Identity{Hi: rng.Uint64(), Lo: rng.Uint64()}
}

func (s *sightings) get(key write.Identity) sighting {
	found := make([]sighting, 1)
	s.lookup([]write.Identity{key}, found)
	return found[0]
}

func TestSightingsAgreeWithAMap(t *testing.T) {
	s := newSightings(64 << 20)
	twin := map[int]sighting{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		i := rng.IntN(20_000)
		want, known := twin[i]
		got := s.get(keyOf(i))
		require.Equal(t, known, got.mark&sighted != 0)
		switch {
		case !known:
			want = sighting{id: write.Identity{Lo: uint64(i)}, slot: hashring.Slot(i), mark: sighted}
			s.add(keyOf(i), want)
			twin[i] = want
		default:
			require.Equal(t, want.id, got.id)
			require.Equal(t, want.slot, got.slot)
			require.Equal(t, want.mark, got.mark)
			ack := rng.IntN(2) == 0
			want.mark = sighted
			if ack {
				want.mark |= acknowledged
			}
			s.acknowledge(keyOf(i), ack)
			twin[i] = want
		}
	}
	n, bytes := s.size()
	require.Equal(t, len(twin), n)
	require.Less(t, bytes, int64(n)*90)
}

func TestSightingsAreBoundedAndKeepWhatIsUsed(t *testing.T) {
	const limit = 1 << 20
	s := newSightings(limit)
	const inUse = 4_000
	use := func() (hits int) {
		for i := range inUse {
			e := s.get(keyOf(i))
			if e.mark != 0 {
				hits++
			}
			if e.mark == 0 || e.mark&aging != 0 {
				e.mark |= sighted | acknowledged
				s.add(keyOf(i), e)
			}
		}
		return hits
	}
	use()
	passing := inUse
	for range 50 {
		for range inUse {
			s.add(keyOf(passing), sighting{})
			passing++
		}
		require.Equal(t, inUse, use(), "what is used again and again stays")
		_, bytes := s.size()
		require.LessOrEqual(t, bytes, int64(limit))
	}
	require.Zero(t, s.get(keyOf(inUse)).mark, "what was used once is gone")
	require.NotZero(t, s.get(keyOf(0)).mark&acknowledged)
}

func TestTenantsAndLimitsHaveSightingsOfTheirOwn(t *testing.T) {
	limits := tenant.DefaultLimits()
	salt := sightingSalt(1, limits)
	require.Equal(t, salt, sightingSalt(1, limits))
	require.NotEqual(t, salt, sightingSalt(2, limits))
	for _, change := range []func(*tenant.Limits){
		func(l *tenant.Limits) { l.MaxLabelsPerSeries++ },
		func(l *tenant.Limits) { l.MaxLabelNameBytes++ },
		func(l *tenant.Limits) { l.MaxLabelValueBytes++ },
	} {
		other := limits
		change(&other)
		require.NotEqual(t, salt, sightingSalt(1, other))
	}
	limits.MaxSeries++
	require.Equal(t, salt, sightingSalt(1, limits), "it says nothing of labels")
}

func TestSightingsCanBeSharedByGoroutines(t *testing.T) {
	s := newSightings(1 << 20)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			keys := make([]write.Identity, 100)
			found := make([]sighting, len(keys))
			for round := range 100 {
				for i := range keys {
					keys[i] = keyOf((g*round + i) % 1000)
				}
				s.lookup(keys, found)
				for i, key := range keys {
					s.add(key, sighting{id: key})
					s.acknowledge(key, i%2 == 0)
				}
				s.size()
			}
		})
	}
	wg.Wait()
	for i := range 100 {
		require.Equal(t, keyOf(i), s.get(keyOf(i)).id, fmt.Sprint(i))
	}
}
