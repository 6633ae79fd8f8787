package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	sockaddr "github.com/hashicorp/go-sockaddr"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/rpc"
)

// testedCluster is a cluster on loopback, all members in this process.
type testedCluster struct {
	t      testing.TB
	config string
	gossip string // the address of the first member
}

func newTestedCluster(t testing.TB, cluster string) *testedCluster {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return &testedCluster{
		t:      t,
		gossip: listener.Addr().String(),
		config: "self_monitoring: {enabled: false}\n" +
			"bucket: {filesystem: {directory: " + t.TempDir() + "}}\n" +
			"cluster: {enabled: true, " + cluster + "}\n",
	}
}

// start starts a member and waits until it is ready. The first is the one that the
// others join, and has to be ready before: it sets the seed of identities, which this
// process has but one of.
func (c *testedCluster) start(role, zone, gossip string) *running {
	c.t.Helper()
	return c.startIn(c.t.TempDir(), role, zone, gossip)
}

func (c *testedCluster) startIn(dir, role, zone, gossip string) *running {
	c.t.Helper()
	flags := []string{"--role=" + role, "--zone=" + zone, "--grpc.listen-address=127.0.0.1:0", "--gossip.listen-address=" + gossip}
	if gossip != c.gossip {
		flags = append(flags, "--gossip.join="+c.gossip)
	}
	return startProcess(c.t, dir, c.config, flags...)
}

func (r *running) cluster() cluster.Status {
	r.t.Helper()
	code, body := r.do(http.MethodGet, "/cluster", "", nil)
	require.Equal(r.t, http.StatusOK, code, body)
	var s cluster.Status
	require.NoError(r.t, json.Unmarshal([]byte(body), &s))
	return s
}

// state is that of the ingester id as r knows it.
func (r *running) state(id string) string {
	r.t.Helper()
	for _, m := range r.cluster().Members {
		if m.ID == id {
			return m.State
		}
	}
	return ""
}

// sees waits until r knows n active ingesters.
func (r *running) sees(n int) {
	r.t.Helper()
	r.eventually(func() bool {
		active := 0
		for _, m := range r.cluster().Members {
			if m.State == "ACTIVE" && m.Alive {
				active++
			}
		}
		return active == n
	})
}

// wrote writes a sample, again and again until as many ingesters take it as must.
func (r *running) wrote(name string, at time.Time, value float64) {
	r.t.Helper()
	r.eventually(func() bool { return r.write("/api/v1/write", "", name, at, value) == http.StatusNoContent })
}

func TestRolesInProcessesOfTheirOwnAreOneStore(t *testing.T) {
	c, now := newTestedCluster(t, "replication_factor: 2"), time.Now()
	first := c.start("distributor,ingester", "a", c.gossip)
	second := c.start("ingester,querier", "b", "127.0.0.1:0")
	third := c.start("all", "c", "127.0.0.1:0")
	for _, r := range []*running{first, second, third} {
		r.sees(3)
	}
	first.wrote("one", now, 1)
	third.wrote("two", now, 2)
	want := map[string]string{"one": "1", "two": "2"}
	require.Equal(t, want, second.query("", "", `{__name__!=""}`, now))
	require.Equal(t, want, third.query("", "", `{__name__!=""}`, now))

	code, body := first.do(http.MethodGet, "/api/v1/query?query=one", "", nil)
	require.Equal(t, http.StatusNotFound, code)
	require.Contains(t, body, "does not run the querier")
	code, body = second.do(http.MethodPost, "/api/v1/write", "", []byte("x"))
	require.Equal(t, http.StatusNotFound, code)
	require.Contains(t, body, "does not run the distributor")

	for r, metrics := range map[*running][]string{
		first:  {"hundredfold_cluster_members", "hundredfold_distributor_", "hundredfold_ingester_", "hundredfold_grpc_requests_total"},
		second: {"hundredfold_cluster_members", "hundredfold_ingester_", "hundredfold_querier_", "hundredfold_grpc_requests_total"},
		third:  {"hundredfold_cluster_members", "hundredfold_distributor_", "hundredfold_ingester_", "hundredfold_querier_", "hundredfold_compactor_"},
	} {
		_, text := r.do(http.MethodGet, "/metrics", "", nil)
		for _, name := range metrics {
			require.True(t, strings.Contains(text, name), name) //nolint:testifylint // the text is long
		}
	}
}

