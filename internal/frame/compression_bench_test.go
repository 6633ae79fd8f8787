package frame_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// realFrames returns what a distributor makes of the requests of a load generator, one
// frame per request of 2,000 samples, with labels or without, and how many samples those are.
func realFrames(b *testing.B, labelled bool) (frames [][]byte, samples int) {
	b.Helper()
	decoder := remotewrite.NewDecoder()
	check := func(err error) {
		if err != nil {
			b.Error(err)
		}
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		check(err)
		data, err := s2.Decode(nil, body)
		check(err)
		var batch write.Batch
		_, err = decoder.Decode(remotewrite.V1, data, &batch)
		check(err)
		var w frame.PushWriter
		scratch, hasher := labels.NewScratchBuilder(0), write.NewHasher()
		for i := range batch.Series {
			ls, id, err := batch.Resolve(i, tenant.DefaultLimits(), &scratch, hasher)
			check(err)
			if !labelled {
				ls = labels.EmptyLabels()
			}
			w.Add(&batch, i, id, ls)
		}
		frames = append(frames, append([]byte(nil), w.Bytes()...))
		samples += len(batch.Samples)
	}))
	defer receiver.Close()
	cfg := loadgen.Default()
	cfg.URL, cfg.Series, cfg.Span, cfg.Senders, cfg.Progress = receiver.URL, 20_000, 2*time.Minute, 1, 0
	g, err := loadgen.New(cfg, nil)
	require.NoError(b, err)
	_, err = g.Run(context.Background())
	require.NoError(b, err)
	return frames, samples
}

// BenchmarkCompression is what compressing push frames would cost and spare; see ADR 027.
func BenchmarkCompression(b *testing.B) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	require.NoError(b, err)
	zstdDecoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	require.NoError(b, err)
	defer zstdDecoder.Close()
	for _, kind := range []struct {
		name     string
		labelled bool
	}{{"identities", false}, {"labels", true}} {
		frames, samples := realFrames(b, kind.labelled)
		for _, codec := range []struct {
			name           string
			encode, decode func(dst, src []byte) ([]byte, error)
		}{
			{"none", func(_, src []byte) ([]byte, error) { return src, nil }, func(_, src []byte) ([]byte, error) { return src, nil }},
			{"snappy", func(dst, src []byte) ([]byte, error) { return s2.EncodeSnappy(dst, src), nil }, s2.Decode},
			{"s2", func(dst, src []byte) ([]byte, error) { return s2.Encode(dst, src), nil }, s2.Decode},
			{
				"zstd", func(dst, src []byte) ([]byte, error) { return encoder.EncodeAll(src, dst[:0]), nil },
				func(dst, src []byte) ([]byte, error) { return zstdDecoder.DecodeAll(src, dst[:0]) },
			},
		} {
			b.Run(kind.name+"/"+codec.name, func(b *testing.B) {
				size, dst, back := 0, make([]byte, 8<<20), make([]byte, 8<<20)
				packed := make([][]byte, len(frames))
				for i, f := range frames {
					p, err := codec.encode(dst, f)
					require.NoError(b, err)
					size += len(p)
					packed[i] = append([]byte(nil), p...)
				}
				var encoding, decoding time.Duration
				for b.Loop() {
					start := time.Now()
					for _, f := range frames {
						_, _ = codec.encode(dst, f)
					}
					encoded := time.Now()
					for _, p := range packed {
						_, err = codec.decode(back, p)
					}
					encoding, decoding = encoding+encoded.Sub(start), decoding+time.Since(encoded)
				}
				require.NoError(b, err)
				n := float64(b.N) * float64(samples)
				b.ReportMetric(float64(size)/float64(samples), "B/sample")
				b.ReportMetric(float64(encoding.Nanoseconds())/n, "encode-ns/sample")
				b.ReportMetric(float64(decoding.Nanoseconds())/n, "decode-ns/sample")
			})
		}
	}
}
