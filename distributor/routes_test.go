package distributor

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
)

var update = flag.Bool("update", false, "write the golden files anew")

func placementOf(rf, n int) *cluster.Placement {
	var members []cluster.Placed
	for i := range n {
		members = append(members, cluster.Placed{Member: hashring.Member{ID: fmt.Sprint("i", i), Zone: fmt.Sprint("z", i%3), Rank: i / 3}, Generation: 1})
	}
	return cluster.NewPlacement(rf, members)
}

// What goes where must never change: data is looked for where it was put.
func TestGroupsOfSeriesAndMetadata(t *testing.T) {
	const golden = "testdata/groups.txt"
	var out strings.Builder
	for _, c := range []struct{ rf, members, shard int }{{1, 3, 0}, {2, 3, 0}, {3, 1, 0}, {3, 3, 0}, {3, 4, 0}, {3, 9, 0}, {3, 9, 3}} {
		fmt.Fprintf(&out, "rf %d, %d members, shard %d\n", c.rf, c.members, c.shard)
		p := placementOf(c.rf, c.members)
		tenantHash := hashring.TenantHash("team")
		l, err := newLayouts(p).get(tenantHash, c.shard)
		require.NoError(t, err)
		series, metadata := make([][]string, len(l.sets)), make([][]string, len(l.sets))
		for i := range 20 {
			at := l.of(slotOf(labels.FromStrings("__name__", "up", "instance", fmt.Sprint(i)), tenantHash))
			series[at] = append(series[at], fmt.Sprint(i))
			at = l.of(metadataSlot(tenantHash, fmt.Sprint("metric_", i)))
			metadata[at] = append(metadata[at], fmt.Sprint(i))
		}
		for at, set := range l.sets {
			var names []string
			for _, m := range set {
				names = append(names, p.Members()[m].ID)
			}
			fmt.Fprintf(&out, "  {%s}: series %s; metadata %s\n", strings.Join(names, " "), strings.Join(series[at], " "), strings.Join(metadata[at], " "))
		}
	}
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

func TestASlotIsInTheSetOfItsOwners(t *testing.T) {
	for _, c := range []struct{ rf, members, shard int }{{1, 5, 0}, {2, 7, 0}, {3, 3, 0}, {3, 30, 0}, {3, 30, 6}} {
		p := placementOf(c.rf, c.members)
		l, err := newLayouts(p).get(17, c.shard)
		require.NoError(t, err)
		ring, err := p.Ring(17, c.shard)
		require.NoError(t, err)
		seen := map[string]bool{}
		for _, set := range l.sets {
			require.False(t, seen[fmt.Sprint(set)], "sets with the same members are one")
			seen[fmt.Sprint(set)] = true
		}
		for slot := range hashring.Slots {
			var want, got []string
			for _, owner := range ring.Owners(hashring.Slot(slot)) {
				want = append(want, ring.Members()[owner].ID)
			}
			for _, m := range l.sets[l.of(hashring.Slot(slot))] {
				got = append(got, p.Members()[m].ID)
			}
			if len(want) != len(got) {
				t.Fatalf("slot %d: %v and %v", slot, want, got)
			}
			for _, id := range got {
				if !strings.Contains(strings.Join(want, " ")+" ", id+" ") {
					t.Fatalf("slot %d: %v and %v", slot, want, got)
				}
			}
		}
	}
}

func TestMetadataIsPlacedByTheNameOfTheMetric(t *testing.T) {
	h := hashring.TenantHash("team")
	require.Equal(t, hashring.Slot(0x90c2), metadataSlot(h, "up"))
	require.Equal(t, hashring.Slot(0xda95), metadataSlot(h, "http_requests_total"))
	require.Equal(t, metadataSlot(h, "")+1, metadataSlot(h+1, ""))
}

func TestSharesOfTenantsAreBounded(t *testing.T) {
	large := newLayouts(placementOf(3, 90))
	for id := range uint64(300) {
		_, err := large.get(id, 60)
		require.NoError(t, err)
	}
	require.Less(t, len(large.mu.known), 300)
	l := newLayouts(placementOf(3, 9))
	for id := range uint64(10_000) {
		_, err := l.get(id, 3)
		require.NoError(t, err)
	}
	require.Len(t, l.mu.known, 10_000, "ten thousand tenants with small shards are kept")
	same, err := l.get(1, 9)
	require.NoError(t, err)
	all, err := l.get(2, 0)
	require.NoError(t, err)
	require.Same(t, all, same, "a shard of all members is no shard")
}

// BenchmarkLayout says what the first push of a tenant with a shard of its own costs.
func BenchmarkLayout(b *testing.B) {
	p := placementOf(3, 9)
	for i := 0; b.Loop(); i++ {
		if _, err := newLayouts(p).get(uint64(i), 3); err != nil {
			b.Fatal(err)
		}
	}
}
