package rpc

import (
	"testing"

	"github.com/stretchr/testify/require"

	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

// One stream, one request at a time, each with a frame as a distributor sends them.
func BenchmarkPush(b *testing.B) {
	for name, security := range map[string]*Security{
		"secret":    secured(b, loopback(), secret),
		"plaintext": secured(b, loopback(), ""),
	} {
		b.Run(name, func(b *testing.B) {
			n := serve(b, loopback(), security, &echo{})
			conn, err := pool(b, security, "prod").Conn(n.Address())
			require.NoError(b, err)
			stream, err := ingestv1.NewIngestServiceClient(conn).Push(b.Context())
			require.NoError(b, err)
			request := &ingestv1.PushRequest{Tenant: "default", Frames: [][]byte{make([]byte, 64<<10)}}
			b.SetBytes(64 << 10)
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, stream.Send(request))
				_, err := stream.Recv()
				require.NoError(b, err)
			}
		})
	}
}
