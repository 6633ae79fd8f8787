package querier

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/tsdb/index"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// metadata answers /metadata. Prometheus takes it from its targets; here it is what
// senders have written. limit=0 means "no limit", as on the other paths and as
// Grafana means it; in Prometheus it means "nothing".
func (q *Querier) metadata(r *http.Request, id tenant.ID) (any, error) {
	limit, err := intParameter(r, "limit")
	if err != nil {
		return nil, err
	}
	perMetric, err := intParameter(r, "limit_per_metric")
	if err != nil {
		return nil, err
	}
	found, err := q.edge.metadata(r.Context(), id, r.FormValue("metric"))
	if err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	names := slices.Sorted(maps.Keys(found))
	if limit > 0 && len(names) > limit {
		names = names[:limit]
	}
	out := make(map[string][]metadata.Metadata, len(names))
	for _, name := range names {
		of := found[name]
		if perMetric > 0 && len(of) > perMetric {
			of = of[:perMetric]
		}
		out[name] = of
	}
	return out, nil
}

// intParameter returns a whole number; it is 0 if it is absent or below.
func intParameter(r *http.Request, name string) (int, error) {
	text := r.FormValue(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s must be a number", name)
	}
	return max(n, 0), nil
}

// tsdbStatus is the answer to /status/tsdb. It is Prometheus's without chunkCount,
// which is not known per tenant.
type tsdbStatus struct {
	HeadStats                   headStats     `json:"headStats"`
	SeriesCountByMetricName     []v1.TSDBStat `json:"seriesCountByMetricName"`
	LabelValueCountByLabelName  []v1.TSDBStat `json:"labelValueCountByLabelName"`
	MemoryInBytesByLabelName    []v1.TSDBStat `json:"memoryInBytesByLabelName"`
	SeriesCountByLabelValuePair []v1.TSDBStat `json:"seriesCountByLabelValuePair"`
}

type headStats struct {
	NumSeries     uint64 `json:"numSeries"`
	NumLabelPairs int    `json:"numLabelPairs"`
	MinTime       int64  `json:"minTime"`
	MaxTime       int64  `json:"maxTime"`
}

func (q *Querier) tsdbStatus(r *http.Request, id tenant.ID) (any, error) {
	const most = 10_000
	limit := 10
	if text := r.FormValue("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, errors.New("limit must be a positive number")
		}
		if n > most {
			return nil, fmt.Errorf("limit must not exceed %d", most)
		}
		limit = n
	}
	var (
		head     headStats
		postings index.PostingsStats
	)
	stats, err := q.edge.stats(r.Context(), id, model.MetricNameLabel, limit)
	if err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	if stats != nil {
		if stats.IndexPostingStats != nil {
			postings = *stats.IndexPostingStats
		}
		head = headStats{NumSeries: stats.NumSeries, NumLabelPairs: postings.NumLabelPairs, MinTime: stats.MinTime, MaxTime: stats.MaxTime}
	}
	return tsdbStatus{
		HeadStats:                   head,
		SeriesCountByMetricName:     v1.TSDBStatsFromIndexStats(postings.CardinalityMetricsStats),
		LabelValueCountByLabelName:  v1.TSDBStatsFromIndexStats(postings.CardinalityLabelStats),
		MemoryInBytesByLabelName:    v1.TSDBStatsFromIndexStats(postings.LabelValueStats),
		SeriesCountByLabelValuePair: v1.TSDBStatsFromIndexStats(postings.LabelValuePairsStats),
	}, nil
}

// runtimeInfo answers /status/runtimeinfo: what is true of the process, but neither
// its host nor its directory, and the retention of the tenant who asks.
func (q *Querier) runtimeInfo(_ *http.Request, id tenant.ID) (any, error) {
	retention := "unlimited"
	if d := q.limits(id).Retention; d > 0 {
		retention = d.String()
	}
	return v1.RuntimeInfo{
		StartTime:           q.started,
		ServerTime:          time.Now(),
		ReloadConfigSuccess: true,
		LastConfigTime:      q.started,
		GoroutineCount:      runtime.NumGoroutine(),
		GOMAXPROCS:          runtime.GOMAXPROCS(0),
		GOMEMLIMIT:          debug.SetMemoryLimit(-1),
		GOGC:                os.Getenv("GOGC"),
		GODEBUG:             os.Getenv("GODEBUG"),
		StorageRetention:    retention,
	}, nil
}

// operates reports whether a tenant may see how the process is configured.
func (q *Querier) operates(id tenant.ID) bool {
	return q.cfg.Operator == "" || q.cfg.Operator == id
}

func (q *Querier) configStatus(_ *http.Request, id tenant.ID) (any, error) {
	text := ""
	if q.cfg.ConfigText != nil && q.operates(id) {
		text = q.cfg.ConfigText()
	}
	return map[string]string{"yaml": text}, nil
}

func (q *Querier) flagsStatus(_ *http.Request, id tenant.ID) (any, error) {
	if q.cfg.Flags == nil || !q.operates(id) {
		return map[string]string{}, nil
	}
	return q.cfg.Flags, nil
}
