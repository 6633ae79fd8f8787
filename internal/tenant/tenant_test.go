package tenant

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

func TestNamesOfTenantsAreSafeAsPaths(t *testing.T) {
	for _, good := range []string{"default", "team-a", "Team_1.x", "!*'()", strings.Repeat("x", 150), "...", ".hidden"} {
		id, err := Parse(good)
		require.NoError(t, err, good)
		require.Equal(t, ID(good), id)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../x", `a\b`, "a b", "a|b", "ä", "a\x00", "~tmp", strings.Repeat("x", 151)} {
		_, err := Parse(bad)
		require.ErrorIs(t, err, ErrInvalidID, "%q", bad)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("default")
	f.Add("../..")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			return
		}
		require.Equal(t, s, string(id))
		require.NotContains(t, s, "/")
		require.NotContains(t, []string{"", ".", ".."}, s)
	})
}

func TestContextWithoutATenantIsAnError(t *testing.T) {
	_, err := FromContext(context.Background())
	require.ErrorIs(t, err, ErrNoTenant)
	_, err = FromContext(NewContext(context.Background(), ""))
	require.ErrorIs(t, err, ErrNoTenant)
	id, err := FromContext(NewContext(context.Background(), "a"))
	require.NoError(t, err)
	require.Equal(t, ID("a"), id)
}

func TestMiddlewarePutsTheTenantIntoTheContext(t *testing.T) {
	for _, c := range []struct {
		name   string
		multi  bool
		header string
		want   ID
		err    error
	}{
		{"one tenant", false, "", Default, nil},
		{"one tenant, whatever the header says", false, "other", Default, nil},
		{"many tenants", true, "other", "other", nil},
		{"many tenants, no header", true, "", "", ErrNoTenant},
		{"many tenants, a path", true, "../other", "", ErrInvalidID},
	} {
		t.Run(c.name, func(t *testing.T) {
			var (
				got             ID
				refused, missed error
			)
			handler := Middleware(c.multi,
				func(_ http.ResponseWriter, _ *http.Request, err error) { refused = err },
				http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					got, missed = FromContext(r.Context())
				}))
			r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
			r.Header.Set(Header, c.header)
			handler.ServeHTTP(httptest.NewRecorder(), r)
			require.Equal(t, c.want, got)
			require.NoError(t, missed)
			require.ErrorIs(t, refused, c.err)
		})
	}
}

func TestValidateReportsAllFaults(t *testing.T) {
	require.NoError(t, DefaultLimits().Validate())
	l := DefaultLimits()
	l.MaxSeries, l.MaxExemplars = -1, -2
	l.OutOfOrderWindow = model.Duration(25 * time.Hour)
	l.Retention = model.Duration(time.Hour)
	err := l.Validate()
	for _, want := range []string{"max_series: -1", "max_exemplars: -2", "out_of_order_window: 1d1h is outside 0s to 24h", "retention: 1h is below 24h"} {
		require.ErrorContains(t, err, want)
	}
}
