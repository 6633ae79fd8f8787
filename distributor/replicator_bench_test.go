package distributor

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

// sink accepts what it is sent, without a network and without looking at it.
func (r *Replicator) sink(tb testing.TB, rf, members int) {
	tb.Helper()
	p := placementOf(rf, members)
	rt := &routes{placement: p, layouts: newLayouts(p)}
	for _, m := range p.Members() {
		l := newLink(m.ID, m.ID, 1, r, func() {})
		l.opened(func() {})
		go func() {
			for range l.wake {
				l.mu.Lock()
				queue := l.mu.queue
				l.mu.queue = nil
				l.mu.Unlock()
				for _, d := range queue {
					n := d.counts()
					resp := &ingestv1.PushResponse{Id: d.id, Samples: uint64(n.Samples)}
					d.sent()
					l.take(d.id).answered(resp, nil)
				}
			}
		}()
		tb.Cleanup(func() { close(l.wake) })
		rt.nodes = append(rt.nodes, node{id: m.ID, link: l})
	}
	r.routes.Store(rt)
}

type noConns struct{}

func (noConns) Conn(string) (grpc.ClientConnInterface, error) { return nil, errGone }

type noSource struct{}

func (noSource) View() *cluster.View      { return nil }
func (noSource) Changed() <-chan struct{} { return nil }

// BenchmarkPush is what a Push costs in steady state besides the network: 2,000 of
// 100,000 series, a sample each.
func BenchmarkPush(b *testing.B) {
	for _, c := range []struct {
		name        string
		rf, members int
	}{{"3 of 3", 3, 3}, {"3 of 30", 3, 30}} {
		b.Run(c.name, func(b *testing.B) {
			r, err := NewReplicator(DefaultReplicatorConfig(), noSource{}, noConns{}, func(tenant.ID) tenant.Limits { return tenant.DefaultLimits() }, nil, prometheus.NewRegistry())
			require.NoError(b, err)
			r.sink(b, c.rf, c.members)
			const series, perRequest = 100_000, 2_000
			var batches []*write.Batch
			for at := 0; at < series; at += perRequest {
				batch, h := &write.Batch{}, write.NewHasher()
				for i := range perRequest {
					batch.Add(h, seriesName(at+i), []write.Sample{{T: now, V: float64(i)}}, nil, nil)
				}
				batches = append(batches, batch)
			}
			push := func(i int) {
				if _, err := r.Push(b.Context(), "team", batches[i%len(batches)]); err != nil {
					b.Fatal(err)
				}
			}
			for i := range 3 * len(batches) {
				push(i)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				push(i)
				i++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/perRequest, "ns/sample")
		})
	}
}
