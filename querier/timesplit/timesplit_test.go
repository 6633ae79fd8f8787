package timesplit

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
)

func TestWhatIsCut(t *testing.T) {
	for expr, why := range map[string]string{
		`a`:                                "",
		`{job="x"}`:                        "",
		`rate(a[5m])`:                      "",
		`sum by (le) (rate(a_bucket[6h]))`: "",
		`histogram_quantile(0.9, sum by (le) (rate(a[5m])))`: "",
		`topk(3, rate(a[5m]))`:                               "",
		`max_over_time(rate(a[5m])[1h:])`:                    "",
		`max_over_time((rate(a[5m]) or rate(b[5m]))[1h:1m])`: "",
		`label_replace(a, "x", "$1", "y", "(.*)")`:           "",
		`a / on (x) group_left (y) b`:                        "",
		`a > bool 3`:                                         "",
		`-a`:                                                 "",
		`absent(a{x="1"})`:                                   "",
		`count(sum by (x) (a))`:                              "",
		`sum(a * b)`:                                         "",
		`vector(scalar(a))`:                                  "",
		`clamp(a, 0, time())`:                                "",
		`rate(a[step() * 4])`:                                "",
		`a offset -1h`:                                       "",
		`quantile(0.5, a)`:                                   "",
		`max_over_time((a > on (x) b)[1h:])`:                 "",
		`1 + 1`:                                              "no series is read",
		`time()`:                                             "no series is read",
		`a @ 5`:                                              "fixed time",
		`rate(a[5m] @ end())`:                                "fixed time",
		`max_over_time(a[1h:1m] @ start())`:                  "fixed time",
		`rate({job="x"}[5m])`:                                "rate drops names",
		`rate({__name__=~"a|b"}[5m])`:                        "rate drops names",
		`-{job="x"}`:                                         "a sign drops names",
		`max_over_time((a or b)[1h:])`:                       "max_over_time drops names",
		`max_over_time(((a > on (x) b) or a)[1h:])`:          "max_over_time drops names",
		`max_over_time(label_replace(a, "__name__", "$1", "y", "(.*)")[1h:])`: "max_over_time drops names",
		`max_over_time(count_values("__name__", a)[1h:])`:                     "max_over_time drops names",
		`a / on (x) group_left (__name__) b`:                                  "copies the name",
		`sum(sum by (x) (a))`:                                                 "order of groups",
		`max(-sum by (x) (a))`:                                                "order of groups",
		`topk(3, sum by (x) (a))`:                                             "order of its series",
		`topk(3, a / b)`:                                                      "order of its series",
		`topk(scalar(b), a)`:                                                  "computed",
		`sort(a)`:                                                             "the function sort",
		`rate(a[range()])`:                                                    "depends on the range",
		`a offset (range() / 2)`:                                              "depends on the range",
		`limitk(3, a)`:                                                        "experimental",
		`mad_over_time(a[5m])`:                                                "experimental",
		`rate(a[5m] anchored)`:                                                "experimental",
		`info(a)`:                                                             "experimental",
		`a + fill(0) b`:                                                       "experimental",
	} {
		parsed, err := parser.NewParser(parser.Options{
			EnableExperimentalFunctions: true, ExperimentalDurationExpr: true, EnableExtendedRangeSelectors: true, EnableBinopFillModifiers: true,
		}).ParseExpr(expr)
		require.NoError(t, err, expr)
		if err := Check(parsed); why == "" {
			require.NoError(t, err, expr)
		} else {
			require.ErrorContains(t, err, why, expr)
		}
	}
}

func TestPiecesHaveEveryStepOnceAndDoNotCrossBuckets(t *testing.T) {
	for _, start := range []int64{-100, -1, 0, 1, 59, 60, 123456789} {
		for _, step := range []int64{1, 7, 60, 61, 1000} {
			for _, length := range []int64{0, 1, 59, 60, 600, 6001} {
				const width = 60
				next := start
				for _, p := range Cut(Range{start, start + length}, step, width) {
					require.Equal(t, next, p.Start)
					require.Equal(t, Bucket(p.Start, width), Bucket(p.End, width))
					require.Zero(t, (p.End-p.Start)%step)
					next = p.End + step
				}
				require.Greater(t, next, start+length)
				require.LessOrEqual(t, next-step, start+length)
			}
		}
	}
}

func TestWidthDependsOnStepAndWindow(t *testing.T) {
	for _, c := range []struct{ step, window, width time.Duration }{
		{time.Second, 5 * time.Minute, 6 * time.Hour},
		{time.Minute, 6 * time.Hour, 24 * time.Hour},
		{6 * time.Hour, 6 * time.Hour, 96 * time.Hour},
		{24 * time.Hour, 24 * time.Hour, 384 * time.Hour},
		{time.Hour, 30 * 24 * time.Hour, 3072 * time.Hour},
		{1 << 62, 1 << 62, widest},
	} {
		require.Equal(t, c.width.Milliseconds(), Width(c.step, c.window), "%s, %s", c.step, c.window)
	}
}
