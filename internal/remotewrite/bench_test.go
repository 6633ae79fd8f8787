package remotewrite

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

const benchSeries = 2000

func BenchmarkDecode(b *testing.B) {
	for _, v := range []Version{V1, V2} {
		b.Run("v"+v.String(), func(b *testing.B) {
			data := encode(b, v, fleet(benchSeries))
			d := NewDecoder()
			var batch write.Batch
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				_, err := d.Decode(v, data, &batch)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchSeries, "ns/sample")
		})
	}
}
