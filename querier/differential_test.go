package querier

import (
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/queriertest"
)

// The differential tests cover six hours from here, in ms.
const (
	worldStart = 24 * hour
	worldEnd   = worldStart + 6*hour
	worldStep  = 30_000
)

// world returns the samples of the differential tests from mint to maxt: counters that
// reset, gauges with NaNs, series that end with a stale marker and come back, native
// histograms of all kinds, start timestamps, UTF-8 names. A sample depends on its time
// alone, so that two calls agree on those that both return.
func world(mint, maxt int64, add func(ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram)) {
	for t := mint; t <= maxt; t += worldStep {
		n := (t - worldStart) / worldStep
		for i := range int64(5) {
			pod := fmt.Sprintf("pod-%d", i)
			counter := float64(n * (i + 1) % 1000)
			add(labels.FromStrings("__name__", "requests_total", "pod", pod, "zone", "a"), t-n%100*worldStep-1, t, counter, nil, nil)
			if gauge, ok := gaugeAt(n, i); ok {
				add(labels.FromStrings("__name__", "temperature", "pod", pod, "größe", "µ"), 0, t, gauge, nil, nil)
			}
			h := tsdbutil.GenerateTestHistogram(n % 100)
			h.CounterResetHint = histogram.UnknownCounterReset
			add(labels.FromStrings("__name__", "latency", "pod", pod), 0, t, 0, h, nil)
			add(labels.FromStrings("__name__", "latency_float", "pod", pod), 0, t, 0, nil, tsdbutil.GenerateTestGaugeFloatHistogram(n%100))
			add(labels.FromStrings("__name__", "latency_custom", "pod", pod), 0, t, 0, tsdbutil.GenerateTestCustomBucketsHistogram(n%100), nil)
		}
		switch t {
		case worldStart:
			add(labels.FromStrings("__name__", "early", "only", "old"), 0, t, 1, nil, nil)
		case worldEnd:
			add(labels.FromStrings("__name__", "late", "only", "new"), 0, t, 1, nil, nil)
		}
	}
}

func gaugeAt(n, pod int64) (v float64, ok bool) {
	switch {
	case pod == 3 && n%50 == 40:
		return math.Float64frombits(value.StaleNaN), true
	case pod == 3 && n%50 > 40:
		return 0, false // it is gone for a while
	case pod == 4 && n%7 == 0:
		return math.NaN(), true
	}
	return math.Sin(float64(n)/10) * float64(pod+1), true
}

// halves is a rig with the world twice: alice's first two thirds are in blocks of the
// bucket and her last two thirds in the ingester; bob's world is in one plain TSDB.
func halves(t *testing.T, opt rigOption) *rig {
	r := newRig(t, opt)
	store := func(id tenant.ID, mint, maxt int64) {
		s := &queriertest.Storage{Tenant: id, Queryable: r.Queryable(), Push: r.ingester.Push}
		app := s.AppenderV2(t.Context())
		world(mint, maxt, func(ls labels.Labels, st, at int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) {
			_, err := app.Append(0, ls, st, at, v, h, fh, storage.AOptions{})
			require.NoError(t, err)
		})
		require.NoError(t, app.Commit())
	}
	store(alice, worldStart, worldStart+4*hour)
	for _, dir := range r.ingester.cut(alice, t.TempDir(), hour) {
		r.uploadDir(alice, dir)
	}
	r.ingester.forget(alice)
	store(alice, worldStart+2*hour, worldEnd)
	store(bob, worldStart, worldEnd)
	r.refresh()
	return r
}

func TestSamplesInBothPlacesAreReadOnceAndBitExact(t *testing.T) {
	r := halves(t, rigOption{})
	plain, err := r.ingester.get(bob).Querier(worldStart, worldEnd)
	require.NoError(t, err)
	defer plain.Close()
	merged, err := r.Queryable().Querier(worldStart, worldEnd)
	require.NoError(t, err)
	defer merged.Close()
	mergedChunks, err := r.Queryable().ChunkQuerier(worldStart, worldEnd)
	require.NoError(t, err)
	defer mergedChunks.Close()

	all := labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")
	want := samplesOf(t, plain.Select(t.Context(), true, nil, all))
	require.Len(t, want, 27)
	require.Equal(t, want, samplesOf(t, merged.Select(as(alice), true, nil, all)))
	require.Equal(t, want, samplesOf(t, storage.NewSeriesSetFromChunkSeriesSet(mergedChunks.Select(as(alice), true, nil, all))))
}

