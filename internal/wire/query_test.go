package wire

import (
	"math"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"

	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

func TestMatchersSurviveTheNetwork(t *testing.T) {
	var want []*labels.Matcher
	for _, of := range []labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp} {
		want = append(want, labels.MustNewMatcher(of, "job", "a.*|Ü"), labels.MustNewMatcher(of, "", ""))
	}
	m := sent(t, &queryv1.SelectRequest{Matchers: MatchersToProto(want)})
	got, err := MatchersFromProto(m.GetMatchers())
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i].String(), got[i].String())
		require.Equal(t, want[i].Matches("axe"), got[i].Matches("axe"))
	}

	selectors := [][]*labels.Matcher{want[:2], {}, want[2:]}
	exemplars := sent(t, &queryv1.ExemplarsRequest{Selectors: SelectorsToProto(selectors)})
	back, err := SelectorsFromProto(exemplars.GetSelectors())
	require.NoError(t, err)
	require.Len(t, back, 3)
	for i := range selectors {
		require.Len(t, back[i], len(selectors[i]))
	}
}

// PromQL takes any bytes in a string, messages do not.
func TestMatchersOnWhatIsNotUTF8MatchAsTheyWould(t *testing.T) {
	for _, of := range []labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp} {
		for _, pattern := range []string{"\xff", "a|\xff", "\xff|", "\xff|\xfe", "a||\xff|Ü"} {
			want := labels.MustNewMatcher(of, "job", pattern)
			m := sent(t, &queryv1.Selector{Matchers: MatchersToProto([]*labels.Matcher{want})})
			got, err := MatchersFromProto(m.GetMatchers())
			require.NoError(t, err)
			for _, stored := range []string{"", "a", "\uFFFD", "\n", "\x00", "Ü", "\U0010FFFF", "two\nlines"} {
				require.Equal(t, want.Matches(stored), got[0].Matches(stored), "%s on %q", want, stored)
			}
		}
	}
	_, err := labels.NewMatcher(labels.MatchRegexp, "job", ".*\xff")
	require.Error(t, err, "other regular expressions are never like that")
}

func TestMatchersThatMakeNoSenseAreInvalid(t *testing.T) {
	for _, m := range []*queryv1.Matcher{
		nil,
		{Name: "job", Value: "a"},
		{Type: 99, Name: "job", Value: "a"},
		{Type: -1, Name: "job", Value: "a"},
		{Type: queryv1.Matcher_TYPE_REGEXP, Name: "job", Value: "("},
		{Type: queryv1.Matcher_TYPE_NOT_REGEXP, Name: "job", Value: "["},
	} {
		_, err := MatchersFromProto([]*queryv1.Matcher{m})
		require.Equal(t, 400, HTTPStatus(err), "%v", m)
		_, err = SelectorsFromProto([]*queryv1.Selector{nil, {Matchers: []*queryv1.Matcher{m}}})
		require.Equal(t, 400, HTTPStatus(err), "%v", m)
	}
}

func TestExemplarsSurviveTheNetwork(t *testing.T) {
	want := []exemplar.QueryResult{
		{SeriesLabels: labels.FromStrings("__name__", "up", "a", "b"), Exemplars: []exemplar.Exemplar{
			{Labels: labels.FromStrings("trace_id", "Ü"), Value: 1.5, Ts: -7, HasTs: true},
			{Labels: labels.EmptyLabels(), Value: math.Copysign(0, -1)},
		}},
		{SeriesLabels: labels.EmptyLabels()},
	}
	m := sent(t, &queryv1.ExemplarsResponse{Series: ExemplarsToProto(want)})
	got, err := ExemplarsFromProto(m.GetSeries())
	require.NoError(t, err)
	require.Equal(t, want, got)

	stale := []exemplar.QueryResult{{Exemplars: []exemplar.Exemplar{{Value: math.Float64frombits(value.StaleNaN)}}}}
	m = sent(t, &queryv1.ExemplarsResponse{Series: ExemplarsToProto(stale)})
	got, err = ExemplarsFromProto(m.GetSeries())
	require.NoError(t, err)
	require.Equal(t, value.StaleNaN, math.Float64bits(got[0].Exemplars[0].Value))
}

