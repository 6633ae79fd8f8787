package loadgen

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const smallSeries = 250

// small is twelve minutes of a few pods, with everything that can happen to them.
func small(url string) Config {
	cfg := Default()
	cfg.World = World{Seed: 7, Series: smallSeries, Histograms: 30, Interval: 15 * time.Second, Churn: 5}
	cfg.URL = url + "/api/v1/write"
	cfg.Span = 12 * time.Minute
	cfg.Senders = 3
	cfg.Progress = 0
	return cfg
}

func runAndVerify(t *testing.T, cfg Config) (Report, VerifyReport) {
	t.Helper()
	g, err := New(cfg, nil)
	require.NoError(t, err)
	t.Cleanup(g.client.CloseIdleConnections)
	report, err := g.Run(t.Context())
	require.NoError(t, err)
	verified, err := g.Verify(t.Context())
	require.NoError(t, err)
	return report, verified
}

func TestEverythingSentIsFoundAgain(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"remote write 1.0":       func(*Config) {},
		"remote write 2.0":       func(c *Config) { c.Protocol = ProtocolV2 },
		"only histograms":        func(c *Config) { c.Histograms = c.Series },
		"several tenants":        func(c *Config) { c.Tenants = 2 },
		"small requests":         func(c *Config) { c.SamplesPerRequest = 7 },
		"more senders than pods": func(c *Config) { c.Senders = 50 },
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{}
			cfg := small(r.start(t))
			change(&cfg)
			report, verified := runAndVerify(t, cfg)

			require.Zero(t, report.Refused, report.FirstRefusal)
			require.Equal(t, int64(smallSeries*48), verified.Acknowledged)
			require.Equal(t, report.Acknowledged, verified.Acknowledged+verified.Ended, "the rest are stale markers")
			require.Positive(t, verified.Ended)
			require.Empty(t, verified.Examples)
			require.True(t, verified.Clean())
			require.Zero(t, verified.Extra)
		})
	}
}

func TestSeriesThatAreReplacedMayJustStop(t *testing.T) {
	r := &receiver{}
	cfg := small(r.start(t))
	cfg.Unmarked = true
	report, verified := runAndVerify(t, cfg)
	require.Equal(t, report.Acknowledged, verified.Acknowledged, "there are no stale markers")
	require.Zero(t, verified.Ended)
	require.True(t, verified.Clean())
}

func TestVerifyFindsALostSample(t *testing.T) {
	r := &receiver{}
	var dropped atomic.Bool
	r.tamper = func(_ labels.Labels, _ int64, v float64) (float64, bool) {
		return v, value.IsStaleNaN(v) || dropped.Swap(true)
	}
	_, verified := runAndVerify(t, small(r.start(t)))
	require.Equal(t, int64(1), verified.Lost)
	require.False(t, verified.Clean())
	require.Len(t, verified.Examples, 1)
	require.Contains(t, verified.Examples[0], "lost: the sample at ")
}

func TestVerifyFindsAChangedSample(t *testing.T) {
	r := &receiver{}
	var changed atomic.Bool
	r.tamper = func(_ labels.Labels, _ int64, v float64) (float64, bool) {
		if changed.Swap(true) {
			return v, true
		}
		return math.Nextafter(v, math.Inf(1)), true
	}
	_, verified := runAndVerify(t, small(r.start(t)))
	require.Equal(t, int64(1), verified.Changed)
	require.Zero(t, verified.Lost)
	require.False(t, verified.Clean())
}

func TestVerifyFindsAChangedHistogram(t *testing.T) {
	r := &receiver{}
	var changed atomic.Bool
	r.tamperHistogram = func(_ labels.Labels, _ int64, h *histogram.Histogram) (*histogram.Histogram, bool) {
		if value.IsStaleNaN(h.Sum) || changed.Swap(true) {
			return h, true
		}
		h = h.Copy()
		h.PositiveSpans[0].Offset++
		return h, true
	}
	_, verified := runAndVerify(t, small(r.start(t)))
	require.Equal(t, int64(1), verified.Changed)
	require.False(t, verified.Clean())
}

