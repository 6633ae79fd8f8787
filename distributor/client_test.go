package distributor

import (
	"context"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/golang/snappy"
	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// Prometheus's own client must draw the right conclusions from the answers.
func TestPrometheusUnderstandsTheAnswers(t *testing.T) {
	m := newMemory()
	m.judge = func(_ labels.Labels, s write.Sample) *write.SeriesError {
		switch s.V {
		case 13:
			return &write.SeriesError{Reason: write.ReasonTooOld}
		case 14:
			return &write.SeriesError{Reason: write.ReasonInstanceSeriesLimit}
		}
		return nil
	}
	handler := tenant.Middleware(false, nil, newDistributor(t, m).WriteHandler())
	server := httptest.NewServer(handler)
	defer server.Close()
	address, err := url.Parse(server.URL)
	require.NoError(t, err)

	for _, v := range []remotewrite.Version{remotewrite.V1, remotewrite.V2} {
		message := remoteapi.WriteV1MessageType
		if v == remotewrite.V2 {
			message = remoteapi.WriteV2MessageType
		}
		client, err := remote.NewWriteClient("test", &remote.ClientConfig{
			URL: &config.URL{URL: address}, Timeout: model.Duration(10 * time.Second), WriteProtoMsg: message,
			HTTPClientConfig: config.HTTPClientConfig{},
		})
		require.NoError(t, err)
		store := func(values ...float64) (remote.WriteResponseStats, error) {
			return client.Store(context.Background(), snappy.Encode(nil, encode(t, v, up(values...))), 0)
		}

		stats, err := store(1, 2, 3)
		require.NoError(t, err)
		require.Equal(t, v == remotewrite.V2, stats.Confirmed)
		if v == remotewrite.V2 {
			require.Equal(t, 3, stats.Samples)
		}

		stats, err = store(1, 13)
		require.ErrorContains(t, err, "sample_too_old")
		require.NotErrorAs(t, err, &remote.RecoverableError{}, "it must not be sent again")
		if v == remotewrite.V2 {
			require.Equal(t, 1, stats.Samples)
		}

		_, err = store(1, 14)
		require.ErrorAs(t, err, &remote.RecoverableError{}, "it must be sent again")
		client.(*remote.Client).Client.CloseIdleConnections()
	}
}
