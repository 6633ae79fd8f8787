package ingester

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/stretchr/testify/require"
)

// refs returns the references of the series in the head of acme.
func (f *fixture) refs() (refs []storage.SeriesRef) {
	f.t.Helper()
	r, err := f.lookup(acme).db.Head().Index()
	require.NoError(f.t, err)
	name, value := index.AllPostingsKey()
	p, err := r.Postings(context.Background(), name, value)
	require.NoError(f.t, err)
	for p.Next() {
		refs = append(refs, p.At())
	}
	require.NoError(f.t, p.Err())
	return refs
}

// walDir returns the folder of acme's log.
func (f *fixture) walDir() string { return filepath.Join(f.dir, "ingester", string(acme), "wal") }

// tear leaves a part of a record at the end of the log, as who is killed while writing.
func (f *fixture) tear() {
	f.t.Helper()
	_, last, err := wlog.Segments(f.walDir())
	require.NoError(f.t, err)
	file, err := os.OpenFile(wlog.SegmentName(f.walDir(), last), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(f.t, err)
	_, err = file.Write([]byte{1, 0, 100, 1, 2, 3, 4, 5})
	require.NoError(f.t, err)
	require.NoError(f.t, file.Close())
}

// endings are the ways in which a process ends and another begins.
var endings = map[string]func(f *fixture) *fixture{
	"stop": func(f *fixture) *fixture { f.restart(); return f },
	"kill": func(f *fixture) *fixture { return f.afterCrash() },
	"kill in the middle of a record": func(f *fixture) *fixture {
		f.tear()
		return f.afterCrash()
	},
	"power failure that empties the file": func(f *fixture) *fixture {
		require.NoError(f.t, os.WriteFile(filepath.Join(f.walDir(), seriesRefsFile), nil, 0o600))
		return f.afterCrash()
	},
	"loss of the file": func(f *fixture) *fixture {
		require.NoError(f.t, os.Remove(filepath.Join(f.walDir(), seriesRefsFile)))
		return f.afterCrash()
	},
}

func TestReferenceOfASeriesIsNeverGivenToAnother(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			highest := storage.SeriesRef(0)
			for round := range 8 {
				at := time.Duration(round) * 10 * time.Minute
				f.advance(100 * time.Minute)
				f.push(acme, sample{fmt.Sprint("a", round), at, 1}, sample{fmt.Sprint("b", round), at, 1}, sample{fmt.Sprint("a", round), at - time.Minute, 1})
				for _, ref := range f.refs() {
					require.Greater(t, ref, highest, "round %d", round)
				}
				for _, ref := range f.refs() {
					highest = max(highest, ref)
				}
				// All series leave the head, and in the end the log.
				require.NoError(t, f.Flush(context.Background(), acme))
				require.Empty(t, f.refs())
				f = end(f)
			}
			require.Less(t, highest, storage.SeriesRef(1<<40)/4)
			f.advance(100 * time.Minute)
			f.push(acme, sample{"end", 100 * time.Minute, 1})
			want := f.stored(acme)
			require.Equal(t, want, end(f).stored(acme))
		})
	}
}

func TestLateChunksOfASeriesThatWasCutTurnUpInNoOther(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push(acme, sample{"old", 0, 1})
			for k := range 100 { // Out of order: full chunks go to the chunk file at once.
				f.push(acme, sample{"old", -time.Duration(100-k) * time.Second, float64(k)})
			}
			for range 4 { // Until the log has dropped the series, too.
				require.NoError(t, f.Flush(context.Background(), acme))
			}
			f = end(f)
			f.push(acme, sample{"new", 0, 2})
			want := f.stored(acme)["new"]
			require.Equal(t, []string{"0s 2"}, want)
			f = end(f)
			require.Equal(t, want, f.stored(acme)["new"])
		})
	}
}

func TestReferencesAreReservedBeforeTheyAreUsed(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	db := f.lookup(acme)
	first := db.refs.bound
	require.Greater(t, first, uint64(f.refs()[0]))
	stat, err := os.Stat(filepath.Join(f.walDir(), seriesRefsFile))
	require.NoError(t, err)
	f.push(acme, sample{"b", 0, 1})
	again, err := os.Stat(filepath.Join(f.walDir(), seriesRefsFile))
	require.NoError(t, err)
	require.Equal(t, stat.ModTime(), again.ModTime(), "it is written once for many series")

	db.refs.bound = 3
	f.push(acme, sample{"c", 0, 1})
	require.Greater(t, db.refs.bound, uint64(3))
	read, err := db.refs.read(f.now)
	require.NoError(t, err)
	require.Greater(t, read, db.refs.bound)
}

func TestFileOfReferencesThatPrometheusWroteIsHeeded(t *testing.T) {
	for text, least := range map[string]uint64{
		`{"last_series_id":1000,"last_wal_segment":3,"clean_shutdown":false}`: 1000 + refsUnseen,
		`{"last_series_id":1000,"last_wal_segment":3,"clean_shutdown":true}`:  1000,
	} {
		f := newFixture(t)
		f.push(acme, sample{"a", 0, 1})
		require.NoError(t, f.close())
		require.NoError(t, os.WriteFile(filepath.Join(f.walDir(), seriesRefsFile), []byte(text), 0o600))
		f.open()
		f.push(acme, sample{"b", 0, 1})
		require.Greater(t, uint64(f.refs()[1]), least)
		require.Equal(t, map[string][]string{"a": {"0s 1"}, "b": {"0s 1"}}, f.stored(acme))
	}
}
