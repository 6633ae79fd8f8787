package loadgen

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	v1 "github.com/prometheus/prometheus/web/api/v1"
	"github.com/stretchr/testify/require"
)

// receiver is Prometheus's own receiving and query API over its own TSDB.
type receiver struct {
	db *tsdb.DB
	// tamper may change a float on its way in; false drops it. Nil: no change.
	tamper func(l labels.Labels, t int64, v float64) (float64, bool)
	// tamperHistogram is the same for histograms.
	tamperHistogram func(l labels.Labels, t int64, h *histogram.Histogram) (*histogram.Histogram, bool)
	// before may answer a write itself; it then returns true.
	before func(http.ResponseWriter, *http.Request) bool
	// answer wraps the query API.
	answer func(http.Handler) http.Handler
}

// start serves r and returns its address.
func (r *receiver) start(t *testing.T) string {
	t.Helper()
	options := tsdb.DefaultOptions()
	options.OutOfOrderTimeWindow = time.Hour.Milliseconds()
	db, err := tsdb.Open(t.TempDir(), nil, prometheus.NewRegistry(), options, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	r.db = db

	logger := promslog.NewNopLogger()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 50_000_000, Timeout: time.Minute})
	t.Cleanup(func() { require.NoError(t, engine.Close()) })
	api := v1.NewAPI(engine, db, nil, nil, db, nil, nil, nil, func() config.Config { return config.Config{} }, nil,
		v1.GlobalURLOptions{}, func(f http.HandlerFunc) http.HandlerFunc { return f }, nil, "", false, false, 0, logger, nil,
		0, 1, 0, false, nil, nil, nil, nil, nil, prometheus.NewRegistry(), prometheus.NewRegistry(), nil,
		false, nil, false, false, false, false, 5*time.Minute, false, false, nil, nil, v1.OpenAPIOptions{}, nil)
	router := route.New()
	api.Register(router)
	write := remote.NewWriteHandler(logger, prometheus.NewRegistry(), r,
		remoteapi.MessageTypes{remoteapi.WriteV1MessageType, remoteapi.WriteV2MessageType}, false, false, false)

	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/write", func(w http.ResponseWriter, req *http.Request) {
		if r.before == nil || !r.before(w, req) {
			write.ServeHTTP(w, req)
		}
	})
	query := http.StripPrefix("/api/v1", router)
	if r.answer != nil {
		query = r.answer(query)
	}
	mux.Handle("/api/v1/", query)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// Appender implements storage.Appendable.
func (r *receiver) Appender(ctx context.Context) storage.Appender {
	return &tamperingAppender{Appender: r.db.Appender(ctx), r: r}
}

type tamperingAppender struct {
	storage.Appender
	r *receiver
}

func (a *tamperingAppender) Append(ref storage.SeriesRef, l labels.Labels, t int64, v float64) (storage.SeriesRef, error) {
	if a.r.tamper != nil {
		var keep bool
		if v, keep = a.r.tamper(l, t, v); !keep {
			return ref, nil
		}
	}
	return a.Appender.Append(ref, l, t, v)
}

func (a *tamperingAppender) AppendHistogram(ref storage.SeriesRef, l labels.Labels, t int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (storage.SeriesRef, error) {
	if a.r.tamperHistogram != nil {
		var keep bool
		if h, keep = a.r.tamperHistogram(l, t, h); !keep {
			return ref, nil
		}
	}
	return a.Appender.AppendHistogram(ref, l, t, h, fh)
}
