package wire

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"

	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// nothing is a regular expression that matches no string that is UTF-8.
const nothing = `[^\x00-\x{10FFFF}]`

// MatchersToProto returns matchers as messages. Label names are UTF-8, since the parser
// of PromQL sees to that; values may be anything.
func MatchersToProto(matchers []*labels.Matcher) []*queryv1.Matcher {
	encoded := make([]*queryv1.Matcher, len(matchers))
	for i, m := range matchers {
		encoded[i] = &queryv1.Matcher{Type: typeToProto(m.Type), Name: m.Name, Value: m.Value}
		if !utf8.ValidString(m.Value) {
			encoded[i].Type, encoded[i].Value = withoutInvalid(m)
		}
	}
	return encoded
}

// withoutInvalid returns a condition that is the same as m, whose value is not UTF-8,
// for all values that can be stored.
func withoutInvalid(m *labels.Matcher) (queryv1.Matcher_Type, string) {
	switch m.Type {
	case labels.MatchEqual:
		return queryv1.Matcher_TYPE_REGEXP, nothing
	case labels.MatchNotEqual:
		return queryv1.Matcher_TYPE_NOT_REGEXP, nothing
	case labels.MatchRegexp, labels.MatchNotRegexp:
	}
	// The only regular expressions that need not be UTF-8 are alternatives of literals,
	// which Prometheus does not compile.
	valid := slices.DeleteFunc(strings.Split(m.Value, "|"), func(literal string) bool { return !utf8.ValidString(literal) })
	if len(valid) == 0 {
		return typeToProto(m.Type), nothing
	}
	return typeToProto(m.Type), strings.Join(valid, "|")
}

func typeToProto(t labels.MatchType) queryv1.Matcher_Type {
	switch t {
	case labels.MatchEqual:
		return queryv1.Matcher_TYPE_EQUAL
	case labels.MatchNotEqual:
		return queryv1.Matcher_TYPE_NOT_EQUAL
	case labels.MatchRegexp:
		return queryv1.Matcher_TYPE_REGEXP
	case labels.MatchNotRegexp:
		return queryv1.Matcher_TYPE_NOT_REGEXP
	default:
		return queryv1.Matcher_TYPE_UNSPECIFIED
	}
}

func typeFromProto(t queryv1.Matcher_Type) (labels.MatchType, bool) {
	switch t {
	case queryv1.Matcher_TYPE_EQUAL:
		return labels.MatchEqual, true
	case queryv1.Matcher_TYPE_NOT_EQUAL:
		return labels.MatchNotEqual, true
	case queryv1.Matcher_TYPE_REGEXP:
		return labels.MatchRegexp, true
	case queryv1.Matcher_TYPE_NOT_REGEXP:
		return labels.MatchNotRegexp, true
	case queryv1.Matcher_TYPE_UNSPECIFIED:
	}
	return 0, false
}

// MatchersFromProto returns the matchers in encoded. A type that this release does not
// know, or a regular expression that is none, is an InvalidError: to leave the
// matcher out would return what was not asked for.
func MatchersFromProto(encoded []*queryv1.Matcher) ([]*labels.Matcher, error) {
	matchers := make([]*labels.Matcher, len(encoded))
	for i, m := range encoded {
		of, ok := typeFromProto(m.GetType())
		if !ok {
			return nil, Invalid(fmt.Errorf("the matcher on label %q is of the unknown type %d", m.GetName(), m.GetType()))
		}
		matcher, err := labels.NewMatcher(of, m.GetName(), m.GetValue())
		if err != nil {
			return nil, Invalid(fmt.Errorf("the matcher on label %q: %w", m.GetName(), err))
		}
		matchers[i] = matcher
	}
	return matchers, nil
}

// SelectorsToProto returns selectors as messages, as MatchersToProto does.
func SelectorsToProto(selectors [][]*labels.Matcher) []*queryv1.Selector {
	encoded := make([]*queryv1.Selector, len(selectors))
	for i, matchers := range selectors {
		encoded[i] = &queryv1.Selector{Matchers: MatchersToProto(matchers)}
	}
	return encoded
}

// SelectorsFromProto returns the selectors in encoded, as MatchersFromProto does.
func SelectorsFromProto(encoded []*queryv1.Selector) ([][]*labels.Matcher, error) {
	selectors := make([][]*labels.Matcher, len(encoded))
	for i, s := range encoded {
		matchers, err := MatchersFromProto(s.GetMatchers())
		if err != nil {
			return nil, err
		}
		selectors[i] = matchers
	}
	return selectors, nil
}

// LabelsToProto returns ls as messages.
func LabelsToProto(ls labels.Labels) []*queryv1.Label {
	encoded := make([]*queryv1.Label, 0, ls.Len())
	ls.Range(func(l labels.Label) { encoded = append(encoded, &queryv1.Label{Name: l.Name, Value: l.Value}) })
	return encoded
}

var (
	errLabelTwice   = errors.New("a label name stands twice")
	errLabelTooLong = errors.New("a label is too long")
)

// LabelsFromProto returns the labels in encoded, sorted.
func LabelsFromProto(encoded []*queryv1.Label) (labels.Labels, error) {
	const most = 1<<24 - 1 // bytes, beyond which labels panic
	b := labels.NewScratchBuilder(len(encoded))
	for _, l := range encoded {
		if len(l.GetName()) > most || len(l.GetValue()) > most {
			return labels.EmptyLabels(), errLabelTooLong
		}
		b.Add(l.GetName(), l.GetValue())
	}
	b.Sort()
	ls := b.Labels()
	if _, twice := ls.HasDuplicateLabelNames(); twice {
		return labels.EmptyLabels(), errLabelTwice
	}
	return ls, nil
}

