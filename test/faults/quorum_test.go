package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/remotewrite/remotewritetest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/testcluster"
	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
	"github.com/hundredfold/hundredfold/internal/write"
)

// seriesPerTenant are enough that every replica set of six ingesters has some.
const seriesPerTenant = 200

// sent is what one tenant has sent.
type sent struct {
	tenant string
	ranks  map[int]bool // of the ingesters that hold it; empty: all
}

// Two ingesters of rank 0 die. Tenants whose shard is of rank 1 notice nothing; the
// others are answered 503, with who is dead, and yet what has a living quorum is stored.
func TestTwoDeadIngestersOfOneSetHurtOnlyWhatTheyHold(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{zones: []string{"a", "b", "c", "a", "b", "c"}, yaml: `
multitenancy: {enabled: true}
limits: {shard_size: 3}
tenants:
  wide: {shard_size: 0}
`})
	b.awaitWhole(t)
	tenants := []sent{{tenant: "wide"}}
	kinds := map[int]int{}
	for i := range 12 {
		s := sent{tenant: fmt.Sprintf("team-%d", i), ranks: map[int]bool{}}
		for _, m := range hashring.Shard(b.placed(), hashring.TenantHash(s.tenant), 3) {
			s.ranks[m.Rank] = true
		}
		require.Len(t, s.ranks, 1, "a shard is made of whole ranks")
		for rank := range s.ranks {
			kinds[rank]++
		}
		tenants = append(tenants, s)
	}
	require.Len(t, kinds, 2, "there are tenants of both ranks")

	first := time.Now().Truncate(time.Second)
	for _, s := range tenants {
		code, body := b.push(t, s.tenant, first)
		require.Equal(t, http.StatusNoContent, code, body)
	}
	var dead []*fleet.Member
	for _, m := range b.placed() {
		if m.Rank == 0 && m.Zone != "c" {
			dead = append(dead, b.member(m.ID))
		}
	}
	require.Len(t, dead, 2)
	b.kill(dead...)
	second := first.Add(time.Second)
	for _, s := range tenants {
		code, body := b.push(t, s.tenant, second)
		if s.ranks[1] {
			require.Equalf(t, http.StatusNoContent, code, "%s: %s", s.tenant, body)
			require.Equal(t, seriesPerTenant, b.stored(t, s.tenant, second))
			continue
		}
		require.Equalf(t, http.StatusServiceUnavailable, code, "%s: %s", s.tenant, body)
		require.Contains(t, body, dead[0].Name)
		require.Contains(t, body, dead[1].Name)
	}

	b.restart(dead...)
	b.awaitWhole(t)
	partly := b.stored(t, "wide", second)
	require.Positive(t, partly, "sets with a living quorum have stored their samples")
	require.Less(t, partly, seriesPerTenant+1)
	for _, s := range tenants {
		testcluster.Eventually(t, readyTimeout, func(context.Context) error {
			if code, body := b.push(t, s.tenant, second); code != http.StatusNoContent {
				return fmt.Errorf("%s is answered %d: %s", s.tenant, code, body)
			}
			return nil
		})
		for _, at := range []time.Time{first, second} {
			require.Equal(t, seriesPerTenant, b.stored(t, s.tenant, at), "%s at %s", s.tenant, at)
		}
	}
}

// placed returns the members among whom series are placed.
func (b *bed) placed() []hashring.Member {
	b.t.Helper()
	status, err := statusOf(b.soon(), b.Members("ingester")[0])
	require.NoError(b.t, err)
	var members []hashring.Member
	for _, m := range status.Members {
		members = append(members, hashring.Member{ID: m.ID, Zone: m.Zone, Rank: m.Rank})
	}
	return members
}

// push sends one sample of each of a tenant's series.
func (b *bed) push(t testing.TB, of string, at time.Time) (code int, body string) {
	t.Helper()
	var request remotewritetest.Request
	for i := range seriesPerTenant {
		request.Series = append(request.Series, remotewritetest.TimeSeries{
			Labels:  labels.FromStrings("__name__", "some_total", "series", fmt.Sprintf("%04d", i)),
			Samples: []write.Sample{{T: at.UnixMilli(), V: float64(i)}},
		})
	}
	compressed := snappy.Encode(nil, remotewritetest.EncodeV1(t, &request))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/api/v1/write", bytes.NewReader(compressed))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set(tenant.Header, of)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

// stored returns how many series of a tenant have a sample at a time.
func (b *bed) stored(t testing.TB, of string, at time.Time) int {
	t.Helper()
	client, err := api.NewClient(api.Config{Address: b.url, RoundTripper: asTenant(of)})
	require.NoError(t, err)
	// With two ingesters dead there are warnings: the querier cannot know that no shard
	// of the tenant was theirs before.
	value, _, _, err := v1.NewAPI(client).Query(t.Context(), "some_total[1s]", at)
	require.NoError(t, err)
	n := 0
	for _, series := range value.(model.Matrix) {
		for _, sample := range series.Values {
			if sample.Timestamp.Time().Equal(at) {
				n++
			}
		}
	}
	return n
}

// asTenant sends requests as a tenant.
type asTenant string

// RoundTrip implements http.RoundTripper.
func (a asTenant) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(tenant.Header, string(a))
	return http.DefaultTransport.RoundTrip(r)
}
