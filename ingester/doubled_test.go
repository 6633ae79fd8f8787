package ingester

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// snapshots returns the snapshots of the head of acme.
func (f *fixture) snapshots() []string {
	f.t.Helper()
	found, err := filepath.Glob(filepath.Join(f.dir, "ingester", string(acme), tsdbFolder, snapshotPrefix+"*"))
	require.NoError(f.t, err)
	return found
}

// fillers push samples of series a, all but the first of which come late, or so many
// that chunks of them get full.
var fillers = map[string]func(f *fixture, from time.Duration){
	"late samples": func(f *fixture, from time.Duration) {
		f.push(acme, sample{"a", from - time.Minute, 2})
	},
	"full chunks of late samples": func(f *fixture, from time.Duration) {
		for k := range 100 {
			f.push(acme, sample{"a", from - time.Duration(k+1)*time.Second, float64(k % 7)})
		}
	},
	"chunks": func(f *fixture, from time.Duration) {
		for k := range 300 {
			f.push(acme, sample{"a", from + time.Duration(k+1)*time.Second, float64(k % 7)})
		}
		f.lookup(acme).db.ForceHeadMMap()
	},
}

// comeBack has series a leave the head and come back, and fills it.
func (f *fixture) comeBack(fill func(*fixture, time.Duration)) {
	f.t.Helper()
	f.advance(12 * time.Hour)
	f.push(acme, sample{"a", 0, 1}, sample{"a", -time.Minute, 1})
	require.NoError(f.t, f.Flush(context.Background(), acme))
	require.Zero(f.t, f.inHead())
	f.push(acme, sample{"a", time.Hour, 1})
	fill(f, time.Hour)
}

func TestNothingIsLostOfASeriesThatCameBack(t *testing.T) {
	for name, fill := range fillers {
		for _, ends := range []string{"kk", "kss", "skk", "kskk", "sksk"} { // kills and stops
			t.Run(name+", "+ends, func(t *testing.T) {
				f := newFixture(t)
				f.comeBack(fill)
				for k, end := range ends {
					want := f.everywhere(acme)
					if end == 'k' {
						f.kill()
					} else {
						f.restart()
					}
					require.Equal(t, want, f.everywhere(acme), "after end %d", k)
					fill(f, time.Hour+time.Duration(k+1)*10*time.Minute)
				}
			})
		}
	}
}

func TestASeriesThatTheLogHasTwiceComesBackUnderANewReferenceOnce(t *testing.T) {
	f := newFixture(t)
	f.advance(2 * time.Hour)
	f.push(acme, sample{"a", 0, 1})
	first := f.refs()
	require.NoError(t, f.Flush(context.Background(), acme))
	f.push(acme, sample{"a", time.Hour, 1}, sample{"other", time.Hour, 1})
	require.Len(t, f.refs(), 2)
	second := f.refs()
	f.kill()
	require.Equal(t, second[1:], f.refs(), "the other stays")
	f.push(acme, sample{"a", time.Hour + time.Minute, 1})
	for _, old := range append(first, second...) {
		require.Less(t, old, f.refs()[1])
	}
	want, refs := f.stored(acme), f.refs()
	for _, end := range []func(){f.kill, f.restart, f.kill} {
		end()
		require.Equal(t, refs, f.refs(), "the log has a tombstone")
		require.Equal(t, want, f.stored(acme))
	}
}

func TestAStopAfterAKillLeavesASnapshot(t *testing.T) {
	f := newFixture(t)
	f.comeBack(fillers["full chunks of late samples"])
	f.kill()
	fillers["full chunks of late samples"](f, 2*time.Hour)
	want := f.stored(acme)
	require.NoError(t, f.close())
	require.NotEmpty(t, f.snapshots())
	f.open()
	require.Equal(t, want, f.stored(acme))
}

func TestASnapshotFromBeforeTheCheckpointOfTheLogIsNotStartedFrom(t *testing.T) {
	f := newFixture(t)
	f.seeAll = false
	f.push(acme, sample{"a", 0, 1})
	f.restart()
	_, taken, _, err := tsdb.LastChunkSnapshot(filepath.Join(f.dir, "ingester", string(acme), tsdbFolder))
	require.NoError(t, err)
	at, checkpoint := time.Duration(0), -1
	for checkpoint < taken {
		require.Less(t, at, 48*time.Hour)
		at += 30 * time.Minute
		f.advance(30 * time.Minute)
		f.push(acme, sample{"a", at, 1})
		f.round(acme)
		if _, checkpoint, err = wlog.LastCheckpoint(f.walDir()); err != nil {
			checkpoint = -1
		}
	}
	fillers["full chunks of late samples"](f, at)
	want := f.stored(acme)
	require.NotEmpty(t, f.snapshots())
	refs := f.refs()
	f.kill()
	require.Equal(t, want, f.stored(acme))
	require.Equal(t, refs, f.refs())
	require.Empty(t, f.snapshots())
}

func TestASnapshotThatIsVoidIsNotStartedFrom(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	want := f.stored(acme)
	require.NoError(t, f.close())
	dir := filepath.Join(f.dir, "ingester", string(acme))
	require.NoError(t, voidSnapshots(dir))
	require.NotEmpty(t, f.snapshots())
	f.open()
	require.Empty(t, f.snapshots())
	require.NoFileExists(t, filepath.Join(dir, tsdbFolder, snapshotsVoid))
	require.Equal(t, want, f.stored(acme))
}

