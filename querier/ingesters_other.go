package querier

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

func (c *ClusterIngester) exemplars(ctx context.Context, id tenant.ID) (storage.ExemplarQuerier, error) {
	return &clusterExemplars{ctx: ctx, c: c, id: id}, nil
}

type clusterExemplars struct {
	ctx context.Context //nolint:containedctx // storage.ExemplarQuerier has it so
	c   *ClusterIngester
	id  tenant.ID
}

// Select implements storage.ExemplarQuerier. Exemplars follow their series, so the
// replicas of a series have the same ones: each counts once.
func (e *clusterExemplars) Select(start, end int64, matchers ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	req := &queryv1.ExemplarsRequest{Tenant: string(e.id), MinMs: start, MaxMs: end, Selectors: wire.SelectorsToProto(matchers)}
	got, err := gather(e.ctx, e.c, e.id, false, func(ctx context.Context, client queryv1.RecentServiceClient, heard func()) (holding wire.Holding, found []exemplar.QueryResult, err error) {
		message, err := client.Exemplars(ctx, req)
		if err != nil {
			return holding, nil, err
		}
		heard()
		if found, err = wire.ExemplarsFromProto(message.GetSeries()); err != nil {
			return holding, nil, err
		}
		holding, err = wire.HoldingFromProto(message.GetHolding())
		return holding, found, err
	})
	if err != nil {
		return nil, err
	}
	var all []exemplar.QueryResult
	for _, reply := range got.replies {
		all = append(all, reply.value...)
	}
	return mergeExemplars(all), nil
}

// mergeExemplars returns one result per series, by their labels, with its exemplars by
// time, each once.
func mergeExemplars(all []exemplar.QueryResult) []exemplar.QueryResult {
	slices.SortStableFunc(all, func(a, b exemplar.QueryResult) int { return labels.Compare(a.SeriesLabels, b.SeriesLabels) })
	var out []exemplar.QueryResult
	for _, r := range all {
		if len(out) == 0 || !labels.Equal(out[len(out)-1].SeriesLabels, r.SeriesLabels) {
			out = append(out, exemplar.QueryResult{SeriesLabels: r.SeriesLabels})
		}
		last := &out[len(out)-1]
		last.Exemplars = append(last.Exemplars, r.Exemplars...)
	}
	for i := range out {
		es := out[i].Exemplars
		slices.SortStableFunc(es, func(a, b exemplar.Exemplar) int {
			return cmp.Or(cmp.Compare(a.Ts, b.Ts), cmp.Compare(math.Float64bits(a.Value), math.Float64bits(b.Value)), labels.Compare(a.Labels, b.Labels))
		})
		out[i].Exemplars = slices.CompactFunc(es, exemplar.Exemplar.Equals)
	}
	return out
}

func (c *ClusterIngester) metadata(ctx context.Context, id tenant.ID, metric string) (map[string][]metadata.Metadata, error) {
	req := &queryv1.MetadataRequest{Tenant: string(id), Metric: metric}
	got, err := gather(ctx, c, id, false, func(ctx context.Context, client queryv1.RecentServiceClient, heard func()) (holding wire.Holding, known map[string][]metadata.Metadata, err error) {
		message, err := client.Metadata(ctx, req)
		if err != nil {
			return holding, nil, err
		}
		heard()
		holding, err = wire.HoldingFromProto(message.GetHolding())
		return holding, wire.MetadataFromProto(message.GetMetadata()), err
	})
	if err != nil {
		return nil, err
	}
	all := make([]map[string][]metadata.Metadata, len(got.replies))
	for i, reply := range got.replies {
		all[i] = reply.value
	}
	return mergeMetadata(all), nil
}

// mergeMetadata returns what any of several know of each metric, each once. Those that
// are the newest to any of them come first, then those that are second, and so on.
func mergeMetadata(all []map[string][]metadata.Metadata) map[string][]metadata.Metadata {
	merged := map[string][]metadata.Metadata{}
	for rank, more := 0, true; more; rank++ {
		more = false
		for _, known := range all {
			for metric, of := range known {
				if rank >= len(of) {
					continue
				}
				more = true
				if !slices.Contains(merged[metric], of[rank]) {
					merged[metric] = append(merged[metric], of[rank])
				}
			}
		}
	}
	return merged
}

