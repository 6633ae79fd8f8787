// Package faults runs a whole cluster of real processes under load, breaks parts of
// it, and checks that no acknowledged sample is lost or changed and that queries are
// complete throughout.
package faults

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore/s3test"
	"github.com/hundredfold/hundredfold/internal/loadgen"
	"github.com/hundredfold/hundredfold/internal/testcluster"
	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

func TestMain(m *testing.M) { os.Exit(testcluster.Main(m)) }

const (
	readyTimeout = 2 * time.Minute
	// settled is long enough for the members to notice what has changed.
	settled = 2 * time.Second
)

var errNotYet = errors.New("this has not happened yet")

// bed is a cluster under test.
type bed struct {
	*fleet.Fleet
	t     testing.TB
	store *objectStore
	url   string // of the front
}

// options change what a bed is made of.
type options struct {
	zones      []string
	yaml       string // more configuration
	host       func(name, zone string) fleet.Host
	args       []string
	compactors int
	store      string // the address of the object store; "": loopback
}

// newBed starts a cluster with one ingester in each zone.
func newBed(t testing.TB, o options) *bed {
	t.Helper()
	if o.store == "" {
		o.store = "127.0.0.1"
	}
	store := newObjectStore(t, s3test.Start(t), o.store)
	f, err := fleet.New(fleet.Config{
		Dir:    t.TempDir(),
		Binary: testcluster.Binary(t),
		YAML: fmt.Sprintf(`self_monitoring: {enabled: false}
bucket:
  type: s3
  s3: {endpoint: %q, bucket: %s, access_key: %s, secret_key: %s, region: %s, insecure: true}
querier: {refresh_interval: 5s}
compactor: {interval: 5s}
%s`, store.address, store.cfg.S3.Bucket, store.cfg.S3.AccessKey, string(store.cfg.S3.SecretKey), store.cfg.S3.Region, o.yaml),
		Args: o.args, Zones: o.zones, Distributors: 2, Queriers: 2, Compactors: o.compactors, Host: o.host,
	})
	require.NoError(t, err)
	b := &bed{Fleet: f, t: t, store: store}
	t.Cleanup(func() {
		err := f.Close()
		if t.Failed() {
			b.showLogs()
		}
		require.NoError(t, err)
	})
	front := httptest.NewServer(fleet.NewFront(f))
	t.Cleanup(front.Close)
	b.url = front.URL
	require.NoError(t, f.Start(b.soon()))
	return b
}

// soon returns a context for what should not take long.
func (b *bed) soon() context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), readyTimeout)
	b.t.Cleanup(cancel)
	return ctx
}

// showLogs shows the end of each member's log.
func (b *bed) showLogs() {
	const most = 4 << 10
	for _, m := range b.Members("") {
		text, err := os.ReadFile(m.LogFile)
		if err != nil {
			text = []byte(err.Error())
		}
		b.t.Logf("the end of the log of %s:\n%s", m.Name, text[max(0, len(text)-most):])
	}
}

func (b *bed) member(name string) *fleet.Member {
	b.t.Helper()
	m, err := b.Member(name)
	require.NoError(b.t, err)
	return m
}

// kill kills members at once.
func (b *bed) kill(members ...*fleet.Member) {
	b.t.Helper()
	for _, m := range members {
		require.NoError(b.t, m.Kill(), m.Name)
	}
}

// restart starts members that were ended, and waits until they are ready.
func (b *bed) restart(members ...*fleet.Member) {
	b.t.Helper()
	for _, m := range members {
		require.NoError(b.t, m.Start(), m.Name)
	}
	for _, m := range members {
		require.NoError(b.t, m.AwaitReady(b.soon()))
	}
}

// load is traffic that goes on while things break.
type load struct {
	*loadgen.Generator
	t       testing.TB
	stop    context.CancelFunc
	running errgroup.Group
}

// startLoad sends samples of the last days, as a fleet of Prometheus servers would,
// until stopped.
func startLoad(t testing.TB, url string, change func(*loadgen.Config)) *load {
	t.Helper()
	cfg := loadgen.Default()
	cfg.URL = url + "/api/v1/write"
	cfg.World = loadgen.World{Seed: 7, Series: 600, Histograms: 40, Interval: 15 * time.Second}
	cfg.Span = 21 * 24 * time.Hour // more than there is time for
	cfg.Rate = 15_000
	cfg.Senders, cfg.SamplesPerRequest = 4, 300
	cfg.Progress = 0
	if change != nil {
		change(&cfg)
	}
	g, err := loadgen.New(cfg, nil)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	l := &load{Generator: g, t: t, stop: stop}
	l.running.Go(func() error {
		_, err := g.Run(ctx)
		return err
	})
	t.Cleanup(stop)
	return l
}

// goesOn returns when samples were acknowledged for a while from now on.
func (l *load) goesOn(d time.Duration) {
	l.t.Helper()
	before, started := l.Progress().Acknowledged, time.Now()
	testcluster.Eventually(l.t, time.Minute, func(context.Context) error {
		if l.Progress().Acknowledged == before || time.Since(started) < d {
			return fmt.Errorf("%w: samples acknowledged since, and %s gone by", errNotYet, d)
		}
		return nil
	})
}

