// Package loadgen plays a fleet of Prometheus servers that scrape Kubernetes and
// send what they scraped by remote write, and afterwards checks by PromQL that
// everything that was acknowledged can be read back.
//
// All that it sends is a pure function of the configuration: which series exist
// when (world.go), which values they have (value.go), which sender sends them in
// which order (schedule.go). So verification needs no memory of the samples. What
// it needs to know is how far each sender came and which of its requests were
// refused: a few numbers, the Acknowledged, which fit into a small file.
//
// Timestamps lie on a grid that does not depend on when a run began. Two runs of
// the same configuration that overlap in time therefore send the same samples,
// and neither spoils the verification of the other.
//
// The package measures receivers, so it spends as little as it can: label sets
// are copied from a few encoded pieces, buffers are used again, and there is no
// allocation per sample.
package loadgen

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Protocol is the version of the remote-write protocol.
type Protocol int

// The versions of the protocol.
const (
	ProtocolV1 Protocol = 1
	ProtocolV2 Protocol = 2
)

// Config says what to send and where. World makes the samples; the rest
// decides how they travel.
type Config struct {
	World

	// URL receives the remote write.
	URL string
	// QueryURL is where PromQL is answered, without /api/v1/query. Empty: URL
	// up to /api/v1/.
	QueryURL string
	// Span sends this much simulated time, which ends at End, as fast as Rate
	// allows. 0 sends live: each series once per interval, stamped with the
	// time at which it is sent.
	Span time.Duration
	// End is the end of Span; zero is the time of New.
	End time.Time
	// Duration bounds the run by the wall clock; 0 does not.
	Duration time.Duration
	// Rate bounds the samples per second of a run over a Span; 0 does not.
	Rate float64
	// Protocol is the version of remote write to speak.
	Protocol Protocol
	// Senders is how many requests are on their way at once. A series always
	// goes through the same sender.
	Senders int
	// SamplesPerRequest is how many samples a request carries at most.
	SamplesPerRequest int
	// Timeout bounds one attempt of a request.
	Timeout time.Duration
	// Unmarked has series that are replaced just stop, without the stale marker by which a
	// Prometheus ends those of a target that is gone.
	Unmarked bool
	// Processes are the receiver's, to account CPU time and memory of.
	Processes []int
	// Progress is how often a line about the run is logged; 0: never.
	Progress time.Duration
	// Journal is a file that is kept up to date with what has been acknowledged.
	Journal string
}

// World says which series exist and what values they have. Two equal Worlds are
// the same series with the same samples; another World shares no series with it.
type World struct {
	// Seed tells worlds apart that are otherwise equal.
	Seed uint64 `json:"seed"`
	// Series is how many series are active at any time, in all tenants together.
	Series int `json:"series"`
	// Histograms is how many of the series are native histograms.
	Histograms int `json:"histograms"`
	// Interval is the time from one sample of a series to the next. At least 1 s.
	Interval time.Duration `json:"interval"`
	// Churn is the share of the series that is replaced by others per hour.
	Churn float64 `json:"churn"`
	// Tenants is how many tenants there are; 0 sends no tenant header.
	Tenants int `json:"tenants"`
}

// Default returns the configuration of a run without any flags.
func Default() Config {
	return Config{
		World:             World{Seed: 1, Series: 10_000, Interval: 15 * time.Second},
		URL:               "http://127.0.0.1:9009/api/v1/write",
		Protocol:          ProtocolV1,
		Senders:           8,
		SamplesPerRequest: 2000,
		Timeout:           30 * time.Second,
		Progress:          5 * time.Second,
	}
}

