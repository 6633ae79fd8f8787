package ui

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

func clusterStatus() cluster.Status {
	return cluster.Status{
		Cluster: "prod", ID: "i1", Zone: "z1", Roles: []cluster.Role{cluster.RoleIngester}, ReplicationFactor: 3,
		Registry: "00000000000000aa", Placement: "00000000000000bb", Agree: true,
		Members: []cluster.MemberStatus{
			{ID: "i1", Zone: "z1", State: "ACTIVE", Epoch: 7, Address: "h1:9095", Generation: "00000000000000cc", Alive: true, Slots: 65536},
			{ID: "i2<b>", Zone: "z2", State: "ACTIVE", Epoch: 3, Address: "h2:9095", Slots: 32768, AbsentFor: 90},
		},
		Peers: []cluster.PeerStatus{
			{ID: "i1", Self: true, ReplicationFactor: 3, Agrees: true, Registry: "00000000000000aa"},
			{ID: "q", Roles: []cluster.Role{cluster.RoleQuerier, cluster.RoleDistributor}, ReplicationFactor: 2, HeardAgo: -1},
		},
		Sets: cluster.SetsStatus{Total: 2, Broken: []cluster.SetStatus{}},
	}
}

func clusterUI(t testing.TB, s cluster.Status) http.Handler {
	t.Helper()
	u, err := New(Config{}, Deps{Cluster: func() cluster.Status { return s }, Waiting: ready, Summary: holds(Summary{})})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/{$}", u.Home())
	mux.Handle("/graph", u.Graph())
	mux.Handle("/cluster", u.Cluster())
	return mux
}

func askCluster(t testing.TB, h http.Handler, path, accept string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("Accept", accept)
	return get(t, h, r)
}

func TestClusterIsAPageForBrowsersAndJSONForScripts(t *testing.T) {
	h := clusterUI(t, clusterStatus())
	for _, c := range []struct {
		path, accept string
		json         bool
	}{
		{"/cluster", "text/html,application/xhtml+xml,*/*;q=0.8", false},
		{"/cluster", "application/json", true},
		{"/cluster", "*/*", true},
		{"/cluster", "", true},
		{"/cluster?format=json", "text/html", true},
		{"/cluster?format=html", "*/*", false},
	} {
		w := askCluster(t, h, c.path, c.accept)
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, contentSecurityPolicy, w.Header().Get("Content-Security-Policy"))
		if !c.json {
			require.Contains(t, w.Header().Get("Content-Type"), "text/html", "%+v", c)
			continue
		}
		require.Equal(t, "application/json", w.Header().Get("Content-Type"), "%+v", c)
		var got cluster.Status
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
		require.Equal(t, clusterStatus(), got)
	}
}

func TestClusterPageShowsWhoIsThereAndHowItFares(t *testing.T) {
	body := askCluster(t, clusterUI(t, clusterStatus()), "/cluster", "text/html").Body.String()
	for _, want := range []string{
		"<code>prod</code>", "Whole", "1 of 2", "i2&lt;b&gt;", "no, for 1 min 30 s", "65\u202f536 (100.0%)", "32\u202f768 (50.0%)",
		"querier, distributor", "replication factor 2", "not yet", "this one", "00000000000000bb", "None: all members",
	} {
		require.Contains(t, body, want)
	}
}

func TestClusterPageSaysTheWorstFirst(t *testing.T) {
	verdict := func(change func(*cluster.Status)) string {
		s := clusterStatus()
		change(&s)
		return askCluster(t, clusterUI(t, s), "/cluster", "text/html").Body.String()
	}
	require.Contains(t, verdict(func(s *cluster.Status) { s.Agree = false }), "The nodes do not agree")
	require.Contains(t, verdict(func(s *cluster.Status) { s.Agree, s.Sets.AtRisk = false, 1 }), "1 replica sets are at risk")
	lost := verdict(func(s *cluster.Status) {
		s.Sets = cluster.SetsStatus{Total: 2, AtRisk: 1, LostQuorum: 1, Broken: []cluster.SetStatus{
			{Members: []string{"i1", "i2"}, Dead: []string{"i2"}},
			{Members: []string{"i2", "i3"}, Dead: []string{"i2", "i3"}, LostQuorum: true},
		}}
	})
	require.Contains(t, lost, "1 replica sets have lost their quorum")
	require.Contains(t, lost, "i2, i3")
	require.Contains(t, lost, "answered with 503")
}

func TestOnlyNodesOfAClusterHaveThePage(t *testing.T) {
	u, err := New(Config{}, Deps{Waiting: ready, Summary: holds(Summary{})})
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, get(t, u.Cluster(), httptest.NewRequest("GET", "/cluster", nil)).Code)
	require.NotContains(t, page(t, newUI(t, Config{}, Deps{}), "/"), `href="cluster"`)
	h := clusterUI(t, clusterStatus())
	require.Contains(t, page(t, h, "/"), `href="cluster"`)
	require.Contains(t, page(t, h, "/graph"), `href="cluster"`)
}
