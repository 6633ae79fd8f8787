package distributor

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/rpc"
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
	}{{"3 of 3", 3, 3}, {"3 of 30", 3, 30}, {"3 of 300", 3, 300}} {
		b.Run(c.name, func(b *testing.B) {
			r := benchReplicator(b)
			r.sink(b, c.rf, c.members)
			benchPushes(b, r)
		})
	}
}

func benchReplicator(b *testing.B) *Replicator {
	r, err := NewReplicator(DefaultReplicatorConfig(), noSource{}, noConns{}, func(tenant.ID) tenant.Limits { return tenant.DefaultLimits() }, nil, prometheus.NewRegistry())
	require.NoError(b, err)
	return r
}

const samplesPerPush = 2_000

// benchPushes pushes 2,000 of 100,000 series at a time and reports the
// CPU time of the whole process per sample.
func benchPushes(b *testing.B, r *Replicator) {
	const series = 100_000
	var batches []*write.Batch
	for at := 0; at < series; at += samplesPerPush {
		batch, h := &write.Batch{}, write.NewHasher()
		for i := range samplesPerPush {
			batch.Add(h, seriesName(at+i), []write.Sample{{T: now, V: float64(i)}}, nil, nil)
		}
		batches = append(batches, batch)
	}
	push := func(i int) {
		if _, err := r.Push(b.Context(), "team", batches[i%len(batches)]); err != nil {
			b.Error(err)
		}
	}
	for i := range 3 * len(batches) {
		push(i)
	}
	b.ReportAllocs()
	before := cpuTime(b)
	i := 0
	for b.Loop() {
		push(i)
		i++
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/samplesPerPush, "cpu-ns/sample")
}

// cpuTime returns what the process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// countingServer answers that it stored whatever it is sent, two thousand samples at a time.
type countingServer struct {
	ingestv1.UnimplementedIngestServiceServer
}

// Push implements ingestv1.IngestServiceServer.
func (countingServer) Push(stream grpc.BidiStreamingServer[ingestv1.PushRequest, ingestv1.PushResponse]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := stream.Send(&ingestv1.PushResponse{Id: req.GetId(), Samples: samplesPerPush}); err != nil {
			return err
		}
	}
}

// BenchmarkPushOverTCP is BenchmarkPush with the network of the cluster: three servers
// in this process, which decode messages but not frames.
func BenchmarkPushOverTCP(b *testing.B) {
	security, err := rpc.NewSecurity(rpc.DefaultConfig(), nil)
	require.NoError(b, err)
	pool := rpc.NewPool(security, "bench", nil, nil)
	p := placementOf(3, 3)
	r := benchReplicator(b)
	rt := &routes{placement: p, layouts: newLayouts(p)}
	r.conns = pool
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for _, m := range p.Members() {
		server, err := rpc.NewServer(rpc.Config{ListenAddress: "127.0.0.1:0"}, security, "bench", nil, prometheus.NewRegistry())
		require.NoError(b, err)
		ingestv1.RegisterIngestServiceServer(server.Registrar(), countingServer{})
		wg.Go(func() { server.Run(ctx) })
		l := newLink(m.ID, server.Address(), 1, r, cancel)
		wg.Go(func() { l.run(ctx) })
		rt.nodes = append(rt.nodes, node{id: m.ID, link: l})
	}
	r.routes.Store(rt)
	require.Eventually(b, func() bool { return r.Ready() == nil }, 10*time.Second, time.Millisecond)
	benchPushes(b, r)
	cancel()
	pool.Close()
	wg.Wait()
}