func TestVerifyFindsALostStaleMarker(t *testing.T) {
	r := &receiver{}
	var dropped atomic.Bool
	r.tamper = func(_ labels.Labels, _ int64, v float64) (float64, bool) {
		return v, !value.IsStaleNaN(v) || dropped.Swap(true)
	}
	_, verified := runAndVerify(t, small(r.start(t)))
	require.Equal(t, int64(1), verified.NotEnded)
	require.Zero(t, verified.Lost)
	require.False(t, verified.Clean())
	require.Contains(t, verified.Examples[0], "lost: the stale marker")
}

func TestVerifyFindsASampleThatWasNeverSent(t *testing.T) {
	r := &receiver{}
	var moved atomic.Int64
	r.tamper = func(l labels.Labels, ts int64, v float64) (float64, bool) {
		if moved.Add(1) == 1000 {
			app := r.db.Appender(context.Background())
			_, err := app.Append(0, l, ts-1, v)
			if err == nil {
				err = app.Commit()
			}
			return v, err == nil
		}
		return v, true
	}
	_, verified := runAndVerify(t, small(r.start(t)))
	require.Equal(t, int64(1), verified.Unexpected)
	require.Zero(t, verified.Lost)
	require.False(t, verified.Clean())
}

func TestVerifyFindsADoubledSample(t *testing.T) {
	r := &receiver{}
	var doubled atomic.Bool
	r.answer = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			recorder := httptest.NewRecorder()
			next.ServeHTTP(recorder, req)
			var answer struct {
				Status string `json:"status"`
				Data   struct {
					ResultType string `json:"resultType"`
					Result     []struct {
						Metric map[string]string `json:"metric"`
						Values []any             `json:"values,omitempty"`
						Others []any             `json:"histograms,omitempty"`
					} `json:"result"`
				} `json:"data"`
			}
			body := recorder.Body.Bytes()
			if json.Unmarshal(body, &answer) == nil && answer.Data.ResultType == "matrix" && !doubled.Swap(true) {
				for i, s := range answer.Data.Result {
					if len(s.Values) > 0 {
						answer.Data.Result[i].Values = append(s.Values, s.Values[len(s.Values)-1])
						break
					}
				}
				body, _ = json.Marshal(answer)
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(recorder.Code)
			_, _ = w.Write(body)
		})
	}
	_, verified := runAndVerify(t, small(r.start(t)))
	require.Equal(t, int64(1), verified.Doubled)
	require.False(t, verified.Clean())
}

func TestRequestsAreRetriedUntilTheyAreAcknowledged(t *testing.T) {
	r := &receiver{}
	var requests atomic.Int64
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		switch requests.Add(1) % 4 {
		case 1:
			http.Error(w, "later", http.StatusServiceUnavailable)
		case 2:
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return false
			}
			_ = conn.Close() // no answer at all
		default:
			return false
		}
		return true
	}
	cfg := small(r.start(t))
	cfg.Span = 5 * time.Minute
	report, verified := runAndVerify(t, cfg)
	require.Positive(t, report.Statuses[http.StatusServiceUnavailable])
	require.Positive(t, report.Statuses[0])
	require.Equal(t, report.Statuses[http.StatusServiceUnavailable]+report.Statuses[0], report.Retries)
	require.Equal(t, int64(smallSeries*20), verified.Acknowledged)
	require.True(t, verified.Clean(), verified.Examples)
}

func TestRetryAfterIsObeyed(t *testing.T) {
	r := &receiver{}
	var refused atomic.Int64
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if refused.CompareAndSwap(0, time.Now().UnixNano()) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		if req.Header.Get("Retry-Attempt") == "1" {
			refused.Store(time.Now().UnixNano() - refused.Load())
		}
		return false
	}
	cfg := small(r.start(t))
	cfg.Senders, cfg.Span = 1, time.Minute
	runAndVerify(t, cfg)
	require.GreaterOrEqual(t, time.Duration(refused.Load()), time.Second)
}

func TestRefusedSamplesNeedNotBeThere(t *testing.T) {
	r := &receiver{}
	var requests atomic.Int64
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if requests.Add(1)%3 == 0 {
			http.Error(w, "I do not want this", http.StatusBadRequest)
			return true
		}
		return false
	}
	cfg := small(r.start(t))
	cfg.SamplesPerRequest = 100
	cfg.Protocol = ProtocolV2
	report, verified := runAndVerify(t, cfg)
	require.Positive(t, report.Refused)
	require.Contains(t, report.FirstRefusal, "I do not want this")
	require.False(t, report.Clean())
	require.Equal(t, int64(smallSeries*48), verified.Acknowledged+report.Refused-(staleMarkers(t, cfg)-verified.Ended))
	require.True(t, verified.Clean(), verified.Examples)
}

