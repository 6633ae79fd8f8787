package cluster

import (
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

// fleet returns n active ingesters with the names that Kubernetes gives them.
func fleet(n int) []Record {
	var records []Record
	for i := range n {
		zone, rank := fmt.Sprintf("europe-west1-%c", 'b'+i%3), i/3
		id := fmt.Sprintf("hundredfold-ingester-%s-%d", zone, rank)
		records = append(records, Record{
			ID: id, Zone: zone, Rank: rank, Address: id + ".hundredfold-ingester.metrics.svc:9095",
			State: Active, Epoch: 300, Incarnation: 1 << 63, Generation: 1 << 62,
		})
	}
	return records
}

func TestAMemberOfAFleetCostsLittleGossip(t *testing.T) {
	records := fleet(300)
	require.Less(t, len(Encode(nil, records...)), 300*200)
	for _, rec := range records {
		require.NoError(t, rec.Validate())
		require.Less(t, len(recordBroadcast{message: Encode(nil, rec)}.Message()), 200)
	}
}

func TestPlacementIsTheSameFromScratchAndStepByStep(t *testing.T) {
	records := fleet(12)
	p := merged(t, records[:9]...).Placement(3)
	_, err := p.Ring(0, 0)
	require.NoError(t, err)
	for _, step := range [][]Record{records[:10], records, records[3:], records[3:11], records[:9]} {
		registry := merged(t, step...)
		p = registry.PlacementAfter(p, 3)
		want := registry.Placement(3)
		require.Equal(t, want.Hash(), p.Hash())
		wantRing, err := want.Ring(0, 0)
		require.NoError(t, err)
		ring, err := p.Ring(0, 0)
		require.NoError(t, err)
		for slot := range hashring.Slots {
			require.Equal(t, wantRing.Owners(hashring.Slot(slot)), ring.Owners(hashring.Slot(slot)))
		}
		require.Same(t, p, registry.PlacementAfter(p, 3), "one that is equal is the same")
	}
	// Another replication factor is another placement; the ring is made anew.
	registry := merged(t, records...)
	two, err := registry.PlacementAfter(p, 2).Ring(0, 0)
	require.NoError(t, err)
	require.Equal(t, 2, two.RF())
}

// The bounds leave room for a machine that does other things as well; the benchmark
// says what it is.
func TestPlacementOfAFleetIsFast(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("it measures time")
	}
	registry := merged(t, fleet(300)...)
	fastest := func(f func()) time.Duration {
		best := time.Hour
		for range 5 {
			begin := time.Now()
			f()
			best = min(best, time.Since(begin))
		}
		return best
	}
	var p *Placement
	require.Less(t, fastest(func() {
		p = registry.Placement(3)
		_, err := p.Ring(0, 0)
		require.NoError(t, err)
	}), 500*time.Millisecond)
	grown := merged(t, fleet(301)...)
	require.Less(t, fastest(func() {
		_, err := grown.PlacementAfter(p, 3).Ring(0, 0)
		require.NoError(t, err)
	}), 20*time.Millisecond)
}

func BenchmarkPlacementOfOneMoreThan300(b *testing.B) {
	p, grown := merged(b, fleet(300)...).Placement(3), merged(b, fleet(301)...)
	if _, err := p.Ring(0, 0); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := grown.PlacementAfter(p, 3).Ring(0, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPlacementsSurviveTheJourney(t *testing.T) {
	p := merged(t, fleet(5)...).Placement(3)
	got, err := DecodePlacement(p.Encode(nil))
	require.NoError(t, err)
	require.Equal(t, p.Hash(), got.Hash())
	require.Equal(t, p.Members(), got.Members())
	require.Equal(t, p.RF(), got.RF())
}

func TestPlacementsThatPlaceNothingAreErrors(t *testing.T) {
	place := func(id, zone string, rank int) Placed {
		return Placed{Member: hashring.Member{ID: id, Zone: zone, Rank: rank}}
	}
	for name, data := range map[string][]byte{
		"nothing":         {},
		"another version": {9, 3},
		"rf 0":            {placementVersion, 0},
		"rf 4":            {placementVersion, 4},
		"an id twice":     NewPlacement(3, []Placed{place("a", "z", 0), place("a", "z", 1)}).Encode(nil),
		"no id":           NewPlacement(3, []Placed{place("", "z", 0)}).Encode(nil),
		"a place twice":   NewPlacement(3, []Placed{place("a", "z", 0), place("b", "z", 0)}).Encode(nil),
	} {
		_, err := DecodePlacement(data)
		require.ErrorIs(t, err, errPlacement, name)
	}
	// Whatever is decoded can be computed.
	p, err := DecodePlacement(NewPlacement(3, []Placed{place("a", "z", 0), place("b", "y", 0)}).Encode(nil))
	require.NoError(t, err)
	_, err = p.Ring(0, 0)
	require.NoError(t, err)
}

func FuzzDecodePlacement(f *testing.F) {
	var members []Placed
	for i := range 4 {
		members = append(members, Placed{Member: hashring.Member{ID: fmt.Sprint(i), Zone: "z", Rank: i}, Generation: uint64(i)})
	}
	f.Add(NewPlacement(3, members).Encode(nil))
	f.Add(NewPlacement(1, nil).Encode(nil))
	f.Add([]byte{placementVersion, 2, 1, 'a'})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := DecodePlacement(data)
		if err != nil {
			require.ErrorIs(t, err, errPlacement)
			return
		}
		again, err := DecodePlacement(p.Encode(nil))
		require.NoError(t, err)
		require.Equal(t, p.Hash(), again.Hash())
		require.Equal(t, p.Members(), again.Members())
	})
}

// The bytes and their hash are fixed: ingesters keep them, and distributors and
// queriers of other releases name placements by it.
func TestGoldenPlacement(t *testing.T) {
	p := NewPlacement(3, []Placed{{Member: hashring.Member{ID: "id", Zone: "z", Rank: 300}, Generation: 0x0102030405060708}})
	require.Equal(t, "01"+"03"+"026964"+"017a"+"ac02"+"0102030405060708", hex.EncodeToString(p.Encode(nil)))
	require.Equal(t, uint64(0xbd3cb2798056964e), p.Hash())
}
