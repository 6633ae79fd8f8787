package backlog

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestTheEndOfTheBacklogFollowsFromWhatWasDone(t *testing.T) {
	clock := time.Unix(1000, 0)
	b := New(func() time.Time { return clock })
	require.Equal(t, Totals{}, b.Totals(), "nothing to do takes no time")

	job := Job{Blocks: 6, Results: 1, Samples: 1000}
	b.Plan("a", Tenant{Jobs: []Job{job, job, job}})
	b.Plan("b", Tenant{Jobs: []Job{job}, Quarantined: []Quarantined{{Reason: "damaged"}}})
	require.Equal(t, Totals{Compactions: 4, Quarantined: 1, Samples: 4000, Seconds: -1}, b.Totals(), "nobody knows yet")

	b.Begin("a", job)
	clock = clock.Add(10 * time.Second)
	b.Progress(500)
	require.Equal(t, Totals{Compactions: 4, Quarantined: 1, Samples: 3500, Rate: 50, Seconds: 70}, b.Totals())
	fraction, running := b.Fraction()
	require.True(t, running)
	require.Equal(t, 0.5, fraction)
	b.Progress(5000)
	fraction, _ = b.Fraction()
	require.Equal(t, 1.0, fraction, "meta.json said less")

	b.End(true)
	b.Plan("a", Tenant{Jobs: []Job{job, job}})
	totals := b.Totals()
	require.Equal(t, 3, totals.Compactions)
	require.Equal(t, 100.0, totals.Rate)
	require.Equal(t, 30.0, totals.Seconds)

	b.Begin("b", job)
	clock = clock.Add(time.Hour)
	b.End(false)
	require.Equal(t, 100.0, b.Totals().Rate, "a job that fails says nothing")
}

func TestTheStatusListsTenantsWithMostToDoFirst(t *testing.T) {
	clock := time.Unix(1000, 0)
	b := New(func() time.Time { return clock })
	b.Plan("a", Tenant{Blocks: 3})
	b.Plan("b", Tenant{Jobs: make([]Job, 50)})
	b.Plan("c", Tenant{Jobs: []Job{{Samples: 5}}})
	for range 9 {
		b.Failed("a", errors.New("no room"))
	}
	b.Begin("c", Job{Samples: 5})
	s := b.Status()
	require.Nil(t, s.Pass)
	require.Equal(t, tenant.ID("c"), s.Running.Tenant)
	require.Equal(t, tenant.ID("c"), s.Tenants[0].ID)
	require.Len(t, s.Tenants[1].Errors, keptErrors)
	require.Equal(t, 50, s.Tenants[2].Planned)
	require.Len(t, s.Tenants[2].Next, shownJobs)
	text, err := json.Marshal(s)
	require.NoError(t, err)
	require.NotContains(t, string(text), "null,\"tenants")

	b.Passed(Pass{Ended: clock, Seconds: 2, Error: "something"})
	b.Keep(map[tenant.ID]struct{}{"a": {}})
	s = b.Status()
	require.Equal(t, "something", s.Pass.Error)
	require.Len(t, s.Tenants, 1)
}