// ExemplarsToProto returns results as messages.
func ExemplarsToProto(results []exemplar.QueryResult) []*queryv1.ExemplarSeries {
	encoded := make([]*queryv1.ExemplarSeries, len(results))
	for i, r := range results {
		s := &queryv1.ExemplarSeries{Labels: LabelsToProto(r.SeriesLabels)}
		for _, e := range r.Exemplars {
			s.Exemplars = append(s.Exemplars, &queryv1.Exemplar{
				Labels:       LabelsToProto(e.Labels),
				Value:        e.Value,
				TimestampMs:  e.Ts,
				HasTimestamp: e.HasTs,
			})
		}
		encoded[i] = s
	}
	return encoded
}

// ExemplarsFromProto returns the results in encoded.
func ExemplarsFromProto(encoded []*queryv1.ExemplarSeries) ([]exemplar.QueryResult, error) {
	results := make([]exemplar.QueryResult, len(encoded))
	for i, s := range encoded {
		ls, err := LabelsFromProto(s.GetLabels())
		if err != nil {
			return nil, fmt.Errorf("series %d of the exemplars: %w", i, err)
		}
		results[i].SeriesLabels = ls
		for j, m := range s.GetExemplars() {
			e := exemplar.Exemplar{Value: m.GetValue(), Ts: m.GetTimestampMs(), HasTs: m.GetHasTimestamp()}
			if e.Labels, err = LabelsFromProto(m.GetLabels()); err != nil {
				return nil, fmt.Errorf("exemplar %d of series %s: %w", j, ls, err)
			}
			results[i].Exemplars = append(results[i].Exemplars, e)
		}
	}
	return results, nil
}

// MetadataToProto returns what is known of metrics as messages, by metric, and for each
// in the order in which it stands.
func MetadataToProto(known map[string][]metadata.Metadata) []*queryv1.Metadata {
	var encoded []*queryv1.Metadata
	for _, metric := range slices.Sorted(maps.Keys(known)) {
		for _, m := range known[metric] {
			encoded = append(encoded, &queryv1.Metadata{
				Metric: text(metric),
				Type:   text(string(m.Type)),
				Help:   text(m.Help),
				Unit:   text(m.Unit),
			})
		}
	}
	return encoded
}

// MetadataFromProto returns what MetadataToProto encoded. It is never nil.
func MetadataFromProto(encoded []*queryv1.Metadata) map[string][]metadata.Metadata {
	known := make(map[string][]metadata.Metadata)
	for _, m := range encoded {
		known[m.GetMetric()] = append(known[m.GetMetric()], metadata.Metadata{
			Type: model.MetricType(m.GetType()),
			Unit: m.GetUnit(),
			Help: m.GetHelp(),
		})
	}
	return known
}

// StatsToProto returns the statistics of a head as a message without a holding; nil
// says that nothing of the tenant is in memory.
func StatsToProto(s *tsdb.Stats) *queryv1.StatsResponse {
	if s == nil {
		return &queryv1.StatsResponse{}
	}
	m := &queryv1.StatsResponse{Present: true, Series: s.NumSeries, MinMs: s.MinTime, MaxMs: s.MaxTime}
	if p := s.IndexPostingStats; p != nil {
		m.LabelPairs = uint64(p.NumLabelPairs)
		m.SeriesByMetric = countsToProto(p.CardinalityMetricsStats)
		m.SeriesByLabelValue = countsToProto(p.LabelValuePairsStats)
		m.MemoryByLabel = countsToProto(p.LabelValueStats)
		m.ValuesByLabel = countsToProto(p.CardinalityLabelStats)
	}
	return m
}

// StatsFromProto returns the statistics in m; false says that nothing of the tenant is
// in the peer's memory.
func StatsFromProto(m *queryv1.StatsResponse) (*tsdb.Stats, bool) {
	if !m.GetPresent() {
		return nil, false
	}
	return &tsdb.Stats{
		NumSeries: m.GetSeries(),
		MinTime:   m.GetMinMs(),
		MaxTime:   m.GetMaxMs(),
		IndexPostingStats: &index.PostingsStats{
			CardinalityMetricsStats: countsFromProto(m.GetSeriesByMetric()),
			LabelValuePairsStats:    countsFromProto(m.GetSeriesByLabelValue()),
			LabelValueStats:         countsFromProto(m.GetMemoryByLabel()),
			CardinalityLabelStats:   countsFromProto(m.GetValuesByLabel()),
			NumLabelPairs:           int(min(m.GetLabelPairs(), math.MaxInt)),
		},
	}, true
}

func countsToProto(stats []index.Stat) []*queryv1.Count {
	encoded := make([]*queryv1.Count, len(stats))
	for i, s := range stats {
		encoded[i] = &queryv1.Count{Name: text(s.Name), Count: s.Count}
	}
	return encoded
}

func countsFromProto(encoded []*queryv1.Count) []index.Stat {
	stats := make([]index.Stat, len(encoded))
	for i, m := range encoded {
		stats[i] = index.Stat{Name: m.GetName(), Count: m.GetCount()}
	}
	return stats
}
