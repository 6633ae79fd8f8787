package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/testcluster"
)

// Two Prometheus servers scrape Hundredfold and a target with metrics of every
// kind, and send what they scraped to Hundredfold, one by remote write 1.0 and
// one by 2.0. Afterwards Hundredfold answers like each of them.
func TestAnswersEqualThoseOfThePrometheusThatSent(t *testing.T) {
	t.Parallel()
	testcluster.Tool(t, "prometheus")
	store := testcluster.Start(t, testcluster.Options{Config: quiet + "multitenancy: {enabled: true}\n"})
	for _, c := range []struct {
		name, message string
		metadata      bool // is sent; Prometheus 3.15 does not send it by 2.0, whatever its flags say
	}{
		{"one", "prometheus.WriteRequest", true},
		{"two", "io.prometheus.write.v2.Request", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			target := newTarget(t)
			prometheus := testcluster.StartPrometheus(t, fmt.Sprintf(`
global:
  scrape_interval: 1s
  scrape_native_histograms: true
  always_scrape_classic_histograms: true
scrape_configs:
- job_name: hundredfold
  static_configs: [{targets: [%q]}]
- job_name: app
  static_configs: [{targets: [%q], labels: {zone: a}}]
- job_name: gone
  static_configs: [{targets: ["127.0.0.1:1"]}]
remote_write:
- url: %s/api/v1/write
  headers: {X-Scope-OrgID: %s}
  protobuf_message: %s
  send_exemplars: true
  send_native_histograms: true
  queue_config: {batch_send_deadline: 200ms}
  metadata_config: {send_interval: 1s}
`, strings.TrimPrefix(store.URL, "http://"), target.address, store.URL, c.name, c.message), "", "--enable-feature=exemplar-storage")

			target.awaitScrapes(t, 22)
			at := time.Now().Truncate(time.Second)
			theirs, ours := prometheus.API(""), store.API(tenant.ID(c.name))
			awaitSame(t, theirs, ours, at)
			compareQueries(t, theirs, ours, at)
			compareLabels(t, theirs, ours, at)
			compareExemplars(t, theirs, ours, at)
			if c.metadata {
				compareMetadata(t, theirs, ours)
			}

			failed, err := prometheus.Metric(t.Context(), "prometheus_remote_storage_samples_failed_total")
			require.NoError(t, err)
			require.Zero(t, failed)
		})
	}
}

// awaitSame waits until everything up to at has arrived.
func awaitSame(t testing.TB, theirs, ours v1.API, at time.Time) {
	t.Helper()
	const query = `{__name__!=""}[1m]`
	testcluster.Eventually(t, time.Minute, func(ctx context.Context) error {
		want, err := counts(ctx, theirs, query, at)
		if err != nil {
			return err
		}
		got, err := counts(ctx, ours, query, at)
		if err != nil {
			return err
		}
		for series, count := range want {
			if got[series] != count {
				return fmt.Errorf("Prometheus has %d samples of %s, Hundredfold has %d", count, series, got[series])
			}
		}
		if len(want) < 100 || len(got) != len(want) {
			return fmt.Errorf("Prometheus has %d series, Hundredfold has %d", len(want), len(got))
		}
		return nil
	})
}

// counts returns how many samples each of the series has.
func counts(ctx context.Context, api v1.API, query string, at time.Time) (map[string]int, error) {
	value, _, _, err := api.Query(ctx, query, at)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, s := range value.(model.Matrix) {
		counts[s.Metric.String()] = len(s.Values) + len(s.Histograms)
	}
	return counts, nil
}

// answer is all that a client sees of the answer to a query.
type answer struct {
	Value    model.Value
	Warnings v1.Warnings
	Infos    v1.Infos
}