// staleMarkers returns how many stale markers a run of cfg sends.
func staleMarkers(t *testing.T, cfg Config) int64 {
	t.Helper()
	g, err := New(cfg, nil)
	require.NoError(t, err)
	v := &verification{g: g, ticks: g.plan.ticks}
	var n int64
	for _, e := range v.endings() {
		n += int64(g.world.podSeries(e.pod))
	}
	return n
}

func TestASuccessThatClaimsTooLittleIsARefusal(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Prometheus-Remote-Write-Samples-Written", "1")
		w.WriteHeader(http.StatusNoContent)
	}))
	defer server.Close()
	cfg := small(server.URL)
	cfg.Protocol = ProtocolV2
	g, err := New(cfg, nil)
	require.NoError(t, err)
	defer g.client.CloseIdleConnections()
	report, err := g.Run(t.Context())
	require.NoError(t, err)
	require.Zero(t, report.Acknowledged)
	require.Contains(t, report.FirstRefusal, `X-Prometheus-Remote-Write-Samples-Written is "1" instead of`)
}

func TestACancelledRunKnowsWhatWasAcknowledged(t *testing.T) {
	r := &receiver{}
	ctx, cancel := context.WithCancel(t.Context())
	var requests atomic.Int64
	r.before = func(http.ResponseWriter, *http.Request) bool {
		if requests.Add(1) == 30 {
			cancel()
		}
		return false
	}
	cfg := small(r.start(t))
	cfg.SamplesPerRequest = 100
	cfg.Journal = filepath.Join(t.TempDir(), "journal")
	g, err := New(cfg, nil)
	require.NoError(t, err)
	defer g.client.CloseIdleConnections()
	report, err := g.Run(ctx)
	require.NoError(t, err)
	require.Positive(t, report.Acknowledged)
	require.Less(t, report.Acknowledged, int64(smallSeries*48))

	acked, err := ReadAcknowledged(cfg.Journal)
	require.NoError(t, err)
	require.Equal(t, g.Acknowledged(), acked)
	resumed, err := Resume(cfg, acked)
	require.NoError(t, err)
	defer resumed.client.CloseIdleConnections()
	verified, err := resumed.Verify(t.Context())
	require.NoError(t, err)
	require.True(t, verified.Clean(), verified.Examples)
	require.Equal(t, report.Acknowledged, verified.Acknowledged+verified.Ended)
}

func TestTwoOverlappingRunsDoNotDisturbEachOther(t *testing.T) {
	r := &receiver{}
	cfg := small(r.start(t))
	cfg.End = time.Now().Truncate(time.Minute)
	_, first := runAndVerify(t, cfg)
	require.True(t, first.Clean())
	cfg.End = cfg.End.Add(7 * time.Minute)
	report, second := runAndVerify(t, cfg)
	require.Zero(t, report.Refused, report.FirstRefusal)
	require.True(t, second.Clean(), second.Examples)
}

func TestALiveRunStampsSamplesWithTheTimeOfSending(t *testing.T) {
	r := &receiver{}
	cfg := small(r.start(t))
	cfg.Span, cfg.Duration, cfg.Interval, cfg.Churn = 0, 1500*time.Millisecond, time.Second, 0
	before := time.Now()
	report, verified := runAndVerify(t, cfg)
	require.Positive(t, report.Acknowledged)
	require.WithinDuration(t, before, report.From, 2*time.Second)
	require.Equal(t, report.Acknowledged, verified.Acknowledged)
	require.True(t, verified.Clean(), verified.Examples)
}

func TestRateBoundsARun(t *testing.T) {
	r := &receiver{}
	cfg := small(r.start(t))
	cfg.Span, cfg.SamplesPerRequest, cfg.Rate = time.Minute, 100, 2000
	report, _ := runAndVerify(t, cfg)
	require.Greater(t, report.Elapsed, 350*time.Millisecond) // 1,000 samples and a few stale markers
}