func TestLabelsOfAHostilePeer(t *testing.T) {
	ls, err := LabelsFromProto([]*queryv1.Label{{Name: "b", Value: "2"}, {Name: "a", Value: "1"}})
	require.NoError(t, err)
	require.Equal(t, labels.FromStrings("a", "1", "b", "2"), ls, "sorted")
	_, err = LabelsFromProto([]*queryv1.Label{{Name: "a", Value: "1"}, nil, {Name: "a", Value: "2"}})
	require.ErrorIs(t, err, errLabelTwice)
	_, err = LabelsFromProto([]*queryv1.Label{{Name: "a", Value: string(make([]byte, 1<<24))}})
	require.ErrorIs(t, err, errLabelTooLong)
	twice := []*queryv1.Label{{Name: "a", Value: "1"}, {Name: "a", Value: "1"}}
	_, err = ExemplarsFromProto([]*queryv1.ExemplarSeries{{Labels: twice}})
	require.ErrorIs(t, err, errLabelTwice)
	_, err = ExemplarsFromProto([]*queryv1.ExemplarSeries{{Exemplars: []*queryv1.Exemplar{{Labels: twice}}}})
	require.ErrorIs(t, err, errLabelTwice)
}

func TestMetadataSurvivesTheNetwork(t *testing.T) {
	want := map[string][]metadata.Metadata{
		"up":    {{Type: model.MetricTypeGauge, Unit: "s", Help: "new"}, {Type: "of_a_later_release"}},
		"other": {{Help: "?"}},
	}
	m := sent(t, &queryv1.MetadataResponse{Metadata: MetadataToProto(want)})
	require.Equal(t, want, MetadataFromProto(m.GetMetadata()))
	require.Equal(t, "other", m.GetMetadata()[0].GetMetric(), "by metric")
	require.NotNil(t, MetadataFromProto(nil))

	broken := map[string][]metadata.Metadata{"up": {{Help: "\xff"}}}
	m = sent(t, &queryv1.MetadataResponse{Metadata: MetadataToProto(broken)})
	require.Equal(t, "\uFFFD", MetadataFromProto(m.GetMetadata())["up"][0].Help)
}

func TestStatsSurviveTheNetwork(t *testing.T) {
	want := &tsdb.Stats{NumSeries: 1, MinTime: -2, MaxTime: 3, IndexPostingStats: &index.PostingsStats{
		CardinalityMetricsStats: []index.Stat{{Name: "a", Count: 1}},
		CardinalityLabelStats:   []index.Stat{{Name: "b", Count: 2}, {Name: "c", Count: 3}},
		LabelValueStats:         []index.Stat{{Name: "d", Count: 4}},
		LabelValuePairsStats:    []index.Stat{{Name: "e=f", Count: math.MaxUint64}},
		NumLabelPairs:           7,
	}}
	got, ok := StatsFromProto(sent(t, StatsToProto(want)))
	require.True(t, ok)
	require.Equal(t, want, got)

	_, ok = StatsFromProto(sent(t, StatsToProto(nil)))
	require.False(t, ok)
	_, ok = StatsFromProto(nil)
	require.False(t, ok)
	got, ok = StatsFromProto(sent(t, StatsToProto(&tsdb.Stats{NumSeries: 5})))
	require.True(t, ok)
	require.Equal(t, uint64(5), got.NumSeries)
}

func TestAHoldingSurvivesTheNetwork(t *testing.T) {
	want := Holding{
		Instance:   "ingester-a",
		Generation: math.MaxUint64,
		Placements: []PlacementRef{{Hash: 1, Shard: 0}, {Hash: math.MaxUint64, Shard: 3}},
		HeldFrom:   -5,
		Blocks:     []ulid.ULID{ulid.MustNew(1, nil), ulid.MustNew(2, nil)},
		HeldMin:    math.MaxInt64,
		BlockMins:  []int64{-7, 9},

		IndexGeneration: math.MaxUint64,
	}
	got, err := HoldingFromProto(sent(t, HoldingToProto(want)))
	require.NoError(t, err)
	require.Equal(t, want, got)

	least := Holding{Instance: "a"}
	got, err = HoldingFromProto(sent(t, HoldingToProto(least)))
	require.NoError(t, err)
	require.Equal(t, least, got)

	got, err = HoldingFromProto(&queryv1.Holding{Instance: "a"}) // of a release before
	require.NoError(t, err)
	require.Equal(t, Holding{Instance: "a", HeldMin: math.MinInt64}, got)
}

func TestHoldingsOfAHostilePeer(t *testing.T) {
	for name, m := range map[string]*queryv1.Holding{
		"none":       nil,
		"of nobody":  {Generation: 1},
		"short ULID": {Instance: "a", Blocks: [][]byte{make([]byte, 15)}},
		"long ULID":  {Instance: "a", Blocks: [][]byte{make([]byte, 16), make([]byte, 17)}},
		"empty ULID": {Instance: "a", Blocks: [][]byte{nil}},
	} {
		_, err := HoldingFromProto(m)
		require.Error(t, err, name)
	}
	ids, err := ULIDsFromProto(ULIDsToProto([]ulid.ULID{{1}, {2}}))
	require.NoError(t, err)
	require.Equal(t, []ulid.ULID{{1}, {2}}, ids)
	require.Nil(t, ULIDsToProto(nil))
}
