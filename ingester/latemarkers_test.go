package ingester

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/stretchr/testify/require"
)

// lateBurst pushes more late samples of many series than the head's buffer has chunks of.
func (f *fixture) lateBurst(series, each int) {
	f.t.Helper()
	f.advance(2 * time.Hour)
	var all []sample
	for i := range series {
		all = append(all, sample{fmt.Sprint(i), time.Hour, 1})
	}
	f.push(acme, all...)
	for k := range each {
		for i := range all {
			all[i].at = time.Duration(k*60+i%60) * time.Second
			all[i].v = float64(i*k%101) / 7
		}
		f.push(acme, all...)
	}
}

// markers returns how many chunks are marked in the log of late samples.
func (f *fixture) markers() (n int) {
	f.t.Helper()
	first, last, err := wlog.Segments(f.lateLog())
	require.NoError(f.t, err)
	dec := newMarkerDecoder()
	for segment := first; segment <= last; segment++ {
		require.NoError(f.t, eachRecord(f.lateLog(), segment, func(rec []byte) error {
			found, err := markersIn(&dec, rec)
			for _, m := range found {
				if m.MmapRef > 0 {
					n++
				}
			}
			return err
		}))
	}
	return n
}

func TestKillsKeepLateSamplesOfWhichSomeChunksWereWrittenOut(t *testing.T) {
	f := newFixture(t)
	f.lateBurst(500, 40)
	for k := range 130 { // Chunks that a replay writes out before those of late samples.
		var all []sample
		for i := range 500 {
			all = append(all, sample{fmt.Sprint(i), time.Hour + time.Duration(k+1)*time.Second, float64(i*k%101) / 7})
		}
		f.push(acme, all...)
	}
	want := f.stored(acme)
	for range 4 {
		f.kill()
		require.Equal(t, want, f.stored(acme))
	}
}

func TestAKillWhileLateSamplesAreCutLosesNone(t *testing.T) {
	f := newFixture(t)
	f.lateBurst(1, 10)
	_, err := tsdb.NewOOOCompactionHead(t.Context(), f.lookup(acme).db.Head()) // Begins a cut.
	require.NoError(t, err)
	f.push(acme, sample{"0", 30 * time.Minute, 1})
	want := f.stored(acme)
	for range 2 {
		f.kill()
		require.Equal(t, want, f.stored(acme))
	}
}

func TestMarkersOfChunksThatAreThereStayInTheLog(t *testing.T) {
	f := newFixture(t)
	f.lateBurst(1000, 40)
	want, before := f.stored(acme), f.markers()
	require.Equal(t, 1000, before)
	f.restart()
	require.Equal(t, before, f.markers())
	f.kill()
	require.Equal(t, before, f.markers(), "a clean stop has written all chunks out")
	require.Equal(t, want, f.stored(acme))
}

func TestMarkersOfChunksThatAreNotThereLeaveATornLog(t *testing.T) {
	f := newFixture(t)
	f.lateBurst(1000, 40)
	want := f.stored(acme)
	_, last, err := wlog.Segments(f.lateLog())
	require.NoError(t, err)
	file, err := os.OpenFile(wlog.SegmentName(f.lateLog(), last), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.Write([]byte{1, 0, 100, 1, 2, 3, 4, 5})
	require.NoError(t, err)
	require.NoError(t, file.Close())
	crashed := f.afterCrash()
	require.Less(t, crashed.markers(), 1000)
	require.Equal(t, want, crashed.stored(acme))
	left, err := filepath.Glob(filepath.Join(crashed.dir, "ingester", string(acme), "*"+temporarySuffix+"*"))
	require.NoError(t, err)
	require.Empty(t, left)
	crashed.kill()
	require.Equal(t, want, crashed.stored(acme))
}

func TestWithoutReadableChunksNoMarkerIsTrusted(t *testing.T) {
	f := newFixture(t)
	f.lateBurst(1000, 40)
	want := f.stored(acme)
	f.restart()
	require.NoError(t, f.close())
	dir := filepath.Join(f.dir, "ingester", string(acme))
	require.NoError(t, removeSnapshots(dir))
	files, err := filepath.Glob(filepath.Join(dir, chunksFolder, "*"))
	require.NoError(t, err)
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for k := 4096; k < len(text); k += 512 {
			text[k] ^= 1
		}
		require.NoError(t, os.WriteFile(name, text, 0o600))
	}
	f.open()
	require.Zero(t, f.markers())
	require.Equal(t, want, f.stored(acme))
}