func TestMainReportsVerifiesAndChecksAgain(t *testing.T) {
	r := &receiver{}
	url := r.start(t)
	journal := filepath.Join(t.TempDir(), "journal")
	args := []string{
		"--url=" + url + "/api/v1/write", "--series=300", "--span=10m", "--histograms=0.1", "--churn=0.5",
		"--journal=" + journal, "--senders=2",
	}
	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, Main(t.Context(), append(args, "--verify", "--pid="+ownPID()), &stdout, &stderr), stderr.String())
	require.Contains(t, stdout.String(), "12000 acknowledged samples: 0 lost, 0 changed, 0 doubled")
	require.Contains(t, stdout.String(), "CPU s per million samples")
	require.Contains(t, stdout.String(), "bytes of anonymous memory per active series")

	stdout.Reset()
	require.Equal(t, 0, Main(t.Context(), append(args, "--verify-only"), &stdout, &stderr), stderr.String())
	require.Contains(t, stdout.String(), "12000 acknowledged samples: 0 lost")

	// Everything of another time is lost.
	stdout.Reset()
	args = []string{"--url=" + url + "/api/v1/write", "--series=300", "--span=10m", "--end=2020-01-01T00:00:00Z", "--verify-only"}
	require.Equal(t, 1, Main(t.Context(), args, &stdout, &stderr))
	require.Contains(t, stdout.String(), "12000 lost")
	require.Contains(t, stderr.String(), "what was read back is not what was acknowledged")
}

func TestMainVerifiesALiveRunThatIsInterrupted(t *testing.T) {
	r := &receiver{}
	ctx, interrupt := context.WithCancel(t.Context())
	var requests atomic.Int64
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		// A sender waits for its answer, so more requests than senders mean that one
		// has been acknowledged. The metadata do not count.
		if req.ContentLength > 3000 && requests.Add(1) > int64(Default().Senders) {
			interrupt()
		}
		return false
	}
	args := []string{"--url=" + r.start(t) + "/api/v1/write", "--series=1000", "--interval=1s", "--verify"}
	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, Main(ctx, args, &stdout, &stderr), stderr.String())
	require.Contains(t, stdout.String(), " 0 lost, 0 changed, 0 doubled")
	require.NotContains(t, stdout.String(), "verified      0 acknowledged")
}

func ownPID() string { return filepath.Base(must(os.Readlink("/proc/self"))) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMainExplainsWrongFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--unknown", "flag provided but not defined: -unknown"},
		{"http://x", `unexpected argument "http://x"`},
		{"--series=0", "--series: 0 is outside 1 to 1000000000"},
		{"--url=example", `--url: "example" is not a URL such as`},
		{"--rate=10", "--rate: without --span each series is sent once per --interval"},
		{"--histograms=x", `--histograms: "x" is neither`},
		{"--protocol=3", "--protocol: 3 is neither 1 nor 2"},
		{"--tenants=500", "--tenants: 500 is outside 0 to 137, one for each 73 series"},
		{"--verify-only", "--verify-only: needs --journal"},
		{"--pid=x", `--pid: "x" is not a process id`},
		{"--span=1d --end=yesterday", `--end: "yesterday" is neither RFC 3339 nor Unix seconds`},
		{"--interval=soon", `"soon" is not a duration`},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, 2, Main(t.Context(), strings.Fields(c.args), &stdout, &stderr))
			require.Contains(t, stderr.String(), c.want)
			require.Empty(t, stdout.String())
		})
	}
	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, Main(t.Context(), []string{"--help"}, &stdout, &stderr))
	require.Contains(t, stderr.String(), "hundredfold loadgen --url=")
	require.Contains(t, stderr.String(), "-samples-per-request")
}

func TestARunOfWhichNothingWasAcknowledgedIsNoSuccess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		cancel() // the user gives up
	}))
	defer server.Close()
	var stdout, stderr strings.Builder
	code := Main(ctx, []string{"--url=" + server.URL + "/api/v1/write", "--series=10", "--span=1m"}, &stdout, &stderr)
	require.Equal(t, exitFaulty, code)
	require.Contains(t, stderr.String(), "nothing was acknowledged")
}