func compareQueries(t *testing.T, theirs, ours v1.API, at time.Time) {
	t.Helper()
	empty := 0
	for _, query := range queries() {
		for _, eval := range []time.Time{at, at.Add(-10 * time.Second)} {
			instant := func(api v1.API) string {
				value, warnings, infos, err := api.Query(t.Context(), query, eval)
				require.NoError(t, err, query)
				if v, ok := value.(model.Vector); ok && len(v) == 0 {
					empty++
				}
				if !ordered(query) {
					sorted(value)
				}
				return asText(t, answer{value, warnings, infos})
			}
			require.Equalf(t, instant(theirs), instant(ours), "instant query %s", query)
		}
		if strings.HasSuffix(query, "]") {
			continue // a range vector is no answer to a range query
		}
		overTime := func(api v1.API) string {
			r := v1.Range{Start: at.Add(-20 * time.Second), End: at, Step: 3 * time.Second}
			value, warnings, infos, err := api.QueryRange(t.Context(), query, r)
			require.NoError(t, err, query)
			return asText(t, answer{sorted(value), warnings, infos})
		}
		require.Equalf(t, overTime(theirs), overTime(ours), "range query %s", query)
	}
	require.Lessf(t, empty, len(queries()), "too many queries find nothing") // each is asked four times
}

func compareLabels(t testing.TB, theirs, ours v1.API, at time.Time) {
	t.Helper()
	from := at.Add(-time.Minute)
	for _, match := range [][]string{nil, {"up"}, {`{job="app"}`, `go_goroutines`}, {`{zone=~".+",code!=""}`}} {
		awaitEqual(t, theirs, ours, fmt.Sprintf("label names of %q", match), func(ctx context.Context, api v1.API) (model.LabelNames, error) {
			names, _, _, err := api.LabelNames(ctx, match, from, at)
			return names, err
		})
		for _, name := range []string{"__name__", "job", "code", "le", "absent"} {
			awaitEqual(t, theirs, ours, fmt.Sprintf("values of %s of %q", name, match), func(ctx context.Context, api v1.API) (model.LabelValues, error) {
				values, _, _, err := api.LabelValues(ctx, name, match, from, at)
				return values, err
			})
		}
		if match == nil {
			continue // series needs a selector
		}
		awaitEqual(t, theirs, ours, fmt.Sprintf("series of %q", match), func(ctx context.Context, api v1.API) ([]string, error) {
			found, _, _, err := api.Series(ctx, match, from, at)
			series := make([]string, 0, len(found))
			for _, labels := range found {
				series = append(series, model.Metric(labels).String())
			}
			slices.Sort(series)
			return series, err
		})
	}
}

// awaitEqual waits until both answer alike. The head of a TSDB has no time
// range for labels: what was scraped since the last sample that was waited for
// shows too, and may still be on its way.
func awaitEqual[T any](t testing.TB, theirs, ours v1.API, what string, ask func(context.Context, v1.API) (T, error)) {
	t.Helper()
	testcluster.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		want, err := ask(ctx, theirs)
		if err != nil {
			return err
		}
		got, err := ask(ctx, ours)
		if err != nil {
			return err
		}
		if want, got := asText(t, want), asText(t, got); want != got {
			return fmt.Errorf("%s: Prometheus has\n%s\nHundredfold has\n%s", what, want, got)
		}
		return nil
	})
}

func compareExemplars(t testing.TB, theirs, ours v1.API, at time.Time) {
	t.Helper()
	for _, query := range []string{"app_requests_total", "app_duration_seconds_bucket", "app_native_seconds", `rate(app_requests_total{code="200"}[5s])`} {
		awaitEqual(t, theirs, ours, "exemplars of "+query, func(ctx context.Context, api v1.API) ([]v1.ExemplarQueryResult, error) {
			return api.QueryExemplars(ctx, query, at.Add(-30*time.Second), at)
		})
	}
}

func compareMetadata(t testing.TB, theirs, ours v1.API) {
	t.Helper()
	for _, metric := range []string{"app_requests_total", "app_temperature_celsius", "app_duration_seconds", "app_native_seconds", "app_size_bytes"} {
		awaitEqual(t, theirs, ours, "metadata of "+metric, func(ctx context.Context, api v1.API) (map[string][]v1.Metadata, error) {
			metadata, err := api.Metadata(ctx, metric, "")
			if err == nil && len(metadata) == 0 {
				err = fmt.Errorf("no metadata of %s", metric)
			}
			return metadata, err
		})
	}
}

// ordered reports whether the order of the query's answer means something.
func ordered(query string) bool {
	return strings.HasPrefix(query, "sort") || strings.HasPrefix(query, "topk") || strings.HasPrefix(query, "bottomk")
}

