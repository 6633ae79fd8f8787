package querier

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	alice tenant.ID = "alice"
	bob   tenant.ID = "bob"
)

// rig is a Querier over a real bucket in a directory and real TSDBs.
type rig struct {
	*Querier
	t        testing.TB
	ingester *edge
	bucket   *blocktest.Faulty // fails on demand; blocks are downloaded from it
	store    *blockstore.Store
	limits   *tenant.Limits
	registry *prometheus.Registry
}

type rigOption struct {
	edge    Edge            // nil: the ingester of the rig, directly
	bucket  objstore.Bucket // nil: one of files
	inPlace bool            // blocks are read where they are in the bucket
	dir     string
}

// newRig returns a Querier that does not refresh its view by itself.
func newRig(t testing.TB, opt rigOption) *rig {
	t.Helper()
	files, err := blockstore.OpenFilesystem(t.TempDir())
	require.NoError(t, err)
	limits := tenant.DefaultLimits()
	if opt.bucket == nil {
		opt.bucket = files
	}
	r := &rig{t: t, ingester: newEdge(t), bucket: blocktest.NewFaulty(opt.bucket), limits: &limits, registry: prometheus.NewPedanticRegistry()}
	r.store = blockstore.New(r.bucket, nil)
	if opt.inPlace {
		r.store = blockstore.New(files, nil)
	}
	cfg := Default()
	cfg.Dir = opt.dir
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "querier")
	}
	if opt.edge == nil {
		opt.edge = Direct(r.ingester)
	}
	r.Querier, err = New(cfg, opt.edge, r.store, func(tenant.ID) tenant.Limits { return *r.limits }, slog.New(slog.DiscardHandler), r.registry)
	require.NoError(t, err)
	return r
}

// refresh lists the bucket, as Run does.
func (r *rig) refresh() {
	r.t.Helper()
	require.NoError(r.t, r.views.refresh(context.Background()))
	require.NoError(r.t, r.trimBlocks(r.views.current.Load()))
}

// upload puts a block of these series into the bucket.
func (r *rig) upload(id tenant.ID, mint, maxt int64, series ...blocktest.Series) ulid.ULID {
	r.t.Helper()
	return r.uploadDir(id, blocktest.Write(r.t, r.t.TempDir(), mint, maxt, series...))
}

func (r *rig) uploadDir(id tenant.ID, dir string) ulid.ULID {
	r.t.Helper()
	require.NoError(r.t, r.store.Upload(context.Background(), id, dir))
	return ulid.MustParse(filepath.Base(dir))
}

func as(id tenant.ID) context.Context { return tenant.NewContext(context.Background(), id) }

// response is an answer of the HTTP API.
type response struct {
	Code      int
	Header    http.Header
	Body      string
	Status    string          `json:"status"`
	Data      json.RawMessage `json:"data"`
	ErrorType string          `json:"errorType"`
	Error     string          `json:"error"`
	Warnings  []string        `json:"warnings"`
	Infos     []string        `json:"infos"`
}

// do serves a request of a tenant; "" is none.
func (r *rig) do(id tenant.ID, req *http.Request) response {
	r.t.Helper()
	if id != "" {
		req = req.WithContext(tenant.NewContext(req.Context(), id))
	}
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, req)
	got := response{Code: rec.Code, Header: rec.Header(), Body: rec.Body.String()}
	if strings.HasPrefix(rec.Header().Get("Content-Type"), "application/json") && rec.Header().Get("Content-Encoding") == "" {
		require.NoError(r.t, json.Unmarshal(rec.Body.Bytes(), &got), "body: %s", got.Body)
	}
	return got
}

func (r *rig) get(id tenant.ID, path string) response {
	r.t.Helper()
	return r.do(id, httptest.NewRequest(http.MethodGet, path, http.NoBody))
}

func (r *rig) post(id tenant.ID, path string, form url.Values) response {
	r.t.Helper()
	req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r.do(id, req)
}

// count returns how many samples of a metric the storage has from mint to maxt.
func count(t testing.TB, ctx context.Context, q storage.Queryable, metric string, mint, maxt int64) (int, error) {
	t.Helper()
	querier, err := q.Querier(mint, maxt)
	require.NoError(t, err)
	defer func() { require.NoError(t, querier.Close()) }()
	return countIn(ctx, querier, metric)
}

func countIn(ctx context.Context, querier storage.Querier, metric string) (n int, err error) {
	set := querier.Select(ctx, true, nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, metric))
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() != 0 {
			n++
		}
		if it.Err() != nil {
			return n, it.Err()
		}
	}
	return n, set.Err()
}

// running runs the Querier until the test ends.
func (r *rig) running() (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(r.t, <-done)
	}
}

const (
	minute = int64(time.Minute / time.Millisecond)
	hour   = 60 * minute
)

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(b)
}
