package testcluster

import (
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// API returns a client of the process's query API. The tenant "" sends none.
func (p *Process) API(id tenant.ID) v1.API {
	p.t.Helper()
	client, err := api.NewClient(api.Config{Address: p.URL, RoundTripper: tenantTripper{id, p.client.Transport}})
	require.NoError(p.t, err)
	return v1.NewAPI(client)
}

type tenantTripper struct {
	id   tenant.ID
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t tenantTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.id != "" {
		r = r.Clone(r.Context())
		r.Header.Set(tenant.Header, string(t.id))
	}
	return t.next.RoundTrip(r)
}

// Instant asks for the value of a query at one time. The answer must be complete.
func Instant(t testing.TB, from v1.API, query string, at time.Time) model.Value {
	t.Helper()
	value, warnings, _, err := from.Query(t.Context(), query, at)
	require.NoErrorf(t, err, "query %s", query)
	require.Emptyf(t, warnings, "query %s", query)
	return value
}

// Range asks for the values of a query over a time range. The answer must be complete.
func Range(t testing.TB, from v1.API, query string, r v1.Range) model.Value {
	t.Helper()
	value, warnings, _, err := from.QueryRange(t.Context(), query, r)
	require.NoErrorf(t, err, "query %s", query)
	require.Emptyf(t, warnings, "query %s", query)
	return value
}
