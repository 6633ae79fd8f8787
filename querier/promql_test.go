package querier

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/queriertest"
)

// Prometheus's own acceptance tests of PromQL pass wherever the samples are. (A case
// where they are in two places at once is not among them: there as in Prometheus,
// histograms then lose their hints of counter resets, and some tests look at these.)
func TestPromQLIsPrometheus(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	for _, where := range []struct {
		name string
		// pushed moves samples of the tenant to where the test wants them.
		pushed func(r *rig, id tenant.ID) error
	}{
		{"in the ingester", nil},
		{"in blocks of the bucket", func(r *rig, id tenant.ID) error {
			for _, dir := range r.ingester.cut(id, t.TempDir(), 2*hour) {
				r.uploadDir(id, dir)
			}
			r.ingester.forget(id)
			return r.views.refreshTenants(context.Background(), []tenant.ID{id})
		}},
	} {
		t.Run(where.name, func(t *testing.T) {
			r := newRig(t, rigOption{inPlace: true})
			r.refresh()
			storages := 0
			engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			promqltest.RunBuiltinTestsWithStorage(t, engine, func(testing.TB) storage.Storage {
				storages++
				id := tenant.ID(fmt.Sprintf("test-%d", storages))
				s := &queriertest.Storage{Tenant: id, Queryable: r.Queryable(), Push: r.ingester.Push}
				if where.pushed != nil {
					s.Pushed = func() error { return where.pushed(r, id) }
				}
				s.Closed = func() error { r.ingester.forget(id); return nil }
				return s
			})
			require.Positive(t, storages)
		})
	}
}
