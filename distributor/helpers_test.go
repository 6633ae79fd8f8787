package distributor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/remotewrite/remotewritetest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const now = int64(1_700_000_000_000)

type point struct {
	t, st int64
	bits  uint64
}

// memory is an Ingester that keeps what it is pushed. It rejects series that do
// not resolve and whatever judge says, as the real one does.
type memory struct {
	// judge, if set, rejects samples.
	judge func(ls labels.Labels, s write.Sample) *write.SeriesError
	// err, if set, is what becomes of every push.
	err error
	// enter, if set, is called at the start of every push.
	enter func()

	mu         sync.Mutex
	tenants    []tenant.ID
	points     map[string][]point
	histograms map[string][]write.Histogram
	exemplars  map[string]int
	metadata   []write.Metadata
}

func newMemory() *memory {
	return &memory{points: map[string][]point{}, histograms: map[string][]write.Histogram{}, exemplars: map[string]int{}}
}

func (m *memory) Push(_ context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	if m.enter != nil {
		m.enter()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return write.Result{}, m.err
	}
	m.tenants = append(m.tenants, id)
	for _, md := range b.Metadata {
		md.Metric, md.Help, md.Unit = strings.Clone(md.Metric), strings.Clone(md.Help), strings.Clone(md.Unit)
		m.metadata = append(m.metadata, md)
	}
	var result write.Result
	scratch := labels.NewScratchBuilder(0)
	for i, s := range b.Series {
		ls, _, err := b.Resolve(i, tenant.DefaultLimits(), &scratch, write.NewHasher())
		if err != nil {
			var fault *write.SeriesError
			errors.As(err, &fault)
			result.Reject(fault, int(s.Samples.Len+s.Histograms.Len+s.Exemplars.Len))
			continue
		}
		key := ls.String()
		for _, x := range b.Samples[s.Samples.Off:s.Samples.End()] {
			if m.judge != nil {
				if fault := m.judge(ls, x); fault != nil {
					result.Reject(fault, 1)
					continue
				}
			}
			m.points[key] = append(m.points[key], point{t: x.T, st: x.ST, bits: math.Float64bits(x.V)})
			result.Written.Samples++
		}
		for _, x := range b.Histograms[s.Histograms.Off:s.Histograms.End()] {
			if (x.Int != nil && x.Int.Validate() != nil) || (x.Float != nil && x.Float.Validate() != nil) {
				result.Reject(&write.SeriesError{Reason: write.ReasonInvalidHistogram, Detail: "it does not add up"}, 1)
				continue
			}
			m.histograms[key] = append(m.histograms[key], x)
			result.Written.Histograms++
		}
		m.exemplars[key] += int(s.Exemplars.Len)
		result.Written.Exemplars += int(s.Exemplars.Len)
	}
	return result, nil
}

// series returns the series that have float samples, sorted.
func (m *memory) series() []string {
	var names []string
	for name := range m.points {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func newDistributor(t testing.TB, ing Ingester, change ...func(*Config)) *Distributor {
	t.Helper()
	cfg := Default()
	for _, f := range change {
		f(&cfg)
	}
	d, err := New(cfg, ing, nil, prometheus.NewRegistry())
	require.NoError(t, err)
	return d
}

// request is a POST of a body that is no snappy yet, by tenant "team".
type request struct {
	contentType string
	header      http.Header
	body        []byte
	raw         bool // body is sent as it is
	method      string
}

func (r request) send(t testing.TB, h http.Handler) *httptest.ResponseRecorder {
	t.Helper()
	body, method := r.body, http.MethodPost
	if !r.raw {
		body = snappy.Encode(nil, body)
	}
	if r.method != "" {
		method = r.method
	}
	req := httptest.NewRequest(method, "/api/v1/write", bytes.NewReader(body))
	for k, vs := range r.header {
		req.Header[k] = vs
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req.WithContext(tenant.NewContext(req.Context(), "team")))
	return w
}

func encode(t testing.TB, v remotewrite.Version, r *remotewritetest.Request) []byte {
	t.Helper()
	if v == remotewrite.V2 {
		return remotewritetest.EncodeV2(t, r)
	}
	return remotewritetest.EncodeV1(t, r)
}

// sendWrite sends r by version v.
func sendWrite(t testing.TB, d *Distributor, v remotewrite.Version, r *remotewritetest.Request) *httptest.ResponseRecorder {
	t.Helper()
	return request{contentType: v.ContentType(), body: encode(t, v, r)}.send(t, d.WriteHandler())
}

func up(values ...float64) *remotewritetest.Request {
	s := remotewritetest.TimeSeries{Labels: labels.FromStrings("__name__", "up", "job", "node")}
	for i, v := range values {
		s.Samples = append(s.Samples, write.Sample{T: now + int64(i)*15_000, V: v})
	}
	return &remotewritetest.Request{Series: []remotewritetest.TimeSeries{s}}
}

// written returns the three headers of 2.0, "" if they are missing.
func written(w *httptest.ResponseRecorder) string {
	var all []string
	for _, kind := range []string{"Samples", "Histograms", "Exemplars"} {
		all = append(all, strings.Join(w.Header().Values("X-Prometheus-Remote-Write-"+kind+"-Written"), "|"))
	}
	return strings.Trim(strings.Join(all, " "), " ")
}

// chunked hides the length of a body.
type chunked struct{ io.Reader }

func tenantContext(ctx context.Context) context.Context { return tenant.NewContext(ctx, "team") }