// sorted puts what has no order in one.
func sorted(value model.Value) model.Value {
	switch v := value.(type) {
	case model.Vector:
		slices.SortFunc(v, func(a, b *model.Sample) int { return strings.Compare(a.Metric.String(), b.Metric.String()) })
	case model.Matrix:
		slices.SortFunc(v, func(a, b *model.SampleStream) int { return strings.Compare(a.Metric.String(), b.Metric.String()) })
	}
	return value
}

// asText writes an answer so that NaN equals NaN and differences can be read.
func asText(t testing.TB, v any) string {
	t.Helper()
	text, err := json.MarshalIndent(v, "", " ")
	require.NoError(t, err)
	return string(text)
}

func queries() []string {
	return []string{
		// Selectors.
		`up`,
		`{job="app"}`,
		`app_requests_total{code=~"2..|5.."}`,
		`app_requests_total{code!~"2.."}`,
		`{__name__=~"go_.*",job="hundredfold"}`,
		`app_requests_total[10s]`,
		`{job="app"}[5s]`,
		`app_requests_total offset 5s`,
		`app_native_seconds`,
		`app_native_seconds[8s]`,
		// Counters.
		`rate(app_requests_total[10s])`,
		`irate(app_requests_total[10s])`,
		`increase(app_requests_total[15s])`,
		`sum by (code) (rate(app_requests_total[10s]))`,
		`sum without (code, instance) (rate(app_requests_total[10s]))`,
		`sum(rate(app_requests_total{code="500"}[10s])) / sum(rate(app_requests_total[10s]))`,
		`resets(app_flapping_total[20s])`,
		`rate(app_flapping_total[20s])`,
		`changes(app_temperature_celsius[10s])`,
		// Gauges.
		`app_temperature_celsius`,
		`avg_over_time(app_temperature_celsius[10s])`,
		`max_over_time(app_temperature_celsius[10s]) - min_over_time(app_temperature_celsius[10s])`,
		`quantile_over_time(0.5, app_temperature_celsius[10s])`,
		`stddev_over_time(app_temperature_celsius[10s])`,
		`delta(app_temperature_celsius[10s])`,
		`deriv(app_temperature_celsius[10s])`,
		`predict_linear(app_temperature_celsius[10s], 60)`,
		`last_over_time(app_brief[5s])`,
		`count_over_time(app_brief[30s])`,
		`app_brief`,
		`present_over_time(app_brief[15s])`,
		`app_special`,
		// Histograms, classic and native.
		`histogram_quantile(0.9, sum by (le) (rate(app_duration_seconds_bucket[10s])))`,
		`histogram_quantile(0.5, rate(app_native_seconds[10s]))`,
		`histogram_count(app_native_seconds)`,
		`histogram_sum(rate(app_native_seconds[10s]))`,
		`histogram_avg(rate(app_native_seconds[10s]))`,
		`histogram_fraction(0, 0.5, app_native_seconds)`,
		`sum(rate(app_native_seconds[10s]))`,
		`increase(app_native_seconds[10s])`,
		`app_duration_seconds_bucket{le="0.5"}`,
		`app_size_bytes{quantile="0.5"}`,
		// Aggregation, sets, joins, order.
		`count({__name__!=""})`,
		`count by (__name__) ({job="app"})`,
		`topk(2, app_requests_total)`,
		`bottomk(1, app_requests_total)`,
		`sort_desc(app_requests_total)`,
		`quantile(0.5, app_requests_total)`,
		`count_values("value", up)`,
		`stddev(app_requests_total)`,
		`app_requests_total * on (instance) group_left (version) app_info`,
		`app_requests_total unless app_requests_total{code="500"}`,
		`up == 0`,
		`up == bool 1`,
		`up or vector(1)`,
		`absent(absent_metric)`,
		`absent_over_time(app_brief[3s])`,
		`label_replace(up, "short", "$1", "job", "(...).*")`,
		`label_join(up, "both", "-", "job", "instance")`,
		// Time and subqueries.
		`time() - timestamp(up)`,
		`max_over_time(rate(app_requests_total[5s])[15s:2s])`,
		`sum_over_time(app_temperature_celsius[10s:3s])`,
		`app_requests_total @ end()`,
		`hour(vector(time()))`,
		`clamp_max(app_temperature_celsius, 20)`,
		`scalar(sum(up))`,
		`1 + 1`,
		`scrape_samples_scraped`,
	}
}