// samplesOf returns the samples of each series, as text that is equal if all bits are.
// The hints of counter resets are not part of a sample.
func samplesOf(t *testing.T, set storage.SeriesSet) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for set.Next() {
		name := set.At().Labels().String()
		require.NotContains(t, out, name, "a series twice")
		it := set.At().Iterator(nil)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			var line string
			switch kind {
			case chunkenc.ValFloat:
				at, v := it.At()
				line = fmt.Sprintf("%d %d %x", at, it.AtST(), math.Float64bits(v))
			case chunkenc.ValHistogram:
				at, h := it.AtHistogram(nil)
				line = fmt.Sprintf("%d %d int %s %v %x", at, h.Schema, h, h.CustomValues, math.Float64bits(h.Sum))
			case chunkenc.ValFloatHistogram:
				at, h := it.AtFloatHistogram(nil)
				line = fmt.Sprintf("%d %d float %s %v %x", at, h.Schema, h, h.CustomValues, math.Float64bits(h.Sum))
			}
			out[name] = append(out[name], line)
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	return out
}

// Whatever the API is asked, alice, whose samples are in two places, gets what bob gets.
func TestAnswersAreThoseOfOnePlainTSDB(t *testing.T) {
	for _, where := range []struct {
		name string
		opt  rigOption
		lent bool
	}{{"blocks in place", rigOption{inPlace: true}, false}, {"copies of blocks", rigOption{}, false}, {"blocks of other queriers", rigOption{}, true}} {
		t.Run(where.name, func(t *testing.T) {
			r := halves(t, where.opt)
			if where.lent {
				r.lend()
			}
			at := func(offset int64) string { return fmt.Sprint((worldStart + offset) / 1000) }
			var paths []string
			for _, query := range []string{
				`requests_total`, `rate(requests_total[5m])`, `sum by (zone) (increase(requests_total[1h]))`,
				`topk(2, temperature)`, `temperature`, `{"größe"="µ"}`, `count_over_time(temperature[3h])`, `absent(temperature{pod="pod-3"})`,
				`histogram_quantile(0.9, rate(latency[10m]))`, `latency`, `avg(latency_float)`, `histogram_count(latency_custom)`, `resets(latency[2h])`,
				`max_over_time(rate(requests_total[5m])[2h:10m])`, `requests_total offset 3h`, `requests_total @ start()`, `early`, `late`,
				`changes(temperature{pod="pod-3"}[4h])`, `sum(count_over_time({__name__=~".+"}[5h]))`, `label_replace(up, "a", "b", "", "")`,
				`quantile_over_time(0.5, temperature[2h30m])`, `1 + 1`, `time()`, `nonexistent`, `requests_total{pod!="pod-1"} unless temperature > 0`,
			} {
				for _, offset := range []int64{0, 119 * minute, 2 * hour, 3 * hour, 4 * hour, 4*hour + 1, 6 * hour, 7 * hour} {
					paths = append(paths, "/api/v1/query?"+url.Values{"query": {query}, "time": {at(offset)}}.Encode())
				}
				paths = append(paths,
					"/api/v1/query_range?"+url.Values{"query": {query}, "start": {at(0)}, "end": {at(7 * hour)}, "step": {"97s"}}.Encode(),
					"/api/v1/query_range?"+url.Values{"query": {query}, "start": {at(3 * hour)}, "end": {at(3*hour + 10*minute)}, "step": {"15s"}, "lookback_delta": {"40s"}}.Encode())
			}
			for _, path := range []string{
				"/api/v1/labels?", "/api/v1/labels?limit=2", "/api/v1/labels?match[]=early", "/api/v1/labels?match[]=early&match[]=late",
				"/api/v1/label/__name__/values?", "/api/v1/label/__name__/values?limit=3", "/api/v1/label/pod/values?match[]=temperature",
				"/api/v1/label/U__gr_f6__df_e/values?", "/api/v1/label/only/values?match[]=early&match[]=late",
				`/api/v1/series?match[]={__name__!=""}`, `/api/v1/series?match[]={__name__!=""}&limit=4`, "/api/v1/series?match[]=early&match[]=latency",
				"/api/v1/series?match[]=nonexistent",
			} {
				paths = append(paths, path)
				if !strings.HasPrefix(path, "/api/v1/series") {
					continue // labels are known by block, in Prometheus as here, so they depend on how time is cut
				}
				paths = append(paths,
					path+"&start="+at(0)+"&end="+at(hour), path+"&start="+at(5*hour)+"&end="+at(6*hour), path+"&start="+at(90*minute)+"&end="+at(5*hour))
			}
			for _, path := range paths {
				want, got := r.get(bob, path), r.get(alice, path)
				require.Equal(t, want.Code, got.Code, path)
				if !strings.HasPrefix(path, "/api/v1/series") {
					require.JSONEq(t, want.Body, got.Body, path)
					continue
				}
				var wantSeries, gotSeries []map[string]string // in no particular order
				require.NoError(t, json.Unmarshal(want.Data, &wantSeries))
				require.NoError(t, json.Unmarshal(got.Data, &gotSeries))
				require.Equal(t, want.Warnings, got.Warnings, path)
				if strings.Contains(path, "limit=") {
					require.Len(t, gotSeries, len(wantSeries), path) // any of them will do
					continue
				}
				require.ElementsMatch(t, wantSeries, gotSeries, path)
			}
		})
	}
}