func TestDrainedIngesterLeavesItsSamplesToTheOthers(t *testing.T) {
	c, now := newTestedCluster(t, "replication_factor: 1"), time.Now()
	first := c.start("all", "a", c.gossip)
	second := c.start("ingester", "b", "127.0.0.1:0")
	first.sees(2)
	want := map[string]string{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		first.wrote(name, now, 1)
		want[name] = "1"
	}

	var out bytes.Buffer
	require.Equal(t, exitOK, command(t.Context(), []string{"drain", "--url=" + second.url}, &out, &out), out.String())
	require.Contains(t, out.String(), second.p.data.ID+" has left the cluster")
	require.Equal(t, want, first.query("", "", `{__name__!=""}`, now))

	// It gets no writes, so there is nothing to announce; to drain it again is done at once.
	code, body := second.do(http.MethodPost, "/ingester/restart", "", nil)
	require.Equal(t, http.StatusConflict, code)
	require.Contains(t, body, "the ingester is LEFT")
	require.Equal(t, exitOK, command(t.Context(), []string{"drain", "--url=" + second.url}, io.Discard, io.Discard))
	first.eventually(func() bool { return first.state(second.p.data.ID) == "LEFT" })
	second.stop()
	require.Equal(t, want, first.query("", "", `{__name__!=""}`, now))

	// The last one has nobody to leave its slots to.
	out.Reset()
	require.Equal(t, exitFailed, command(t.Context(), []string{"drain", "--url=" + first.url}, &out, &out))
	require.Contains(t, out.String(), "0 would be left, and the replication factor is 1")
	code, body = first.do(http.MethodDelete, "/ingester/drain", "", nil)
	require.Equal(t, http.StatusMethodNotAllowed, code, body)
}

func TestRestartKeepsSlotsAndSamples(t *testing.T) {
	c, now := newTestedCluster(t, "replication_factor: 2"), time.Now()
	first := c.start("all", "a", c.gossip)
	dir := t.TempDir()
	second := c.startIn(dir, "ingester", "b", "127.0.0.1:0")
	third := c.start("ingester", "c", "127.0.0.1:0")
	first.sees(3)
	first.wrote("before", now, 1)

	// Announced twice, as a script that was repeated would.
	for range 2 {
		code, body := second.do(http.MethodPost, "/ingester/restart", "", nil)
		require.Equal(t, http.StatusAccepted, code, body)
	}
	id, placement := second.p.data.ID, first.cluster().Placement
	first.eventually(func() bool { return first.state(id) == "RESTARTING" })
	second.stop()
	first.wrote("meanwhile", now, 2)
	require.Equal(t, "RESTARTING", first.state(id))
	require.Equal(t, placement, first.cluster().Placement)

	c.startIn(dir, "ingester", "b", "127.0.0.1:0")
	first.sees(3)
	require.Equal(t, placement, first.cluster().Placement)
	require.Equal(t, map[string]string{"before": "1", "meanwhile": "2"}, first.query("", "", `{__name__!=""}`, now))
	third.stop()
}

func TestProcessThatIsToldToStopWhileItJoinsStops(t *testing.T) {
	c := newTestedCluster(t, "replication_factor: 1")
	opts, err := parseFlags([]string{
		"--config.file=" + file(t, c.config), "--data.dir=" + t.TempDir(), "--http.listen-address=127.0.0.1:0",
		"--grpc.listen-address=127.0.0.1:0", "--gossip.listen-address=127.0.0.1:0", "--gossip.join=" + c.gossip, // nobody is there
	})
	require.NoError(t, err)
	r := runProcess(t, opts)
	code, body := r.do(http.MethodGet, "/cluster", "", nil)
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, "has not joined the cluster yet")
	for _, path := range []string{"/ingester/drain", "/ingester/restart"} {
		code, _ = r.do(http.MethodPost, path, "", nil)
		require.Equal(t, http.StatusServiceUnavailable, code)
	}
	code, body = r.do(http.MethodGet, "/ready", "", nil)
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, "cluster: joining")
	r.stop()
}

func TestQuerierSaysThatItIsNoIngester(t *testing.T) {
	c := newTestedCluster(t, "replication_factor: 1")
	c.start("distributor,ingester", "a", c.gossip)
	querier := c.start("querier", "b", "127.0.0.1:0")
	code, body := querier.do(http.MethodPost, "/ingester/drain", "", nil)
	require.Equal(t, http.StatusNotFound, code)
	require.Contains(t, body, "does not run the ingester")
}