// killWithoutRoom is like kill, and the disk has no room for a cut when acme is opened, which
// its next push does.
func (f *fixture) killWithoutRoom() {
	f.t.Helper()
	dir := f.t.TempDir()
	require.NoError(f.t, os.CopyFS(dir, os.DirFS(f.dir)))
	require.NoError(f.t, f.close())
	f.dir = dir
	folder := filepath.Join(dir, "ingester", string(acme))
	require.NoError(f.t, os.Rename(folder, filepath.Join(dir, "away")))
	f.open()
	require.NoError(f.t, os.Rename(filepath.Join(dir, "away"), folder))
	f.disk.statf, f.disk.checked = func(string) (uint64, bool, error) { return diskReserve + 8<<10, false, nil }, time.Time{}
}

func TestWithoutRoomForACutLateSamplesOfADoubledSeriesWait(t *testing.T) {
	fill := fillers["full chunks of late samples"]
	late := sample{"a", time.Hour - 30*time.Minute, 9}
	for name, next := range map[string]struct {
		ends  func(*fixture)
		taken bool // late samples are
	}{
		"a kill": {(*fixture).kill, true},
		"a stop": {func(f *fixture) {
			require.NoError(f.t, f.close())
			require.Empty(f.t, f.snapshots())
			f.open()
		}, true},
		"a kill, still without room": {(*fixture).killWithoutRoom, false},
		"a round that finds room": {func(f *fixture) {
			f.disk.statf, f.disk.checked = statfs, time.Time{}
			f.round(acme)
			require.Equal(f.t, 2, f.inHead(), "not at once")
			f.advance(reopenInterval)
			f.round(acme)
			require.Equal(f.t, 1, f.inHead())
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.comeBack(fill)
			f.killWithoutRoom()
			// In order, of another series, and what is there already.
			f.push(acme, sample{"a", 2 * time.Hour, 1}, sample{"b", 2 * time.Hour, 1}, sample{"b", time.Hour, 1}, sample{"a", time.Hour - time.Second, 0})
			want := f.everywhere(acme)
			refuse := func() {
				t.Helper()
				result := f.offer(acme, batch(late, sample{"b", 2*time.Hour + time.Minute, 1}))
				require.Equal(t, 1, result.Written.Samples)
				require.Len(t, result.Rejected, 1)
				require.Equal(t, write.ReasonLateSamplesUnavailable, result.Rejected[0].Reason)
				require.Equal(t, 503, wire.HTTPStatus(result.Err()))
				want["b"] = append(want["b"], "2h1m0s 1")
			}
			refuse()
			require.Equal(t, want, f.everywhere(acme))
			next.ends(f)
			if !next.taken {
				f.push(acme, sample{"b", 2*time.Hour + time.Minute, 1}) // Opens it.
				refuse()
				return
			}
			require.Equal(t, want, f.everywhere(acme))
			f.push(acme, late)
			fill(f, 2*time.Hour)
			want = f.everywhere(acme)
			for range 2 {
				f.kill()
				require.Equal(t, want, f.everywhere(acme))
			}
		})
	}
}

func TestNothingIsLostOfASeriesThatCameBackInAnAdoptedDirectory(t *testing.T) {
	f, dir, _ := adopting(t)
	f.seeAll = false
	f.advance(12 * time.Hour)
	f.push(acme, sample{"a", 4 * time.Hour, 1})
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Zero(t, f.inHead())
	f.push(acme, sample{"a", 5 * time.Hour, 1})
	for k := range 4 {
		fillers["full chunks of late samples"](f, 5*time.Hour+time.Duration(k)*10*time.Minute)
		want, left := f.stored(acme), t.TempDir()
		if k%2 == 0 {
			require.NoError(t, os.CopyFS(left, os.DirFS(dir)))
			require.NoError(t, f.close())
			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.Rename(left, dir))
			f.open()
		} else {
			f.restart()
		}
		require.Equal(t, want, f.stored(acme), "end %d", k)
	}
}

func TestASeriesIsDoubledByASecondRecordUnlessItIsNewAgain(t *testing.T) {
	a, b := seriesLabels("a"), seriesLabels("b")
	id := write.NewHasher().Labels(a)
	s := newSightings()
	for range 2 {
		s.announced(a)
		s.created(a)
		s.announced(b)
		s.created(b)
		require.Empty(t, s.again)
		s.announced(a)
		s.announced(b)
		s.created(b)
		s.announced(a)
		require.Equal(t, map[write.Identity]struct{}{id: {}}, s.again)
	}
}

// BenchmarkSightings is what opening a TSDB takes longer, per series, for knowing which are
// doubled.
func BenchmarkSightings(b *testing.B) {
	g := &gate{caps: newCaps(0), replayed: newSightings()}
	series := make([]labels.Labels, benchSeries)
	for n := range series {
		series[n] = benchLabels(n)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, ls := range series {
			require.NoError(b, g.PreCreation(ls))
			g.PostCreation(ls)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(series)), "ns/series")
}
