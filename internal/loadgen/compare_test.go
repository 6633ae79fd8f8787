package loadgen

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ownTarget returns a target whose process is this one.
func ownTarget(t *testing.T, name, url string) Target {
	t.Helper()
	pid, err := parsePID(ownPID())
	require.NoError(t, err)
	return Target{Name: name, URL: url + "/api/v1/write", Processes: []int{pid}}
}

func (t Target) flag() string { return fmt.Sprintf("--target=%s,%s,%d", t.Name, t.URL, t.Processes[0]) }

func TestEachReceiverOfAComparisonGetsTheSameStreamOnce(t *testing.T) {
	urls := map[string]string{"one": (&receiver{}).start(t), "two": (&receiver{}).start(t)}
	args := []string{"--series=300", "--churn=0.5", "--end=2026-01-01T00:00:00Z", "--senders=2"}
	var stdout, stderr bytes.Buffer
	code := MainCompare(t.Context(), append(args, "--span=10m", "--rounds=2", "--settle=0s", "--reverse",
		ownTarget(t, "one", urls["one"]).flag(), ownTarget(t, "two", urls["two"]).flag()), &stdout, &stderr)
	require.Equal(t, exitOK, code, stderr.String())
	require.Regexp(t, `(?s)1 +two .*1 +one .*2 +two .*2 +one .*median +two .*median +one `, stdout.String())

	for name, url := range urls {
		stdout.Reset()
		code := Main(t.Context(), append(args, "--span=20m", "--verify-only", "--url="+url+"/api/v1/write"), &stdout, &stderr)
		require.Equal(t, exitOK, code, "%s: %s %s", name, stdout.String(), stderr.String())
		require.Contains(t, stdout.String(), "24000 acknowledged samples: 0 lost, 0 changed, 0 doubled")
	}
}

func TestWorkThatAReceiverPutsOffIsCounted(t *testing.T) {
	target := ownTarget(t, "late", (&receiver{}).start(t))
	c := Comparison{Stream: Default(), Targets: []Target{target}, Rounds: 1, Settle: 300 * time.Millisecond}
	c.Stream.Series, c.Stream.Span = 100, 5*time.Minute
	c.Stream.Progress = 0
	var stop atomic.Bool
	var work atomic.Int64
	done := make(chan struct{})
	logger := slog.New(signal{Handler: slog.DiscardHandler, on: "sending", do: func() {
		go func() { // this process, which is the receiver, works until the end
			defer close(done)
			for !stop.Load() {
				work.Add(1)
			}
		}()
	}})
	measured, err := c.Run(t.Context(), logger)
	stop.Store(true)
	<-done
	require.NoError(t, err)
	require.Len(t, measured, 1)
	require.Greater(t, measured[0].Settled.CPU-measured[0].Report.Receiver.CPU, 100*time.Millisecond)
}

// signal calls do when the message is logged.
type signal struct {
	slog.Handler
	on string
	do func()
}

func (s signal) Enabled(context.Context, slog.Level) bool { return true }

func (s signal) WithAttrs([]slog.Attr) slog.Handler { return s.Handler }

func (s signal) Handle(_ context.Context, r slog.Record) error {
	if r.Message == s.on {
		s.do()
	}
	return nil
}

func TestMediansAreOfEachColumn(t *testing.T) {
	self := func(m Measurement) float64 { return m.Report.CPU.Seconds() }
	rounds := func(seconds ...int) (all []Measurement) {
		for _, s := range seconds {
			all = append(all, Measurement{Report: Report{CPU: time.Duration(s) * time.Second}})
		}
		return all
	}
	require.InDelta(t, 7, median(rounds(7), self), 0)
	require.InDelta(t, 2, median(rounds(9, 2, 1), self), 0)
	require.InDelta(t, 3, median(rounds(4, 9, 1, 2), self), 0)
}

func TestAComparisonThatCannotBeMadeSaysWhy(t *testing.T) {
	refuse := func(status int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	stranger := ownTarget(t, "x", refuse(http.StatusNoContent))
	stranger.Processes = []int{1 << 30}
	for _, c := range []struct{ name, args, want string }{
		{"pid", stranger.flag(), "--target=x: there is no process 1073741824 on this machine"},
		{"connection", ownTarget(t, "x", gone.URL).flag(), "--target=x: nothing answers at its URL: "},
		{"path", ownTarget(t, "x", refuse(http.StatusNotFound)).flag(), "--target=x, round 1: the receiver refused samples: 404"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append(strings.Fields(c.args), "--series=10", "--span=1m", "--settle=0s")
			require.Equal(t, exitFaulty, MainCompare(t.Context(), args, &stdout, &stderr))
			require.Contains(t, stderr.String(), c.want)
		})
	}
}

func TestAnInterruptedComparisonPrintsWhatItHas(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	second := &receiver{before: func(http.ResponseWriter, *http.Request) bool { interrupt(); return false }}
	var stdout, stderr bytes.Buffer
	code := MainCompare(ctx, []string{
		"--series=10", "--span=1m", "--settle=0s",
		ownTarget(t, "one", (&receiver{}).start(t)).flag(), ownTarget(t, "two", second.start(t)).flag(),
	}, &stdout, &stderr)
	require.Equal(t, exitFaulty, code)
	require.Contains(t, stderr.String(), "--target=two, round 1: interrupted before the last round had ended")
	require.Regexp(t, `1 +one `, stdout.String())
	require.NotRegexp(t, `1 +two `, stdout.String())
}

func TestCompareExplainsWrongFlags(t *testing.T) {
	const target = "--target=x,http://x/api/v1/write,1 "
	for _, c := range []struct{ args, want string }{
		{"", "--target: name at least one receiver"},
		{"--target=x", "it is not NAME,URL,PID such as"},
		{"--target=x,http://x", "it is not NAME,URL,PID such as"},
		{"--target=x,http://x,y", `"y" is not a process id`},
		{"--target=x,there,1", `--target=x: "there" is not a URL such as`},
		{target + target, "--target: two receivers are called x"},
		{target + "--span=0s", "--span: a comparison is not sent live"},
		{target + "--rounds=0", "--rounds: 0 is outside 1 to 100"},
		{target + "--settle=-1s", "--settle: -1s is negative"},
		{target + "--protocol=3", "--protocol: 3 is neither 1 nor 2"},
		{target + "there", `unexpected argument "there"`},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stderr bytes.Buffer
			require.Equal(t, exitUsage, MainCompare(t.Context(), strings.Fields(c.args), io.Discard, &stderr))
			require.Contains(t, stderr.String(), c.want)
			require.Contains(t, stderr.String(), "See hundredfold compare --help.")
		})
	}
	var stderr bytes.Buffer
	require.Equal(t, exitOK, MainCompare(t.Context(), []string{"--help"}, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "hundredfold compare --target=")
	require.Contains(t, stderr.String(), "-settle")
}