func TestProcessesThatListenOnAllAddressesMonitorThemselvesApart(t *testing.T) {
	c := newTestedCluster(t, "mode: none, replication_factor: 1, gossip: {advertise_address: '127.0.0.1:1'}")
	c.config = strings.Replace(c.config, "self_monitoring: {enabled: false}", "auth: {mode: none}\nhttp: {listen_address: '0.0.0.0:0'}", 1)
	path := file(t, c.config)
	opts, err := parseFlags([]string{
		"--config.file=" + path, "--data.dir=" + t.TempDir(), "--grpc.listen-address=127.0.0.1:0", "--gossip.listen-address=127.0.0.1:0",
	})
	require.NoError(t, err)
	r := runProcess(t, opts)
	_, port, err := net.SplitHostPort(r.p.server.Address())
	require.NoError(t, err)
	r.url = "http://127.0.0.1:" + port
	r.eventually(func() bool {
		code, _ := r.do(http.MethodGet, "/ready", "", nil)
		return code == http.StatusOK
	})
	r.eventually(func() bool {
		return r.query("", "", `up{instance="127.0.0.1:`+port+`"}`, time.Now())["up"] == "1"
	})
}

func TestOthersAreToldAnAddressThatTheyReach(t *testing.T) {
	gossip := func(listen, advertise string) cluster.Config {
		return cluster.Config{Gossip: cluster.GossipConfig{ListenAddress: listen, AdvertiseAddress: advertise}}
	}
	listed := gossip("127.0.0.1:7946", "")
	listed.Peers = []string{"10.0.0.2:9095"}
	private, err := sockaddr.GetPrivateIP()
	require.NoError(t, err)
	if private == "" {
		private = "::" // the machine has no address but loopback; there is nothing better to tell
	}
	for name, c := range map[string]struct {
		listens string
		cfg     cluster.Config
		want    string
	}{
		"an address of its own":             {"10.0.0.1:9095", gossip("10.0.0.9:7946", ""), "10.0.0.1:9095"},
		"all addresses, as gossip's":        {"[::]:9095", gossip("10.0.0.9:7946", ""), "10.0.0.9:9095"},
		"all addresses, as advertised":      {"[::]:9095", gossip("10.0.0.9:7946", "10.0.0.8:7946"), "10.0.0.8:9095"},
		"all addresses, also for gossip":    {"[::]:9095", gossip("0.0.0.0:7946", ""), net.JoinHostPort(private, "9095")},
		"all addresses, with listed peers":  {"[::]:9095", listed, net.JoinHostPort(private, "9095")},
		"an address of the machine's alone": {"127.0.0.1:9095", listed, "127.0.0.1:9095"},
	} {
		require.Equal(t, c.want, reachable(c.listens, c.cfg), name)
	}
}

func TestWhoSaysWhereOthersAreIsAMember(t *testing.T) {
	const shared = "bucket: {filesystem: {directory: /b}}\n"
	for name, c := range map[string]struct {
		text  string
		flags []string
		want  bool
	}{
		"nothing":        {"", nil, false},
		"a zone":         {"cluster: {zone: a}", nil, false},
		"enabled":        {shared + "cluster: {enabled: true}", nil, true},
		"listed peers":   {shared + "cluster: {peers: ['10.0.0.2:9095']}", nil, true},
		"join":           {shared + "cluster: {gossip: {join: ['10.0.0.2:7946']}}", nil, true},
		"join by a flag": {shared, []string{"--gossip.join=10.0.0.2:7946"}, true},
		"some roles":     {shared, []string{"--role=querier"}, true},
	} {
		opts, err := parseFlags(append(c.flags, "--config.file="+file(t, c.text)))
		require.NoError(t, err)
		cfg, err := opts.load()
		require.NoError(t, err, name)
		require.Equal(t, c.want, cfg.Cluster.Enabled, name)
	}
}

func TestClusterThatCannotBeOneIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		flags  []string
		want   string
	}{
		"a bucket of its own":              {"", []string{"--role=ingester"}, "share one bucket"},
		"a bucket of its own, all roles":   {"", []string{"--gossip.join=127.0.0.1:1"}, "share one bucket"},
		"gRPC open to strangers":           {"bucket: {filesystem: {directory: /b}}", []string{"--role=ingester", "--grpc.listen-address=0.0.0.0:0"}, rpc.ErrUnprotected.Error()},
		"gossip open to strangers":         {"bucket: {filesystem: {directory: /b}}", []string{"--role=ingester", "--gossip.listen-address=0.0.0.0:0"}, "secret_file: FILE"},
		"a secret that is not there":       {"bucket: {filesystem: {directory: /b}}\ncluster: {secret_file: /no/such/file}", []string{"--role=ingester"}, "read cluster.secret_file"},
		"listed peers and gossip together": {"bucket: {filesystem: {directory: /b}}\ncluster: {peers: ['10.0.0.1:9095']}", []string{"--gossip.join=10.0.0.1:7946"}, "excludes gossip.join"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			flags := append([]string{"--config.check", "--config.file=" + file(t, c.config)}, c.flags...)
			require.Equal(t, exitFailed, command(t.Context(), flags, &out, &errs))
			require.Contains(t, errs.String(), c.want)
			require.Empty(t, out.String())
		})
	}
}
