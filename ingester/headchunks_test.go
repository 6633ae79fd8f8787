package ingester

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pushRounds pushes one sample of each of 100 series per round. A chunk holds 120. The head
// counts as one whose chunks are worth a file.
func pushRounds(f *fixture, from, to int) {
	f.t.Helper()
	for n := from; n < to; n++ {
		samples := make([]sample, 100)
		for i := range samples {
			samples[i] = sample{series: fmt.Sprint(i), at: time.Duration(n) * time.Second, v: float64(n)}
		}
		f.push(acme, samples...)
		f.lookup(acme).chunks.least = 8192
	}
}

func headChunkFiles(f *fixture) []string {
	f.t.Helper()
	files, err := filepath.Glob(filepath.Join(f.dir, "ingester", "acme", "chunks_head", "*"))
	require.NoError(f.t, err)
	return files
}

func TestCompleteChunksAreWrittenOutWithoutWaitingForMaintenance(t *testing.T) {
	f := newFixture(t)
	f.advance(time.Hour)
	pushRounds(f, 0, 60)
	require.Empty(t, headChunkFiles(f), "no chunk is complete")
	pushRounds(f, 60, 300)
	require.NotEmpty(t, headChunkFiles(f))
	require.Len(t, f.stored(acme)["7"], 300)
}

func TestChunksOfASmallHeadGetAFileWhenItIsClosed(t *testing.T) {
	f := newFixture(t)
	f.advance(time.Hour)
	for n := range 400 {
		f.push(acme, sample{"a", time.Duration(n) * time.Second, 1}, sample{"b", time.Duration(n) * time.Second, 2})
	}
	f.round(acme)
	require.Empty(t, headChunkFiles(f))
	require.Len(t, f.afterCrash().stored(acme)["a"], 400)
	f.restart()
	require.NotEmpty(t, headChunkFiles(f))
	require.Len(t, f.stored(acme)["b"], 400)
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Empty(t, headChunkFiles(f), "the blocks have it all")
}

func TestChunksAreNotWrittenOutWhileTheHeadIsCut(t *testing.T) {
	f := newFixture(t)
	f.advance(time.Hour)
	f.push(acme, sample{"0", -time.Second, 0})
	db := f.lookup(acme)
	require.NoError(t, db.cutting.take(context.Background()))
	pushRounds(f, 0, 300)
	require.Empty(t, headChunkFiles(f))
	db.cutting.give()
	pushRounds(f, 300, 301)
	require.NotEmpty(t, headChunkFiles(f), "they stay due")
}

func TestAChunkThatCannotBeWrittenOutCostsNoSample(t *testing.T) {
	f := newFixture(t)
	f.advance(time.Hour)
	pushRounds(f, 0, 60)
	folder := filepath.Join(f.dir, "ingester", "acme", "chunks_head")
	require.NoError(t, os.Remove(folder)) // It stands for a disk that takes no chunk.
	n := 60
	for ; !f.lookup(acme).broken.Load(); n++ {
		require.Less(t, n, 300)
		pushRounds(f, n, n+1)
	}
	_, err := f.Push(context.Background(), acme, batch(sample{"0", time.Hour, 1}))
	require.ErrorIs(t, err, errBroken)
	broken := f.lookup(acme).db.Head()
	f.round(acme)
	pushRounds(f, n, 300)
	require.Len(t, f.stored(acme)["7"], 300)
	f.restart()
	require.Len(t, f.stored(acme)["7"], 300)

	// A TSDB that can't write a chunk when it is closed leaves its log open.
	closeLog(t, broken, "wal")
}