// verified stops the load and reads everything back that was acknowledged.
func (l *load) verified() {
	l.t.Helper()
	l.stop()
	require.NoError(l.t, l.running.Wait())
	report, err := l.Verify(l.t.Context())
	require.NoError(l.t, err)
	require.Truef(l.t, report.Clean(), "%+v", report)
	require.Positive(l.t, report.Acknowledged)
	require.Zero(l.t, l.Progress().Refused)
	l.t.Logf("%d samples acknowledged, %d requests repeated", report.Acknowledged, l.Progress().Retries)
}

// watch asks the same questions about acknowledged samples again and again. The
// answers must never change.
type watch struct {
	t    testing.TB
	api  v1.API
	at   time.Time
	want map[string]string // answers, by query

	mu     sync.Mutex
	paused bool
	faults []string
	asked  int
}

// watchedTicks is how many samples of each series are watched.
const watchedTicks = 40

// startWatch watches the first samples of l until the test ends.
func startWatch(t testing.TB, url string, l *load) *watch {
	t.Helper()
	client, err := api.NewClient(api.Config{Address: url, Client: &http.Client{Timeout: 30 * time.Second}})
	require.NoError(t, err)
	w := &watch{t: t, api: v1.NewAPI(client), want: map[string]string{}}
	interval := l.Acknowledged().World.Interval
	last := l.Acknowledged().FirstTick + watchedTicks
	w.at = time.UnixMilli(last * interval.Milliseconds())
	testcluster.Eventually(t, time.Minute, func(context.Context) error {
		for _, sender := range l.Acknowledged().Sent {
			if sender.Before.Tick <= last {
				return errNotYet
			}
		}
		return nil
	})
	for _, query := range []string{
		`count({__name__!=""})`,
		fmt.Sprintf(`{__name__!=""}[%s]`, model.Duration(watchedTicks*interval)),
	} {
		answer, err := w.ask(t.Context(), query)
		require.NoError(t, err, query)
		w.want[query] = answer
	}
	require.NotEmpty(t, w.want[`count({__name__!=""})`])
	ctx, stop := context.WithCancel(t.Context())
	var running errgroup.Group
	running.Go(func() error { w.run(ctx); return nil })
	t.Cleanup(func() {
		stop()
		_ = running.Wait() // it returns no error
	})
	return w
}

func (w *watch) run(ctx context.Context) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		for query, want := range w.want {
			answer, err := w.ask(ctx, query)
			if ctx.Err() != nil {
				return
			}
			w.note(query, answer, want, err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *watch) note(query, answer, want string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.paused {
		return
	}
	w.asked++
	switch {
	case err != nil:
		w.faults = append(w.faults, fmt.Sprintf("%s: %s failed: %v", time.Now().Format(time.TimeOnly), query, err))
	case answer != want:
		w.faults = append(w.faults, fmt.Sprintf("%s: %s is %s and was %s", time.Now().Format(time.TimeOnly), query, answer, want))
	}
}

func (w *watch) ask(ctx context.Context, query string) (string, error) {
	value, warnings, err := w.query(ctx, query)
	if err == nil && len(warnings) > 0 {
		err = fmt.Errorf("the answer has warnings: %v", warnings)
	}
	if err != nil {
		return "", err
	}
	if matrix, ok := value.(model.Matrix); ok {
		return summary(matrix), nil
	}
	return fmt.Sprint(value), nil
}

// summary is equal for equal samples and says how many there are.
func summary(matrix model.Matrix) string {
	sum, samples := fnv.New64a(), 0
	slices.SortFunc(matrix, func(a, b *model.SampleStream) int { return strings.Compare(a.Metric.String(), b.Metric.String()) })
	for _, series := range matrix {
		samples += len(series.Values) + len(series.Histograms)
		fmt.Fprint(sum, series.Metric, series.Values, series.Histograms)
	}
	return fmt.Sprintf("%d samples of %d series: %x", samples, len(matrix), sum.Sum64())
}

func (w *watch) query(ctx context.Context, query string) (model.Value, v1.Warnings, error) {
	value, warnings, _, err := w.api.Query(ctx, query, w.at)
	return value, warnings, err
}

// clean requires that all answers so far were right, and that there were some.
func (w *watch) clean() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Emptyf(w.t, w.faults, "%d of %d answers were wrong:\n%s", len(w.faults), w.asked, strings.Join(w.faults[:min(5, len(w.faults))], "\n"))
	require.Positive(w.t, w.asked)
	w.asked = 0
}

// during does something while the answers do not count, and waits until they are
// right again.
func (w *watch) during(f func()) {
	w.t.Helper()
	w.pause(true)
	f()
	testcluster.Eventually(w.t, readyTimeout, func(ctx context.Context) error {
		for query, want := range w.want {
			answer, err := w.ask(ctx, query)
			if err != nil {
				return err
			}
			if answer != want {
				return fmt.Errorf("%s is %s and was %s", query, answer, want)
			}
		}
		return nil
	})
	w.pause(false)
}

func (w *watch) pause(paused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = paused
}
