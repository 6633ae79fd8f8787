package cluster

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	registry "github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// hanging lets an ingester live on but for deletions, which it is not heard of again.
type hanging struct{ hangs atomic.Bool }

func (h *hanging) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if h.hangs.Load() && strings.HasSuffix(info.FullMethod, "/ApplyDeletions") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return handle(ctx, req)
}

// shareQuerier makes the querier a member of the cluster, which is told of deletions.
func (w *world) shareQuerier() {
	w.t.Helper()
	const address = "q0:9095"
	listener, server := bufconn.Listen(1<<20), grpc.NewServer()
	w.querier.RegisterBlocks(server)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(listener) }()
	w.t.Cleanup(func() { server.Stop(); <-ended })
	w.net.mu.Lock()
	w.net.listen[address] = listener
	w.net.others = append(w.net.others, registry.Peer{ID: "q0", Roles: []registry.Role{registry.RoleQuerier}, GRPC: address})
	w.net.mu.Unlock()
	w.net.publish(w.t)
}

// deletes asks for a deletion of series. missing are those who have not acknowledged it.
func (w *world) deletes(admin http.Handler, query string) (code int, missing []string) {
	w.t.Helper()
	return w.asks(admin, "tsdb/delete_series?"+query)
}

func (w *world) asks(admin http.Handler, what string) (code int, missing []string) {
	w.t.Helper()
	req := httptest.NewRequestWithContext(tenant.NewContext(w.t.Context(), acme), http.MethodPost, "/api/v1/admin/"+what, http.NoBody)
	rec := httptest.NewRecorder()
	admin.ServeHTTP(rec, req)
	if rec.Code == http.StatusAccepted {
		var answer struct {
			Data struct{ Missing []string }
		}
		require.NoError(w.t, json.Unmarshal(rec.Body.Bytes(), &answer))
		missing = answer.Data.Missing
	}
	return rec.Code, missing
}

// states are those of the deletions, the newest first.
func (w *world) states(admin http.Handler) (states []string) {
	w.t.Helper()
	req := httptest.NewRequestWithContext(tenant.NewContext(w.t.Context(), acme), http.MethodGet, "/api/v1/admin/tsdb/deletions", http.NoBody)
	rec := httptest.NewRecorder()
	admin.ServeHTTP(rec, req)
	require.Equal(w.t, http.StatusOK, rec.Code, rec.Body)
	var answer struct {
		Data []struct{ State string }
	}
	require.NoError(w.t, json.Unmarshal(rec.Body.Bytes(), &answer))
	for _, d := range answer.Data {
		states = append(states, d.State)
	}
	return states
}

// push stores one sample of a series in the cluster.
func (w *world) push(name, pod string, at time.Time) {
	w.t.Helper()
	app := w.pushed.AppenderV2(w.t.Context())
	_, err := app.Append(0, labels.FromStrings("__name__", name, "pod", pod), 0, at.UnixMilli(), 7, nil, nil, storage.AOptions{})
	require.NoError(w.t, err)
	require.NoError(w.t, app.Commit())
}

// lengths returns how many samples some series have, as each of several queries finds
// them, which spare other ingesters.
func (w *world) lengths(series ...string) [3][]int {
	w.t.Helper()
	var found [3][]int
	for k := range found {
		samples := samplesOf(w.t, w.pushed)
		for _, name := range series {
			found[k] = append(found[k], len(samples[name]))
		}
	}
	return found
}

func TestADeletionNamesTheIngesterThatHasNotAcknowledgedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.shareQuerier()
		w.write(0, 30)
		admin := querier.NewAdmin(true, querier.NewClusterDeleter(w.store, w.net, w.net))
		const gone, kept = `{__name__="requests_total", pod="1"}`, `{__name__="requests_total", pod="2"}`
		always := func(lengths ...int) (want [3][]int) { return [3][]int{lengths, lengths, lengths} }
		require.Equal(t, always(120, 120), w.lengths(gone, kept))

		w.nodes[1].deletions.hangs.Store(true)
		begun := time.Now()
		code, missing := w.deletes(admin, `match[]=requests_total{pod="1"}`)
		require.Equal(t, http.StatusAccepted, code)
		require.Len(t, missing, 1)
		require.Contains(t, missing[0], "ingester i1: ")
		require.Equal(t, 30*time.Second, time.Since(begun), "it is not waited for longer")
		require.Equal(t, []string{"pending"}, w.states(admin))

		// It has the samples still, and no query shows them; what comes now is shown.
		require.Equal(t, always(0, 120), w.lengths(gone, kept))
		<-time.After(time.Minute)
		w.push("requests_total", "1", time.Now())
		require.Equal(t, always(1, 120), w.lengths(gone, kept))
		code, missing = w.deletes(admin, `match[]=nothing`)
		require.Equal(t, http.StatusAccepted, code)
		require.Len(t, missing, 1)
		require.Contains(t, missing[0], "ingester i1: ")

		w.nodes[1].deletions.hangs.Store(false)
		code, _ = w.deletes(admin, `match[]=nothing`)
		require.Equal(t, http.StatusNoContent, code)
		require.Equal(t, []string{"hidden", "hidden", "hidden"}, w.states(admin), "those of before are carried out, too")
		require.Equal(t, always(1, 120), w.lengths(gone, kept))
		w.push("requests_total", "1", time.UnixMilli(w.start))
		require.Equal(t, always(2, 120), w.lengths(gone, kept), "what is sent again is new")
	})
}

func TestDeletionsHoldThoughTheClocksOfIngestersDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, -9*time.Minute, 0, 9*time.Minute)
		w.shareQuerier()
		w.write(0, 30)
		<-time.After(20 * time.Minute) // the tenant is no new one by any clock
		admin := querier.NewAdmin(true, querier.NewClusterDeleter(w.store, w.net, w.net))
		const gone, kept = `{__name__="requests_total", pod="1"}`, `{__name__="requests_total", pod="2"}`
		always := func(lengths ...int) (want [3][]int) { return [3][]int{lengths, lengths, lengths} }

		code, missing := w.deletes(admin, `match[]=requests_total{pod="1"}`)
		require.Equal(t, http.StatusNoContent, code, missing)
		require.Equal(t, []string{"hidden"}, w.states(admin))
		require.Equal(t, always(0, 120), w.lengths(gone, kept))
		w.push("requests_total", "1", time.UnixMilli(w.start))
		w.push("requests_total", "1", time.Now())
		require.Equal(t, always(2, 120), w.lengths(gone, kept))
		for _, n := range w.nodes {
			require.NoError(t, n.Flush(t.Context(), acme))
			require.Equal(t, always(2, 120), w.lengths(gone, kept))
		}

		code, missing = w.asks(admin, "delete_tenant?confirm=acme")
		require.Equal(t, http.StatusNoContent, code, missing)
		require.Empty(t, samplesOf(t, w.pushed))
		w.push("requests_total", "2", time.Now())
		require.Equal(t, always(0, 1), w.lengths(gone, kept))
		for _, n := range w.nodes {
			require.NoError(t, n.Flush(t.Context(), acme))
			require.Equal(t, always(0, 1), w.lengths(gone, kept))
		}
	})
}
