package write

import (
	"bytes"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFailedChecksAreLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := NewChecks("ingester", slog.New(slog.NewTextHandler(&log, nil)), nil)
		lines := func() int { return bytes.Count(log.Bytes(), []byte("\n")) }
		for range 1000 {
			c.Failed("team", `{__name__="sent"}`, `{__name__="found"}`)
		}
		require.Equal(t, 1, lines())
		require.Contains(t, log.String(), "tenant=team")
		require.Contains(t, log.String(), "sent")
		require.Contains(t, log.String(), "found")
		<-time.After(time.Minute)
		for range 1000 {
			c.Failed("team", "", "")
		}
		require.Equal(t, 2, lines())
	})
}

func TestEachSeriesOfARequestIsCheckedInTurn(t *testing.T) {
	const series = 2000
	var turn CheckTurn
	checked := map[int]bool{}
	for range checkEvery {
		for i := range series {
			if turn.Next() {
				checked[i] = true
			}
		}
	}
	require.Len(t, checked, series)
}