// stats implements Edge. Every ingester that is alive is asked, since the numbers add
// up: each series is counted by all of its replicas that answer, so that the sum
// is divided by their number. What counts values and pairs of labels cannot be added up,
// since ingesters have many in common: of these the highest number counts, which is
// too low where each has some of its own.
func (c *ClusterIngester) stats(ctx context.Context, id tenant.ID, labelName string, limit int) (*tsdb.Stats, error) {
	req := &queryv1.StatsRequest{Tenant: string(id), Label: labelName, Limit: uint32(max(limit, 0))} //nolint:gosec // at most 10,000
	got, err := gather(ctx, c, id, true, func(ctx context.Context, client queryv1.RecentServiceClient, heard func()) (holding wire.Holding, stats *tsdb.Stats, err error) {
		message, err := client.Stats(ctx, req)
		if err != nil {
			return holding, nil, err
		}
		heard()
		stats, _ = wire.StatsFromProto(message)
		holding, err = wire.HoldingFromProto(message.GetHolding())
		return holding, stats, err
	})
	if err != nil {
		return nil, err
	}
	var all []*tsdb.Stats
	for _, reply := range got.replies {
		if reply.value != nil {
			all = append(all, reply.value)
		}
	}
	return mergeStats(all, got.copies, limit), nil
}

// mergeStats returns the statistics of all series together, of which there are so many
// copies; nil if there are none.
func mergeStats(all []*tsdb.Stats, copies float64, limit int) *tsdb.Stats {
	if len(all) == 0 {
		return nil
	}
	copies = max(copies, 1)
	merged := &tsdb.Stats{MinTime: math.MaxInt64, MaxTime: math.MinInt64, IndexPostingStats: &index.PostingsStats{}}
	postings := merged.IndexPostingStats
	for _, s := range all {
		merged.NumSeries += s.NumSeries
		merged.MinTime, merged.MaxTime = min(merged.MinTime, s.MinTime), max(merged.MaxTime, s.MaxTime)
		postings.NumLabelPairs = max(postings.NumLabelPairs, s.IndexPostingStats.NumLabelPairs)
	}
	merged.NumSeries = share(merged.NumSeries, copies)
	sum := func(a, b uint64) uint64 { return a + b }
	highest := func(a, b uint64) uint64 { return max(a, b) }
	of := func(pick func(*index.PostingsStats) []index.Stat, add func(a, b uint64) uint64, copies float64) []index.Stat {
		counts := map[string]uint64{}
		for _, s := range all {
			for _, stat := range pick(s.IndexPostingStats) {
				counts[stat.Name] = add(counts[stat.Name], stat.Count)
			}
		}
		return top(counts, copies, limit)
	}
	postings.CardinalityMetricsStats = of(func(p *index.PostingsStats) []index.Stat { return p.CardinalityMetricsStats }, sum, copies)
	postings.LabelValuePairsStats = of(func(p *index.PostingsStats) []index.Stat { return p.LabelValuePairsStats }, sum, copies)
	postings.LabelValueStats = of(func(p *index.PostingsStats) []index.Stat { return p.LabelValueStats }, highest, 1)
	postings.CardinalityLabelStats = of(func(p *index.PostingsStats) []index.Stat { return p.CardinalityLabelStats }, highest, 1)
	return merged
}

// share returns n of so many copies as a number of originals.
func share(n uint64, copies float64) uint64 { return uint64(math.Round(float64(n) / copies)) }

// top returns the highest counts, from high to low.
func top(counts map[string]uint64, copies float64, limit int) []index.Stat {
	stats := make([]index.Stat, 0, len(counts))
	for name, n := range counts {
		stats = append(stats, index.Stat{Name: name, Count: share(n, copies)})
	}
	slices.SortFunc(stats, func(a, b index.Stat) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Name, b.Name))
	})
	if limit > 0 && len(stats) > limit {
		stats = stats[:limit]
	}
	return stats
}

// oldest implements Edge. Of the labels that it asks for it wants none, but who holds what.
func (c *ClusterIngester) oldest(ctx context.Context, id tenant.ID) (func(*tenantView) int64, error) {
	r := &clusterRecent[storage.Querier]{c: c, id: id, account: newAccount(id, c.limits(id))}
	const never = math.MaxInt64 / 2
	got, err := gather(ctx, c, id, false, r.askLabels(request{timeRange: timeRange{never, never}, kind: labelValues, name: model.MetricNameLabel, limit: 1}))
	if err != nil {
		return nil, err
	}
	return func(v *tenantView) int64 {
		if len(got.warnings) > 0 || viewCheck(math.MinInt64, got.covered.from, got.covered.generation)(v) != nil {
			return math.MinInt64 // samples may be lacking
		}
		oldest := int64(math.MaxInt64)
		for _, reply := range got.replies {
			oldest = min(oldest, reply.holding.HeldMin, oldestOf(v, reply.holding.Blocks, reply.holding.BlockMins))
		}
		return oldest
	}, nil
}
