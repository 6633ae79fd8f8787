package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// logs is a slog.Handler that hands out the messages.
type logs struct{ records chan slog.Record }

func newLogs() logs { return logs{records: make(chan slog.Record, 100)} }

func (l logs) Enabled(context.Context, slog.Level) bool { return true }
func (l logs) Handle(_ context.Context, r slog.Record) error {
	l.records <- r
	return nil
}
func (l logs) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l logs) WithGroup(string) slog.Handler      { return l }

func reloadable(t *testing.T, text string) (*reloader, logs, string) {
	t.Helper()
	path := file(t, text)
	opts := options{configFile: path, roles: allRoles()}
	c, err := opts.load()
	require.NoError(t, err)
	l := newLogs()
	return newReloader(c, opts.load, slog.New(l), nil), l, path
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestReloadBringsLimitsIntoForce(t *testing.T) {
	r, _, path := reloadable(t, "tenants: {a: {max_series: 1}}\n")
	require.Equal(t, 1, r.limits.of("a").MaxSeries)
	rewrite(t, path, "limits: {max_series: 5}\ntenants: {b: {max_series: 2}}\n")
	require.NoError(t, r.reload())
	require.Equal(t, 5, r.limits.of("a").MaxSeries)
	require.Equal(t, 2, r.limits.of("b").MaxSeries)
	require.Equal(t, 5, r.current().Limits.MaxSeries)
}

func TestInvalidFileKeepsTheLimitsAndSaysSo(t *testing.T) {
	r, _, path := reloadable(t, "limits: {max_series: 5}\n")
	require.EqualValues(t, 1, testutil.ToFloat64(r.metrics.successful))
	for _, text := range []string{"limits: {max_series: -1}", "limits: {max_sries: 1}", "{"} {
		rewrite(t, path, text)
		require.Error(t, r.reload())
		require.Equal(t, 5, r.limits.of("a").MaxSeries)
		require.Zero(t, testutil.ToFloat64(r.metrics.successful))
	}
	rewrite(t, path, "limits: {max_series: 6}\n")
	require.NoError(t, r.reload())
	require.EqualValues(t, 1, testutil.ToFloat64(r.metrics.successful))
}

func TestReloadNamesWhatNeedsARestartAndLeavesIt(t *testing.T) {
	r, l, path := reloadable(t, "limits: {max_series: 5}\n")
	rewrite(t, path, "limits: {max_series: 6}\nmultitenancy: {enabled: true}\nquerier: {refresh_interval: 1m}\n")
	require.NoError(t, r.reload())
	<-l.records // reloaded
	warning := <-l.records
	require.Equal(t, slog.LevelWarn, warning.Level)
	warning.Attrs(func(a slog.Attr) bool {
		require.Equal(t, "multitenancy.enabled, querier.refresh_interval", a.Value.String())
		return true
	})
	require.False(t, r.current().Multitenancy.Enabled)
	require.Equal(t, 6, r.current().Limits.MaxSeries)
}

func TestReloadOverHTTP(t *testing.T) {
	r, _, path := reloadable(t, "")
	serve := func(method string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(method, "/-/reload", nil))
		return w
	}
	require.Equal(t, http.StatusMethodNotAllowed, serve("GET").Code)
	rewrite(t, path, "limits: {max_series: 9}")
	require.Equal(t, http.StatusOK, serve("POST").Code)
	require.Equal(t, 9, r.limits.of("a").MaxSeries)
	rewrite(t, path, "limit: {max_series: 9}")
	w := serve("POST")
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Contains(t, w.Body.String(), "unknown key limit")
}

func TestReloadOnSIGHUP(t *testing.T) {
	// Without this the first signal could come before Run listens, and end the test.
	own := make(chan os.Signal, 1)
	signal.Notify(own, syscall.SIGHUP)
	defer signal.Stop(own)

	r, l, path := reloadable(t, "")
	s := newStarter(t.Context())
	c := s.start("reload", r.Run)
	rewrite(t, path, "limits: {max_series: 9}")
	for heard := false; !heard; {
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		<-own
		select {
		case <-l.records:
			heard = true
		default:
		}
	}
	require.Equal(t, 9, r.limits.of("a").MaxSeries)
	require.NoError(t, c.stop())
}
