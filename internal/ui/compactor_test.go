package ui

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/backlog"
)

func compactorUI(t testing.TB, s backlog.Status, ok bool) http.Handler {
	t.Helper()
	u, err := New(Config{}, Deps{Compactor: func() (backlog.Status, bool) { return s, ok }, Waiting: ready, Summary: holds(Summary{})})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/{$}", u.Home())
	mux.Handle("/compactor", u.Compactor())
	return mux
}

func busy() backlog.Status {
	job := backlog.Job{Blocks: 6, Results: 4, Samples: 1000, Start: time.UnixMilli(0), End: time.UnixMilli(0).Add(12 * time.Hour)}
	return backlog.Status{
		Pass:    &backlog.Pass{Ended: time.Now().Add(-time.Minute), Error: "tenant b<i>: no room"},
		Running: &backlog.Running{Tenant: "acme", Job: job, Done: 250, Fraction: 0.25, Started: time.Now().Add(-time.Minute)},
		Backlog: backlog.Totals{Compactions: 2, Samples: 1750, Rate: 10, Seconds: 175, Quarantined: 1},
		Tenants: []backlog.TenantStatus{
			{ID: "acme", Planned: 2, Next: []backlog.Job{job, {Blocks: 1, Results: 2}}, Samples: 2000, Errors: []backlog.Failure{{Time: time.Now(), Text: "the bucket <is> away"}}},
			{ID: "b", Tenant: backlog.Tenant{
				Marked: 3, NextDeletion: time.Now().Add(90 * time.Minute),
				Quarantined: []backlog.Quarantined{{Block: ulid.MustNew(1, nil), Reason: "damaged", Details: "checksum <mismatch>"}},
			}},
		},
	}
}

func TestTheCompactorsPageSaysWhatIsDoneAndWhatComesNext(t *testing.T) {
	page := askCluster(t, compactorUI(t, busy(), true), "/compactor", "text/html")
	require.Equal(t, http.StatusOK, page.Code)
	for _, want := range []string{
		"merge 6 blocks into 4 shards of 1970-01-01 00:00 to 1970-01-01 12:00", "25%", "in 2 min 55 s", "for another 1 min 15 s",
		"and 1 more", "delete 3 blocks, the first in 1 h 29 min", "checksum &lt;mismatch&gt;", "the bucket &lt;is&gt; away", "tenant b&lt;i&gt;: no room",
		"1 blocks are left alone",
	} {
		require.Contains(t, page.Body.String(), want)
	}
	require.NotContains(t, page.Body.String(), "<is>")

	scripted := askCluster(t, compactorUI(t, busy(), true), "/compactor", "application/json")
	var status backlog.Status
	require.NoError(t, json.Unmarshal(scripted.Body.Bytes(), &status))
	require.Equal(t, 175.0, status.Backlog.Seconds)
	require.Len(t, status.Tenants[1].Quarantined, 1)

	idle := askCluster(t, compactorUI(t, backlog.Status{}, true), "/compactor?format=html", "")
	require.Contains(t, idle.Body.String(), "Nothing to do")
	require.Contains(t, askCluster(t, compactorUI(t, busy(), true), "/", "text/html").Body.String(), `href="compactor"`)
}

func TestAProcessWithoutACompactorSaysSo(t *testing.T) {
	require.Equal(t, http.StatusServiceUnavailable, askCluster(t, compactorUI(t, backlog.Status{}, false), "/compactor", "").Code)
	u, err := New(Config{}, Deps{Waiting: ready, Summary: holds(Summary{})})
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, askCluster(t, u.Compactor(), "/compactor", "").Code)
}
