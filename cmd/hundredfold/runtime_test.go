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
	called := make(chan struct{}, 100)
	afterEachCollection(func() {
		select {
		case called <- struct{}{}:
		default: // The test is over.
		}
	})
	// One that begins while the one before is followed may pass unnoticed, and the runtime
	// by itself lets up to two minutes pass until the next.
	for range 3 {
		for len(called) == 0 {
			runtime.GC()
		}
		<-called
	}
}
