package ingester

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestAnOpeningTellsHowFarItIsAndHowLongItWillTake(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	o := NewOpening(func() time.Time { return now })
	require.Equal(t, "replaying the write-ahead logs of 0 tenants", o.String())
	require.Zero(t, o.Left())

	o.begin([]tenant.ID{"a", "b"})
	require.Equal(t, "replaying the write-ahead logs of 2 tenants", o.String())

	now = now.Add(10 * time.Second)
	segment := o.replaying("a")
	segment(7, 106) // the first of a hundred
	require.Equal(t, "replaying the write-ahead logs of 2 tenants, 0% done", o.String())
	require.Zero(t, o.Left(), "one segment says nothing about the pace")
	segment(46, 106)
	require.Equal(t, "replaying the write-ahead logs of 2 tenants, 20% done, about 40s left", o.String())
	require.Equal(t, 40*time.Second, o.Left())

	now = now.Add(10 * time.Second)
	o.reached("a", 1)
	require.Equal(t, 20*time.Second, o.Left())
	o.reached("later", 0)
	o.reached("b", 1)
	require.Equal(t, "replaying the write-ahead logs of 2 tenants, 100% done", o.String())
	require.Zero(t, o.Left())
}

// What an Opening is told comes out of the TSDB's log, and there is no promise about that.
func TestTheTSDBLogsEachSegmentThatItHasReplayed(t *testing.T) {
	dir := t.TempDir()
	type step struct{ segment, last int64 }
	var steps []step
	logger := slog.New(quiet{
		Handler:  slog.DiscardHandler,
		heard:    func(message string) { t.Errorf("the TSDB complains: %s", message) },
		replayed: func(segment, last int64) { steps = append(steps, step{segment, last}) },
	}).With("tenant", "a")
	for i := range int64(3) { // each opening begins a segment
		steps = nil
		db, err := tsdb.Open(dir, logger, nil, tsdb.DefaultOptions(), nil)
		require.NoError(t, err)
		app := db.Appender(t.Context())
		_, err = app.Append(0, labels.FromStrings("__name__", "x"), i, 1)
		require.NoError(t, err)
		require.NoError(t, app.Commit())
		require.NoError(t, db.Close())
	}
	require.Equal(t, []step{{0, 2}, {1, 2}, {2, 2}}, steps)
}

func TestAnOpenedIngesterHasNothingLeftToReplay(t *testing.T) {
	f := newFixture(t)
	f.push("a", sample{"x", 0, 1})
	f.push("b", sample{"x", 0, 1})
	require.Equal(t, "replaying the write-ahead logs of 0 tenants", f.opening.String())
	f.restart()
	require.Equal(t, "replaying the write-ahead logs of 2 tenants, 100% done", f.opening.String())
	require.Zero(t, f.opening.Left())
}
