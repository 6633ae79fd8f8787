package main

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheCollectorRunsTheEarlierTheMoreIsAlive(t *testing.T) {
	for live, want := range map[uint64]int{
		0: gcPercent, 1 << 20: gcPercent, 32 << 20: gcPercent, 48 << 20: 50, 120 << 20: gcPercentOfHeads, 16 << 30: gcPercentOfHeads,
	} {
		require.Equal(t, want, gcPercentFor(live), "%d bytes", live)
	}
}

func TestEachCollectionIsFollowed(t *testing.T) {
	called := make(chan struct{})
	afterEachCollection(func() {
		select {
		case called <- struct{}{}:
		case <-t.Context().Done():
		}
	})
	for range 3 {
		runtime.GC()
		<-called
	}
}