// Validate reports all faults of c, each with the flag that sets it.
func (c Config) Validate() error {
	var errs []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(!isURL(c.URL), "--url: %q is not a URL such as http://127.0.0.1:9009/api/v1/write", c.URL)
	fault(c.QueryURL != "" && !isURL(c.QueryURL), "--query-url: %q is not a URL such as http://127.0.0.1:9009", c.QueryURL)
	errs = append(errs, c.World.Validate())
	fault(c.Span < 0, "--span: %s is negative", c.Span)
	fault(c.Span > 0 && c.Span < c.Interval, "--span: %s is shorter than the interval of %s", c.Span, c.Interval)
	fault(c.Duration < 0, "--duration: %s is negative", c.Duration)
	fault(c.Rate < 0 || math.IsNaN(c.Rate), "--rate: %v is not a rate", c.Rate)
	fault(c.Rate > 0 && c.Span == 0, "--rate: without --span each series is sent once per --interval; set that instead")
	fault(c.Protocol != ProtocolV1 && c.Protocol != ProtocolV2, "--protocol: %d is neither 1 nor 2", c.Protocol)
	fault(c.Senders < 1 || c.Senders > 1000, "--senders: %d is outside 1 to 1000", c.Senders)
	fault(c.SamplesPerRequest < 2 || c.SamplesPerRequest > 1_000_000, "--samples-per-request: %d is outside 2 to 1000000", c.SamplesPerRequest)
	fault(c.Timeout <= 0, "timeout: %s is not positive", c.Timeout)
	return errors.Join(errs...)
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Host != ""
}

// Validate reports all faults of w, each with the flag that sets it.
func (w World) Validate() error {
	var errs []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(w.Series < 1 || w.Series > 1_000_000_000, "--series: %d is outside 1 to 1000000000", w.Series)
	fault(w.Histograms < 0 || w.Histograms > w.Series, "--histograms: %d is outside 0 to the %d series", w.Histograms, w.Series)
	fault(w.Interval < time.Second || w.Interval%time.Millisecond != 0, "--interval: %s is below 1s or not whole milliseconds", w.Interval)
	fault(w.Churn < 0 || w.Churn > 10 || math.IsNaN(w.Churn), "--churn: %v is outside 0 to 10", w.Churn)
	fault(w.Tenants < 0 || w.Tenants > w.pods(), "--tenants: %d is outside 0 to %d, one for each %d series", w.Tenants, w.pods(), seriesPerPod)
	return errors.Join(errs...)
}

func (c Config) queryURL() string {
	if c.QueryURL != "" {
		return strings.TrimRight(c.QueryURL, "/")
	}
	base, _, _ := strings.Cut(c.URL, "/api/v1/")
	return base
}

// Generator sends and verifies one run. Run and Verify must not overlap; the
// other methods may be called at any time.
type Generator struct {
	cfg      Config
	logger   *slog.Logger
	world    *world
	plan     *plan
	client   *http.Client
	counters counters

	mu struct {
		sync.Mutex
		acked Acknowledged
	}
}

// New returns a Generator of cfg. A nil logger discards.
func New(cfg Config, logger *slog.Logger) (*Generator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.End.IsZero() {
		cfg.End = time.Now()
	}
	return newGenerator(cfg, logger, ticksOf(cfg)), nil
}

func newGenerator(cfg Config, logger *slog.Logger, ticks tickRange) *Generator {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	w := newWorld(cfg.World)
	g := &Generator{
		cfg:    cfg,
		logger: logger,
		world:  w,
		plan:   newPlan(w, cfg, ticks),
		client: newClient(cfg),
	}
	g.mu.acked = g.plan.nothing(cfg)
	return g
}

func newClient(cfg Config) *http.Client {
	connections := max(cfg.Senders, runtime.GOMAXPROCS(0))
	return &http.Client{
		Timeout: cfg.Timeout,
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			MaxIdleConns:        connections,
			MaxIdleConnsPerHost: connections,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
			ForceAttemptHTTP2:   false,
			WriteBufferSize:     64 << 10,
		},
		// A redirected POST would arrive as a GET; the status says more.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Acknowledged returns what the receiver has acknowledged so far.
func (g *Generator) Acknowledged() Acknowledged {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.acked.clone()
}

// tenantHeader names the header that selects the tenant.
const tenantHeader = tenant.Header
